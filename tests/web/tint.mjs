/** What Tint says of modules, on an adapter that has every feature and does nothing: node tint.mjs JOBS.json */
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const { create, globals } = await import(pathToFileURL(createRequire(join(process.cwd(), "_")).resolve("webgpu")).href);
Object.assign(globalThis, globals);
const { modules } = JSON.parse(readFileSync(process.argv[2], "utf8"));
const gpu = create(["backend=null", "enable-dawn-features=allow_unsafe_apis"]), adapter = await gpu.requestAdapter();
const device = await adapter.requestDevice({ requiredFeatures: [...adapter.features] }), refusals = {};
for (const [name, code] of Object.entries(modules)) {
    device.pushErrorScope("validation");
    const { messages } = await device.createShaderModule({ code }).getCompilationInfo();
    await device.popErrorScope();
    refusals[name] = messages.filter(m => m.type === "error").map(m => `line ${m.lineNum}: ${m.message}`).join("; ");
}
console.log(JSON.stringify(refusals));
