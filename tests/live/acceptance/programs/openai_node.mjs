// The official `openai` package for Node: `runTools`, in a stream and whole.

import { load, parameters, run } from "./task.mjs";

const { default: OpenAI } = await load("openai");

function runner({ url, question, add }, stream) {
  const client = new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0 });
  const adding = {
    type: "function",
    function: {
      name: "add",
      description: "Add two numbers.",
      parse: JSON.parse,
      parameters,
      function: (given) => String(add(given)),
    },
  };
  return client.chat.completions.runTools({
    model: "tiny",
    stream,
    messages: [{ role: "user", content: question }],
    tools: [adding],
  });
}

await run({
  stream: (task) => runner(task, true).finalContent(),
  whole: (task) => runner(task, false).finalContent(),
});
