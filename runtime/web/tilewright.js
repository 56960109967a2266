/**
 * Play a .wgpu-llama package in a browser, or wherever else there is WebGPU.
 *
 *     import { load } from "./tilewright.js";
 *     const model = await load("model.wgpu-llama");
 *     for await (const { text } of model.stream("Once upon a time", { maxTokens: 100, temperature: 0.8 })) document.body.append(text);
 */
import { Model } from "./generate.js";
import { Gpu } from "./gpu.js";
import { Package } from "./package.js";
import { Player } from "./player.js";
import { openSource } from "./source.js";
import { Tokenizer } from "./tokenizer.js";

export { DeviceError, PackageError, PromptError, TokenizerError } from "./errors.js";

/**
 * @param {string | URL | Blob | ArrayBuffer | ArrayBufferView | import("./source.js").Source} from where the package is
 * @param {object} [options]
 * @param {(progress: { what: string, done: number, total: number }) => void} [options.onProgress] gets bytes
 * @param {AbortSignal} [options.signal] ends loading
 * @param {GPU} [options.gpu] another WebGPU than the browser's
 * @returns {Promise<Model>}
 * @throws {import("./errors.js").PackageError} when the package is bad or cannot be had
 * @throws {import("./errors.js").DeviceError} when there is no GPU that can play it; `kind` says why
 */
export async function load(from, { onProgress = () => {}, signal, gpu: api } = {}) {
    const source = await openSource(from, signal);
    const progress = (done, total) => {
        signal?.throwIfAborted();
        onProgress({ what: "loading weights", done, total });
    };
    try {
        const file = await Package.open(source);
        const { gpu, variant } = await Gpu.open(file.variants, file.name, api);
        try {
            const player = await Player.load(gpu, variant, file, progress);
            const tokenizer = variant.tokenizer ? new Tokenizer(await file.read("tokenizer"), variant.tokenizer) : null;
            return new Model(player, tokenizer);
        } catch (error) {
            gpu.close();
            throw error;
        }
    } finally {
        source.close?.();
    }
}
