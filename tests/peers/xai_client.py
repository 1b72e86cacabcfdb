"""A conversation of the xai SDK with a server of xAI's chat contract.

    xai_client.py HOST:PORT CASE...
    xai_client.py - contract              (reads a FileDescriptorSet from its input)

Prints a line for each case that the server behaved in; exits 1 and says what was wrong at the first that it did not.
Cases: whole streamed tools structured batch images errors rate_limited quota midstream deadline metadata retries
too_long too_large empty overloaded
"""

import datetime
import json
import sys
import time

import grpc
import pydantic
import xai_sdk
from xai_sdk.chat import image, required_tool, system, tool, tool_result, user

from peer import *

WEATHER = tool(
    "get_weather",
    "The weather in a city now.",
    WEATHER_SCHEMA,
)


def client(target, key=KEY, timeout=20, retries=False, metadata=None):
    # What the SDK tries again by itself would be seen as one call that takes long.
    options = [] if retries else [("grpc.enable_retries", 0)]
    return xai_sdk.Client(
        api_key=key,
        api_host=target,
        use_insecure_channel=True,
        timeout=timeout,
        channel_options=options,
        metadata=metadata,
    )


def hello(of, model=MODEL, **options):
    return of.chat.create(model=model, messages=[system("Be polite."), user("Say hello.")], **options)


def counts(usage):
    return (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)


def check_hello(response):
    require(response.id, "no id")
    require(response.proto.model, "no model")
    require(response.created > datetime.datetime(2020, 1, 1), f"created {response.created}")
    same("content", response.content, HELLO_TEXT)
    same("role", response.role, "ROLE_ASSISTANT")
    same("finish_reason", response.finish_reason, "REASON_STOP")
    same("usage", counts(response.usage), HELLO_USAGE)


def whole(target):
    response = hello(client(target), temperature=0.5, max_tokens=100, top_p=0.9, seed=7, stop=["END"], user="me").sample()
    check_hello(response)
    return f"{response.content!r}, {response.usage.total_tokens} tokens"


def streamed(target):
    pieces = []
    for response, chunk in hello(client(target)).stream():
        pieces.append(chunk.content)
        require(chunk.proto.id and chunk.proto.model, "a chunk without id or model")
        require(all(output.delta.role == 2 for output in chunk.proto.outputs), "a delta of nobody")
    check_hello(response)
    same("pieces", "".join(pieces), HELLO_TEXT)
    require(len(pieces) > 3, f"only {len(pieces)} chunks")

    async def asynchronous():
        of = xai_sdk.AsyncClient(api_key=KEY, api_host=target, use_insecure_channel=True, timeout=20)
        async for response, _ in hello(of).stream():
            pass
        check_hello(response)
        check_hello(await hello(of).sample())
        await of.close()

    wait(asynchronous())
    return f"{len(pieces)} chunks"


def tools(target):
    def ask(**options):
        return client(target).chat.create(model=MODEL, messages=[user(WEATHER_QUESTION)], tools=[WEATHER], **options)

    def check(chat, response):
        same("finish_reason", response.finish_reason, "REASON_TOOL_CALLS")
        calls = response.tool_calls
        same("calls", [call.function.name for call in calls], ["get_weather"])
        same("arguments", json.loads(calls[0].function.arguments), WEATHER_ARGUMENTS)
        require(calls[0].id, "a call without an id")
        same("type", calls[0].type, 1)

    def second_turn(chat, response, id):
        check(chat, response)
        chat.append(response).append(tool_result(WEATHER_RESULT, tool_call_id=response.tool_calls[0].id if id else None))
        answer = chat.sample()
        same("second turn", answer.content, WEATHER_TEXT)
        same("finish_reason of the second turn", answer.finish_reason, "REASON_STOP")

    chat = ask(tool_choice=required_tool("get_weather"), parallel_tool_calls=False)
    second_turn(chat, chat.sample(), id=True)
    chat = ask(tool_choice="auto")
    for response, _ in chat.stream():
        pass
    # In the contract a result need not say whose it is.
    second_turn(chat, response, id=False)
    return f"{WEATHER_ARGUMENTS}, {WEATHER_TEXT!r}"


class Capital(pydantic.BaseModel):
    city: str
    country: str


def structured(target):
    chat = client(target).chat.create(model=MODEL, messages=[user(CAPITAL_QUESTION)])
    response, capital = chat.parse(Capital)
    same("parsed", capital, Capital(**CAPITAL))
    chat = client(target).chat.create(
        model=MODEL, messages=[user(CAPITAL_QUESTION)], response_format="json_object"
    )
    same("object", json.loads(chat.sample().content), CAPITAL)
    return repr(capital)


def batch(target):
    responses = hello(client(target)).sample_batch(1)
    same("contents", [response.content for response in responses], [HELLO_TEXT])
    return f"{len(responses)} choices"


def images(target):
    picture = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
    chat = client(target).chat.create(model=MODEL, messages=[user("Say hello.", image(picture, detail="low"))])
    check_hello(chat.sample())
    return "one image"


def refused(call):
    try:
        answer = call()
    except grpc.RpcError as error:
        return error
    raise Wrong(f"expected an error, saw an answer: {answer!r}")


def read(chat):
    for response, _ in chat.stream():
        pass
    return response


def metadata_of(error):
    return {**dict(error.initial_metadata() or ()), **dict(error.trailing_metadata() or ())}


def expect(error, code, reason, said=""):
    name = f"{code.name} {reason}"
    same(f"{name}: code", error.code(), code)
    require(said in error.details(), f"{name}: {error.details()!r} does not say {said!r}")
    require(SECRET not in error.details(), f"{name}: {error.details()!r}")
    if reason is not None:
        details = metadata_of(error)["grpc-status-details-bin"]
        require(reason.encode() in details, f"{name}: {details!r} does not say {reason}")
        require(metadata_of(error).get("x-request-id"), f"{name}: no x-request-id")
    return error


def both(chat, *expected):
    """Whole and streamed; anew each time, for a chat is one conversation."""
    for ask in (lambda: chat().sample(), lambda: read(chat())):
        error = expect(refused(ask), *expected)
    return error


def errors(target):
    code = grpc.StatusCode
    of = client(target)

    both(lambda: hello(client(target, key="not-a-key")), code.UNAUTHENTICATED, None, "key")
    both(lambda: hello(of, model=UNKNOWN_MODEL), code.NOT_FOUND, "MODEL_NOT_FOUND", UNKNOWN_MODEL)
    error = both(lambda: hello(client(target, key=BLOCKED_KEY)), code.PERMISSION_DENIED, "MODEL_NOT_ALLOWED", MODEL)
    same("retry", metadata_of(error).get("grpc-retry-pushback-ms"), "-1")
    both(lambda: hello(of, model=BROKEN_MODEL), code.UNAVAILABLE, "UPSTREAM")
    both(lambda: hello(of, store_messages=True), code.INVALID_ARGUMENT, "INVALID_REQUEST", "store_messages")
    both(lambda: hello(of, temperature=float("inf")), code.INVALID_ARGUMENT, "INVALID_REQUEST", "temperature")
    nobody = lambda: of.chat.create(model=MODEL, messages=[user("Hi"), tool_result(WEATHER_RESULT)])
    both(nobody, code.INVALID_ARGUMENT, "INVALID_REQUEST", "messages[1].tool_call_id")
    stored = refused(lambda: of.chat.get_stored_completion("r"))
    same("what is not served", stored.code(), code.UNIMPLEMENTED)
    if ORPHAN_URL:
        error = both(lambda: hello(client(ORPHAN_URL)), code.UNAVAILABLE, "STORE_UNAVAILABLE")
        require(int(metadata_of(error)["grpc-retry-pushback-ms"]) > 0, "a store that is down may be up again")
    return "401, 404, 403, 502, 400 thrice, 12" + (", 503" if ORPHAN_URL else "")


def rate_limited(target):
    error = both(lambda: hello(client(target), model=BUSY_MODEL), grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    seconds = metadata_of(error).get("retry-after")
    require(seconds and 1 <= int(seconds) <= 2, f"retry-after: expected 2 or less, saw {seconds}")
    return f"retry-after {seconds}"


def quota(target):
    chat = hello(client(target, key=SPENT_KEY, retries=True))
    check_hello(chat.sample())
    for ask in (chat.sample, lambda: read(chat)):
        error = expect(refused(ask), grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", "daily request limit")
        seen = metadata_of(error)
        same("pushback", seen.get("grpc-retry-pushback-ms"), "-1")
        until_reset(seen.get("retry-after"))
        same("limit", seen["x-ratelimit-limit-requests"], "1")
    return f"{error.details()}; retry-after {seen['retry-after']}"


def midstream(target):
    content = ""

    def ask():
        nonlocal content
        for response, chunk in hello(client(target, retries=True), model=CUT_MODEL).stream():
            content += chunk.content
            same("finish_reason before the error", response.finish_reason, "REASON_INVALID")
        return response

    error = refused(ask)
    same("code", error.code(), grpc.StatusCode.UNAVAILABLE)
    require(content.startswith(CUT_BEGINNING), f"content before the error: {content!r}")
    return f"{content!r}, then {error.code().name}: {error.details()}"


def deadline(target):
    for ask in (lambda of: hello(of, model=SILENT_MODEL).sample(), lambda of: read(hello(of, model=SILENT_MODEL))):
        start = time.monotonic()
        error = refused(lambda: ask(client(target, timeout=0.5)))
        same("code", error.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        require(time.monotonic() - start < 5, "waited longer than the deadline")
    # Beyond what the server waits for a provider.
    error = refused(lambda: hello(client(target, timeout=15), model=SILENT_MODEL).sample())
    expect(error, grpc.StatusCode.DEADLINE_EXCEEDED, "TIMEOUT", "timed out")
    return "of the caller, and of the server"


def metadata(target):
    of = client(target, metadata=(("x-request-id", "chosen-by-the-client"),))
    _, call = of.chat._stub.GetCompletion.with_call(hello(of)._make_request(1))
    same("request id", dict(call.initial_metadata()).get("x-request-id"), "chosen-by-the-client")
    stream = of.chat._stub.GetCompletionChunk(hello(client(target))._make_request(1))
    require(dict(stream.initial_metadata()).get("x-request-id"), "no x-request-id of a stream")
    stream.cancel()
    return "x-request-id"


def retries(target):
    """What will not be better is not asked for again, though the SDK tries UNAVAILABLE five times."""
    start = time.monotonic()
    error = refused(hello(client(target, retries=True), model=LOCKED_MODEL).sample)
    same("code", error.code(), grpc.StatusCode.UNAVAILABLE)
    same("pushback", metadata_of(error).get("grpc-retry-pushback-ms"), "-1")
    return f"{time.monotonic() - start:.2f} s"


def never_again(error):
    same("pushback", metadata_of(error).get("grpc-retry-pushback-ms"), "-1")
    return error.details()


def too_long(target):
    code = grpc.StatusCode.INVALID_ARGUMENT
    error = both(lambda: hello(client(target), model=TOO_LONG_MODEL), code, "CONTEXT_WINDOW", "too long")
    require(b"context_length_exceeded" in metadata_of(error)["grpc-status-details-bin"], "no code in the details")
    return never_again(error)


def too_large(target):
    large = lambda: client(target).chat.create(model=MODEL, messages=[user(LARGE_TEXT)])
    return never_again(both(large, grpc.StatusCode.RESOURCE_EXHAUSTED, "INVALID_REQUEST", "larger than"))


def empty(target):
    error = both(lambda: hello(client(target), model=EMPTY_MODEL), grpc.StatusCode.UNAVAILABLE, "EMPTY_RESPONSE")
    return error.details()


def overloaded(_):
    error = both(lambda: hello(client(FULL_URL)), grpc.StatusCode.UNAVAILABLE, "OVERLOADED")
    seen = metadata_of(error)
    require(int(seen["retry-after"]) >= 1 and int(seen["grpc-retry-pushback-ms"]) > 0, f"not when to come again: {seen}")
    return error.details()


def contract(_):
    """What is served has the names, numbers and types that the SDK knows."""
    from google.protobuf import descriptor_pb2
    from xai_sdk.proto import chat_pb2

    theirs = {}

    def collect(file):
        described = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(described)
        theirs.update({kind.name: kind for kind in (*described.message_type, *described.enum_type, *described.service)})
        for dependency in file.dependencies:
            if not dependency.name.startswith("google/"):
                collect(dependency)

    collect(chat_pb2.DESCRIPTOR)
    ours = descriptor_pb2.FileDescriptorSet.FromString(sys.stdin.buffer.read())
    [file] = [file for file in ours.file if not file.name.startswith("google/")]
    same("package", file.package, chat_pb2.DESCRIPTOR.package)
    fields = 0
    for message in file.message_type:
        known = {field.name: field for field in theirs[message.name].field}
        for field in message.field:
            fields += 1
            for fact in ("number", "label", "type", "type_name", "proto3_optional"):
                same(f"{message.name}.{field.name} {fact}", getattr(field, fact), getattr(known[field.name], fact))
            oneof = lambda of, kind: kind.oneof_decl[of.oneof_index].name if of.HasField("oneof_index") else None
            same(f"{message.name}.{field.name} oneof", oneof(field, message), oneof(known[field.name], theirs[message.name]))
    for enum in file.enum_type:
        values = lambda of: [(value.name, value.number) for value in of.value]
        same(enum.name, values(enum), values(theirs[enum.name]))
    [service] = file.service
    methods = {method.name: method for method in theirs[service.name].method}
    for method in service.method:
        facts = lambda of: (of.input_type, of.output_type, of.client_streaming, of.server_streaming)
        same(f"{service.name}.{method.name}", facts(method), facts(methods[method.name]))
    # A request is read whole: what is not known here would be passed over in silence.
    request = next(message for message in file.message_type if message.name == "GetCompletionsRequest")
    unknown = {field.name for field in theirs["GetCompletionsRequest"].field} - {field.name for field in request.field}
    same("members of a request that are passed over", unknown, {"include"})
    require(fields > 80, f"only {fields} fields")
    return f"{fields} fields, {len(file.enum_type)} enumerations"


CASES = dict(
    whole=whole,
    streamed=streamed,
    tools=tools,
    structured=structured,
    batch=batch,
    images=images,
    errors=errors,
    rate_limited=rate_limited,
    quota=quota,
    midstream=midstream,
    deadline=deadline,
    metadata=metadata,
    retries=retries,
    too_long=too_long,
    too_large=too_large,
    empty=empty,
    overloaded=overloaded,
    contract=contract,
)


run(CASES, "xai_client.py HOST:PORT")
