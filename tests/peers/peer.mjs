// What the conversations of the clients for Node share; the same as peer.py, which says what is told by the environment.

import { resolve } from "node:path";
import { createRequire } from "node:module";

const env = process.env;
/** Packages that scripts/peers has installed. */
export const packages = createRequire(`${resolve(env.LLM_LAYERS_PEERS ?? "target/peers")}/node/`);

export const KEY = env.PEER_KEY ?? "peer-key";
export const BLOCKED_KEY = env.PEER_BLOCKED_KEY ?? "blocked-key";
export const SPENT_KEY = env.PEER_SPENT_KEY ?? "spent-key";
export const MODEL = env.PEER_MODEL ?? "aimock/gpt-4o-mini";
export const CUT_MODEL = env.PEER_CUT_MODEL ?? "aimock/cut";
export const CUT_CODE = env.PEER_CUT_CODE ?? "upstream_error";
export const BUSY_MODEL = env.PEER_BUSY_MODEL ?? "aimock/busy";
export const BUSY_ONCE_MODEL = env.PEER_BUSY_ONCE_MODEL ?? "aimock/busy-once";
export const BROKEN_MODEL = env.PEER_BROKEN_MODEL ?? "aimock/broken";
export const LOCKED_MODEL = env.PEER_LOCKED_MODEL ?? "aimock/locked";
export const TOO_LONG_MODEL = env.PEER_TOO_LONG_MODEL ?? "aimock/too-long";
export const EMPTY_MODEL = env.PEER_EMPTY_MODEL ?? "aimock/empty";
export const SILENT_MODEL = env.PEER_SILENT_MODEL ?? "quiet/silent";
export const UNKNOWN_MODEL = env.PEER_UNKNOWN_MODEL ?? "no-such-model";
export const ORPHAN_URL = env.PEER_ORPHAN_URL;
export const FULL_URL = env.PEER_FULL_URL;
/** More than the server takes. */
export const LARGE_TEXT = "word ".repeat(400_000);

export const HELLO_TEXT = "Hello from the other side of the gateway.";
export const HELLO_USAGE = [12, 9, 21];
export const WEATHER_QUESTION = "What is the weather in Paris?";
export const WEATHER_ARGUMENTS = { city: "Paris", unit: "celsius" };
export const WEATHER_RESULT = "18 degrees";
export const WEATHER_TEXT = "It is 18 degrees in Paris.";
export const CAPITAL_QUESTION = "What is the capital of France, as JSON?";
export const CAPITAL = { city: "Paris", country: "France" };
export const CUT_BEGINNING = "Once upon a time";
const SECRET = "upstream-secret";

class Wrong extends Error {}

export function same(what, seen, expected) {
  const [a, b] = [JSON.stringify(seen), JSON.stringify(expected)];
  if (a !== b) throw new Wrong(`${what}: expected ${b}, saw ${a}`);
}

export function require(true_, otherwise) {
  if (!true_) throw new Wrong(otherwise);
}

export async function raises(kind, call) {
  let answer;
  try {
    answer = await call();
  } catch (error) {
    if (error instanceof kind) return error;
    throw error;
  }
  throw new Wrong(`expected ${kind.name}, saw an answer: ${JSON.stringify(answer)}`);
}

let requests = 0;

/** For clients that take a `fetch`. */
export function countingFetch(...request) {
  requests += 1;
  return fetch(...request);
}

/** What clients try again by themselves is seen by how many requests they make. */
export async function tries(expected, call) {
  const before = requests;
  const result = await call();
  same("requests made", requests - before, expected);
  return result;
}

export function keepsSecret(...said) {
  require(!JSON.stringify(said).includes(SECRET), "what a provider said in confidence is told");
}

/** The seconds until a day is over. */
export function untilReset(header) {
  require(header >= 1 && header <= 86_400, `retry-after ${header}`);
}

/** Runs the cases that the command line names; says what each has seen, and at the first that fails what was wrong. */
export async function run(cases, usage, prepare) {
  const [where, ...names] = process.argv.slice(2);
  if (!names.length || !names.every((name) => Object.hasOwn(cases, name))) {
    console.error(`usage: ${usage} ${Object.keys(cases).join("|")}...`);
    process.exit(1);
  }
  const given = prepare(where);
  for (const name of names) {
    try {
      console.log(`${name}: ${await cases[name](given)}`);
    } catch (error) {
      console.error(`${name}: ${error instanceof Wrong ? error.message : (error.stack ?? error)}`);
      process.exit(1);
    }
  }
  process.exit(0);
}
