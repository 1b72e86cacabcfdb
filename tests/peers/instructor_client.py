"""A conversation of Instructor with an OpenAI-compatible server.

    instructor_client.py BASE_URL CASE... (BASE_URL ends in /v1)

Prints a line for each case that the server behaved in; exits 1 and says what was wrong at the first that it did not.
Cases: structured tools errors quota
"""

import instructor
import openai
import pydantic
from instructor.core import InstructorRetryException

from peer import *


class Capital(pydantic.BaseModel):
    city: str
    country: str


class get_weather(pydantic.BaseModel):
    """The weather in a city now."""

    city: str
    unit: str


def client(url, mode, key=KEY):
    return instructor.from_openai(openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=20), mode=mode)


def ask(question, model=MODEL):
    return dict(model=model, messages=[{"role": "user", "content": question}], max_retries=1)


def structured(url):
    for mode in (instructor.Mode.JSON_SCHEMA, instructor.Mode.JSON):
        of = client(url, mode)
        capital = of.create(response_model=Capital, **ask(CAPITAL_QUESTION))
        same(f"{mode}", capital.model_dump(), CAPITAL)
        partial = list(of.create_partial(response_model=Capital, **ask(CAPITAL_QUESTION)))
        same(f"the last part by {mode}", partial[-1].model_dump(), CAPITAL)
    return f"{capital!r}, {len(partial)} parts"


def tools(url):
    weather = client(url, instructor.Mode.TOOLS).create(response_model=get_weather, **ask(WEATHER_QUESTION))
    same("arguments", weather.model_dump(), WEATHER_ARGUMENTS)
    return repr(weather)


def refused(url, status, code, model=MODEL, key=KEY):
    of = client(url, instructor.Mode.JSON, key)
    error = raises(InstructorRetryException, lambda: of.create(response_model=Capital, **ask(CAPITAL_QUESTION, model)))
    while not isinstance(error, openai.APIStatusError):
        require(error.__cause__ or error.__context__, f"no reason for {error!r}")
        error = error.__cause__ or error.__context__
        error = error.last_attempt.exception() if hasattr(error, "last_attempt") else error
    same("status and code", (error.status_code, error.code), (status, code))
    return error


def errors(url):
    refused(url, 401, "invalid_api_key", key="not-a-key")
    refused(url, 403, "model_not_allowed", key=BLOCKED_KEY)
    refused(url, 404, "model_not_found", UNKNOWN_MODEL)
    refused(url, 429, "rate_limit_exceeded", BUSY_MODEL)
    refused(url, 502, "upstream_error", BROKEN_MODEL)
    return "401, 403, 404, 429, 502"


def quota(url):
    client(url, instructor.Mode.JSON, SPENT_KEY).create(response_model=Capital, **ask(CAPITAL_QUESTION))
    return refused(url, 429, "insufficient_quota", key=SPENT_KEY).message


run(dict(structured=structured, tools=tools, errors=errors, quota=quota), "instructor_client.py BASE_URL")
