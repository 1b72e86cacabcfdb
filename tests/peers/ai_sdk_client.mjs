// A conversation of Vercel's AI SDK with an OpenAI-compatible server, by both of its providers for one.
//
//     ai_sdk_client.mjs BASE_URL CASE...    (BASE_URL ends in /v1)
//
// Cases: whole streamed tools structured midstream errors denied quota rate_limited upstream timeout store_down

import {
  BLOCKED_KEY, BROKEN_MODEL, BUSY_MODEL, CAPITAL, CAPITAL_QUESTION, CUT_BEGINNING, CUT_CODE, CUT_MODEL, HELLO_TEXT,
  HELLO_USAGE, KEY, MODEL, ORPHAN_URL, SILENT_MODEL, SPENT_KEY, UNKNOWN_MODEL, WEATHER_ARGUMENTS, WEATHER_QUESTION,
  WEATHER_RESULT, WEATHER_TEXT, keepsSecret, packages, raises, require, run, same, untilReset,
} from "./peer.mjs";

const { APICallError, generateText, streamText, stepCountIs, tool, Output } = packages("ai");
const { createOpenAI } = packages("@ai-sdk/openai");
const { createOpenAICompatible } = packages("@ai-sdk/openai-compatible");
const { z } = packages("zod");

// Its warnings about models that it does not know are for people.
globalThis.AI_SDK_LOG_WARNINGS = false;

const HELLO = "Say hello.";

/** Both providers, as functions from a model's name to a model. */
function providers(baseURL, apiKey = KEY) {
  return [
    (model) => createOpenAI({ baseURL, apiKey }).chat(model),
    (model) => createOpenAICompatible({ name: "gateway", baseURL, apiKey, includeUsage: true, supportsStructuredOutputs: true })(model),
  ];
}

const each = (check) => async (url) => {
  let seen;
  for (const model of providers(url)) seen = await check(model, url);
  return seen;
};

const counts = (usage) => [usage.inputTokens, usage.outputTokens, usage.totalTokens];

async function whole(model) {
  const answer = await generateText({ model: model(MODEL), prompt: HELLO, maxRetries: 0 });
  same("text", answer.text, HELLO_TEXT);
  same("finishReason", answer.finishReason, "stop");
  same("usage", counts(answer.usage), HELLO_USAGE);
  require(answer.response.id && answer.response.modelId, "no id or model");
  return JSON.stringify(answer.text);
}

async function streamed(model) {
  const answer = streamText({ model: model(MODEL), prompt: HELLO, maxRetries: 0 });
  const pieces = [];
  for await (const piece of answer.textStream) pieces.push(piece);
  require(pieces.length > 2, `only ${pieces.length} pieces`);
  same("text", pieces.join(""), HELLO_TEXT);
  same("finishReason", await answer.finishReason, "stop");
  same("usage", counts(await answer.usage), HELLO_USAGE);
  return `${pieces.length} pieces`;
}

async function tools(model) {
  const given = [];
  const get_weather = tool({
    description: "The weather in a city now.",
    inputSchema: z.object({ city: z.string(), unit: z.string().optional() }),
    execute: async (input) => (given.push(input), WEATHER_RESULT),
  });
  const ask = { model: model(MODEL), prompt: WEATHER_QUESTION, tools: { get_weather }, stopWhen: stepCountIs(3), maxRetries: 0 };
  const answer = await generateText(ask);
  same("text", answer.text, WEATHER_TEXT);
  same("steps", answer.steps.map((step) => step.finishReason), ["tool-calls", "stop"]);
  const stream = streamText(ask);
  same("text of a stream", (await stream.steps).at(-1).text, WEATHER_TEXT);
  same("given", given, [WEATHER_ARGUMENTS, WEATHER_ARGUMENTS]);
  return `${JSON.stringify(given[0])}, ${JSON.stringify(answer.text)}`;
}

async function structured(model) {
  const output = Output.object({ schema: z.object({ city: z.string(), country: z.string() }) });
  const ask = { model: model(MODEL), prompt: CAPITAL_QUESTION, output, maxRetries: 0 };
  same("output", (await generateText(ask)).output, CAPITAL);
  const stream = streamText(ask);
  const partial = [];
  for await (const part of stream.partialOutputStream) partial.push(part);
  same("last partial output", partial.at(-1), CAPITAL);
  return `${partial.length} partial outputs`;
}

async function midstream(model) {
  let [text, failed, ended] = ["", undefined, []];
  const stream = streamText({ model: model(CUT_MODEL), prompt: HELLO, maxRetries: 0, onError: () => {} });
  for await (const part of stream.fullStream) {
    if (part.type === "text-delta") text += part.text;
    if (part.type === "error") failed = part.error;
    if (part.type === "finish") ended.push(part.finishReason);
  }
  require(text.startsWith(CUT_BEGINNING), `text before the error: ${text}`);
  const said = JSON.stringify(failed, Object.getOwnPropertyNames(Object(failed))) + String(failed?.message ?? failed);
  require(failed && (said.includes(CUT_CODE) || said.includes("lost the connection")), `the error is ${said}`);
  require(!ended.includes("stop"), `it ended with ${ended}`);
  return `${JSON.stringify(text)}, then ${said.slice(0, 120)}`;
}

/** Whole and streamed. */
async function refused(model, name, status, code) {
  const ask = { model: model(name), prompt: HELLO, maxRetries: 0 };
  const error = await raises(APICallError, () => generateText(ask));
  let streamedError;
  const stream = streamText({ ...ask, onError: ({ error }) => (streamedError = error) });
  await stream.consumeStream({ onError: () => {} });
  for (const seen of [error, streamedError]) {
    same("status", seen.statusCode, status);
    same("code", JSON.parse(seen.responseBody).error.code, code);
    require(seen.message === JSON.parse(seen.responseBody).error.message, `message ${seen.message}`);
    keepsSecret(seen.responseBody, seen.message);
    require(seen.responseHeaders["x-request-id"], "no x-request-id");
  }
  return error;
}

async function errors(url) {
  for (const model of providers(url)) {
    await refused(model, UNKNOWN_MODEL, 404, "model_not_found");
    const hot = { model: model(MODEL), prompt: HELLO, maxRetries: 0, temperature: "hot" };
    await raises(Error, () => generateText(hot));
    const nobody = { model: model(MODEL), messages: [{ role: "user", content: "Hi" }], stopSequences: 5, maxRetries: 0 };
    const invalid = await raises(APICallError, () => generateText(nobody));
    same("status and param", [invalid.statusCode, JSON.parse(invalid.responseBody).error.param], [400, "stop"]);
  }
  for (const model of providers(url, "not-a-key")) await refused(model, MODEL, 401, "invalid_api_key");
  return "404, 400, 401";
}

async function denied(url) {
  for (const model of providers(url, BLOCKED_KEY)) await refused(model, MODEL, 403, "model_not_allowed");
  return "403";
}

async function quota(url) {
  const [model] = providers(url, SPENT_KEY);
  await generateText({ model: model(MODEL), prompt: HELLO, maxRetries: 0 });
  const error = await refused(model, MODEL, 429, "insufficient_quota");
  untilReset(error.responseHeaders["retry-after"]);
  return error.message;
}

async function rateLimited(url) {
  for (const model of providers(url)) {
    const error = await refused(model, BUSY_MODEL, 429, "rate_limit_exceeded");
    require(error.isRetryable, "may be tried again");
  }
  return "429";
}

async function storeDown() {
  const [model] = providers(`${ORPHAN_URL}/v1`);
  const error = await refused(model, MODEL, 503, "usage_store_unavailable");
  require(error.responseHeaders["retry-after"] >= 1, "no retry-after");
  return error.message;
}

await run(
  {
    whole: each(whole),
    streamed: each(streamed),
    tools: each(tools),
    structured: each(structured),
    midstream: each(midstream),
    errors,
    denied,
    quota,
    rate_limited: rateLimited,
    upstream: each(async (model) => (await refused(model, BROKEN_MODEL, 502, "upstream_error")).message),
    timeout: each(async (model) => (await refused(model, SILENT_MODEL, 504, "timeout")).message),
    store_down: storeDown,
  },
  "ai_sdk_client.mjs BASE_URL",
  (url) => url,
);
