/** What modules of runtime/web that need no GPU answer: node pure.mjs JOBS.json */
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const { web, jobs } = JSON.parse(readFileSync(process.argv[2], "utf8"));
const module = name => import(pathToFileURL(`${web}/${name}`).href);
const { Tokenizer } = await module("tokenizer.js"), { Text } = await module("player/text.js"), { Package } = await module("player/package.js");
const { openSource } = await module("player/source.js"), { crc32 } = await module("player/crc32.js"), { packParams, samplerOf } = await module("player/sampling.js");

const does = {
    /** Ids of texts, plain and with special tokens; pieces and the rest of ids, with and without special tokens. */
    tokenizer({ json, settings, texts, ids }) {
        const tokenizer = new Tokenizer(new TextEncoder().encode(json), settings);
        const pieces = skipSpecialTokens => ids.map(list => {
            const decoder = tokenizer.decoder({ skipSpecialTokens });
            return [...list.map(id => decoder.push(id)), decoder.flush()];
        });
        return { plain: texts.map(text => tokenizer.encode(text, { addSpecialTokens: false })), whole: texts.map(text => tokenizer.encode(text)),
            skipped: pieces(true), kept: pieces(false) };
    },
    async chat({ json, settings, messages }) {
        return new Tokenizer(new TextEncoder().encode(json), settings).chat(messages);
    },
    /** Pieces of a text that is cut at stop strings. */
    text({ json, settings, ids, stops }) {
        const text = new Text(new Tokenizer(new TextEncoder().encode(json), settings), stops), pieces = [];
        for (const id of ids) if (!text.stopped) pieces.push(text.push(id));
        return { pieces, stopped: text.stopped, rest: text.flush() };
    },
    sampling({ options, step, slot }) {
        return Array.from(packParams(samplerOf({ ...options, seed: BigInt(options.seed) }), step, slot));
    },
    refused({ options }) {
        return samplerOf(options);
    },
    crc32({ bytes, cut }) {
        return crc32(Uint8Array.from(bytes.slice(cut)), crc32(Uint8Array.from(bytes.slice(0, cut))));
    },
    /** Every blob of a package, read and checked. */
    async open({ path }) {
        const file = await Package.open(await openSource(readFileSync(path))), sizes = {};
        for (const name of Object.keys(file.blobs)) sizes[name] = (await file.read(name)).length;
        return sizes;
    },
};

const answer = async job => {
    try {
        return await does[job.do](job);
    } catch (error) {
        return { error: error.name, message: error.message };
    }
};
process.stdout.write(JSON.stringify(await Promise.all(jobs.map(answer))));
