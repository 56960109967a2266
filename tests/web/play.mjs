/** Play a package with runtime/web in Node: node play.mjs JOBS.json in a folder where the npm package `webgpu` is installed. */
import { readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const { web, toggles, file, jobs } = JSON.parse(readFileSync(process.argv[2], "utf8"));
const module = name => import(pathToFileURL(`${web}/${name}`).href);
const { openDawn } = await module("dawn.mjs"), { Recording } = await module("recording.mjs"), { load } = await module("tilewright.js");
const model = await load(readFileSync(file), { gpu: await openDawn([`enable-dawn-features=${toggles}`]) });

const does = {
    async logits({ ids, out }) {
        writeFileSync(out, new Uint8Array((await model.logits(ids)).buffer));
    },
    async stream({ prompt, options, leave = Infinity }) {
        const stream = model.stream(prompt, options), tokens = [], pieces = [];
        for await (const { token, text } of stream) {
            tokens.push(token);
            pieces.push(text);
            if (tokens.length === leave) break;
        }
        return { tokens, pieces, reason: stream.finishReason };
    },
    async many({ prompts, options }) {
        const texts = prompts.map(() => ""), tokens = prompts.map(() => []);
        for await (const { index, token, text } of model.streamMany(prompts, options)) {
            texts[index] += text;
            tokens[index].push(token);
        }
        return { texts, tokens, reasons: model.finishReasons };
    },
    /** As on a fast GPU, where a frame has as many steps as it can have. */
    async fast({ job }) {
        const { now } = performance;
        performance.now = () => 0;
        return does[job.do](job).finally(() => { performance.now = now; });
    },
    /** Which error a job gives. */
    async refusal({ job }) {
        return does[job.do](job).then(() => null, error => [error.name, error.message]);
    },
    /** A second stream begins while the first is under way. */
    async interrupted({ prompt }) {
        const first = model.stream(prompt, { maxTokens: 9 })[Symbol.asyncIterator]();
        await first.next();
        const text = await model.generate(prompt, { maxTokens: 4 });
        return { text, error: await first.next().then(() => null, error => error.message) };
    },
    async aborted({ prompt }) {
        const abort = new AbortController(), stream = model.stream(prompt, { maxTokens: 50, signal: abort.signal });
        let count = 0;
        for await (const _ of stream) if (++count === 3) abort.abort();
        return { count, reason: stream.finishReason, then: await model.generate(prompt, { maxTokens: 4 }) };
    },
    /** When the GPU began and ended each step of a stream. */
    async profile({ prompt, options }) {
        const recording = new Recording(model.player.gpu);
        for await (const _ of model.stream(prompt, options));
        return await recording.stop();
    },
    async about() {
        const { info, adapter } = model;
        return { info, variant: model.player.manifest.device, adapter };
    },
    /** The device is taken away in the middle of a stream. */
    async loss({ prompt }) {
        const stream = model.stream(prompt, { maxTokens: 50 })[Symbol.asyncIterator]();
        await stream.next();
        model.player.gpu.device.destroy();
        const { kind, name } = await stream.next().then(() => stream.next()).catch(error => error);
        return { kind, name, lost: (await model.lost).reason };
    },
};

const results = [];
for (const job of jobs) {
    const start = performance.now();
    results.push(await does[job.do](job));
    console.error(`${job.do}: ${Math.round(performance.now() - start)} ms`);
}
process.stdout.write(JSON.stringify(results), () => process.exit());       // shaders that are still compiled behind are of no interest
