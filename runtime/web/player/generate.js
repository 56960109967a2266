/** A loaded model: logits, streams of text, and the prefill of prompts in chunks. */
import { streamMany } from "./batch.js";
import { PromptError, TokenizerError } from "./errors.js";
import { samplerOf } from "./sampling.js";

const OVERTAKEN = "this stream ended when the model was put to other work: finish one before the next";

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
 * @typedef {"stop" | "length" | "context" | "aborted"} FinishReason
 * @typedef {string | ArrayLike<number>} Prompt text, or token ids
 * @typedef {AsyncIterable<{ token: number, text: string }> & { finishReason: FinishReason | null }} Stream
 */

/** A loaded model. */
export class Model {
    /** @param {import("./player.js").Player} player @param {import("../tokenizer.js").Tokenizer | null} tokenizer */
    constructor(player, tokenizer) {
        this.player = player;
        this.tokenizer = tokenizer;
        const { vendor, architecture, device, description } = player.gpu.info;
        this.adapter = { vendor, architecture, device, description };
        this.lost = player.gpu.lost;
        /** @type {Record<string, any>} the dimensions of the model */
        this.info = player.manifest.model;
        /** @type {Record<number, FinishReason>} of the prompts of the latest `streamMany` */
        this.finishReasons = {};
        this.turn = 0;      // a stream that is not the latest has lost the caches
    }

    /**
     * Teacher-forced logits, `ids.length` rows of the vocabulary's size.
     * @param {ArrayLike<number>} ids @returns {Promise<Float32Array>} @throws {PromptError} for ids out of range or too many
     */
    async logits(ids) {
        const checked = this.idsOf(ids), width = this.info.vocab_size, block = Math.max(...this.info.head);
        const check = await this.claim(), result = new Float32Array(checked.length * width);
        for await (const [start, count] of this.prefill(checked, 0, check)) {
            for (let first = 0; first < count; first += block) {
                const row = Int32Array.from({ length: block }, (_, i) => Math.min(first + i, count - 1));
                await this.player.play(check, [[[`head_${block}`, { row }]]]);
                result.set(await this.player.read("logits", Math.min(block, count - first)), (start + first) * width);
            }
        }
        return result;
    }

    /**
     * Iterate over pieces of text, each with its token; `finishReason` of the stream says afterwards why it ended. Whoever leaves the loop
     * early can use the model again at once.
     * @param {Prompt} prompt @param {Options} [options] @returns {Stream} @throws {PromptError} for what the model cannot take
     */
    stream(prompt, options = {}) {
        const reasons = /** @type {FinishReason[]} */ ([]), ids = this.idsOf(prompt);
        const pieces = streamMany(this, [ids], options, samplerOf(options), reasons);
        return { get finishReason() { return reasons[0] ?? null; }, [Symbol.asyncIterator]: () => pieces };
    }

    /**
     * Iterate over { index of the prompt, token, text } as the tokens of all come; `finishReasons` has their ends by index. As many run
     * at once as the package has slots (`batch` when it was compiled); others begin when one ends.
     * @param {Iterable<Prompt>} prompts @param {Options} [options]
     */
    streamMany(prompts, options = {}) {
        return streamMany(this, [...prompts], options, samplerOf(options), this.finishReasons = {});
    }

    /** The text that `stream` gives, in one piece. @param {Prompt} prompt @param {Options} [options] */
    async generate(prompt, options) {
        let text = "";
        for await (const piece of this.stream(prompt, options)) text += piece.text;
        return text;
    }

    /** Free the device's memory. */
    dispose() {
        this.player.gpu.close();
    }

    /** The tokenizer, which prompts of text need. */
    tokens() {
        if (!this.tokenizer) throw new TokenizerError("the model has no tokenizer: pass token ids as the prompt");
        return this.tokenizer;
    }

    /** @param {Prompt} prompt @throws {PromptError} for ids out of range or too many */
    idsOf(prompt) {
        const { vocab_size: count, context } = this.info, ids = typeof prompt === "string" ? this.tokens().encode(prompt) : prompt;
        const wrong = Array.from(ids).find(id => !(Number.isInteger(id) && id >= 0 && id < count));
        if (!ids.length) throw new PromptError("the prompt is empty: give at least one token");
        if (wrong !== undefined) throw new PromptError(`token id ${wrong} is out of range: the vocabulary has ids 0 to ${count - 1}`);
        if (ids.length <= context) return Int32Array.from(ids);
        throw new PromptError(`the prompt has ${ids.length} tokens but the context is ${context}: `
            + "shorten it, or compile the model with a larger context");
    }

    /**
     * Put the model to new work; streams under way end.
     * @param {AbortSignal} [signal]
     * @returns {Promise<() => void>} throws when the work shall end: the device is gone, others claimed the model, the signal says so
     */
    async claim(signal) {
        const turn = ++this.turn, check = () => {
            this.player.gpu.check();
            signal?.throwIfAborted();
            if (turn !== this.turn) throw new PromptError(OVERTAKEN);
        };
        await this.player.drain();
        check();
        return check;
    }

    /**
     * Run a prompt through the caches of a slot chunk by chunk; after each: its first position and its tokens. Their hidden states stand in
     * the state `hidden` then. Two chunks are under way at most, so that a page can still draw, and stop.
     * @param {Int32Array} ids @param {number} slot @param {() => void} check
     * @returns {AsyncGenerator<[start: number, count: number]>}
     */
    async *prefill(ids, slot, check) {
        const sizes = [...this.info.prefill].sort((a, b) => a - b);
        let before;
        for (let start = 0, count; start < ids.length; start += count) {
            const left = ids.length - start;
            let size = sizes.find(s => s >= left) ?? sizes[sizes.length - 1];
            if (left > sizes[0] && size > 2 * left) size = Math.max(...sizes.filter(s => s <= left));    // two chunks beat much padding
            count = Math.min(size, left);
            const token = new Int32Array(size), position = Int32Array.from(token, (_, i) => i < count ? start + i : -1);
            token.set(ids.subarray(start, start + count));
            await this.player.play(check, [[[`prefill_${size}`, { token, position, slot: new Int32Array(size).fill(slot) }]]]);
            const played = this.player.gpu.finished();
            played.catch(() => {});
            await before;
            before = played;
            yield [start, count];
        }
    }
}
