/**
 * Play a .wgpu-llama package in a browser, or wherever else there is WebGPU. This file and player/ are the player, under 1,000 lines; with
 * tokenizer.js and vendor/ they stand alone. The rest of the folder uses them: the page, its worker and store, and the command for Node.
 *
 *     import { load } from "./tilewright.js";
 *     const model = await load("model.wgpu-llama");
 *     for await (const { text } of model.stream("Once upon a time", { maxTokens: 100, temperature: 0.8 })) document.body.append(text);
 */
import { Model } from "./player/generate.js";
import { openGpu } from "./player/adapter.js";
import { Package } from "./player/package.js";
import { Player } from "./player/player.js";
import { openSource } from "./player/source.js";
import { Tokenizer } from "./tokenizer.js";

export { DeviceError, PackageError, PromptError, TokenizerError } from "./player/errors.js";

/**
 * Load a model.
 * @param {string | URL | Blob | ArrayBuffer | ArrayBufferView | import("./player/source.js").Source} from where the package is
 * @param {object} [options]
 * @param {(progress: { done: number, total: number }) => void} [options.onProgress] gets bytes
 * @param {AbortSignal} [options.signal] ends loading
 * @param {GPU} [options.gpu] another WebGPU than the browser's
 * @throws {import("./player/errors.js").PackageError} when the package is bad or cannot be had
 * @throws {import("./player/errors.js").DeviceError} when there is no GPU that can play it; `kind` says why
 */
export async function load(from, { onProgress = () => {}, signal, gpu: api } = {}) {
    const source = await openSource(from, signal);
    let opened;
    try {
        const file = await Package.open(source), { gpu, variant } = opened = await openGpu(file.variants, file.name, api);
        const player = await Player.load(gpu, variant, file, (done, total) => {
            signal?.throwIfAborted();
            onProgress({ done, total });
        });
        return new Model(player, variant.tokenizer ? new Tokenizer(await file.read("tokenizer"), variant.tokenizer) : null);
    } catch (error) {
        opened?.gpu.close();
        throw error;
    } finally {
        source.close?.();
    }
}
