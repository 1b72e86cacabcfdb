"""A conversation of the anthropic SDK with a server of its Messages API.

    anthropic_client.py BASE_URL CASE...  (BASE_URL without /v1)

Prints a line for each case that the server behaved in; exits 1 and says what was wrong at the first that it did not.
Cases: whole streamed tools structured midstream rate_limited request_id errors denied quota upstream timeout store_down
too_long too_large empty overloaded models counted elsewhere
"""

import json

import anthropic
import pydantic

from peer import *

HELLO = dict(max_tokens=256, messages=[{"role": "user", "content": "Say hello."}])
WEATHER = {"role": "user", "content": [{"type": "text", "text": WEATHER_QUESTION}]}
TOOLS = [{"name": "get_weather", "description": "The weather in a city now.", "input_schema": WEATHER_SCHEMA}]


def check_hello(message):
    require(message.id, "no id")
    require(message.model, "no model")
    same("type and role", (message.type, message.role), ("message", "assistant"))
    same("content", [(block.type, block.text) for block in message.content], [("text", HELLO_TEXT)])
    same("stop", (message.stop_reason, message.stop_sequence), ("end_turn", None))
    same("usage", (message.usage.input_tokens, message.usage.output_tokens), (12, 9))


def whole(client):
    message = client.messages.create(model=MODEL, system="Be polite.", extra_body={"temperature": 0.5}, **HELLO)
    check_hello(message)
    system = [{"type": "text", "text": "Be polite.", "cache_control": {"type": "ephemeral"}}]
    check_hello(client.messages.create(model=MODEL, system=system, stop_sequences=["END"], **HELLO))
    return f"{message.content[0].text!r}, {message.usage.output_tokens} tokens"


def streamed(client):
    events = list(client.messages.create(model=MODEL, stream=True, **HELLO))
    kinds = [event.type for event in events if event.type != "ping"]
    same("first events", kinds[:3], ["message_start", "content_block_start", "content_block_delta"])
    same("last events", kinds[-3:], ["content_block_stop", "message_delta", "message_stop"])
    pieces = [event.delta.text for event in events if event.type == "content_block_delta"]
    require(len(pieces) > 2, f"only {len(pieces)} pieces")
    same("content", "".join(pieces), HELLO_TEXT)
    with client.messages.stream(model=MODEL, **HELLO) as stream:
        same("content of .text_stream", "".join(stream.text_stream), HELLO_TEXT)
        check_hello(stream.get_final_message())
    return f"{len(pieces)} pieces"


def tools(client):
    def check(message):
        same("stop_reason", message.stop_reason, "tool_use")
        calls = [block for block in message.content if block.type == "tool_use"]
        same("calls", [(call.name, call.input) for call in calls], [("get_weather", WEATHER_ARGUMENTS)])
        require(calls[0].id, "a call without an id")
        result = {"type": "tool_result", "tool_use_id": calls[0].id, "content": WEATHER_RESULT}
        turns = [WEATHER, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
        answer = client.messages.create(model=MODEL, max_tokens=256, messages=turns, tools=TOOLS)
        same("second turn", answer.content[0].text, WEATHER_TEXT)
        same("stop_reason of the second turn", answer.stop_reason, "end_turn")

    ask = dict(model=MODEL, max_tokens=256, messages=[WEATHER], tools=TOOLS)
    one_at_a_time = {"type": "auto", "disable_parallel_tool_use": True}
    if NO_SERIAL_CALLS:
        error = raises(anthropic.BadRequestError, lambda: client.messages.create(**ask, tool_choice=one_at_a_time))
        require("parallel_tool_calls" in str(error), f"it is not named: {error}")
        check(client.messages.create(**ask))
    else:
        check(client.messages.create(**ask, tool_choice=one_at_a_time))
    fragments = 0
    with client.messages.stream(**ask) as stream:
        for event in stream:
            fragments += event.type == "input_json"
        check(stream.get_final_message())
    in_fragments(fragments)
    return f"{WEATHER_ARGUMENTS}, {fragments} fragments, {WEATHER_TEXT!r}"


def midstream(client):
    content = ""

    def read():
        nonlocal content
        for event in client.messages.create(model=CUT_MODEL, stream=True, **HELLO):
            require(event.type != "message_delta", "an end before the error")
            if event.type == "content_block_delta":
                content += event.delta.text
        return content

    error = raises(anthropic.APIStatusError, read)
    require(content.startswith(CUT_BEGINNING), f"content before the error: {content!r}")
    same("type", error.body["error"]["type"], "api_error")
    require(error.body["error"]["message"], "no message")
    return f"{content!r}, then {error.body['error']}"


def rate_limited(client):
    error = raises(anthropic.RateLimitError, lambda: client.messages.create(model=BUSY_MODEL, **HELLO))
    same("type", error.body["error"]["type"], "rate_limit_error")
    header = error.response.headers.get("retry-after")
    require(header is not None and 1 <= float(header) <= 2, f"retry-after: expected 2 or less, saw {header}")
    return f"retry-after {header}"


def request_id(client):
    first = client.messages.create(model=MODEL, **HELLO)._request_id
    second = client.messages.create(model=MODEL, **HELLO)._request_id
    require(first and second and first != second, f"request ids {first!r} and {second!r}")
    error = raises(anthropic.NotFoundError, lambda: client.messages.create(model=UNKNOWN_MODEL, **HELLO))
    require(error.request_id, "no request-id on an error")
    return f"{first}, {second}, {error.request_id}"


def errors(client):
    def refused(kind, type, said, call):
        error = raises(kind, call)
        name = kind.__name__
        same(f"{name}: shape", error.body["type"], "error")
        same(f"{name}: type", error.body["error"]["type"], type)
        require(said in error.body["error"]["message"], f"{name}: {error.body} does not say {said!r}")

    create = client.messages.create
    stranger = client.with_options(api_key="not-a-key").messages
    refused(anthropic.AuthenticationError, "authentication_error", "key", lambda: stranger.create(model=MODEL, **HELLO))
    unknown = dict(model=UNKNOWN_MODEL, **HELLO)
    refused(anthropic.NotFoundError, "not_found_error", UNKNOWN_MODEL, lambda: create(**unknown))
    refused(anthropic.NotFoundError, "not_found_error", UNKNOWN_MODEL, lambda: create(**unknown, stream=True))
    invalid = (anthropic.BadRequestError, "invalid_request_error")
    refused(*invalid, "temperature", lambda: create(model=MODEL, extra_body={"temperature": "hot"}, **HELLO))
    refused(*invalid, "messages", lambda: create(model=MODEL, max_tokens=1, messages=[]))
    search = [{"type": "web_search_20250305", "name": "web_search"}]
    refused(*invalid, "tools[0].type", lambda: create(model=MODEL, tools=search, **HELLO))
    body = json.dumps({"model": MODEL, "messages": HELLO["messages"]})
    missing = dict(cast_to=object, options={"headers": {"content-type": "application/json"}}, content=body)
    refused(*invalid, "max_tokens", lambda: client.post("/v1/messages", **missing))
    return "401, 404, 404 of a stream, 400 temperature, messages, tools, max_tokens"


class Capital(pydantic.BaseModel):
    city: str
    country: str


def structured(client):
    ask = dict(model=MODEL, max_tokens=256, messages=[{"role": "user", "content": CAPITAL_QUESTION}])
    answer = client.messages.parse(**ask, output_format=Capital)
    same("parsed", answer.parsed_output, Capital(**CAPITAL))
    with client.messages.stream(**ask, output_format=Capital) as stream:
        same("parsed of .stream()", stream.get_final_message().parsed_output, Capital(**CAPITAL))
    return repr(answer.parsed_output)


def refused(client, kind, type, **options):
    """Whole and streamed."""
    for streaming in (False, True):
        ask = lambda: client.messages.create(**{"model": MODEL, **HELLO, "stream": streaming, **options})
        error = raises(kind, ask)
        same("type", error.body["error"]["type"], type)
        require(error.body["error"]["message"] and SECRET not in str(error.body), f"body {error.body}")
        require(error.request_id, "no request-id")
    return error


def denied(client):
    blocked = client.with_options(api_key=BLOCKED_KEY, max_retries=2)
    error = tries(2, lambda: refused(blocked, anthropic.PermissionDeniedError, "permission_error"))
    return error.body["error"]["message"]


def quota(client):
    spent = client.with_options(api_key=SPENT_KEY, max_retries=2)
    spent.messages.create(model=MODEL, **HELLO)
    error = tries(2, lambda: refused(spent, anthropic.RateLimitError, "rate_limit_error"))
    until_reset(error.response.headers.get("retry-after"))
    same("x-should-retry", error.response.headers.get("x-should-retry"), "false")
    return error.body["error"]["message"]


def upstream(client):
    error = refused(client, anthropic.InternalServerError, "api_error", model=BROKEN_MODEL)
    same("status", error.status_code, 502)
    keen = client.with_options(max_retries=2)
    tries(2, lambda: refused(keen, anthropic.InternalServerError, "api_error", model=LOCKED_MODEL))
    return error.body["error"]["message"]


def timeout(client):
    error = refused(client, anthropic.InternalServerError, "timeout_error", model=SILENT_MODEL)
    same("status", error.status_code, 504)
    return error.body["error"]["message"]


def unavailable(client, url):
    error = refused(client.with_options(base_url=url), anthropic.InternalServerError, "overloaded_error")
    same("status", error.status_code, 503)
    require(float(error.response.headers["retry-after"]) >= 1, "no retry-after")
    return error.body["error"]["message"]


def store_down(client):
    return unavailable(client, ORPHAN_URL)


def too_long(client):
    error = refused(client, anthropic.BadRequestError, "invalid_request_error", model=TOO_LONG_MODEL)
    # There is no code, so that clients look for these words.
    require("prompt is too long" in error.body["error"]["message"], f"it does not say why: {error}")
    return error.body["error"]["message"]


def too_large(client):
    large = [{"role": "user", "content": LARGE_TEXT}]
    error = refused(client, anthropic.RequestTooLargeError, "request_too_large", messages=large)
    same("status", error.status_code, 413)
    return error.body["error"]["message"]


def empty(client):
    error = refused(client, anthropic.InternalServerError, "api_error", model=EMPTY_MODEL)
    same("status", error.status_code, 502)
    return error.body["error"]["message"]


def overloaded(client):
    return unavailable(client, FULL_URL)


def models(client):
    listed = list(client.models.list())
    require(MODEL in [model.id for model in listed], f"{MODEL} is not among {[m.id for m in listed]}")
    same("types", {model.type for model in listed}, {"model"})
    same("names", [model.display_name for model in listed], [model.id for model in listed])
    one = client.models.retrieve(MODEL)
    same("the one", (one.id, one.display_name, one.created_at.year), (MODEL, MODEL, 1970))
    return f"{len(listed)} models"


def counted(client):
    """Before anything is asked, and by the bytes of what is."""
    message = [{"role": "user", "content": "Say hello."}]
    count = lambda **options: client.messages.count_tokens(**{"model": MODEL, "messages": message, **options}).input_tokens
    plain = count()
    require(1 <= plain <= 40, f"{plain} tokens of two words")
    system = count(system="You are polite. " * 100, tools=TOOLS)
    require(plain + 200 <= system <= plain + 1000, f"{system} tokens with a system prompt and a tool")
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD" * 10_000}}
    pictured = count(messages=[{"role": "user", "content": [image]}])
    require(1000 <= pictured <= 3000, f"{pictured} tokens of a picture")
    error = raises(anthropic.BadRequestError, lambda: count(messages=[]))
    seen = (error.body["error"]["type"], "messages" in error.body["error"]["message"])
    same("no messages", seen, ("invalid_request_error", True))
    stranger = client.with_options(api_key="not-a-key").messages
    raises(anthropic.AuthenticationError, lambda: stranger.count_tokens(model=MODEL, messages=message))
    return f"{plain}, {system}, {pictured}"


def elsewhere(client):
    """What is not served is refused in the shape that the client reads."""
    calls = dict(
        batches=lambda: client.messages.batches.list(),
        files=lambda: client.beta.files.list(),
        unlisted=lambda: client.models.retrieve("no-such-model"),
    )
    for name, call in calls.items():
        error = raises(anthropic.NotFoundError, call)
        seen = (error.body["type"], error.body["error"]["type"])
        same(name, seen, ("error", "not_found_error"))
    return ", ".join(calls)


CASES = dict(
    whole=whole,
    streamed=streamed,
    tools=tools,
    structured=structured,
    midstream=midstream,
    rate_limited=rate_limited,
    request_id=request_id,
    errors=errors,
    denied=denied,
    quota=quota,
    upstream=upstream,
    timeout=timeout,
    store_down=store_down,
    too_long=too_long,
    too_large=too_large,
    empty=empty,
    overloaded=overloaded,
    models=models,
    counted=counted,
    elsewhere=elsewhere,
)

run(
    CASES,
    "anthropic_client.py BASE_URL",
    lambda url: anthropic.Anthropic(
        base_url=url,
        api_key=KEY,
        max_retries=0,
        timeout=20,
        http_client=anthropic.DefaultHttpxClient(event_hooks={"request": [REQUESTS.append]}),
    ),
)
