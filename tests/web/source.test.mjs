/** Bytes from a Blob, from memory, and from servers: with ranges, without, and with connections that break. node --test source.test.mjs */
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { after, test } from "node:test";

import { openSource } from "../../runtime/web/player/source.js";

const BYTES = Uint8Array.from({ length: 5_000_000 }, (_, i) => i * i % 251);
const servers = [];
after(() => servers.forEach(server => server.close()));

/** A server of BYTES; breakAt: bytes after which the first connections end; returns its address and the ranges that it was asked for. */
async function serve({ ranges = true, length = true, breakAt = Infinity, breaks = 1 } = {}) {
    const asked = [];
    const server = createServer((request, response) => {
        const start = ranges ? Number(/bytes=(\d+)-/.exec(request.headers.range ?? "")?.[1] ?? 0) : 0;
        asked.push(request.headers.range ?? "all");
        if (ranges) response.setHeader("Accept-Ranges", "bytes");
        if (length) response.setHeader("Content-Length", BYTES.length - start);
        response.statusCode = start ? 206 : 200;
        if (breaks-- > 0 && breakAt < Infinity) response.write(BYTES.slice(start, breakAt), () => response.destroy());
        else response.write(BYTES.slice(start), () => response.end());
    });
    servers.push(server);
    await new Promise(resolve => server.listen(0, "127.0.0.1", resolve));
    return { url: `http://127.0.0.1:${server.address().port}/a%20model.wgpu-llama`, asked };
}

async function checked(source, parts) {
    for (const [offset, size] of parts) assert.deepEqual(Buffer.from(await source.read(offset, size)), Buffer.from(BYTES.slice(offset, offset + size)));
}

const FORWARD = [[0, 4], [4, 1000], [2000, 70_000], [100_000, 0], [1_000_000, 3_999_000]];

test("blobs and memory", async () => {
    for (const from of [new Blob([BYTES]), BYTES.buffer, BYTES.subarray(0), { size: BYTES.length, read: (o, n) => BYTES.subarray(o, o + n) }]) {
        const source = await openSource(from);
        assert.equal(source.size, BYTES.length);
        await checked(source, FORWARD);
    }
    await assert.rejects(openSource(/** @type {any} */ ({})), /a model is loaded from a URL, a Blob/);
});

test("a download is one request as long as reading goes forward", async () => {
    const { url, asked } = await serve(), source = await openSource(url);
    assert.equal(source.name, "a model.wgpu-llama");
    assert.equal(source.size, BYTES.length);
    await checked(source, FORWARD);
    assert.deepEqual(asked, ["all"]);
    source.close();
});

test("a server without ranges or without a length will do", async () => {
    const { url, asked } = await serve({ ranges: false, length: false }), source = await openSource(url);
    assert.equal(source.size, Infinity);
    await checked(source, FORWARD);
    assert.equal((await source.read(4_999_999, 10)).length, 1, "no more than there is");
    assert.deepEqual(asked, ["all"]);
    source.close();
});

test("a connection that breaks is taken up again", async () => {
    const { url, asked } = await serve({ breakAt: 1_500_000 }), source = await openSource(url);
    await checked(source, FORWARD);
    assert.match(asked[1], /^bytes=\d+-$/);
    source.close();
});

test("what cannot be fetched is said in a sentence", async () => {
    const broken = await openSource((await serve({ breakAt: 1000, breaks: 9, ranges: false })).url);
    await assert.rejects(broken.read(0, 2000), { name: "PackageError", message: /^a model.wgpu-llama cannot be fetched: / });
    await assert.rejects(openSource("http://127.0.0.1:1/x"), { name: "PackageError", message: /^x cannot be fetched: / });
    const abort = new AbortController(), { url } = await serve(), source = await openSource(url, abort.signal);
    abort.abort(new Error("enough"));
    await assert.rejects(source.read(0, 5_000_000), /enough/);
});
