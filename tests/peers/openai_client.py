"""A conversation of the openai SDK with an OpenAI-compatible server.

    openai_client.py BASE_URL CASE...     (BASE_URL ends in /v1)

Prints a line for each case that the server behaved in; exits 1 and says what was wrong at the first that it did not.
Cases: whole streamed tools structured midstream rate_limited request_id errors denied quota upstream timeout store_down
too_long too_large empty overloaded models; and, of a server with a cache, cached. What each expects of the server is in README.md.
"""

import json
import time

import openai
import pydantic

from peer import *

HELLO = [{"role": "user", "content": "Say hello."}]
WEATHER = [{"role": "user", "content": WEATHER_QUESTION}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city now.",
            "parameters": WEATHER_SCHEMA,
        },
    }
]


def counts(usage):
    require(usage is not None, "no usage")
    return (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)


def whole(client):
    answer = client.chat.completions.create(model=MODEL, messages=HELLO)
    require(answer.id, "no id")
    require(answer.model, "no model")
    require(answer.created > 0, "no created")
    same("object", answer.object, "chat.completion")
    same("choices", len(answer.choices), 1)
    choice = answer.choices[0]
    same("index", choice.index, 0)
    same("role", choice.message.role, "assistant")
    same("content", choice.message.content, HELLO_TEXT)
    same("finish_reason", choice.finish_reason, "stop")
    same("usage", counts(answer.usage), HELLO_USAGE)
    return f"{choice.message.content!r}, {answer.usage.total_tokens} tokens"


def streamed(client):
    def chunks(**options):
        seen = list(client.chat.completions.create(model=MODEL, messages=HELLO, stream=True, **options))
        require(len(seen) > 2, f"only {len(seen)} chunks")
        same("object", {chunk.object for chunk in seen}, {"chat.completion.chunk"})
        same("ids", len({chunk.id for chunk in seen}), 1)
        same("role in the first chunk", seen[0].choices[0].delta.role, "assistant")
        choices = [choice for chunk in seen for choice in chunk.choices]
        same("indexes", {choice.index for choice in choices}, {0})
        same("content", "".join(choice.delta.content or "" for choice in choices), HELLO_TEXT)
        reasons = [choice.finish_reason for choice in choices if choice.finish_reason]
        same("finish_reasons", reasons, ["stop"])
        return seen

    plain = chunks()
    require(all(chunk.choices for chunk in plain), "a usage chunk that nobody asked for")

    asked = chunks(stream_options={"include_usage": True})
    same("chunks without choices", [not chunk.choices for chunk in asked].count(True), 1)
    require(not asked[-1].choices, "the usage chunk is not the last")
    same("usage", counts(asked[-1].usage), HELLO_USAGE)

    with client.chat.completions.stream(model=MODEL, messages=HELLO) as stream:
        final = stream.get_final_completion()
    same("content of .stream()", final.choices[0].message.content, HELLO_TEXT)
    return f"{len(plain)} chunks, {len(asked)} with usage"


def tools(client):
    def second_turn(message):
        call = message["tool_calls"][0]
        same("name", call["function"]["name"], "get_weather")
        same("arguments", json.loads(call["function"]["arguments"]), WEATHER_ARGUMENTS)
        require(call["id"], "a tool call without an id")
        result = {"role": "tool", "tool_call_id": call["id"], "content": WEATHER_RESULT}
        answer = client.chat.completions.create(model=MODEL, messages=[*WEATHER, message, result], tools=TOOLS)
        same("second turn", answer.choices[0].message.content, WEATHER_TEXT)
        same("finish_reason of the second turn", answer.choices[0].finish_reason, "stop")

    answer = client.chat.completions.create(model=MODEL, messages=WEATHER, tools=TOOLS)
    choice = answer.choices[0]
    same("finish_reason", choice.finish_reason, "tool_calls")
    same("tool calls", len(choice.message.tool_calls or []), 1)
    second_turn(choice.message.to_dict())

    fragments = []
    call = {"type": "function", "function": {"name": "", "arguments": ""}}
    reason = None
    for chunk in client.chat.completions.create(model=MODEL, messages=WEATHER, tools=TOOLS, stream=True):
        for choice in chunk.choices:
            reason = choice.finish_reason or reason
            for part in choice.delta.tool_calls or []:
                same("index of a fragment", part.index, 0)
                call["id"] = part.id or call.get("id")
                call["function"]["name"] += part.function.name or ""
                call["function"]["arguments"] += part.function.arguments or ""
                fragments.append(part)
    # From the cache, what was whole comes as one.
    if CACHED:
        require(fragments, "no fragments")
    else:
        in_fragments(len(fragments))
    same("finish_reason of the stream", reason, "tool_calls")
    second_turn({"role": "assistant", "tool_calls": [call]})

    with client.chat.completions.stream(model=MODEL, messages=WEATHER, tools=TOOLS) as stream:
        second_turn(stream.get_final_completion().choices[0].message.to_dict())
    return f"{WEATHER_ARGUMENTS}, {len(fragments)} fragments, {WEATHER_TEXT!r}"


def midstream(client):
    stream = client.chat.completions.create(model=CUT_MODEL, messages=HELLO, stream=True)
    content, reasons = "", []

    def read():
        nonlocal content
        for chunk in stream:
            for choice in chunk.choices:
                content += choice.delta.content or ""
                reasons.append(choice.finish_reason)
        return content

    error = raises(openai.APIError, read)
    same("kind of error", type(error).__name__, "APIError")
    require(content.startswith(CUT_BEGINNING), f"content before the error: {content!r}")
    require(not any(reasons), f"a finish_reason before the error: {reasons}")
    require(error.message and error.message != "An error occurred during streaming", "no message")
    same("type", error.type, "server_error")
    same("code", error.code, CUT_CODE)
    same("param", error.param, None)
    return f"{content!r}, then {error.type}/{error.code}: {error.message}"


def rate_limited(client):
    def ask(model, retries):
        return client.with_options(max_retries=retries).chat.completions.create(model=model, messages=HELLO)

    error = raises(openai.RateLimitError, lambda: ask(BUSY_MODEL, 0))
    same("type", error.type, "rate_limit_error")
    same("code", error.code, "rate_limit_exceeded")
    header = error.response.headers.get("retry-after")
    require(header is not None, "no retry-after header")
    require(1 <= float(header) <= 2, f"retry-after: expected 2 or a little less, saw {header}")

    start = time.monotonic()
    answer = ask(BUSY_ONCE_MODEL, 1)
    waited = time.monotonic() - start
    same("content", answer.choices[0].message.content, HELLO_TEXT)
    # Without the header the SDK would wait half a second at most.
    require(0.95 <= waited <= 5, f"waited {waited:.2f} s where retry-after said 1")
    return f"retry-after {header}; once: waited {waited:.2f} s"


def request_id(client):
    answer = client.chat.completions.create(model=MODEL, messages=HELLO)
    first = answer._request_id
    require(first, "no x-request-id on an answer")
    second = client.chat.completions.create(model=MODEL, messages=HELLO)._request_id
    require(first != second, f"the same id twice: {first}")
    stream = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    require(stream.response.headers.get("x-request-id"), "no x-request-id on a stream")
    stream.close()
    own = {"x-request-id": "chosen-by-the-client"}
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, extra_headers=own)
    same("the client's own id", answer._request_id, own["x-request-id"])
    error = raises(
        openai.NotFoundError,
        lambda: client.chat.completions.create(model=UNKNOWN_MODEL, messages=HELLO, extra_headers=own),
    )
    same("the client's own id on an error", error.request_id, own["x-request-id"])
    error = raises(
        openai.NotFoundError, lambda: client.chat.completions.create(model=UNKNOWN_MODEL, messages=HELLO)
    )
    require(error.request_id, "no x-request-id on an error")
    return f"{first}, {own['x-request-id']}, {error.request_id}"


def errors(client):
    def refused(kind, type, code, param, call):
        error = raises(kind, call)
        name = kind.__name__
        require(error.message and isinstance(error.body, dict), f"{name}: no error body")
        same(f"{name}: type", error.type, type)
        if code is not None:
            same(f"{name}: code", error.code, code)
        if param is not None:
            same(f"{name}: param", error.param, param)
        same(f"{name}: content-type", error.response.headers.get("content-type"), "application/json")
        return error

    invalid = "invalid_request_error"
    chat = client.chat.completions
    stranger = client.with_options(api_key="not-a-key").chat.completions
    refused(
        openai.AuthenticationError,
        invalid,
        "invalid_api_key",
        None,
        lambda: stranger.create(model=MODEL, messages=HELLO),
    )
    unknown = dict(model=UNKNOWN_MODEL, messages=HELLO)
    refused(openai.NotFoundError, invalid, "model_not_found", None, lambda: chat.create(**unknown))
    refused(openai.NotFoundError, invalid, "model_not_found", None, lambda: chat.create(**unknown, stream=True))
    hot = dict(model=MODEL, messages=HELLO, temperature="hot")
    refused(openai.BadRequestError, invalid, None, "temperature", lambda: chat.create(**hot))
    missing = dict(path="/chat/completions", cast_to=object, body={"model": MODEL})
    refused(openai.BadRequestError, invalid, None, "messages", lambda: client.post(**missing))
    refused(openai.BadRequestError, invalid, None, "messages", lambda: chat.create(model=MODEL, messages=[]))
    lost = dict(path="/no/such/path", cast_to=object, body={})
    refused(openai.NotFoundError, invalid, None, None, lambda: client.post(**lost))
    return "401, 404, 404 of a stream, 400 temperature, 400 messages, 404 of a path"


class Capital(pydantic.BaseModel):
    city: str
    country: str


def structured(client):
    ask = dict(model=MODEL, messages=[{"role": "user", "content": CAPITAL_QUESTION}])
    answer = client.chat.completions.parse(**ask, response_format=Capital)
    same("parsed", answer.choices[0].message.parsed, Capital(**CAPITAL))
    with client.chat.completions.stream(**ask, response_format=Capital) as stream:
        final = stream.get_final_completion()
    same("parsed of .stream()", final.choices[0].message.parsed, Capital(**CAPITAL))
    answer = client.chat.completions.create(**ask, response_format={"type": "json_object"})
    same("object", json.loads(answer.choices[0].message.content), CAPITAL)
    return repr(final.choices[0].message.parsed)


def refused(client, kind, type, code, **options):
    """Whole and streamed, and not tried again where that is of no use."""
    for streaming in (False, True):
        ask = lambda: client.chat.completions.create(**{"model": MODEL, "messages": HELLO, "stream": streaming, **options})
        error = raises(kind, ask)
        same("type and code", (error.type, error.code), (type, code))
        require(error.message and SECRET not in str(error.body), f"body {error.body}")
        require(error.request_id, "no x-request-id")
    return error


def denied(client):
    blocked = client.with_options(api_key=BLOCKED_KEY, max_retries=2)
    error = tries(2, lambda: refused(blocked, openai.PermissionDeniedError, "permission_error", "model_not_allowed"))
    same("param", error.param, "model")
    return error.message


def quota(client):
    spent = client.with_options(api_key=SPENT_KEY, max_retries=2)
    spent.chat.completions.create(model=MODEL, messages=HELLO)
    error = tries(2, lambda: refused(spent, openai.RateLimitError, "insufficient_quota", "insufficient_quota"))
    headers = error.response.headers
    until_reset(headers.get("retry-after"))
    same("x-should-retry", headers.get("x-should-retry"), "false")
    same("limit and rest", (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]), ("1", "0"))
    return f"{error.message}; retry-after {headers['retry-after']}"


def upstream(client):
    error = refused(client, openai.InternalServerError, "server_error", "upstream_error", model=BROKEN_MODEL)
    same("status", error.status_code, 502)
    # Its key is wrong, which no further try makes right.
    keen = client.with_options(max_retries=2)
    error = tries(2, lambda: refused(keen, openai.InternalServerError, "server_error", "upstream_error", model=LOCKED_MODEL))
    same("status", error.status_code, 502)
    return error.message


def timeout(client):
    error = refused(client, openai.InternalServerError, "server_error", "timeout", model=SILENT_MODEL)
    same("status", error.status_code, 504)
    return error.message


def unavailable(client, url, code):
    error = refused(client.with_options(base_url=url + "/v1"), openai.InternalServerError, "server_error", code)
    same("status", error.status_code, 503)
    require(float(error.response.headers["retry-after"]) >= 1, "no retry-after")
    return error.message


def store_down(client):
    return unavailable(client, ORPHAN_URL, "usage_store_unavailable")


def too_long(client):
    error = refused(client, openai.BadRequestError, "invalid_request_error", "context_length_exceeded", model=TOO_LONG_MODEL)
    return error.message


def too_large(client):
    large = [{"role": "user", "content": LARGE_TEXT}]
    error = refused(client, openai.APIStatusError, "invalid_request_error", None, messages=large)
    same("status", error.status_code, 413)
    return error.message


def empty(client):
    error = refused(client, openai.InternalServerError, "server_error", "upstream_error", model=EMPTY_MODEL)
    same("status", error.status_code, 502)
    return error.message


def overloaded(client):
    return unavailable(client, FULL_URL, "overloaded")


def models(client):
    listed = list(client.models.list())
    require(MODEL in [model.id for model in listed], f"{MODEL} is not among {[m.id for m in listed]}")
    same("object", {model.object for model in listed}, {"model"})
    return f"{len(listed)} models"


def cached(client):
    def stream(**options):
        raw = client.chat.completions.with_raw_response.create(
            model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}, **options
        )
        chunks = list(raw.parse())
        seen = [
            (
                [(c.index, c.delta.role, c.delta.content, c.finish_reason) for c in chunk.choices],
                chunk.usage and counts(chunk.usage),
            )
            for chunk in chunks
        ]
        return raw.headers, seen, {chunk.object for chunk in chunks}

    live_headers, live, objects = stream()
    require("hit" not in live_headers["cache-status"], f"a hit at first: {live_headers['cache-status']}")
    kept_headers, kept, kept_objects = stream()
    same("cache-status", kept_headers["cache-status"], "llm-layers; hit")
    require(int(kept_headers["age"]) < 20, "no age")
    same("chunks", kept, live)
    same("objects", kept_objects, objects)

    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
    same("cache-status of the whole answer", raw.headers["cache-status"], "llm-layers; hit")
    answer = raw.parse()
    same("content", answer.choices[0].message.content, HELLO_TEXT)
    same("finish_reason", answer.choices[0].finish_reason, "stop")
    same("usage", counts(answer.usage), HELLO_USAGE)

    fresh, _, _ = stream(extra_headers={"cache-control": "no-cache"})
    require("hit" not in fresh["cache-status"], "a hit where none was wanted")
    return f"{len(live)} chunks, the same {len(kept)} from the cache, {kept_headers['cache-status']!r}"


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
    cached=cached,
)

run(
    CASES,
    "openai_client.py BASE_URL",
    lambda url: openai.OpenAI(
        base_url=url,
        api_key=KEY,
        max_retries=0,
        timeout=20,
        http_client=openai.DefaultHttpxClient(event_hooks={"request": [REQUESTS.append]}),
    ),
)
