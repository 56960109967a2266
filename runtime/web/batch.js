/** Many sequences at once: each has a slot of the caches; every step decodes all that are under way, in the smallest program that holds them. */
import { RECORD, idleParams, packParams } from "./sampling.js";
import { Text } from "./text.js";

/**
 * @typedef {import("./generate.js").Model} Model
 * @typedef {object} Run one prompt under way
 * @property {number} index its place among the prompts
 * @property {number} slot
 * @property {number} start its tokens
 * @property {number} count at most so many are generated
 * @property {import("./generate.js").FinishReason} limit
 * @property {Text} text
 * @property {number} submitted
 * @property {number} taken
 * @property {boolean} over
 */

/**
 * See Model.streamMany.
 * @param {Model} model
 * @param {Iterable<import("./generate.js").Prompt>} prompts
 * @param {import("./generate.js").Options} options
 * @param {import("./sampling.js").Sampler} sampler
 * @param {number} turn
 */
export async function* streamMany(model, prompts, options, sampler, turn) {
    const waiting = Array.from(prompts, (prompt, index) => ({ prompt, index })), slots = Array.from({ length: model.info.slots }, (_, i) => i).reverse();
    const active = /** @type {Run[]} */ ([]), pending = /** @type {[frame: number, rows: Run[]][]} */ ([]);
    for (let frame = 0; waiting.length || active.length || pending.length;) {
        for (let next; slots.length && pending.length < 2 && (next = waiting.shift());) {
            const run = await begin(model, next, /** @type {number} */ (slots.pop()), options, sampler, turn, frame);
            if (run.count) {
                active.push(run);
                pending.push([frame++, [run]]);
            } else {
                slots.push(run.slot);
                model.finishReasons[run.index] = run.limit;
            }
        }
        const rows = active.filter(run => run.submitted < run.count);
        if (rows.length && pending.length < 2) {
            step(model, rows, sampler, frame);
            pending.push([frame++, rows]);
        }
        if (!pending.length || (pending.length < 2 && rows.length)) continue;
        const [taken, runs] = /** @type {[number, Run[]]} */ (pending.shift());
        const tokens = await model.player.tokens(taken);
        model.check(turn);
        for (const [row, run] of runs.entries()) {
            if (run.over) continue;         // it ended while this step was under way already
            const piece = take(run, tokens[row]);
            if (run.over) {
                model.finishReasons[run.index] = run.text.stopped ? "stop" : run.limit;
                active.splice(active.indexOf(run), 1);
                slots.push(run.slot);
            }
            if (piece) yield piece;
            if (options.signal?.aborted) return;
        }
    }
}

/**
 * Prefill a prompt into its slot and sample its first token.
 * @param {Model} model
 * @param {{ prompt: import("./generate.js").Prompt, index: number }} next
 * @param {number} slot
 * @param {import("./generate.js").Options} options
 * @param {import("./sampling.js").Sampler} sampler
 * @param {number} turn
 * @param {number} frame
 * @returns {Promise<Run>}
 */
async function begin(model, { prompt, index }, slot, { maxTokens = 64, stop = [] }, sampler, turn, frame) {
    const ids = model.idsOf(prompt), room = model.context - ids.length, text = new Text(model.tokenizer, typeof stop === "string" ? [stop] : stop);
    /** @type {Run} */
    const run = { index, slot, start: ids.length, count: Math.min(maxTokens, room), limit: room <= maxTokens ? "context" : "length", text,
        submitted: 0, taken: 0, over: false };
    if (run.count) {
        model.remember(ids, slot, sampler);
        const row = await model.prefill(ids, slot, () => model.check(turn));
        model.player.play([["head_1", { row: [row] }], [sampling(sampler, 1), { params: packParams(sampler, 0, slot) }]], frame);
        run.submitted = 1;
    }
    return run;
}

/** One more token for every row. @param {Model} model @param {Run[]} rows @param {import("./sampling.js").Sampler} sampler @param {number} frame */
function step(model, rows, sampler, frame) {
    const size = Math.min(...model.info.decode.filter(n => n >= rows.length));
    const token = new Int32Array(size).fill(-1), position = new Int32Array(size).fill(-1), slot = new Int32Array(size);
    const params = new Int32Array(size * RECORD);
    for (let row = 0; row < size; row++) {
        const run = rows[row];
        params.set(run ? packParams(sampler, run.submitted, run.slot) : idleParams(), row * RECORD);
        if (!run) continue;
        position[row] = run.start + run.submitted++ - 1;
        slot[row] = run.slot;
    }
    model.player.play([[`decode_${size}`, { token, position, slot }], [sampling(sampler, size), { params }]], frame);
}

/** What a token adds to its text, if anything. @param {Run} run @param {number} token */
function take(run, token) {
    run.taken++;
    let text = run.text.push(token);
    const last = run.taken === run.count;
    run.over = run.text.stopped || last;
    if (run.text.stopped && !text && run.text.ends(token)) return undefined;
    if (last && !run.text.stopped) text += run.text.flush();
    return { index: run.index, token, text };
}

/** @param {import("./sampling.js").Sampler} sampler @param {number} rows */
function sampling(sampler, rows) {
    return `${sampler.temperature > 0 ? "sample" : "greedy"}_${rows}`;
}
