// The official `openai` package for Node asks one question after the other and prints what it got.
//
// node node_client.mjs FOLDER < {"url": ..., "retries": 0, "tools": [...], "questions": [...]}
// FOLDER is where the package is installed. One JSON object a line comes out.

import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const { OpenAI } = createRequire(process.argv[2] + "/")("openai");
const { url, retries, tools, questions } = JSON.parse(readFileSync(0, "utf8"));
const client = new OpenAI({ baseURL: url + "/v1", apiKey: "none", maxRetries: retries });

const called = (message) =>
  (message.tool_calls ?? []).map((call) => [call.function.name, JSON.parse(call.function.arguments)]);

const told = (choice) => ({
  text: choice.message.content ?? "",
  calls: called(choice.message),
  reason: choice.finish_reason,
});

async function whole(asked) {
  return told((await client.chat.completions.create(asked)).choices[0]);
}

async function deltas(asked) {
  const message = { content: "", tool_calls: [] };
  let reason = null;
  for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
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
  return told({ message, finish_reason: reason });
}

async function helper(asked) {
  return told((await client.chat.completions.stream(asked).finalChatCompletion()).choices[0]);
}

// The whole loop of an agent, as the package itself runs it.
async function agent(asked) {
  const results = [];
  const adding = {
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
  const runner = client.chat.completions.runTools({ ...asked, stream: true, tools: [adding] });
  return { text: await runner.finalContent(), results };
}

for (const { key, messages, run } of questions) {
  const asked = { model: "tiny", temperature: 0, messages, tools };
  const answer = run === "agent"
    ? { agent: await agent(asked) }
    : { whole: await whole(asked), deltas: await deltas(asked), helper: await helper(asked) };
  console.log(JSON.stringify({ key, ...answer }));
}
