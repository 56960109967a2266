/** One prompt's tokens and text: steps feed their own token forward while the host reads the one before. */
import { packParams, samplerOf } from "./sampling.js";
import { Text } from "./text.js";

/** @typedef {import("./generate.js").FinishReason} FinishReason */

/** Tokens and text as they come. Whoever leaves the loop early can use the model again at once. */
export class Stream {
    /** @param {import("./generate.js").Model} model @param {Int32Array} ids @param {import("./generate.js").Options} options */
    constructor(model, ids, options) {
        /** @type {FinishReason | null} */
        this.finishReason = null;
        this.model = model;
        this.ids = ids;
        this.sampler = samplerOf(options);
        this.signal = options.signal;
        const room = model.context - ids.length, { maxTokens = 64, stop = [] } = options;
        this.count = Math.min(maxTokens, room);
        /** @type {FinishReason} */
        this.limit = room <= maxTokens ? "context" : "length";
        this.text = new Text(model.tokenizer, typeof stop === "string" ? [stop] : stop);
        this.pieces = this.run();
    }

    [Symbol.asyncIterator]() {
        return this.pieces;
    }

    /** @returns {AsyncGenerator<import("./generate.js").Piece, void, void>} */
    async *run() {
        let left = this.count;
        for await (const token of this.tokens()) {
            const text = this.text.push(token);
            if (this.text.stopped) {
                this.finishReason = "stop";
                if (text || !this.text.ends(token)) yield { token, text };
                return;
            }
            yield { token, text: text + (--left ? "" : this.text.flush()) };
        }
        this.finishReason = this.signal?.aborted && left ? "aborted" : this.limit;
    }

    /** Sampled tokens: frame n + 1 is submitted before frame n's token is read. @returns {AsyncGenerator<number, void, void>} */
    async *tokens() {
        const { model, ids, sampler, count, signal } = this, { player } = model;
        if (!count || signal?.aborted) return;
        const turn = await model.claim([...model.prefills(ids.length), "head_1", "decode_1", this.sample(0)[0]]);
        try {
            model.remember(ids, 0, sampler);
            const row = await model.prefill(ids, 0, () => { model.check(turn); signal?.throwIfAborted(); });
            player.play([["head_1", { row: [row] }], this.sample(0)], 0);
            for (let frame = 1; frame < count; frame++) {
                player.play([["decode_1", { token: [-1], position: [ids.length + frame - 1], slot: [0] }], this.sample(frame)], frame);
                yield (await this.token(frame - 1, turn));
                signal?.throwIfAborted();
            }
            yield (await this.token(count - 1, turn));
        } catch (error) {
            if (!signal?.aborted || error !== signal.reason) throw error;
        } finally {
            if (turn === model.turn) await player.drain();
        }
    }

    /** @param {number} frame @param {number} turn */
    async token(frame, turn) {
        const tokens = await this.model.player.tokens(frame);
        this.model.check(turn);
        return tokens[0];
    }

    /** @param {number} step @returns {import("./player.js").Call} */
    sample(step) {
        return [this.sampler.temperature > 0 ? "sample_1" : "greedy_1", { params: packParams(this.sampler, step) }];
    }
}
