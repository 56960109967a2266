/**
 * Holds the model, so that the page never waits for it. The page sends commands { do, … }; this answers with events { event, … }:
 * progress, ready, begun, piece, done, lost, recovered, evicted, failed.
 */
import { DeviceError, PackageError, PromptError } from "./player/errors.js";
import { describe, fitted, memoryOf } from "./prompt.js";
import { Copy, evict } from "./store.js";
import { load } from "./tilewright.js";

const EVERY = 100;          // ms between two words on the download
const LOSSES = 3;           // of the device without a token between them, until it is given up
const RETURN = 1000;        // ms that a GPU may take to come back, longer every time

/** @type {import("./player/generate.js").Model | undefined} */
let model;
/** @type {Copy | undefined} none where the browser stores nothing */
let copy;
/** @type {import("./store.js").Description} */
let description;
/** @type {Promise<void> | undefined} while a lost device is replaced */
let recovering;
let stopping = new AbortController();
let losses = 0;

/** @param {string} event @param {object} [values] */
const tell = (event, values = {}) => self.postMessage({ event, ...values });

const commands = { open, answer, stop: () => stopping.abort(), evict: remove };

self.addEventListener("message", async ({ data }) => {
    try {
        await commands[data.do](data);
    } catch (error) {
        tell("failed", { during: data.do, ...described(error) });
    }
});

/** @param {any} error */
function described({ name, kind, message }) {
    return { name, kind, message: String(message) };
}

async function open() {
    const started = performance.now(), answer = await fetch("model.json", { cache: "no-cache" });
    if (!answer.ok) throw new PackageError(`this page has no model: the server answers ${answer.status} for model.json`);
    description = await answer.json();
    copy = await Copy.open(description).catch(() => undefined);     // then it is downloaded every time
    const stored = copy?.complete ?? false;
    if (copy) copy.onFetch = onFetch;
    await begin();
    const { info, adapter, player: { manifest }, tokenizer } = /** @type {NonNullable<typeof model>} */ (model);
    tell("ready", { info, adapter, memory: memoryOf(manifest), variant: manifest.device.name, name: description.name, size: description.size, stored, kept: Boolean(copy),
                    seconds: (performance.now() - started) / 1000, chats: Boolean(tokenizer?.chatTemplate) });
    await copy?.finish();
}

/** Load the model, and fetch again what turns out to be damaged in the copy. */
async function begin() {
    try {
        if (copy && !await copy.headerIsSound()) throw new PackageError(`${description.name} is damaged: the checksum of its header does not match`);
        model = await load(copy ?? new URL(description.file, location.href), { onProgress });
        watch(model);
    } catch (error) {
        if (error instanceof DOMException && copy) {     // the disk is full, or was cleared: do without it
            copy.close();
            copy = undefined;
        } else if (!(error instanceof PackageError && await copy?.repair())) {
            throw error.kind === "memory" ? await explained(error) : error;
        }
        await begin();
    }
}

/** What of the package is on the GPU; while it is downloaded, `onFetch` tells more. @param {{ done: number, total: number }} progress */
function onProgress({ done, total }) {
    if (done === total || !copy?.fetched) tell("progress", { done, total, fetched: copy ? 0 : done });
}

let told = 0;

function onFetch() {
    if (!copy || performance.now() - told < EVERY) return;
    told = performance.now();
    tell("progress", { done: copy.size - copy.missing, total: copy.size, fetched: copy.fetched });
}

async function manifest() {
    const text = await /** @type {Copy} */ (copy).read(4, description.header.size - 4);
    return JSON.parse(new TextDecoder().decode(text));
}

/** An error about memory with what would fit. @param {DeviceError} error */
async function explained(error) {
    return copy ? new DeviceError(`${error.message}. ${describe(await manifest())}`, "memory") : error;
}

// A device may be lost at any time: a driver is updated, a laptop changes its GPU, another page crashes it.

/** @param {import("./player/generate.js").Model} loaded */
function watch(loaded) {
    loaded.lost.then(({ message }) => {
        if (loaded === model) recover(message).catch(error => tell("failed", { during: "recovery", ...described(error) }));
    });
}

/** @param {string} message */
function recover(message) {
    return recovering ??= (async () => {
        tell("lost", { message });
        for (let attempt = 1; ; attempt++) {
            try {
                if (++losses > LOSSES) throw new DeviceError(`the GPU was lost ${LOSSES} times in a row (${message}): close other programs that use it, and reload`, "lost");
                await begin();
                return tell("recovered");
            } catch (error) {
                if (losses > LOSSES || !["no-adapter", "failed", "lost"].includes(error.kind)) throw error;
                await new Promise(resolve => setTimeout(resolve, RETURN * attempt));
            }
        }
    })().finally(() => { recovering = undefined; });
}

/**
 * @param {object} asked
 * @param {import("./tokenizer.js").Message[]} asked.messages of a conversation, or of a text the one message that it is
 * @param {import("./player/generate.js").Options} asked.options
 */
async function answer({ messages, options }) {
    const signal = (stopping = new AbortController()).signal, started = performance.now(), maxTokens = options.maxTokens ?? 64;
    const seed = Number(options.seed ?? crypto.getRandomValues(new Uint32Array(1))[0]);
    await recovering;
    if (!model) throw new PromptError("the model is not loaded");
    const { ids, dropped } = await fitted(model, messages, maxTokens);
    tell("begun", { prompt: ids.length, dropped });
    const said = /** @type {number[]} */ ([]), times = { first: 0 };
    for (;;) {
        try {
            const stream = model.stream([...ids, ...said], { ...options, maxTokens: maxTokens - said.length, seed: seed + said.length, signal });
            await speak(stream, said, () => { times.first ||= performance.now(); losses = 0; });
            const last = performance.now(), { first } = times;
            return tell("done", { reason: stream.finishReason, tokens: said.length, first: first ? (first - started) / 1000 : null,
                                  rate: said.length > 1 ? (said.length - 1) * 1000 / (last - first) : null, used: ids.length + said.length });
        } catch (error) {
            if (!(error instanceof DeviceError) || error.kind !== "lost") throw error;
            await recover(error.message);       // and go on where it stopped
        }
    }
}

/**
 * Pass a stream on. When it breaks, `said` has the tokens whose text is out: those behind them may be half a character.
 *
 * @param {import("./player/generate.js").Stream} stream
 * @param {number[]} said
 * @param {() => void} onToken
 */
async function speak(stream, said, onToken) {
    const held = [];
    for await (const { token, text } of stream) {
        onToken();
        held.push(token);
        if (!text) continue;
        said.push(...held.splice(0));
        tell("piece", { text, tokens: said.length });
    }
    said.push(...held);
}

async function remove() {
    copy?.close();
    copy = undefined;
    await evict();
    tell("evicted");
}
