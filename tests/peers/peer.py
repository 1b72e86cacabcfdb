"""What the conversations of all clients share: what is asked, what is expected, and how it is said that it was not so."""

import asyncio
import os
import sys

KEY = os.environ.get("PEER_KEY", "peer-key")
BLOCKED_KEY = os.environ.get("PEER_BLOCKED_KEY", "blocked-key")
SPENT_KEY = os.environ.get("PEER_SPENT_KEY", "spent-key")
MODEL = os.environ.get("PEER_MODEL", "aimock/gpt-4o-mini")
CUT_MODEL = os.environ.get("PEER_CUT_MODEL", "aimock/cut")
CUT_CODE = os.environ.get("PEER_CUT_CODE", "upstream_error")
BUSY_MODEL = os.environ.get("PEER_BUSY_MODEL", "aimock/busy")
BUSY_ONCE_MODEL = os.environ.get("PEER_BUSY_ONCE_MODEL", "aimock/busy-once")
BROKEN_MODEL = os.environ.get("PEER_BROKEN_MODEL", "aimock/broken")
LOCKED_MODEL = os.environ.get("PEER_LOCKED_MODEL", "aimock/locked")
TOO_LONG_MODEL = os.environ.get("PEER_TOO_LONG_MODEL", "aimock/too-long")
EMPTY_MODEL = os.environ.get("PEER_EMPTY_MODEL", "aimock/empty")
SILENT_MODEL = os.environ.get("PEER_SILENT_MODEL", "quiet/silent")
UNKNOWN_MODEL = os.environ.get("PEER_UNKNOWN_MODEL", "no-such-model")
ORPHAN_URL = os.environ.get("PEER_ORPHAN_URL")
FULL_URL = os.environ.get("PEER_FULL_URL")
CACHED = os.environ.get("PEER_CACHED")
# Whether the provider says a call of a tool in one piece, as Gemini's protocol has it.
WHOLE_CALLS = os.environ.get("PEER_WHOLE_CALLS")
# Whether the provider cannot be told to call one tool at a time: who asks for that is refused.
NO_SERIAL_CALLS = os.environ.get("PEER_NO_SERIAL_CALLS")

# More than the server takes.
LARGE_TEXT = "word " * 400_000

HELLO_TEXT = "Hello from the other side of the gateway."
HELLO_USAGE = (12, 9, 21)
WEATHER_QUESTION = "What is the weather in Paris?"
WEATHER_ARGUMENTS = {"city": "Paris", "unit": "celsius"}
WEATHER_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"type": "string"}},
    "required": ["city"],
}
WEATHER_RESULT = "18 degrees"
WEATHER_TEXT = "It is 18 degrees in Paris."
CAPITAL_QUESTION = "What is the capital of France, as JSON?"
CAPITAL = {"city": "Paris", "country": "France"}
CUT_BEGINNING = "Once upon a time"
# In what a provider says, and for nobody's eyes.
SECRET = "upstream-secret"


class Wrong(Exception):
    pass


def same(what, seen, expected):
    if seen != expected:
        raise Wrong(f"{what}: expected {expected!r}, saw {seen!r}")


def require(true, otherwise):
    if not true:
        raise Wrong(otherwise)


def in_fragments(count):
    if WHOLE_CALLS:
        same("fragments", count, 1)
    else:
        require(count > 2, f"only {count} fragments")


def raises(kind, call):
    try:
        answer = call()
    except kind as error:
        return error
    raise Wrong(f"expected {kind.__name__}, saw an answer: {answer!r}")


REQUESTS = []

# One for all: clients keep connections, which belong to the loop that they were made in.
wait = asyncio.new_event_loop().run_until_complete


def tries(expected, call):
    """What clients try again by themselves is seen by how many requests they make: see `REQUESTS`."""
    before = len(REQUESTS)
    result = call()
    same("requests made", len(REQUESTS) - before, expected)
    return result


def until_reset(header):
    """The seconds until a day is over."""
    require(header is not None, "no retry-after")
    require(1 <= float(header) <= 86400, f"retry-after {header}")
    return header


def run(cases, usage, prepare=lambda where: where):
    """Runs the cases that the command line names; says what each has seen, and at the first that fails what was wrong."""
    where, names = sys.argv[1:2], sys.argv[2:]
    if not names or not set(names) <= set(cases):
        sys.exit(f"usage: {usage} {'|'.join(cases)}...")
    given = prepare(where[0])
    for name in names:
        try:
            print(f"{name}: {cases[name](given)}", flush=True)
        except Wrong as wrong:
            sys.exit(f"{name}: {wrong}")
        except Exception as error:
            sys.exit(f"{name}: {type(error).__name__}: {error}")
