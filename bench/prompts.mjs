/** How fast prompts are read in Node, over Dawn: node bench/prompts.mjs FILE --tokens 512,2048 --repeat 8 --dawn toggle,toggle [--kernels] */
import { open } from "node:fs/promises";
import { basename } from "node:path";
import { parseArgs } from "node:util";
import { openDawn } from "../runtime/web/dawn.mjs";
import { Recording } from "../runtime/web/recording.mjs";
import { load } from "../runtime/web/tilewright.js";

const text = { type: /** @type {const} */ ("string") };
const { values, positionals: [path] } = parseArgs({
    allowPositionals: true, options: { tokens: text, repeat: text, dawn: text, kernels: { type: /** @type {const} */ ("boolean") } },
});
const repeat = Number(values.repeat ?? 8), median = list => [...list].sort((a, b) => a - b)[list.length >> 1];
const file = await open(path), flags = [...values.dawn ? [`enable-dawn-features=${values.dawn}`] : [], "disable-dawn-features=timestamp_quantization"];
const read = async (offset, length) => (await file.read(new Uint8Array(length), 0, length, offset)).buffer;
const model = await load({ size: (await file.stat()).size, name: basename(path), read, close: () => void file.close() }, { gpu: await openDawn(flags) });
const { gpu, manifest } = model.player;
console.log(`${gpu.name}; compiled for ${manifest.device.name}`);

/** Milliseconds from the call to the prompt's first token, and those that the GPU spends on its chunks alone. */
async function once(ids) {
    const start = performance.now();
    for await (const _ of model.stream(ids, { maxTokens: 1 })) break;
    const wall = performance.now() - start, check = await model.claim(), recording = new Recording(gpu);
    for await (const _ of model.prefill(Int32Array.from(ids), 0, check));
    await gpu.finished();
    const chunks = await recording.stop();
    return { wall, busy: (chunks[chunks.length - 1][1] - chunks[0][0]) / 1e6 };
}

/** Milliseconds of every kernel of a program, each dispatch in a pass of its own, the least of several times. */
async function kernels(program) {
    const dispatches = await model.player.replay(program), least = dispatches.map(() => Infinity);
    for (let time = 0; time < 4; time++) {
        const recording = new Recording(gpu);
        for (const dispatch of dispatches) gpu.submit([[dispatch]]);
        (await recording.stop()).forEach(([begin, end], i) => { least[i] = Math.min(least[i], (end - begin) / 1e6); });
    }
    const sums = new Map();
    manifest.programs[program].dispatches.forEach(({ shader }, i) => {
        const key = `${shader} ${manifest.shaders[shader].kernel}`, [sum, count] = sums.get(key) ?? [0, 0];
        sums.set(key, [sum + least[i], count + 1]);
    });
    return [...sums].sort(([, a], [, b]) => b[0] - a[0]);
}

for (const tokens of (values.tokens ?? "512").split(",").map(Number)) {
    const ids = Array.from({ length: tokens }, (_, i) => (i * 7919 + 13) % model.info.vocab_size), runs = [];
    for (let run = 0; run < repeat + 2; run++) runs.push(await once(ids));      // the first two wake the GPU
    const wall = median(runs.slice(2).map(r => r.wall)), busy = median(runs.slice(2).map(r => r.busy));
    console.log(`prompt of ${tokens}: ${(1000 * tokens / wall).toFixed(0)} tokens/s to the first token (${wall.toFixed(1)} ms), `
        + `${(1000 * tokens / busy).toFixed(0)} on the GPU (${busy.toFixed(1)} ms); medians of ${repeat}`);
}
if (values.kernels) {
    const program = `prefill_${Math.max(...model.info.prefill)}`;
    for (const [kernel, [sum, count]] of await kernels(program)) console.log(`${sum.toFixed(3)} ms ${count} x ${(1000 * sum / count).toFixed(1)} us  ${kernel}`);
}
model.dispose();
