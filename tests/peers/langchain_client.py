"""A conversation of langchain-openai with an OpenAI-compatible server.

    langchain_client.py BASE_URL CASE...  (BASE_URL ends in /v1)

Prints a line for each case that the server behaved in; exits 1 and says what was wrong at the first that it did not.
Cases: whole streamed tools structured midstream errors denied quota rate_limited upstream timeout store_down
too_long too_large empty overloaded
"""

import openai
import pydantic
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from peer import *

HELLO = [SystemMessage("Be polite."), HumanMessage("Say hello.")]
WEATHER = [HumanMessage(WEATHER_QUESTION)]


def client(url, model=MODEL, key=KEY, retries=0, **options):
    http = openai.DefaultHttpxClient(event_hooks={"request": [REQUESTS.append]})
    return ChatOpenAI(
        base_url=url, api_key=key, model=model, max_retries=retries, timeout=20, http_client=http, stream_usage=True, **options
    )


def usage(message):
    require(message.usage_metadata, "no usage")
    return tuple(message.usage_metadata[name] for name in ("input_tokens", "output_tokens", "total_tokens"))


def check_hello(message):
    same("content", message.content, HELLO_TEXT)
    same("finish_reason", message.response_metadata["finish_reason"], "stop")
    same("usage", usage(message), HELLO_USAGE)
    require(message.id, "no id")


def whole(url):
    message = client(url, temperature=0.5).invoke(HELLO)
    check_hello(message)
    require(message.response_metadata["model_name"], "no model")
    check_hello(wait(client(url).ainvoke(HELLO)))
    return repr(message.content)


def streamed(url):
    chunks = list(client(url).stream(HELLO))
    require(len(chunks) > 3, f"only {len(chunks)} chunks")
    message = chunks[0]
    for chunk in chunks[1:]:
        message += chunk
    check_hello(message)

    async def asynchronous():
        return [chunk.content async for chunk in client(url).astream(HELLO)]

    same("content of .astream()", "".join(wait(asynchronous())), HELLO_TEXT)
    return f"{len(chunks)} chunks"


@tool
def get_weather(city: str, unit: str) -> str:
    """The weather in a city now."""
    same("given", {"city": city, "unit": unit}, WEATHER_ARGUMENTS)
    return WEATHER_RESULT


def tools(url):
    model = client(url).bind_tools([get_weather], tool_choice="auto", parallel_tool_calls=False)

    def second_turn(message):
        same("finish_reason", message.response_metadata["finish_reason"], "tool_calls")
        [call] = message.tool_calls
        same("call", (call["name"], call["args"]), ("get_weather", WEATHER_ARGUMENTS))
        result = get_weather.invoke(call)
        require(isinstance(result, ToolMessage), "no result")
        answer = model.invoke([*WEATHER, message, result])
        same("second turn", (answer.content, answer.tool_calls), (WEATHER_TEXT, []))

    second_turn(model.invoke(WEATHER))
    message = None
    for chunk in model.stream(WEATHER):
        message = chunk if message is None else message + chunk
    same("invalid calls", message.invalid_tool_calls, [])
    second_turn(message)
    return f"{WEATHER_ARGUMENTS}, {WEATHER_TEXT!r}"


class Capital(pydantic.BaseModel):
    city: str
    country: str


def structured(url):
    for method in ("json_schema", "json_mode"):
        model = client(url).with_structured_output(Capital, method=method)
        same(f"parsed by {method}", model.invoke(CAPITAL_QUESTION), Capital(**CAPITAL))
    same("last of a stream", list(model.stream(CAPITAL_QUESTION))[-1], Capital(**CAPITAL))
    return "by schema, and as JSON"


def midstream(url):
    content = ""

    def read():
        nonlocal content
        for chunk in client(url, CUT_MODEL).stream(HELLO):
            content += chunk.content
            require("finish_reason" not in chunk.response_metadata, "a finish_reason before the error")
        return content

    error = raises(openai.APIError, read)
    require(content.startswith(CUT_BEGINNING), f"content before the error: {content!r}")
    same("type and code", (error.type, error.code), ("server_error", CUT_CODE))
    return f"{content!r}, then {error.message}"


def refused(kind, code, url, *ask, messages=HELLO, **options):
    """Whole and streamed, and not tried again where that is of no use."""
    of = client(url, *ask, **options)
    for call in (lambda: of.invoke(messages), lambda: list(of.stream(messages))):
        error = raises(kind, call)
        same("code", error.code, code)
        require(SECRET not in str(error.body), f"body {error.body}")
        require(error.request_id, "no x-request-id")
    return error


def errors(url):
    refused(openai.AuthenticationError, "invalid_api_key", url, key="not-a-key")
    refused(openai.NotFoundError, "model_not_found", url, UNKNOWN_MODEL)
    hot = client(url, extra_body={"stop": 5})
    same("param", raises(openai.BadRequestError, lambda: hot.invoke(HELLO)).param, "stop")
    return "401, 404, 400"


def denied(url):
    error = tries(2, lambda: refused(openai.PermissionDeniedError, "model_not_allowed", url, key=BLOCKED_KEY, retries=2))
    return error.message


def quota(url):
    check_hello(client(url, key=SPENT_KEY).invoke(HELLO))
    error = tries(2, lambda: refused(openai.RateLimitError, "insufficient_quota", url, key=SPENT_KEY, retries=2))
    until_reset(error.response.headers.get("retry-after"))
    return error.message


def rate_limited(url):
    error = refused(openai.RateLimitError, "rate_limit_exceeded", url, BUSY_MODEL)
    return f"retry-after {error.response.headers['retry-after']}"


def upstream(url):
    error = refused(openai.InternalServerError, "upstream_error", url, BROKEN_MODEL)
    same("status", error.status_code, 502)
    return error.message


def timeout(url):
    error = refused(openai.InternalServerError, "timeout", url, SILENT_MODEL)
    same("status", error.status_code, 504)
    return error.message


def store_down(_):
    error = refused(openai.InternalServerError, "usage_store_unavailable", ORPHAN_URL + "/v1")
    same("status", error.status_code, 503)
    return error.message


def too_long(url):
    # Its own, by which callers shorten what they ask.
    error = refused(ContextOverflowError, "context_length_exceeded", url, TOO_LONG_MODEL)
    same("status", error.status_code, 400)
    return error.message


def too_large(url):
    error = refused(openai.APIStatusError, None, url, messages=[HumanMessage(LARGE_TEXT)])
    same("status", error.status_code, 413)
    return error.message


def empty(url):
    error = refused(openai.InternalServerError, "upstream_error", url, EMPTY_MODEL)
    same("status", error.status_code, 502)
    return error.message


def overloaded(_):
    error = refused(openai.InternalServerError, "overloaded", FULL_URL + "/v1")
    same("status", error.status_code, 503)
    require(float(error.response.headers["retry-after"]) >= 1, "no retry-after")
    return error.message


CASES = dict(
    whole=whole,
    streamed=streamed,
    tools=tools,
    structured=structured,
    midstream=midstream,
    errors=errors,
    denied=denied,
    quota=quota,
    rate_limited=rate_limited,
    upstream=upstream,
    timeout=timeout,
    store_down=store_down,
    too_long=too_long,
    too_large=too_large,
    empty=empty,
    overloaded=overloaded,
)

run(CASES, "langchain_client.py BASE_URL")
