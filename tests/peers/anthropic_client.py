"""One conversation of the anthropic SDK with a server of its Messages API.

    anthropic_client.py BASE_URL CASE        (BASE_URL without /v1)

Exits 0 and prints one line if the server behaved, else exits 1 and says what was wrong.
Cases: whole streamed tools midstream rate_limited request_id errors

From the environment as openai_client.py: PEER_KEY, PEER_MODEL, PEER_CUT_MODEL, PEER_BUSY_MODEL, PEER_UNKNOWN_MODEL.
"""

import json
import os
import sys

import anthropic

KEY = os.environ.get("PEER_KEY", "peer-key")
MODEL = os.environ.get("PEER_MODEL", "aimock/gpt-4o-mini")
CUT_MODEL = os.environ.get("PEER_CUT_MODEL", "aimock/cut")
BUSY_MODEL = os.environ.get("PEER_BUSY_MODEL", "aimock/busy")
UNKNOWN_MODEL = os.environ.get("PEER_UNKNOWN_MODEL", "no-such-model")

HELLO = dict(max_tokens=256, messages=[{"role": "user", "content": "Say hello."}])
HELLO_TEXT = "Hello from the other side of the gateway."
WEATHER = {"role": "user", "content": [{"type": "text", "text": "What is the weather in Paris?"}]}
WEATHER_INPUT = {"city": "Paris", "unit": "celsius"}
WEATHER_TEXT = "It is 18 degrees in Paris."
CUT_BEGINNING = "Once upon a time"
TOOLS = [
    {
        "name": "get_weather",
        "description": "The weather in a city now.",
        "input_schema": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"type": "string"}},
            "required": ["city"],
        },
    }
]


class Wrong(Exception):
    pass


def same(what, seen, expected):
    if seen != expected:
        raise Wrong(f"{what}: expected {expected!r}, saw {seen!r}")


def require(true, otherwise):
    if not true:
        raise Wrong(otherwise)


def raises(kind, call):
    try:
        answer = call()
    except kind as error:
        return error
    raise Wrong(f"expected {kind.__name__}, saw an answer: {answer!r}")


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
        same("calls", [(call.name, call.input) for call in calls], [("get_weather", WEATHER_INPUT)])
        require(calls[0].id, "a call without an id")
        result = {"type": "tool_result", "tool_use_id": calls[0].id, "content": "18 degrees"}
        turns = [WEATHER, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
        answer = client.messages.create(model=MODEL, max_tokens=256, messages=turns, tools=TOOLS)
        same("second turn", answer.content[0].text, WEATHER_TEXT)
        same("stop_reason of the second turn", answer.stop_reason, "end_turn")

    ask = dict(model=MODEL, max_tokens=256, messages=[WEATHER], tools=TOOLS)
    check(client.messages.create(**ask, tool_choice={"type": "auto", "disable_parallel_tool_use": True}))
    fragments = 0
    with client.messages.stream(**ask) as stream:
        for event in stream:
            fragments += event.type == "input_json"
        check(stream.get_final_message())
    require(fragments > 2, f"only {fragments} fragments")
    return f"{WEATHER_INPUT}, {fragments} fragments, {WEATHER_TEXT!r}"


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


CASES = dict(
    whole=whole,
    streamed=streamed,
    tools=tools,
    midstream=midstream,
    rate_limited=rate_limited,
    request_id=request_id,
    errors=errors,
)


def main():
    if len(sys.argv) != 3 or sys.argv[2] not in CASES:
        sys.exit(f"usage: anthropic_client.py BASE_URL {'|'.join(CASES)}")
    _, base_url, case = sys.argv
    client = anthropic.Anthropic(base_url=base_url, api_key=KEY, max_retries=0, timeout=20)
    try:
        print(f"{case}: {CASES[case](client)}")
    except Wrong as wrong:
        sys.exit(f"{case}: {wrong}")
    except Exception as error:
        sys.exit(f"{case}: {type(error).__name__}: {error}")


main()
