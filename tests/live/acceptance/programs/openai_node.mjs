// The official `openai` package for Node: `runTools`, streaming and non-streaming.

import { load, parameters, run } from "./task.mjs";

const { default: OpenAI } = await load("openai");

function startRunner({ url, question, add }, stream) {
  const client = new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0 });
  const addTool = {
    type: "function",
    function: {
      name: "add",
      description: "Add two numbers.",
      parse: JSON.parse,
      parameters,
      function: (args) => String(add(args)),
    },
  };
  return client.chat.completions.runTools({
    model: "tiny",
    stream,
    messages: [{ role: "user", content: question }],
    tools: [addTool],
  });
}

await run({
  stream: (task) => startRunner(task, true).finalContent(),
  "non-streaming": (task) => startRunner(task, false).finalContent(),
});
