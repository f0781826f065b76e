// The Vercel AI SDK: `generateText` and `streamText` with a tool, in several steps.

import { load, parameters, run } from "./task.mjs";

const { generateText, jsonSchema, stepCountIs, streamText, tool } = await load("ai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");

const buildRequest = ({ url, question, add }) => ({
  model: createOpenAICompatible({ name: "blockops", baseURL: url, apiKey: "none" })("tiny"),
  prompt: question,
  maxRetries: 0,
  stopWhen: stepCountIs(4),
  tools: {
    add: tool({
      description: "Add two numbers.",
      inputSchema: jsonSchema(parameters),
      execute: async (args) => add(args),
    }),
  },
});

async function stream(task) {
  let failure;
  const result = streamText({ ...buildRequest(task), onError: ({ error }) => { failure = error; } });
  let text = "";
  for await (const part of result.textStream) text += part;
  if (failure) throw failure;
  return text;
}

await run({
  generateText: async (task) => (await generateText(buildRequest(task))).text,
  streamText: stream,
});
