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

const ATTEMPTS = 3;         // a connection that breaks is taken up again where it stood

/**
 * @param {string | URL | Blob | ArrayBuffer | ArrayBufferView | Source} from
 * @param {AbortSignal} [signal] ends downloads
 * @returns {Promise<Source>}
 */
export async function openSource(from, signal) {
    if (typeof from === "string" || from instanceof URL) return download(String(from), signal);
    const blob = from instanceof ArrayBuffer || ArrayBuffer.isView(from) ? new Blob([/** @type {BlobPart} */ (from)]) : from;
    if (blob instanceof Blob) {
        const read = async (offset, length) => new Uint8Array(await blob.slice(offset, offset + length).arrayBuffer());
        return { size: blob.size, name: "name" in blob ? String(blob.name) : "the package", read };
    }
    if (typeof blob?.read === "function" && typeof blob.size === "number") return blob;
    throw new TypeError("a model is loaded from a URL, a Blob, an ArrayBuffer, or an object with size and read(offset, length)");
}

/** One request, read as it comes and never held as a whole. @param {string} url @param {AbortSignal} [signal] @returns {Promise<Source>} */
async function download(url, signal) {
    const name = decodeURIComponent(new URL(url, globalThis.location?.href).pathname.split("/").pop() || url);
    /** @param {any} error @returns {never} */
    const fail = error => {
        throw signal?.aborted ? signal.reason : new PackageError(`${name} cannot be fetched: ${error.cause?.message ?? error.message}`);
    };
    const request = async from => {
        const response = await fetch(url, { headers: from ? { Range: `bytes=${from}-` } : {}, signal }).catch(fail);
        const { headers, ok, status, statusText, body } = response;
        if (!ok || !body || (from && status !== 206)) return fail(new Error(`the server answers ${status} ${statusText}`.trim()));
        return { headers, reader: body.getReader() };
    };
    let { headers, reader } = await request(0);
    let position = 0, rest = new Uint8Array();      // what has come and was not asked for, from `position` on
    const ranges = headers.get("Accept-Ranges") === "bytes";
    const size = headers.has("Content-Length") && !headers.get("Content-Encoding") ? Number(headers.get("Content-Length")) : Infinity;

    /** Wait for bytes; false at the end. @returns {Promise<boolean>} */
    const more = async (attempt = 1) => {
        try {
            const { done, value } = await reader.read();
            rest = value ?? rest;
            return !done;
        } catch (error) {
            if (attempt === ATTEMPTS || !ranges || signal?.aborted) fail(error);
            ({ reader } = await request(position));
            return more(attempt + 1);
        }
    };
    const read = async (offset, length) => {
        const bytes = new Uint8Array(Math.min(length, size - offset));
        let done = 0;
        while (done < bytes.length && (rest.length || await more())) {
            const start = Math.min(rest.length, offset + done - position), part = rest.subarray(start, start + bytes.length - done);
            bytes.set(part, done);
            done += part.length;
            position += start + part.length;
            rest = rest.subarray(start + part.length);
        }
        return bytes.subarray(0, done);
    };
    return { size, name, read, close: () => void reader.cancel().catch(() => {}) };
}
