// openai-node: the same calls as tests/clients/with_openai.py, made by one process.

import assert from "node:assert/strict";
import { setTimeout as wait } from "node:timers/promises";
import OpenAI, { toFile } from "openai";
import { all, check, front, messages, openRequests, refused, report, settings, untilIdle } from "./checks.mjs";

const client = new OpenAI(settings);
const askWeather = [{ role: "user", content: front.weather_question }];
const weather = {
  type: "function",
  function: { name: "weather", description: "Tell the weather of a city.", strict: true, parameters: front.weather_schema },
};
const paint = {
  type: "object",
  properties: { colour: { type: "string", enum: ["red", "green", "blue"] }, glossy: { type: "boolean" } },
  required: ["colour", "glossy"],
  additionalProperties: false,
};

function assertCity(text) {
  const found = JSON.parse(text);
  assert.deepEqual(Object.keys(found), ["city"]);
  assert.equal(typeof found.city, "string");
}

function assertPaint(found) {
  assert.ok(["red", "green", "blue"].includes(found.colour));
  assert.equal(typeof found.glossy, "boolean");
}

check("chat", async () => {
  const answer = await client.chat.completions.create({ model: front.chat, messages, max_tokens: 8, temperature: 0 });
  assert.ok(answer.choices[0].message.content);
  assert.ok(["length", "stop"].includes(answer.choices[0].finish_reason));
  assert.ok(answer.usage.completion_tokens <= 8);
  assert.ok(answer._request_id);
});

check("chat streamed", async () => {
  const asked = { model: front.chat, messages, max_tokens: 8, stream: true };
  const chunks = await all(await client.chat.completions.create(asked));
  assert.equal(chunks[0].choices[0].delta.role, "assistant");
  assert.ok(chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join(""));
  assert.ok(["length", "stop"].includes(chunks.at(-1).choices[0].finish_reason));
  const last = (await all(await client.chat.completions.create({ ...asked, stream_options: { include_usage: true } }))).at(-1);
  assert.deepEqual(last.choices, []);
  assert.ok(last.usage.completion_tokens > 0);
});

check("chat by the stream helper", async () => {
  const stream = client.chat.completions.stream({ model: front.chat, messages, max_tokens: 8, temperature: 0 });
  let text = "";
  stream.on("content", (piece) => (text += piece));
  const final = await stream.finalChatCompletion();
  assert.ok(text);
  assert.equal(final.choices[0].message.content, text);
});

check("a tool and the turn after it", async () => {
  const asked = { model: front.chat, tools: [weather], temperature: 0 };
  const first = await client.chat.completions.create({ ...asked, messages: askWeather, tool_choice: "required", max_tokens: 80 });
  const message = first.choices[0].message;
  assert.equal(message.tool_calls[0].function.name, "weather");
  assertCity(message.tool_calls[0].function.arguments);
  const result = { role: "tool", tool_call_id: message.tool_calls[0].id, content: "18 degrees, sunny" };
  const second = await client.chat.completions.create({
    ...asked, messages: [...askWeather, message, result], tool_choice: "none", max_tokens: 8,
  });
  assert.ok(second.choices[0].message.content);
});

check("a named tool streamed", async () => {
  const chunks = await all(await client.chat.completions.create({
    model: front.chat, messages: askWeather, tools: [weather], max_tokens: 80, temperature: 0, stream: true,
    tool_choice: { type: "function", function: { name: "weather" } },
  }));
  const pieces = chunks.flatMap((chunk) => chunk.choices[0].delta.tool_calls ?? []);
  assertCity(pieces.map((piece) => piece.function.arguments ?? "").join(""));
});

check("structured output", async () => {
  const answer = await client.chat.completions.parse({
    model: front.chat, messages, temperature: 0, max_tokens: 60,
    response_format: { type: "json_schema", json_schema: { name: "paint", strict: true, schema: paint } },
  });
  assertPaint(JSON.parse(answer.choices[0].message.content));
});

check("completions", async () => {
  const asked = { model: front.chat, prompt: ["One, two,", "Red and"], max_tokens: 4 };
  const whole = await client.completions.create(asked);
  assert.deepEqual(whole.choices.map((choice) => choice.index), [0, 1]);
  const chunks = await all(await client.completions.create({ ...asked, stream: true }));
  const ended = chunks.filter((chunk) => chunk.choices[0].finish_reason).map((chunk) => chunk.choices[0].index);
  assert.deepEqual(ended.sort(), [0, 1]);
});

check("responses", async () => {
  const answer = await client.responses.create({ model: front.chat, input: front.question, max_output_tokens: 24 });
  assert.ok(answer.output_text);
  assert.ok(answer.usage.output_tokens > 0);
});

check("responses streamed", async () => {
  const events = await all(await client.responses.create({
    model: front.chat, input: front.question, max_output_tokens: 24, stream: true,
  }));
  assert.equal(events[0].type, "response.created");
  assert.ok(["response.completed", "response.incomplete"].includes(events.at(-1).type));
  assert.ok(events.some((event) => event.type === "response.output_text.delta" && event.delta));
});

check("responses parsed", async () => {
  const answer = await client.responses.parse({
    model: front.chat, input: front.question, temperature: 0, max_output_tokens: 60,
    text: { format: { type: "json_schema", name: "paint", strict: true, schema: paint } },
  });
  assertPaint(JSON.parse(answer.output_text));
});

check("embeddings", async () => {
  const made = await client.embeddings.create({ model: front.embed, input: front.texts });
  const plain = await client.embeddings.create({ model: front.embed, input: front.texts, encoding_format: "float" });
  assert.equal(made.data.length, 2);
  assert.equal(made.data[0].embedding.length, plain.data[0].embedding.length);
  assert.ok(Math.abs(made.data[0].embedding[0] - plain.data[0].embedding[0]) < 1e-6);
}, "embed");

check("a transcription", async () => {
  const file = await toFile(Buffer.from(front.wav, "base64"), "hello.wav", { type: "audio/wav" });
  const heard = await client.audio.transcriptions.create({ model: front.speech, file });
  assert.ok(heard.text);
}, "speech");

check("models", async () => {
  const ids = (await all(client.models.list())).map((model) => model.id);
  assert.ok(ids.includes(front.chat));
  assert.equal((await client.models.retrieve(front.chat)).id, front.chat);
  const error = await refused(client.models.retrieve("acme/other"), OpenAI.NotFoundError, 404);
  assert.equal(error.code, "model_not_found");
});

check("the raw answer", async () => {
  const asked = { model: front.chat, messages, max_tokens: 4 };
  const { data, response, request_id } = await client.chat.completions.create(asked).withResponse();
  assert.equal(response.headers.get("x-request-id"), request_id);
  assert.ok(data.choices.length);
});

check("a stream that is aborted frees the pod", async () => {
  const asked = { model: front.chat, messages, max_tokens: front.endless_tokens, stream: true, ...front.endless };
  const stream = await client.chat.completions.create(asked);
  for await (const _ of stream) break;
  stream.controller.abort();
  await untilIdle();
});

check("a call that is aborted frees the pod", async () => {
  const leaving = new AbortController();
  const asked = { model: front.chat, messages, max_tokens: front.endless_tokens, ...front.endless };
  const asking = client.chat.completions.create(asked, { signal: leaving.signal });
  let ended = null;
  const ending = asking.then(() => "an answer", (error) => error).then((what) => (ended = what));
  while (ended === null && (await openRequests()) === 0) await wait(10);
  leaving.abort();
  assert.ok((await ending) instanceof OpenAI.APIUserAbortError, String(ended));
  await untilIdle();
});

check("errors are their classes", async () => {
  const ask = (body, who = client) => who.chat.completions.create({ model: front.chat, messages, max_tokens: 4, ...body });
  const stranger = new OpenAI({ ...settings, apiKey: "sk-wrong" });
  assert.equal((await refused(ask({}, stranger), OpenAI.AuthenticationError, 401)).code, "invalid_api_key");
  assert.equal((await refused(ask({ model: "nope" }), OpenAI.NotFoundError, 404)).code, "model_not_found");
  assert.equal((await refused(ask({ cache_salt: "x" }), OpenAI.PermissionDeniedError, 403)).code, "field_not_allowed");
  const long = [{ role: "user", content: front.too_long }];
  const tooLong = await refused(ask({ messages: long, stream: true }), OpenAI.BadRequestError, 400);
  assert.match(tooLong.message, /maximum context length/);
  assert.ok(tooLong.requestID);
});

await report();
