/** What a model is given: a conversation or a text as token ids, cut to its context; and what could be made of a model to fit a device. */
import { PromptError } from "./player/errors.js";
import { bytes } from "./words.js";

const ROOM = 0.25;      // of the context, which an answer can have at least

/**
 * Messages as ids. Where they are too long, the oldest are left out, but for what the system says; of a text its beginning.
 *
 * @param {import("./player/generate.js").Model} model
 * @param {import("./tokenizer.js").Message[]} messages
 * @param {number} maxTokens that the answer may have
 * @returns {Promise<{ ids: number[], dropped: number }>} and how many messages, or tokens of a text, were left out
 * @throws {PromptError} when the last message is too long alone
 */
export async function fitted(model, messages, maxTokens) {
    const tokenizer = model.tokens(), most = model.info.context - Math.min(maxTokens, Math.floor(ROOM * model.info.context));
    if (!tokenizer.chatTemplate) return tail(tokenizer.encode(messages.map(m => m.content).join("")), most);
    const system = messages.filter(m => m.role === "system"), rest = messages.filter(m => m.role !== "system");
    for (let dropped = 0; ; dropped += 2) {
        const ids = tokenizer.encode(await tokenizer.chat([...system, ...rest.slice(dropped)]), { addSpecialTokens: false });
        if (ids.length <= most) return { ids, dropped };
        if (dropped + 2 >= rest.length) {
            if (ids.length < model.info.context) return { ids, dropped };
            throw new PromptError(`the message has ${ids.length.toLocaleString("en")} tokens but the model's context is ${model.info.context.toLocaleString("en")}: shorten it`);
        }
    }
}

/** @param {number[]} ids the first of which may be bos @param {number} most */
function tail(ids, most) {
    const dropped = Math.max(0, ids.length - most);
    return { ids: dropped ? [ids[0], ...ids.slice(dropped + 1)] : ids, dropped };
}

/**
 * How a model would have to be compiled to need less memory, in a sentence.
 *
 * @param {any} manifest
 * @returns {string}
 */
export function describe(manifest) {
    const elements = shape => shape.reduce((a, b) => a * b, 1);
    const weights = Object.values(manifest.weights), now = weights.reduce((sum, w) => sum + w.planes.reduce((all, [, , size]) => all + size, 0), 0);
    const small = weights.reduce((sum, w) => sum + elements(w.shape) * (w.shape.length > 1 ? 4.5 / 8 : 4), 0);
    const { buffers } = manifest.variants.at(-1), states = Object.entries(buffers).filter(([name]) => name.startsWith("state.layers"));
    const caches = states.reduce((sum, [, size]) => sum + size, 0), { context } = { ...manifest.model, ...manifest.variants.at(-1).model };
    const smaller = small < 0.9 * now ? [`with --quantize q4_0 its weights take about ${bytes(small)} instead of ${bytes(now)}`] : [];
    if (context > 512) smaller.push(`with --context ${Math.floor(context / 4)} its caches take at most ${bytes(caches / 4)} instead of ${bytes(caches)}`);
    return smaller.length ? `Compiled anew, ${smaller.join("; ")}.` : "A smaller model is needed.";
}

/** Bytes on the GPU by use. @param {import("./player/package.js").Manifest} manifest */
export function memoryOf({ buffers, blobs }) {
    const memory = { weights: 0, states: 0, temporaries: 0 };
    for (const [name, size] of Object.entries(buffers)) memory[name in blobs ? "weights" : name.startsWith("state.") ? "states" : "temporaries"] += size;
    return memory;
}
