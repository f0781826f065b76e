// What every client in Node is told to do, and how it says what came of it.
//
//     node CLIENT.mjs FOLDER < {"url": ..., "keys": ["j-add", ...]}
//
// FOLDER is where the packages are installed. For each key and each way of the client one JSON object a
// line comes out: which way, the numbers that the tool was called with, the answer that the user sees
// in the end, or the error.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const required = createRequire(process.argv[2] + "/");

// The packages are not beside this file: `import` would look there.
export const load = (name) => import(pathToFileURL(required.resolve(name)).href);

export const parameters = {
  type: "object",
  properties: { a: { type: "integer" }, b: { type: "integer" } },
  required: ["a", "b"],
};

export async function run(ways) {
  const { url, keys } = JSON.parse(readFileSync(0, "utf8"));
  for (const key of keys) {
    for (const [way, answer] of Object.entries(ways)) {
      const ran = [];
      const add = ({ a, b }) => {
        ran.push([a, b]);
        return a + b;
      };
      const told = { key, way, ran };
      try {
        told.final = await answer({ url: `${url}/v1`, question: `[[${key}]] What is 17 + 25?`, add });
      } catch (error) {
        told.error = String(error.stack ?? error);
      }
      console.log(JSON.stringify(told));
    }
  }
}
