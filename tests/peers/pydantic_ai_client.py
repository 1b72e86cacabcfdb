"""A conversation of Pydantic AI with an OpenAI-compatible server.

    pydantic_ai_client.py BASE_URL CASE... (BASE_URL ends in /v1)

Prints a line for each case that the server behaved in; exits 1 and says what was wrong at the first that it did not.
Cases: whole streamed tools structured midstream errors denied quota rate_limited upstream timeout store_down
"""

import openai
import pydantic
from pydantic_ai import Agent, ModelHTTPError, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from peer import *


def agent(url, model=MODEL, key=KEY, retries=0, **options):
    of = openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=retries, timeout=20)
    return Agent(OpenAIChatModel(model, provider=OpenAIProvider(openai_client=of)), **options)


def whole(url):
    result = wait(agent(url, instructions="Be polite.").run("Say hello."))
    same("output", result.output, HELLO_TEXT)
    usage = result.usage
    same("usage", (usage.input_tokens, usage.output_tokens), HELLO_USAGE[:2])
    response = result.all_messages()[-1]
    require(response.provider_response_id and response.model_name, "no id or model")
    same("finish_reason", response.finish_reason, "stop")
    return repr(result.output)


async def collect(of, question):
    async with of.run_stream(question) as stream:
        pieces = [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]
        return pieces, stream.usage


def streamed(url):
    pieces, usage = wait(collect(agent(url), "Say hello."))
    require(len(pieces) > 3, f"only {len(pieces)} pieces")
    same("output", "".join(pieces), HELLO_TEXT)
    same("usage", (usage.input_tokens, usage.output_tokens), HELLO_USAGE[:2])
    return f"{len(pieces)} pieces"


def tools(url):
    given = []

    def get_weather(city: str, unit: str) -> str:
        """The weather in a city now."""
        given.append({"city": city, "unit": unit})
        return WEATHER_RESULT

    of = agent(url, tools=[get_weather])
    same("output", wait(of.run(WEATHER_QUESTION)).output, WEATHER_TEXT)
    # Over again, as streams.
    pieces, _ = wait(collect(agent(url, tools=[get_weather]), WEATHER_QUESTION))
    same("output of a stream", "".join(pieces), WEATHER_TEXT)
    same("given", given, [WEATHER_ARGUMENTS, WEATHER_ARGUMENTS])
    return f"{given[0]}, {WEATHER_TEXT!r}"


class Capital(pydantic.BaseModel):
    city: str
    country: str


def structured(url):
    of = agent(url, output_type=NativeOutput(Capital))
    same("output", wait(of.run(CAPITAL_QUESTION)).output, Capital(**CAPITAL))

    async def stream():
        async with of.run_stream(CAPITAL_QUESTION) as result:
            return [part async for part in result.stream_output(debounce_by=None)]

    same("last of a stream", wait(stream())[-1], Capital(**CAPITAL))
    return repr(Capital(**CAPITAL))


def midstream(url):
    content = []

    async def read():
        async with agent(url, CUT_MODEL).run_stream("Say hello.") as stream:
            async for piece in stream.stream_text(delta=True, debounce_by=None):
                content.append(piece)

    error = raises(Exception, lambda: wait(read()))
    require("".join(content).startswith(CUT_BEGINNING), f"content before the error: {content}")
    require("lost the connection" in str(error), f"{type(error).__name__}: {error}")
    return f"{''.join(content)!r}, then {type(error).__name__}: {error}"


def refused(status, code, url, *ask, **options):
    """Whole and streamed."""
    of = agent(url, *ask, **options)
    for call in (lambda: wait(of.run("Say hello.")), lambda: wait(collect(of, "Say hello."))):
        error = raises(ModelHTTPError, call)
        same("status and code", (error.status_code, error.body["code"]), (status, code))
        require(SECRET not in str(error.body), f"body {error.body}")
    return error


def errors(url):
    refused(401, "invalid_api_key", url, key="not-a-key")
    refused(404, "model_not_found", url, UNKNOWN_MODEL)
    hot = agent(url, model_settings={"extra_body": {"stop": 5}})
    error = raises(ModelHTTPError, lambda: wait(hot.run("Say hello.")))
    same("status and param", (error.status_code, error.body["param"]), (400, "stop"))
    return "401, 404, 400"


def quota(url):
    same("output", wait(agent(url, key=SPENT_KEY).run("Say hello.")).output, HELLO_TEXT)
    return refused(429, "insufficient_quota", url, key=SPENT_KEY, retries=2).body["message"]


CASES = dict(
    whole=whole,
    streamed=streamed,
    tools=tools,
    structured=structured,
    midstream=midstream,
    errors=errors,
    denied=lambda url: refused(403, "model_not_allowed", url, key=BLOCKED_KEY).body["message"],
    quota=quota,
    rate_limited=lambda url: refused(429, "rate_limit_exceeded", url, BUSY_MODEL).body["message"],
    upstream=lambda url: refused(502, "upstream_error", url, BROKEN_MODEL).body["message"],
    timeout=lambda url: refused(504, "timeout", url, SILENT_MODEL).body["message"],
    store_down=lambda _: refused(503, "usage_store_unavailable", ORPHAN_URL + "/v1").body["message"],
)

run(CASES, "pydantic_ai_client.py BASE_URL")
