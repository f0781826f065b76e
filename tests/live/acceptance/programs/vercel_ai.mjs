// The Vercel AI SDK: `generateText` and `streamText` with a tool, in several steps.

import { load, parameters, run } from "./task.mjs";

const { generateText, jsonSchema, stepCountIs, streamText, tool } = await load("ai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");

const asked = ({ url, question, add }) => ({
  model: createOpenAICompatible({ name: "blockops", baseURL: url, apiKey: "none" })("tiny"),
  prompt: question,
  maxRetries: 0,
  stopWhen: stepCountIs(4),
  tools: {
    add: tool({
      description: "Add two numbers.",
      inputSchema: jsonSchema(parameters),
      execute: async (given) => add(given),
    }),
  },
});

async function streamed(task) {
  let failure;
  const result = streamText({ ...asked(task), onError: ({ error }) => { failure = error; } });
  let text = "";
  for await (const part of result.textStream) text += part;
  if (failure) throw failure;
  return text;
}

await run({
  generateText: async (task) => (await generateText(asked(task))).text,
  streamText: streamed,
});
