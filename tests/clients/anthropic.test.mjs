// The official `@anthropic-ai/sdk` package.
import assert from "node:assert/strict";
import { test } from "node:test";
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic({ baseURL: process.env.MLXD_URL, apiKey: "unused", maxRetries: 0 });
const messages = [{ role: "user", content: "hello" }];
const weather = {
  name: "weather",
  description: "Tell the weather",
  input_schema: {
    type: "object",
    properties: { city: { type: "string", maxLength: 6 }, days: { type: "integer", minimum: 0, maximum: 9 } },
    required: ["city", "days"],
    additionalProperties: false,
  },
};

test("a message, whole and streamed, says the same", async () => {
  const asked = { model: "talker", messages, max_tokens: 30, temperature: 0 };
  const whole = await client.messages.create(asked);
  const stream = client.messages.stream(asked);
  let text = "";
  stream.on("text", (delta) => (text += delta));
  const final = await stream.finalMessage();
  assert.equal(text, whole.content[0].text);
  assert.deepEqual(final.content, whole.content);
  assert.equal(final.stop_reason, "max_tokens");
  assert.equal(final.usage.output_tokens, 30);
  assert.equal(
    final.usage.input_tokens + final.usage.cache_read_input_tokens,
    (await client.messages.countTokens({ model: "talker", messages })).input_tokens,
  );
});

test("a tool is used, in a stream too, and its result goes back", async () => {
  const asked = {
    model: "caller",
    messages,
    max_tokens: 300,
    temperature: 0,
    tools: [weather],
    tool_choice: { type: "any", disable_parallel_tool_use: true },
  };
  const whole = await client.messages.create(asked);
  const streamed = await client.messages.stream(asked).finalMessage();
  assert.equal(streamed.stop_reason, "tool_use");
  assert.deepEqual(streamed.content[0].input, whole.content[0].input);
  assert.ok(Number.isInteger(whole.content[0].input.days));
  const next = await client.messages.create({
    model: "caller",
    max_tokens: 5,
    tools: [weather],
    messages: [
      ...messages,
      { role: "assistant", content: whole.content },
      { role: "user", content: [{ type: "tool_result", tool_use_id: whole.content[0].id, content: "sun" }] },
    ],
  });
  assert.equal(next.type, "message");
});

test("thinking comes as blocks of its own", async () => {
  const thinking = { type: "enabled", budget_tokens: 1024 };
  const final = await client.messages
    .stream({ model: "thinker", messages, max_tokens: 1100, thinking })
    .finalMessage();
  assert.equal(final.content[0].type, "thinking");
});

test("an unknown model is an error of the client's own kind", async () => {
  await assert.rejects(
    client.messages.create({ model: "talkr", messages, max_tokens: 5 }),
    (error) => error instanceof Anthropic.NotFoundError && /talker/.test(error.message),
  );
});
