/** The player in Node, over Dawn (the npm package `webgpu`): node cli.mjs FILE --prompt TEXT */
import { open } from "node:fs/promises";
import { basename } from "node:path";
import { parseArgs } from "node:util";

import { openDawn } from "./dawn.mjs";
import { Recording } from "./recording.mjs";

const USAGE = `usage: node cli.mjs FILE [--prompt TEXT | --ids 1,2,3 | --chat TEXT] [--max-tokens N] [--temperature T] [--top-k K] [--top-p P]
    [--min-p P] [--repeat-penalty R] [--seed S] [--stop TEXT] [--json] [--profile] [--logits 1,2,3] [--dawn toggle,toggle]
   or: node cli.mjs --record [--dawn toggle,toggle]     prints what the adapter offers, as a file for tilewright compile --target FILE.toml
The npm package webgpu is looked for from the current folder.`;

const text = { type: /** @type {const} */ ("string") }, flag = { type: /** @type {const} */ ("boolean") };
const OPTIONS = {
    prompt: text, ids: text, chat: text, "max-tokens": text, temperature: text, "top-k": text, "top-p": text, "min-p": text,
    "repeat-penalty": text, seed: text, stop: text, json: flag, profile: flag, logits: text, dawn: text, record: flag,
};

/** What is wrong with the command or with where it runs; the message is one clear sentence. */
class CommandError extends Error {}

/** @param {string} toggles @param {boolean} profile */
async function openGpu(toggles, profile) {
    // Browsers round timestamps against fingerprinting; a profile wants them as they are.
    const flags = [...toggles ? [`enable-dawn-features=${toggles}`] : [], ...profile ? ["disable-dawn-features=timestamp_quantization"] : []];
    return openDawn(flags).catch(error => {
        if (error.code !== "MODULE_NOT_FOUND") throw error;
        throw new CommandError("WebGPU for Node was not found from the current folder: run npm install webgpu in it");
    });
}

/** A file as a source that reads its ranges. @param {string} path */
async function openFile(path) {
    const file = await open(path).catch(error => { throw new CommandError(`${path} cannot be read: ${error.code === "ENOENT" ? "there is no such file" : error.message}`); });
    const read = async (offset, length) => {
        const { buffer, bytesRead } = await file.read(new Uint8Array(length), 0, length, offset);
        return buffer.subarray(0, bytesRead);
    };
    return { size: (await file.stat()).size, name: basename(path), read, close: () => void file.close() };
}

/** @param {string} option @param {string | undefined} list */
function numbers(option, list) {
    if (list === undefined) return undefined;
    const found = list.split(",").map(Number);
    if (!list || found.some(Number.isNaN)) throw new CommandError(`--${option} takes numbers with commas between them, not '${list}'`);
    return found;
}

/** The command line with its numbers read. @param {Record<string, any>} given @returns {Record<string, any>} */
function read(given) {
    const number = option => numbers(option, given[option])?.[0];
    if (given.seed && !/^-?\d+$/.test(given.seed)) throw new CommandError(`--seed takes a whole number, not '${given.seed}'`);
    return {
        ...given, ids: numbers("ids", given.ids), logits: numbers("logits", given.logits),
        options: {
            maxTokens: number("max-tokens"), temperature: number("temperature"), topK: number("top-k"), topP: number("top-p"), minP: number("min-p"),
            repeatPenalty: number("repeat-penalty"), seed: given.seed && BigInt(given.seed), stop: given.stop,
        },
    };
}

/**
 * How busy the GPU was over steps one after the other.
 *
 * @param {[begin: number, end: number][]} steps nanoseconds
 */
function usage(steps) {
    const all = steps[steps.length - 1][1] - steps[0][0];
    const idle = steps.slice(1).reduce((sum, [begin], i) => sum + Math.max(0, begin - steps[i][1]), 0);
    return { steps: steps.length, milliseconds_a_step: all / steps.length / 1e6, idle_percent: 100 * idle / all };
}

/** @param {import("./player/gpu.js").Gpu} gpu */
function recordingOf(gpu) {
    if (!gpu.device.features.has("timestamp-query")) throw new CommandError(`${gpu.name} has no timestamp queries, so its steps cannot be timed`);
    return new Recording(gpu);
}

/** @param {import("./player/generate.js").Model} model @param {Record<string, any>} given @returns {Promise<Record<string, any>>} */
async function play(model, given) {
    if (given.logits) {
        const width = model.info.vocab_size, logits = await model.logits(given.logits);
        return { logits: given.logits.map((_, row) => Array.from(logits.subarray(row * width, (row + 1) * width))) };
    }
    const prompt = given.chat === undefined ? given.ids ?? given.prompt ?? ""
        : model.tokens().encode(await model.tokens().chat([{ role: "user", content: given.chat }]), { addSpecialTokens: false });
    const stream = model.stream(prompt, given.options), recording = given.profile ? recordingOf(model.player.gpu) : undefined;
    const start = performance.now(), tokens = [], pieces = [];
    for await (const { token, text: piece } of stream) {
        tokens.push(token);
        pieces.push(piece);
        if (!given.json) process.stdout.write(piece);
    }
    const seconds = (performance.now() - start) / 1000, steps = (await recording?.stop())?.slice(-tokens.length);
    if (!given.json) process.stdout.write("\n");
    return { tokens, pieces, text: pieces.join(""), finish_reason: stream.finishReason, seconds, ...steps?.length && { profile: usage(steps) } };
}

async function main() {
    let command;
    try {
        command = parseArgs({ options: OPTIONS, allowPositionals: true });
    } catch (error) {
        throw new CommandError(`${error.message}\n${USAGE}`);
    }
    const [path, ...more] = command.positionals, given = read(command.values);
    if (given.record && !path) {
        const { record } = await import("./record.js");
        console.log(await record(await openGpu(given.dawn ?? "", false)));
        return;
    }
    if (given.record || !path || more.length) throw new CommandError(USAGE);
    const file = await openFile(path), gpu = await openGpu(given.dawn ?? "", given.profile ?? false);
    const { load } = await import("./tilewright.js");
    const model = await load(file, { gpu });
    try {
        const result = await play(model, given);
        if (given.json || given.logits) console.log(JSON.stringify(result));
        else if (result.profile) console.error(JSON.stringify(result.profile));
    } finally {
        model.dispose();
    }
}

const SENTENCES = ["PackageError", "DeviceError", "PromptError", "TokenizerError"];
await main().catch(error => {
    if (!(error instanceof CommandError) && !SENTENCES.includes(error.name)) throw error;
    console.error(`tilewright: ${error.message}`);
    process.exitCode = 1;
});
