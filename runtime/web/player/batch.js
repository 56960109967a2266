/** Sequences, one or many: each has a slot of the caches; a step decodes all under way, in the smallest program that holds them. */
import { FRAMES, STEPS } from "./player.js";
import { IDLE, RECORD, STAMP, packParams } from "./sampling.js";
import { Text } from "./text.js";

const PACE = 8;     // ms that a frame takes: longer than JavaScript is held up, shorter than anyone sees

/**
 * @typedef {import("./generate.js").Model} Model @typedef {import("./generate.js").Options} Options
 * @typedef {import("./generate.js").FinishReason} FinishReason @typedef {import("./sampling.js").Sampler} Sampler
 */

/** One prompt under way: its place among the prompts, its slot, its next position, its text. */
class Run {
    /** @param {number} index @param {number} slot @param {Int32Array} ids @param {Options} options @param {Model} model */
    constructor(index, slot, ids, { maxTokens = 64, stop = [] }, { info, tokenizer }) {
        const room = info.context - ids.length;
        this.index = index;
        this.slot = slot;
        this.start = ids.length;
        this.count = Math.min(maxTokens, room);
        this.limit = /** @type {FinishReason} */ (room <= maxTokens ? "context" : "length");
        this.text = new Text(tokenizer, stop);
        this.submitted = this.taken = 0;
        this.over = false;
    }

    /** What a token adds to its text, if anything. @param {number} token */
    take(token) {
        const text = this.text.push(token), { stopped } = this.text, last = ++this.taken === this.count;
        this.over = stopped || last;
        if (stopped && !text && this.text.ends(token)) return undefined;
        return { index: this.index, token, text: text + (last && !stopped ? this.text.flush() : "") };
    }
}

/**
 * See Model.streamMany.
 * @param {Model} model @param {import("./generate.js").Prompt[]} prompts @param {Options} options @param {Sampler} sampler
 * @param {Record<number, FinishReason>} reasons gets why each ended
 */
export async function* streamMany(model, prompts, options, sampler, reasons) {
    const { signal } = options;
    try {
        yield* decode(model, prompts, options, sampler, reasons, await model.claim(signal));
    } catch (error) {
        if (!signal?.aborted || error !== signal.reason) throw error;
        for (const index of prompts.keys()) reasons[index] ??= "aborted";
    }
}

/**
 * Steps feed their own token forward on the GPU, and frame n + 1 is submitted before frame n's tokens are read. A frame has the steps of
 * `PACE`: told of every single one in time, the GPU would wait whenever JavaScript collects garbage. Takes what `streamMany` takes.
 */
async function* decode(model, prompts, options, sampler, reasons, check) {
    const waiting = [...prompts.entries()], free = Array.from({ length: model.info.slots }, (_, i) => i);
    const active = /** @type {Run[]} */ ([]), pending = /** @type {[frame: number, steps: number, rows: Run[]][]} */ ([]);
    let frame = 0, pace = 1, before = 0;
    while (waiting.length || active.length) {
        while (waiting.length && free.length && pending.length < FRAMES) {
            const [[index, prompt]] = waiting.splice(0, 1), ids = model.idsOf(prompt), run = new Run(index, free[0], ids, options, model);
            if (!run.count) {
                reasons[index] = run.limit;
                continue;
            }
            active.push(run);
            free.shift();
            await begin(model, run, ids, sampler, check, frame);
            pending.push([frame++, 1, [run]]);
        }
        const rows = active.filter(run => run.submitted < run.count);
        if (rows.length && pending.length < FRAMES) {
            const count = Math.min(pace, ...rows.map(run => run.count - run.submitted));
            await model.player.play(check, Array.from({ length: count }, () => step(model, rows, sampler)), frame);
            pending.push([frame++, count, rows]);
        }
        if (!pending.length || (pending.length < FRAMES && rows.length)) continue;
        const [[taken, steps, runs]] = pending.splice(0, 1), tokens = await model.player.tokens(taken), now = performance.now();
        pace = Math.max(1, Math.min(STEPS, 2 * pace, Math.floor(PACE * steps / (now - before))));
        before = now;
        for (const [i, token] of tokens.entries()) {
            const run = runs[i % (tokens.length / steps)];
            if (!run || run.over) continue;         // it ended while this step was under way already
            check();
            const piece = run.take(token);
            if (run.over) {
                reasons[run.index] = run.text.stopped ? "stop" : run.limit;
                active.splice(active.indexOf(run), 1);
                free.push(run.slot);
            }
            if (piece) yield piece;
        }
    }
}

/**
 * Mark the prompt's tokens as seen if a penalty asks, run it through the caches of its slot, and sample its first token.
 * @param {Model} model @param {Run} run @param {Int32Array} ids @param {Sampler} sampler @param {() => void} check @param {number} frame
 */
async function begin(model, run, ids, sampler, check, frame) {
    if (sampler.repeatPenalty !== 1) {
        const seen = new Uint32Array(model.info.vocab_size);
        for (const id of ids) seen[id] = STAMP;
        model.player.gpu.write(model.player.buffers["state.seen"], run.slot * seen.byteLength, seen);
    }
    let last = 0;
    for await (const [, count] of model.prefill(ids, run.slot, check)) last = count - 1;
    const params = packParams(sampler, run.submitted++, run.slot);
    await model.player.play(check, [[["head_1", { row: [last] }], [`${sampler.program}_1`, { params }]]], frame);
}

/** One more token for every row. @param {Model} model @param {Run[]} rows @param {Sampler} sampler @returns {import("./player.js").Step} */
function step(model, rows, sampler) {
    const size = Math.min(...model.info.decode.filter(n => n >= rows.length)), params = new Int32Array(size * RECORD);
    const token = new Int32Array(size).fill(-1), position = new Int32Array(size).fill(-1), slot = new Int32Array(size);
    for (let row = 0; row < size; row++) {
        const run = rows[row];
        params.set(packParams(sampler, run?.submitted ?? 0, run?.slot ?? IDLE), row * RECORD);
        if (!run) continue;
        position[row] = run.start + run.submitted++ - 1;
        slot[row] = run.slot;
    }
    return [[`decode_${size}`, { token, position, slot }], [`${sampler.program}_${size}`, { params }]];
}
