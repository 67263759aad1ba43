/* Bundles viewer.js with Spark and three.js into ../static/viewer.js, and collects the licences.

   npm ci && npm run build

   The result depends only on the sources here and on package-lock.json. Spark carries its WebAssembly
   as base64 (2.2 MB); the bundle carries it compressed, which makes it half as large. */

import { createHash } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";

import { build } from "esbuild";
import { gzipSync } from "fflate";

const STATIC = "../static/";
const WASM = /const WASM = decode64\("([A-Za-z0-9+/=]+)"\)\.buffer;\nconst WASM_MODULE = WebAssembly\.compile\(WASM\);/;

const own = JSON.parse(await readFile("package.json", "utf8"));
const packages = await Promise.all(Object.keys(own.dependencies).map(async (name) => {
  const folder = `node_modules/${name}/`;
  const { version, license } = JSON.parse(await readFile(`${folder}package.json`, "utf8"));
  return { name, version, license, text: await readFile(`${folder}LICENSE`, "utf8") };
}));
const source = createHash("sha256").update(await readFile("viewer.js")).digest("hex");

const compressedWasm = {
  name: "compressed-wasm",
  setup(bundle) {
    bundle.onLoad({ filter: /spark\.module\.js$/ }, async ({ path }) => {
      const text = await readFile(path, "utf8");
      const found = WASM.exec(text);
      if (!found) throw new Error("Spark no longer carries its WebAssembly as this script knows it");
      const small = Buffer.from(gzipSync(Buffer.from(found[1], "base64"), { level: 9, mtime: 0 }));
      const loading = `const WASM_MODULE = new Response(new Blob([decode64("${small.toString("base64")}")])
        .stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer()
        .then((bytes) => WebAssembly.compile(bytes));`;
      return { contents: text.replace(found[0], () => loading), loader: "js" };
    });
  },
};

await build({
  entryPoints: ["viewer.js"],
  outfile: `${STATIC}viewer.js`,
  bundle: true,
  minify: true,
  format: "iife",
  globalName: "SplatViewer",
  target: "es2022",
  legalComments: "none",
  plugins: [compressedWasm],
  banner: {
    js: `/* ${packages.map(({ name, version }) => `${name} ${version}`).join(", ")}; `
      + `see LICENSES.txt. Built from viewer.js ${source}. */`,
  },
});

const licences = packages.map(({ name, version, license, text }) =>
  `${name} ${version} (${license})\n${"=".repeat(72)}\n\n${text.trim()}\n`);
const crates = (await readFile("crates.txt", "utf8")).trim();
await writeFile(`${STATIC}LICENSES.txt`, [
  "viewer.js contains these packages. All of them allow commercial use.\n", ...licences, `${crates}\n`,
].join("\n\n"));
