// The official `openai` package: every call here is one that its users make.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.env.MLXD_URL}/v1`, apiKey: "unused", maxRetries: 0 });
const messages = [{ role: "user", content: "hello" }];
const weather = {
  type: "function",
  function: {
    name: "weather",
    description: "Tell the weather",
    strict: true,
    parameters: {
      type: "object",
      properties: { city: { type: "string", maxLength: 6 }, days: { type: "integer", minimum: 0, maximum: 9 } },
      required: ["city", "days"],
      additionalProperties: false,
    },
  },
};
const person = {
  type: "object",
  properties: { name: { type: "string", maxLength: 6 }, age: { type: "integer", minimum: 0, maximum: 99 } },
  required: ["name", "age"],
  additionalProperties: false,
};

test("a chat, whole and streamed, says the same", async () => {
  const asked = { model: "talker", messages, max_tokens: 30, temperature: 0 };
  const whole = await client.chat.completions.create(asked);
  let text = "";
  let usage = null;
  for await (const chunk of await client.chat.completions.create({
    ...asked,
    stream: true,
    stream_options: { include_usage: true },
  })) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(text.length, 30);
  assert.equal(usage.completion_tokens, 30);
});

test("the stream helper ends with the whole completion", async () => {
  const stream = client.chat.completions.stream({ model: "talker", messages, max_tokens: 20, temperature: 0 });
  let text = "";
  stream.on("content", (delta) => (text += delta));
  const final = await stream.finalChatCompletion();
  assert.equal(final.choices[0].message.content, text);
  assert.equal(final.choices[0].finish_reason, "length");
});

test("a required tool is called, in a stream too, and its result goes back", async () => {
  const asked = { model: "caller", messages, tools: [weather], tool_choice: "required", seed: 3, max_tokens: 300, parallel_tool_calls: false };
  const whole = (await client.chat.completions.create(asked)).choices[0].message;
  const streamed = (await client.chat.completions.stream(asked).finalChatCompletion()).choices[0];
  assert.equal(streamed.finish_reason, "tool_calls");
  assert.equal(streamed.message.tool_calls[0].function.arguments, whole.tool_calls[0].function.arguments);
  const { city, days } = JSON.parse(whole.tool_calls[0].function.arguments);
  assert.ok(typeof city === "string" && Number.isInteger(days));
  const next = await client.chat.completions.create({
    model: "caller",
    messages: [...messages, whole, { role: "tool", tool_call_id: whole.tool_calls[0].id, content: "sun" }],
    tools: [weather],
    max_tokens: 5,
  });
  assert.equal(next.choices.length, 1);
});

test("runTools calls the function and goes on", async () => {
  const seen = [];
  const runner = client.chat.completions.runTools({
    model: "caller",
    messages,
    seed: 3,
    max_tokens: 200,
    parallel_tool_calls: false,
    tool_choice: { type: "function", function: { name: "weather" } },
    tools: [{ type: "function", function: { ...weather.function, parse: JSON.parse, function: (given) => (seen.push(given), "sun") } }],
  });
  await runner.done();
  assert.equal(seen.length, 1);
  assert.ok(Number.isInteger(seen[0].days));
});

test("an answer is bound to a JSON schema", async () => {
  const response_format = { type: "json_schema", json_schema: { name: "person", strict: true, schema: person } };
  const answer = await client.chat.completions.parse({ model: "talker", messages, seed: 5, max_tokens: 200, response_format });
  assert.deepEqual(Object.keys(answer.choices[0].message.parsed), ["name", "age"]);
});

test("a field that is not supported is an error of the client's own kind", async () => {
  await assert.rejects(
    client.chat.completions.create({ model: "talker", messages, verbosity: "low" }),
    (error) => error instanceof OpenAI.BadRequestError && error.param === "verbosity" && error.code === "unsupported_parameter",
  );
});

test("embeddings come as numbers, whatever the client asks for on the wire", async () => {
  const { data } = await client.embeddings.create({ model: "talker", input: ["one", "two"] });
  assert.equal(data.length, 2);
  for (const { embedding } of data) {
    assert.equal(embedding.length, 64);
    assert.ok(Math.abs(Math.hypot(...embedding) - 1) < 1e-3);
  }
});

test("a response, whole, streamed and continued", async () => {
  const asked = { model: "talker", input: "hello", max_output_tokens: 20, temperature: 0 };
  const whole = await client.responses.create(asked);
  assert.equal(whole.output_text.length, 20);
  const stream = client.responses.stream(asked);
  let text = "";
  stream.on("response.output_text.delta", (event) => (text += event.delta));
  const final = await stream.finalResponse();
  assert.equal(final.output_text, whole.output_text);
  assert.equal(text, whole.output_text);
  const next = await client.responses.create({ ...asked, input: "more", previous_response_id: whole.id });
  assert.equal(next.previous_response_id, whole.id);
});

test("models are listed", async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  assert.deepEqual(ids, ["caller", "talker", "thinker"]);
});
