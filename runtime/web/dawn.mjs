/** Dawn in Node, which the npm package `webgpu` is, as what a browser has in `navigator.gpu`. */
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const POLL = 1;     // ms

/**
 * The package is looked for from the current folder. Throws Node's error with the code MODULE_NOT_FOUND where there is none.
 * @param {string[]} flags as `create` of the package takes them
 * @returns {Promise<GPU>}
 */
export async function openDawn(flags) {
    const { create, globals } = await import(pathToFileURL(createRequire(join(process.cwd(), "_")).resolve("webgpu")).href);
    Object.assign(globalThis, globals);
    // While an answer is due, it asks the GPU at every turn of the event loop: thousands of closures a second, and pauses of 15 ms to collect them.
    globalThis.setImmediate = /** @type {any} */ ((call, ...values) => setTimeout(call, POLL, ...values));
    return create(flags);
}
