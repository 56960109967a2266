/** A loaded model: logits, streams of text, and the prefill of prompts in chunks. */
import { streamMany } from "./batch.js";
import { PromptError, TokenizerError } from "./errors.js";
import { samplerOf } from "./sampling.js";
import { Stream } from "./stream.js";

/**
 * @typedef {object} Options Samplers apply in the order of this list.
 * @property {number} [maxTokens] at most so many, by default 64
 * @property {number} [repeatPenalty] above 1, tokens of the prompt and of the text so far become less likely
 * @property {number} [temperature] 0, the default: always the most likely token
 * @property {number} [topK] 0: off
 * @property {number} [topP] 1: off
 * @property {number} [minP] 0: off
 * @property {number | bigint} [seed] makes the same text on every device
 * @property {string | string[]} [stop] the text ends before these
 * @property {AbortSignal} [signal] ends the stream early
 *
 * @typedef {{ token: number, text: string }} Piece
 * @typedef {"stop" | "length" | "context" | "aborted"} FinishReason
 * @typedef {string | ArrayLike<number>} Prompt text, or token ids
 */

/** A loaded model. */
export class Model {
    /** @param {import("./player.js").Player} player @param {import("./tokenizer.js").Tokenizer | null} tokenizer */
    constructor(player, tokenizer) {
        this.player = player;
        this.tokenizer = tokenizer;
        const { manifest, gpu } = player, { vendor, architecture, device, description } = gpu.info;
        /** @type {Record<string, any>} the dimensions of the model */
        this.info = manifest.model;
        /** @type {import("./package.js").Needs} what the variant of the package that plays was compiled for */
        this.variant = manifest.device;
        this.adapter = { vendor, architecture, device, description };
        this.memory = memoryOf(manifest.buffers, manifest.blobs);
        this.lost = gpu.lost;
        /** @type {Record<number, FinishReason>} of the prompts of the latest `streamMany` */
        this.finishReasons = {};
        this.turn = 0;      // a stream that is not the latest has lost the caches
    }

    /** @returns {number} positions */
    get context() {
        return this.info.context;
    }

    /**
     * Teacher-forced logits, `ids.length` rows of the vocabulary's size.
     * @param {ArrayLike<number>} ids
     * @returns {Promise<Float32Array>}
     * @throws {PromptError} for ids out of range or too many
     */
    async logits(ids) {
        const checked = this.checked(ids), width = this.info.vocab_size, block = Math.max(...this.info.head);
        const turn = await this.claim([`head_${block}`, ...this.prefills(checked.length)]), result = new Float32Array(checked.length * width);
        for await (const [start, count] of this.prefillChunks(checked)) {
            for (let row = 0; row < count; row += block) {
                this.check(turn);
                const rows = Int32Array.from({ length: block }, (_, i) => Math.min(row + i, count - 1));
                this.player.play([[`head_${block}`, { row: rows }]]);
                result.set(await this.player.read("logits", Math.min(block, count - row)), (start + row) * width);
            }
        }
        return result;
    }

    /**
     * Iterate over pieces of text, each with its token; `finishReason` of the stream says afterwards why it ended.
     * @param {Prompt} prompt
     * @param {Options} [options]
     * @returns {Stream}
     */
    stream(prompt, options = {}) {
        return new Stream(this, this.idsOf(prompt), options);
    }

    /**
     * Iterate over { index of the prompt, token, text } as the tokens of all come; `finishReasons` has their ends by index. As many run
     * at once as the package has slots (`batch` when it was compiled); others begin when one ends.
     * @param {Iterable<Prompt>} prompts
     * @param {Options} [options]
     */
    async *streamMany(prompts, options = {}) {
        const sampler = samplerOf(options), kinds = ["prefill", "decode", sampler.temperature > 0 ? "sample" : "greedy"];
        const turn = await this.claim(Object.keys(this.player.steps).filter(name => name === "head_1" || kinds.includes(name.split("_")[0])));
        this.finishReasons = {};
        try {
            yield* streamMany(this, prompts, options, sampler, turn);
        } finally {
            if (turn === this.turn) await this.player.drain();
        }
    }

    /** The text that `stream` gives, in one piece. @param {Prompt} prompt @param {Options} [options] */
    async generate(prompt, options) {
        let text = "";
        for await (const piece of this.stream(prompt, options)) text += piece.text;
        return text;
    }

    /**
     * Messages as the prompt for the assistant's next turn, bos included: `stream(tokenizer.encode(prompt, { addSpecialTokens: false }))`.
     * @param {import("./tokenizer.js").Message[]} messages
     * @returns {Promise<string>}
     */
    async chat(messages) {
        return this.tokens().chat(messages);
    }

    /** Free the device's memory. */
    dispose() {
        this.turn++;
        this.player.gpu.close();
    }

    tokens() {
        if (!this.tokenizer) throw new TokenizerError("the model has no tokenizer: pass token ids as the prompt");
        return this.tokenizer;
    }

    /** @param {Prompt} prompt */
    idsOf(prompt) {
        return this.checked(typeof prompt === "string" ? this.tokens().encode(prompt) : prompt);
    }

    /** @param {ArrayLike<number>} ids @returns {Int32Array} */
    checked(ids) {
        const vocabulary = this.info.vocab_size, wrong = Array.from(ids).find(id => !(Number.isInteger(id) && id >= 0 && id < vocabulary));
        if (!ids.length) throw new PromptError("the prompt is empty: give at least one token");
        if (wrong !== undefined) throw new PromptError(`token id ${wrong} is out of range: the vocabulary has ids 0 to ${vocabulary - 1}`);
        if (ids.length > this.context) {
            throw new PromptError(`the prompt has ${ids.length} tokens but the context is ${this.context}: shorten it, or compile the model with a larger context`);
        }
        return Int32Array.from(ids);
    }

    /** Put the model to new work; streams under way end. @param {string[]} programs @returns {Promise<number>} what `check` takes */
    async claim(programs) {
        const turn = ++this.turn;
        this.player.gpu.check();
        await Promise.all([this.player.ready(programs), this.player.drain()]);
        this.check(turn);
        return turn;
    }

    /** @param {number} turn */
    check(turn) {
        this.player.gpu.check();
        if (turn !== this.turn) throw new PromptError("this stream ended when the model was put to other work: finish one before the next");
    }

    /**
     * Run a prompt through the caches of a slot.
     * @param {Int32Array} ids
     * @param {number} slot
     * @param {() => void} proceed is called between chunks, and throws if they shall end
     * @returns {Promise<number>} the row of the state `hidden` that its last token has then
     */
    async prefill(ids, slot, proceed) {
        let last = 0;
        for await (const [, count] of this.prefillChunks(ids, slot)) {
            proceed();
            last = count - 1;
        }
        return last;
    }

    /** Mark the prompt's tokens as seen, if a repeat penalty asks for them. @param {Int32Array} ids @param {number} slot @param {import("./sampling.js").Sampler} sampler */
    remember(ids, slot, sampler) {
        if (sampler.repeatPenalty === 1) return;
        const seen = new Uint32Array(this.info.vocab_size);
        for (const id of ids) seen[id] = sampler.stamp;
        this.player.write("seen", seen, slot * this.info.vocab_size);
    }

    /**
     * Run the prompt through the caches chunk by chunk; after each: its first position and its tokens. Their hidden states stand in the
     * state `hidden` then. Two chunks are under way at most, so that a page can still draw, and stop.
     * @param {Int32Array} ids
     * @param {number} [slot]
     * @returns {AsyncGenerator<[start: number, count: number]>}
     */
    async *prefillChunks(ids, slot = 0) {
        let before;
        for (const { size, start, count } of this.chunks(ids.length)) {
            const token = new Int32Array(size), position = new Int32Array(size).fill(-1);
            token.set(ids.subarray(start, start + count));
            for (let i = 0; i < count; i++) position[i] = start + i;
            this.player.play([[`prefill_${size}`, { token, position, slot: new Int32Array(size).fill(slot) }]]);
            const played = this.player.finished();
            played.catch(() => {});
            await before;
            before = played;
            yield [start, count];
        }
    }

    /** The programs that a prompt of so many tokens needs. @param {number} length */
    prefills(length) {
        return Array.from(this.chunks(length), ({ size }) => `prefill_${size}`);
    }

    /** How a prompt is cut: rows of a program, and the tokens that they take. @param {number} length */
    *chunks(length) {
        const sizes = [...this.info.prefill].sort((a, b) => a - b);
        for (let start = 0, count; start < length; start += count) {
            const size = chunkSize(sizes, length - start);
            count = Math.min(size, length - start);
            yield { size, start, count };
        }
    }
}

/** The program for what is left of a prompt. @param {number[]} sizes ascending @param {number} left */
function chunkSize(sizes, left) {
    const size = sizes.find(s => s >= left) ?? sizes[sizes.length - 1];
    const padded = size > left && left > sizes[0] && size > 2 * left;
    return padded ? Math.max(...sizes.filter(s => s <= left)) : size;       // two small chunks beat one that is mostly padding
}

/** Bytes by use. @param {Record<string, number>} buffers @param {Record<string, unknown>} blobs */
function memoryOf(buffers, blobs) {
    const memory = { weights: 0, states: 0, temporaries: 0 };
    for (const [name, size] of Object.entries(buffers)) memory[name in blobs ? "weights" : name.startsWith("state.") ? "states" : "temporaries"] += size;
    return memory;
}
