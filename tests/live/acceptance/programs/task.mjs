// The task of each client in Node, and the format of its results.
//
//     node CLIENT.mjs FOLDER < {"url": ..., "keys": ["j-add", ...]}
//
// FOLDER contains the installed packages. The program prints one JSON object per line for each key and
// each way of the client: `key`, `way`, `tool_calls` (the arguments of the tool's calls), and `final`
// (the answer that the user sees) or `error`.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const resolver = createRequire(process.argv[2] + "/");

// A plain `import` would look for the packages next to this file, where they are not installed.
export const load = (name) => import(pathToFileURL(resolver.resolve(name)).href);

export const parameters = {
  type: "object",
  properties: { a: { type: "integer" }, b: { type: "integer" } },
  required: ["a", "b"],
};

export async function run(ways) {
  const { url, keys } = JSON.parse(readFileSync(0, "utf8"));
  for (const key of keys) {
    for (const [way, answer] of Object.entries(ways)) {
      const toolCalls = [];
      const add = ({ a, b }) => {
        toolCalls.push([a, b]);
        return a + b;
      };
      const result = { key, way, tool_calls: toolCalls };
      try {
        result.final = await answer({ url: `${url}/v1`, question: `[[${key}]] What is 17 + 25?`, add });
      } catch (error) {
        result.error = String(error.stack ?? error);
      }
      console.log(JSON.stringify(result));
    }
  }
}
