/**
 * Where the bytes of a package come from: a URL, a Blob, an ArrayBuffer, or any object that can read a range of itself.
 *
 * @typedef {object} Source
 * @property {number} size bytes in all; Infinity where nobody knows
 * @property {(offset: number, length: number) => Promise<Uint8Array> | Uint8Array} read the bytes from `offset` on: `length`, or less at
 *     the end. Is called front to back, one call after the other.
 * @property {string} [name] what messages call it
 * @property {() => void} [close] is called when no more will be read
 */
import { PackageError } from "./errors.js";

const SKIP = 1 << 20;       // bytes: reading over a smaller gap is quicker than another request
const ATTEMPTS = 3;         // a connection that breaks is taken up again where it stood

/**
 * @param {string | URL | Blob | ArrayBuffer | ArrayBufferView | Source} from
 * @param {AbortSignal} [signal] ends downloads
 * @returns {Promise<Source>}
 */
export async function openSource(from, signal) {
    if (typeof from === "string" || from instanceof URL) return Download.open(String(from), signal);
    if (from instanceof Blob) {
        const name = "name" in from ? String(from.name) : "the package";
        return { size: from.size, name, read: async (offset, length) => new Uint8Array(await from.slice(offset, offset + length).arrayBuffer()) };
    }
    if (from instanceof ArrayBuffer) return inMemory(new Uint8Array(from));
    if (ArrayBuffer.isView(from)) return inMemory(new Uint8Array(from.buffer, from.byteOffset, from.byteLength));
    if (typeof from?.read === "function" && typeof from.size === "number") return from;
    throw new TypeError("a model is loaded from a URL, a Blob, an ArrayBuffer, or an object with size and read(offset, length)");
}

/** @param {Uint8Array} bytes @returns {Source} */
function inMemory(bytes) {
    return { size: bytes.length, name: "the package", read: (offset, length) => bytes.subarray(offset, offset + length) };
}

/** One request that is read as it comes, never held as a whole; another one, for a range, where reading goes on elsewhere. */
class Download {
    /** @param {string} url @param {AbortSignal} [signal] */
    static async open(url, signal) {
        const download = new Download(url, signal);
        const response = await download.request(0);
        const length = response.headers.get("Content-Encoding") ? null : response.headers.get("Content-Length");
        download.size = length === null ? Infinity : Number(length);
        download.ranges = response.headers.get("Accept-Ranges") === "bytes";
        return download;
    }

    /** @param {string} url @param {AbortSignal} [signal] */
    constructor(url, signal) {
        this.url = url;
        this.signal = signal;
        this.name = decodeURIComponent(new URL(url, globalThis.location?.href).pathname.split("/").pop() || url);
        this.size = Infinity;
        this.ranges = false;
        this.position = 0;                      // of the first byte of `rest`
        /** @type {Uint8Array} what has come and was not asked for yet */
        this.rest = new Uint8Array();
        this.reader = /** @type {ReadableStreamDefaultReader<Uint8Array> | undefined} */ (undefined);
    }

    /** Ask for everything from `offset` on. @param {number} offset */
    async request(offset) {
        this.close();
        const headers = offset && this.ranges ? { Range: `bytes=${offset}-` } : undefined;
        const response = await fetch(this.url, { headers, signal: this.signal }).catch(error => this.fail(error));
        if (!response.ok || !response.body) this.fail(new Error(`the server answers ${response.status} ${response.statusText}`.trim()));
        this.position = response.status === 206 ? offset : 0;
        this.rest = new Uint8Array();
        this.reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
        return response;
    }

    /** @param {number} offset @param {number} length */
    async read(offset, length) {
        if (offset < this.position || (offset > this.position + this.rest.length + SKIP && this.ranges)) await this.request(offset);
        const bytes = new Uint8Array(Math.min(length, this.size - offset));
        let done = 0;
        while (done < bytes.length) {
            const before = Math.min(this.rest.length, offset + done - this.position);
            const part = this.rest.subarray(before, before + bytes.length - done);
            bytes.set(part, done);
            done += part.length;
            this.position += before + part.length;
            this.rest = this.rest.subarray(before + part.length);
            if (done < bytes.length && !this.rest.length && !await this.more()) return bytes.subarray(0, done);
        }
        return bytes;
    }

    /** Wait for bytes; false at the end. */
    async more() {
        for (let attempt = 1; ; attempt++) {
            try {
                const { done, value } = await /** @type {ReadableStreamDefaultReader<Uint8Array>} */ (this.reader).read();
                if (value) this.rest = value;
                return !done;
            } catch (error) {
                if (attempt === ATTEMPTS || !this.ranges || this.signal?.aborted) this.fail(error);
                await this.request(this.position);
            }
        }
    }

    close() {
        this.reader?.cancel().catch(() => {});
        this.reader = undefined;
    }

    /** @param {any} error @returns {never} */
    fail(error) {
        if (this.signal?.aborted) throw this.signal.reason;
        throw new PackageError(`${this.name} cannot be fetched: ${error.cause?.message ?? error.message}`);
    }
}
