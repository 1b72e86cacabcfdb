// A conversation of the openai SDK with an OpenAI-compatible server.
//
//     openai_client.mjs BASE_URL CASE...    (BASE_URL ends in /v1)
//
// Cases and expectations are those of openai_client.py.

import {
  BLOCKED_KEY, BROKEN_MODEL, BUSY_MODEL, BUSY_ONCE_MODEL, CAPITAL, CAPITAL_QUESTION, CUT_BEGINNING, CUT_CODE, CUT_MODEL,
  EMPTY_MODEL, FULL_URL, HELLO_TEXT, HELLO_USAGE, KEY, LARGE_TEXT, LOCKED_MODEL, MODEL, ORPHAN_URL, SILENT_MODEL, SPENT_KEY,
  TOO_LONG_MODEL, UNKNOWN_MODEL, WEATHER_ARGUMENTS, WEATHER_QUESTION, WEATHER_RESULT, WEATHER_TEXT, countingFetch, keepsSecret,
  packages, raises, require, run, same, tries, untilReset,
} from "./peer.mjs";

const OpenAI = packages("openai");
const { zodResponseFormat } = packages("openai/helpers/zod");
const { z } = packages("zod");

const HELLO = [{ role: "user", content: "Say hello." }];
const WEATHER = [{ role: "user", content: WEATHER_QUESTION }];
const TOOLS = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "The weather in a city now.",
      parameters: {
        type: "object",
        properties: { city: { type: "string" }, unit: { type: "string" } },
        required: ["city"],
      },
    },
  },
];

function counts(usage) {
  require(usage, "no usage");
  return [usage.prompt_tokens, usage.completion_tokens, usage.total_tokens];
}

const unique = (list) => [...new Set(list)];

async function collect(stream) {
  const seen = [];
  for await (const chunk of stream) seen.push(chunk);
  return seen;
}

async function whole(client) {
  const answer = await client.chat.completions.create({ model: MODEL, messages: HELLO });
  require(answer.id, "no id");
  require(answer.model, "no model");
  require(answer.created > 0, "no created");
  same("object", answer.object, "chat.completion");
  same("choices", answer.choices.length, 1);
  const choice = answer.choices[0];
  same("index", choice.index, 0);
  same("role", choice.message.role, "assistant");
  same("content", choice.message.content, HELLO_TEXT);
  same("finish_reason", choice.finish_reason, "stop");
  same("usage", counts(answer.usage), HELLO_USAGE);
  return `${JSON.stringify(choice.message.content)}, ${answer.usage.total_tokens} tokens`;
}

async function streamed(client) {
  async function chunks(options) {
    const stream = await client.chat.completions.create({ model: MODEL, messages: HELLO, stream: true, ...options });
    const seen = await collect(stream);
    require(seen.length > 2, `only ${seen.length} chunks`);
    same("object", unique(seen.map((chunk) => chunk.object)), ["chat.completion.chunk"]);
    same("ids", unique(seen.map((chunk) => chunk.id)).length, 1);
    same("role in the first chunk", seen[0].choices[0].delta.role, "assistant");
    const choices = seen.flatMap((chunk) => chunk.choices);
    same("indexes", unique(choices.map((choice) => choice.index)), [0]);
    same("content", choices.map((choice) => choice.delta.content ?? "").join(""), HELLO_TEXT);
    const reasons = choices.map((choice) => choice.finish_reason).filter(Boolean);
    same("finish_reasons", reasons, ["stop"]);
    return seen;
  }

  const plain = await chunks({});
  require(plain.every((chunk) => chunk.choices.length), "a usage chunk that nobody asked for");

  const asked = await chunks({ stream_options: { include_usage: true } });
  same("chunks without choices", asked.filter((chunk) => !chunk.choices.length).length, 1);
  require(!asked.at(-1).choices.length, "the usage chunk is not the last");
  same("usage", counts(asked.at(-1).usage), HELLO_USAGE);

  const final = await client.chat.completions.stream({ model: MODEL, messages: HELLO }).finalChatCompletion();
  same("content of .stream()", final.choices[0].message.content, HELLO_TEXT);
  return `${plain.length} chunks, ${asked.length} with usage`;
}

async function tools(client) {
  async function secondTurn(message) {
    const call = message.tool_calls[0];
    same("name", call.function.name, "get_weather");
    same("arguments", JSON.parse(call.function.arguments), WEATHER_ARGUMENTS);
    require(call.id, "a tool call without an id");
    const result = { role: "tool", tool_call_id: call.id, content: WEATHER_RESULT };
    const messages = [...WEATHER, message, result];
    const answer = await client.chat.completions.create({ model: MODEL, messages, tools: TOOLS });
    same("second turn", answer.choices[0].message.content, WEATHER_TEXT);
    same("finish_reason of the second turn", answer.choices[0].finish_reason, "stop");
  }

  const answer = await client.chat.completions.create({ model: MODEL, messages: WEATHER, tools: TOOLS });
  same("finish_reason", answer.choices[0].finish_reason, "tool_calls");
  same("tool calls", answer.choices[0].message.tool_calls?.length, 1);
  await secondTurn(answer.choices[0].message);

  const call = { type: "function", function: { name: "", arguments: "" } };
  let fragments = 0;
  let reason;
  const stream = await client.chat.completions.create({ model: MODEL, messages: WEATHER, tools: TOOLS, stream: true });
  for await (const chunk of stream) {
    for (const choice of chunk.choices) {
      reason = choice.finish_reason ?? reason;
      for (const part of choice.delta.tool_calls ?? []) {
        same("index of a fragment", part.index, 0);
        call.id ??= part.id;
        call.function.name += part.function.name ?? "";
        call.function.arguments += part.function.arguments ?? "";
        fragments += 1;
      }
    }
  }
  require(fragments > 2, `only ${fragments} fragments`);
  same("finish_reason of the stream", reason, "tool_calls");
  await secondTurn({ role: "assistant", tool_calls: [call] });

  // The runner asks, calls the function, and asks again with its result.
  for (const stream of [false, true]) {
    let given;
    const runnable = { ...TOOLS[0].function, parse: JSON.parse, function: (args) => ((given = args), WEATHER_RESULT) };
    const body = { model: MODEL, messages: WEATHER, tools: [{ type: "function", function: runnable }], stream };
    const text = await client.chat.completions.runTools(body).finalContent();
    same("arguments given to the tool", given, WEATHER_ARGUMENTS);
    same("content of the tool runner", text, WEATHER_TEXT);
  }
  return `${JSON.stringify(WEATHER_ARGUMENTS)}, ${fragments} fragments, ${JSON.stringify(WEATHER_TEXT)}`;
}

async function midstream(client) {
  let content = "";
  const reasons = [];
  const stream = await client.chat.completions.create({ model: CUT_MODEL, messages: HELLO, stream: true });
  const error = await raises(OpenAI.APIError, async () => {
    for await (const chunk of stream) {
      for (const choice of chunk.choices) {
        content += choice.delta.content ?? "";
        reasons.push(choice.finish_reason);
      }
    }
    return content;
  });
  same("kind of error", error.constructor.name, "APIError");
  require(content.startsWith(CUT_BEGINNING), `content before the error: ${JSON.stringify(content)}`);
  require(!reasons.some(Boolean), `a finish_reason before the error: ${reasons}`);
  require(error.error?.message, "no message");
  same("type", error.type, "server_error");
  same("code", error.code, CUT_CODE);
  same("param", error.param, null);

  const helper = client.chat.completions.stream({ model: CUT_MODEL, messages: HELLO });
  const again = await raises(OpenAI.APIError, () => helper.finalChatCompletion());
  same("code of .stream()", again.code, CUT_CODE);
  return `${JSON.stringify(content)}, then ${error.type}/${error.code}: ${error.message}`;
}

async function rateLimited(client) {
  const ask = (model, maxRetries) => client.chat.completions.create({ model, messages: HELLO }, { maxRetries });

  const error = await raises(OpenAI.RateLimitError, () => ask(BUSY_MODEL, 0));
  same("type", error.type, "rate_limit_error");
  same("code", error.code, "rate_limit_exceeded");
  const header = error.headers.get("retry-after");
  require(header !== null, "no retry-after header");
  require(header >= 1 && header <= 2, `retry-after: expected 2 or a little less, saw ${header}`);

  const start = performance.now();
  const answer = await ask(BUSY_ONCE_MODEL, 1);
  const waited = (performance.now() - start) / 1000;
  same("content", answer.choices[0].message.content, HELLO_TEXT);
  // Without the header the SDK would wait half a second at most.
  require(waited >= 0.95 && waited <= 5, `waited ${waited.toFixed(2)} s where retry-after said 1`);
  return `retry-after ${header}; once: waited ${waited.toFixed(2)} s`;
}

async function requestId(client) {
  const ask = (body, headers) =>
    client.chat.completions.create({ model: MODEL, messages: HELLO, ...body }, { headers });
  const first = (await ask())._request_id;
  require(first, "no x-request-id on an answer");
  const second = (await ask())._request_id;
  require(first !== second, `the same id twice: ${first}`);
  const { data, request_id } = await ask({ stream: true }).withResponse();
  require(request_id, "no x-request-id on a stream");
  data.controller.abort();
  const own = { "x-request-id": "chosen-by-the-client" };
  same("the client's own id", (await ask({}, own))._request_id, own["x-request-id"]);
  let error = await raises(OpenAI.NotFoundError, () => ask({ model: UNKNOWN_MODEL }, own));
  same("the client's own id on an error", error.requestID, own["x-request-id"]);
  error = await raises(OpenAI.NotFoundError, () => ask({ model: UNKNOWN_MODEL }));
  require(error.requestID, "no x-request-id on an error");
  return `${first}, ${own["x-request-id"]}, ${error.requestID}`;
}

async function errors(client) {
  async function refused(kind, type, code, param, call) {
    const error = await raises(kind, call);
    require(error.error?.message, `${kind.name}: no error body`);
    same(`${kind.name}: type`, error.type, type);
    if (code !== null) same(`${kind.name}: code`, error.code, code);
    if (param !== null) same(`${kind.name}: param`, error.param, param);
    same(`${kind.name}: content-type`, error.headers.get("content-type"), "application/json");
  }

  const invalid = "invalid_request_error";
  const ask = (body) => client.chat.completions.create({ model: MODEL, messages: HELLO, ...body });
  const stranger = client.withOptions({ apiKey: "not-a-key" });
  await refused(OpenAI.AuthenticationError, invalid, "invalid_api_key", null, () =>
    stranger.chat.completions.create({ model: MODEL, messages: HELLO }),
  );
  const unknown = { model: UNKNOWN_MODEL };
  await refused(OpenAI.NotFoundError, invalid, "model_not_found", null, () => ask(unknown));
  await refused(OpenAI.NotFoundError, invalid, "model_not_found", null, () => ask({ ...unknown, stream: true }));
  await refused(OpenAI.BadRequestError, invalid, null, "temperature", () => ask({ temperature: "hot" }));
  await refused(OpenAI.BadRequestError, invalid, null, "messages", () => ask({ messages: undefined }));
  await refused(OpenAI.BadRequestError, invalid, null, "messages", () => ask({ messages: [] }));
  await refused(OpenAI.NotFoundError, invalid, null, null, () => client.post("/no/such/path", { body: {} }));
  return "401, 404, 404 of a stream, 400 temperature, 400 messages, 404 of a path";
}

const Capital = z.object({ city: z.string(), country: z.string() });

async function structured(client) {
  const ask = { model: MODEL, messages: [{ role: "user", content: CAPITAL_QUESTION }] };
  const response_format = zodResponseFormat(Capital, "capital");
  const answer = await client.chat.completions.parse({ ...ask, response_format });
  same("parsed", answer.choices[0].message.parsed, CAPITAL);
  const final = await client.chat.completions.stream({ ...ask, response_format }).finalChatCompletion();
  same("parsed of .stream()", final.choices[0].message.parsed, CAPITAL);
  const plain = await client.chat.completions.create({ ...ask, response_format: { type: "json_object" } });
  same("object", JSON.parse(plain.choices[0].message.content), CAPITAL);
  return JSON.stringify(answer.choices[0].message.parsed);
}

/** Whole and streamed, and not tried again where that is of no use. */
async function refused(client, kind, type, code, model = MODEL, messages = HELLO) {
  let error;
  for (const stream of [false, true]) {
    error = await raises(kind, () => client.chat.completions.create({ model, messages, stream }));
    same("type and code", [error.type, error.code], [type, code]);
    require(error.error?.message, "no message");
    keepsSecret(error.error, error.message);
    require(error.requestID, "no x-request-id");
  }
  return error;
}

async function denied(client) {
  const blocked = client.withOptions({ apiKey: BLOCKED_KEY, maxRetries: 2 });
  const error = await tries(2, () => refused(blocked, OpenAI.PermissionDeniedError, "permission_error", "model_not_allowed"));
  same("param", error.param, "model");
  return error.message;
}

async function quota(client) {
  const spent = client.withOptions({ apiKey: SPENT_KEY, maxRetries: 2 });
  await spent.chat.completions.create({ model: MODEL, messages: HELLO });
  const error = await tries(2, () => refused(spent, OpenAI.RateLimitError, "insufficient_quota", "insufficient_quota"));
  untilReset(error.headers.get("retry-after"));
  same("x-should-retry", error.headers.get("x-should-retry"), "false");
  same("limit", error.headers.get("x-ratelimit-limit-requests"), "1");
  return error.message;
}

async function upstream(client) {
  const error = await refused(client, OpenAI.InternalServerError, "server_error", "upstream_error", BROKEN_MODEL);
  same("status", error.status, 502);
  const keen = client.withOptions({ maxRetries: 2 });
  await tries(2, () => refused(keen, OpenAI.InternalServerError, "server_error", "upstream_error", LOCKED_MODEL));
  return error.message;
}

async function timeout(client) {
  const error = await refused(client, OpenAI.InternalServerError, "server_error", "timeout", SILENT_MODEL);
  same("status", error.status, 504);
  return error.message;
}

async function unavailable(client, url, code) {
  const there = client.withOptions({ baseURL: `${url}/v1` });
  const error = await refused(there, OpenAI.InternalServerError, "server_error", code);
  same("status", error.status, 503);
  require(error.headers.get("retry-after") >= 1, "no retry-after");
  return error.message;
}

const storeDown = (client) => unavailable(client, ORPHAN_URL, "usage_store_unavailable");

async function tooLong(client) {
  const error = await refused(client, OpenAI.BadRequestError, "invalid_request_error", "context_length_exceeded", TOO_LONG_MODEL);
  return error.message;
}

async function tooLarge(client) {
  const large = [{ role: "user", content: LARGE_TEXT }];
  const error = await refused(client, OpenAI.APIError, "invalid_request_error", null, MODEL, large);
  same("status", error.status, 413);
  return error.message;
}

async function empty(client) {
  const error = await refused(client, OpenAI.InternalServerError, "server_error", "upstream_error", EMPTY_MODEL);
  same("status", error.status, 502);
  return error.message;
}

const overloaded = (client) => unavailable(client, FULL_URL, "overloaded");

async function models(client) {
  const listed = await collect(client.models.list());
  const ids = listed.map((model) => model.id);
  require(ids.includes(MODEL), `${MODEL} is not among ${ids}`);
  same("object", unique(listed.map((model) => model.object)), ["model"]);
  return `${listed.length} models`;
}

const CASES = {
  whole,
  streamed,
  tools,
  midstream,
  rate_limited: rateLimited,
  request_id: requestId,
  errors,
  structured,
  denied,
  quota,
  upstream,
  timeout,
  store_down: storeDown,
  too_long: tooLong,
  too_large: tooLarge,
  empty,
  overloaded,
  models,
};

await run(
  CASES,
  "openai_client.mjs BASE_URL",
  (baseURL) => new OpenAI({ baseURL, apiKey: KEY, maxRetries: 0, timeout: 20_000, fetch: countingFetch }),
);
