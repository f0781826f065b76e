// Sends requests with the official `openai` package for Node and prints the results.
//
// node node_client.mjs FOLDER < {"url": ..., "retries": 0, "tools": [...], "questions": [...]}
// FOLDER contains the installed package. The program prints one JSON object per line and question.

import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const { OpenAI } = createRequire(process.argv[2] + "/")("openai");
const { url, retries, tools, questions } = JSON.parse(readFileSync(0, "utf8"));
const client = new OpenAI({ baseURL: url + "/v1", apiKey: "none", maxRetries: retries });

const parseCalls = (message) =>
  (message.tool_calls ?? []).map((call) => [call.function.name, JSON.parse(call.function.arguments)]);

const summarize = (choice) => ({
  text: choice.message.content ?? "",
  calls: parseCalls(choice.message),
  reason: choice.finish_reason,
});

async function sendNonStreaming(request) {
  return summarize((await client.chat.completions.create(request)).choices[0]);
}

async function joinDeltas(request) {
  const message = { content: "", tool_calls: [] };
  let reason = null;
  for await (const chunk of await client.chat.completions.create({ ...request, stream: true })) {
    for (const { delta, finish_reason } of chunk.choices) {
      message.content += delta.content ?? "";
      reason = finish_reason ?? reason;
      for (const { index, function: part } of delta.tool_calls ?? []) {
        message.tool_calls[index] ??= { function: { name: "", arguments: "" } };
        message.tool_calls[index].function.name += part.name ?? "";
        message.tool_calls[index].function.arguments += part.arguments ?? "";
      }
    }
  }
  return summarize({ message, finish_reason: reason });
}

async function useHelper(request) {
  return summarize((await client.chat.completions.stream(request).finalChatCompletion()).choices[0]);
}

// The complete loop of an agent, run by the package.
async function runAgent(request) {
  const results = [];
  const addTool = {
    type: "function",
    function: {
      name: "add",
      description: "add",
      parse: JSON.parse,
      parameters: tools.find((tool) => tool.function.name === "add").function.parameters,
      function: ({ a, b }) => {
        results.push(a + b);
        return String(a + b);
      },
    },
  };
  const runner = client.chat.completions.runTools({ ...request, stream: true, tools: [addTool] });
  return { text: await runner.finalContent(), results };
}

for (const { key, messages, run } of questions) {
  const request = { model: "tiny", temperature: 0, messages, tools };
  const result = run === "agent"
    ? { agent: await runAgent(request) }
    : {
        non_streaming: await sendNonStreaming(request),
        deltas: await joinDeltas(request),
        helper: await useHelper(request),
      };
  console.log(JSON.stringify({ key, ...result }));
}
