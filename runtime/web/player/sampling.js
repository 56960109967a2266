/** Sampling parameters of one sequence as the record of words that the sampling kernels read. */
import { PromptError } from "./errors.js";

export const RECORD = 12;    // words
export const STAMP = 1;      // marks the tokens of a sequence in the history of its slot
export const IDLE = -1;      // the slot of a row that samples nothing
const OCTAVE = 65536;        // keys have 16 bits of fraction

/**
 * @typedef {import("./generate.js").Options} Options
 * @typedef {Required<Omit<Options, "maxTokens" | "stop" | "signal">> & { program: string }} Sampler of a sequence, and the program
 */

/** Its words are explained in compiler/sampling.py. @param {Sampler} sampler @param {number} step @param {number} slot */
export function packParams({ temperature, topK, topP, minP, repeatPenalty, seed }, step, slot) {
    const record = new Int32Array(RECORD), words = new Uint32Array(record.buffer), floats = new Float32Array(record.buffer);
    const scale = temperature > 0 ? OCTAVE * Math.LOG2E / temperature : 1;
    // Factors are bounded so that their products with logits, bounded too, are ordinary floats.
    [scale, scale / repeatPenalty, scale * repeatPenalty].forEach((s, i) => { floats[i] = Math.min(Math.max(s, 2 ** -20), 2 ** 60); });
    record[3] = Number(temperature > 0);
    record[4] = topK;
    words[5] = topP === 1 ? 0 : Math.max(1, Math.ceil(topP * 2 ** 32) - 1);     // one less: a prefix of exactly this share is enough
    record[6] = minP >= 2 ** -30 ? Math.floor(-Math.log2(minP) * OCTAVE) : -1;
    words[7] = randomBits(seed, step);
    words[8] = STAMP;
    record[9] = slot;
    return record;
}

/** 32 random bits for one step of a seed, the same as runtime/sampling.py computes. @param {number | bigint} seed @param {number} step */
function randomBits(seed, step) {
    const whole = BigInt(seed);
    let x = 0;
    for (const word of [Number(BigInt.asUintN(32, whole)), Number(BigInt.asUintN(32, whole >> 32n)), step]) {
        x = (x ^ word) + 0x9e3779b9 | 0;
        x = Math.imul(x ^ x >>> 16, 0x21f0aaad);
        x = Math.imul(x ^ x >>> 15, 0x735a2d97);
        x ^= x >>> 15;
    }
    return x >>> 0;
}

/** @param {Options} options @returns {Sampler} @throws {PromptError} for what is out of range, before anything runs */
export function samplerOf({ maxTokens = 64, temperature = 0, topK = 0, topP = 1, minP = 0, repeatPenalty = 1,
                            seed = Math.floor(Math.random() * 2 ** 32) }) {
    /** @type {[holds: boolean, sentence: string][]} */
    const rules = [
        [Number.isInteger(maxTokens) && maxTokens >= 0, `maxTokens must be a whole number and not negative, not ${maxTokens}`],
        [temperature >= 0 && temperature < Infinity, `temperature is ${temperature}, but must be 0 (greedy) or a positive number`],
        [Number.isInteger(topK) && topK >= 0 && topK < 2 ** 31, `topK is ${topK}, but must be 0 (off) or a positive whole number`],
        [topP > 0 && topP <= 1, `topP is ${topP}, but must be above 0 and at most 1 (off)`],
        [minP >= 0 && minP <= 1, `minP is ${minP}, but must be between 0 (off) and 1`],
        [repeatPenalty > 0 && repeatPenalty < Infinity, `repeatPenalty is ${repeatPenalty}, but must be a positive number (1 is off)`],
        [typeof seed === "bigint" || Number.isSafeInteger(seed), `seed is ${seed}, but must be a whole number; beyond 2**53 a BigInt`],
    ];
    for (const [holds, sentence] of rules) if (!holds) throw new PromptError(sentence);
    return { program: temperature > 0 ? "sample" : "greedy", temperature, topK, topP, minP, repeatPenalty, seed };
}
