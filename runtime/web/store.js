/**
 * A copy of the package in the origin-private file system (https://fs.spec.whatwg.org), fetched once and in parts: what is asked for comes
 * from the file, and what the file lacks yet is downloaded into it first. Runs in a worker, for only there are files written in place.
 */
import { crc32 } from "./player/crc32.js";
import { PackageError } from "./player/errors.js";

const ATTEMPTS = 5;         // of a connection that brings nothing new
const PATIENCE = 500;       // ms before the second attempt; twice that before the next
const ROOT = "tilewright";

/**
 * @typedef {object} Description what model.json says of the package
 * @property {string} file its address, relative to the page
 * @property {string} name what people call it
 * @property {number} size bytes
 * @property {{ size: number, crc32: string }} header length and checksum of all before the blobs, which holds the blobs' own checksums:
 *     another package has another one
 * @property {{ size: number, crc32: string[] }} parts checksums of the file cut into parts of so many bytes: they are fetched, checked and
 *     marked as there one by one
 */

/** The folder of this page, for an origin may hold several. @param {boolean} create */
async function folder(create) {
    const root = await (await navigator.storage.getDirectory()).getDirectoryHandle(ROOT, { create });
    return root.getDirectoryHandle(encodeURIComponent(new URL(".", location.href).pathname), { create });
}

/** Forget what this page has stored. */
export async function evict() {
    const root = await (await navigator.storage.getDirectory()).getDirectoryHandle(ROOT, { create: true });
    await root.removeEntry(encodeURIComponent(new URL(".", location.href).pathname), { recursive: true }).catch(ignoreMissing);
}

/** @param {DOMException} error */
function ignoreMissing(error) {
    if (error.name !== "NotFoundError") throw error;
}

/** A source as `load` takes it. */
export class Copy {
    /**
     * @param {Description} description
     * @returns {Promise<Copy>}
     * @throws {DOMException} where the browser gives no place to store it, or not enough, or another page is writing it
     */
    static async open(description) {
        const place = await folder(true), identity = `${description.header.crc32}-${description.size}`;
        for await (const name of place.keys()) if (!name.startsWith(identity)) await place.removeEntry(name).catch(() => {});
        const copy = new Copy(description, await place.getFileHandle(`${identity}.data`, { create: true }),
                              await place.getFileHandle(`${identity}.parts`, { create: true }));
        copy.parts.set(new Uint8Array(await (await copy.index.getFile()).arrayBuffer()).subarray(0, copy.parts.length));
        if (!copy.complete) {
            const { quota = Infinity, usage = 0 } = await navigator.storage.estimate();
            if (quota - usage < copy.missing) throw new DOMException("the browser allows too little storage", "QuotaExceededError");
            await copy.unlock();
        }
        return copy;
    }

    /** @param {Description} description @param {FileSystemFileHandle} data @param {FileSystemFileHandle} index a byte a part: 1 where it is there */
    constructor(description, data, index) {
        this.size = description.size;
        this.name = description.name;
        this.header = description.header;
        this.part = description.parts.size;
        this.checksums = description.parts.crc32;
        this.url = new URL(description.file, location.href).href;
        this.data = data;
        this.index = index;
        this.parts = new Uint8Array(this.checksums.length);
        /** @type {{ data: FileSystemSyncAccessHandle, index: FileSystemSyncAccessHandle } | undefined} while it may be written */
        this.open = undefined;
        /** @type {ReadableStreamDefaultReader<Uint8Array> | undefined} */
        this.reader = undefined;
        this.position = 0;      // of the next byte that `reader` gives
        this.end = 0;           // of what was asked for
        this.checksum = 0;      // of the part that comes, so far
        this.fetched = 0;       // bytes downloaded since the copy was opened
        this.onFetch = () => {};
    }

    get complete() {
        return this.parts.every(Boolean);
    }

    /** Bytes to download, about. */
    get missing() {
        return Math.min(this.size, this.parts.reduce((sum, there) => sum + (there ? 0 : this.part), 0)) - this.position % this.part;
    }

    /** @param {number} offset @param {number} length @returns {Promise<Uint8Array>} */
    async read(offset, length) {
        const end = Math.min(offset + length, this.size);
        await this.fetch(offset, end);
        if (!this.open) return new Uint8Array(await (await this.data.getFile()).slice(offset, end).arrayBuffer());
        const bytes = new Uint8Array(end - offset);
        this.open.data.read(bytes, { at: offset });
        return bytes;
    }

    /** Download whatever is still missing. */
    async finish() {
        await this.fetch(0, this.size);
        this.close();
    }

    /** Whether the header is what model.json says. Blobs have checksums in the package; it has not. */
    async headerIsSound() {
        return text(crc32(await this.read(0, this.header.size))) === this.header.crc32;
    }

    /** Check what is stored, and have the parts that are damaged downloaded again when they are read next. @returns {Promise<boolean>} if any is */
    async repair() {
        this.cancel();
        await this.unlock();
        const there = this.parts.slice(), bytes = new Uint8Array(this.part);
        for (let part = 0; part < this.parts.length; part++) {
            const size = this.writable.data.read(bytes, { at: part * this.part });
            if (text(crc32(bytes.subarray(0, size))) !== this.checksums[part]) this.parts[part] = 0;
        }
        this.writable.index.write(this.parts, { at: 0 });
        return there.some((was, part) => was !== this.parts[part]);
    }

    /** Let other pages have the file. */
    close() {
        this.cancel();
        this.open?.data.close();
        this.open?.index.close();
        this.open = undefined;
    }

    // Writing

    async unlock() {
        if (this.open) return;
        const data = await this.data.createSyncAccessHandle();
        try {
            this.open = { data, index: await this.index.createSyncAccessHandle() };
        } catch (error) {
            data.close();
            throw error;
        }
    }

    get writable() {
        if (!this.open) throw new DOMException("the copy was closed", "InvalidStateError");
        return this.open;
    }

    /** @param {number} start @param {number} end */
    async fetch(start, end) {
        for (let part = Math.floor(start / this.part), failures = 0; part * this.part < end;) {
            if (this.parts[part]) {
                part++;
                failures = 0;
                continue;
            }
            try {
                await this.unlock();
                await this.pull(part);
            } catch (error) {
                this.cancel();
                if (!(error instanceof TypeError) || ++failures === ATTEMPTS) throw this.broken(error);     // TypeError: the network's
                await new Promise(resolve => setTimeout(resolve, PATIENCE * 2 ** (failures - 1)));
            }
        }
    }

    /** Write one piece of the download that leads to a part. @param {number} part */
    async pull(part) {
        if (!this.reader || this.position > (part + 1) * this.part) await this.request(part);
        const { done, value } = await /** @type {ReadableStreamDefaultReader<Uint8Array>} */ (this.reader).read();
        for (let rest = value ?? new Uint8Array(); rest.length;) {
            const room = this.part - this.position % this.part;
            this.take(rest.subarray(0, room));
            rest = rest.subarray(room);
        }
        if (!done) return;
        this.reader = undefined;
        if (this.position < this.end) throw new TypeError("it ended early");
    }

    /** Ask for a part and all missing ones right behind it. @param {number} part */
    async request(part) {
        this.cancel();
        const present = this.parts.indexOf(1, part), start = part * this.part, end = present < 0 ? this.size : present * this.part;
        const headers = end - start < this.size ? { Range: `bytes=${start}-${end - 1}` } : undefined;
        const response = await fetch(this.url, { headers, cache: "no-store" });
        if (!response.ok || !response.body) throw new PackageError(`${this.name} cannot be fetched: the server answers ${response.status}`);
        const total = Number(response.status === 206 ? response.headers.get("Content-Range")?.split("/")[1] : this.lengthOf(response));
        if (total && total !== this.size) throw this.changed();
        [this.position, this.end] = response.status === 206 ? [start, end] : [0, this.size];     // a server may know no ranges
        this.reader = response.body.getReader();
    }

    /** @param {Response} response */
    lengthOf(response) {
        return response.headers.get("Content-Encoding") ? 0 : response.headers.get("Content-Length");
    }

    /** @param {Uint8Array} bytes that lie in one part */
    take(bytes) {
        const part = Math.floor(this.position / this.part);
        if (this.position + bytes.length > this.size) throw this.changed();
        this.writable.data.write(bytes, { at: this.position });
        this.checksum = crc32(bytes, this.position % this.part ? this.checksum : 0);
        this.position += bytes.length;
        this.fetched += bytes.length;
        this.onFetch();
        if (this.position % this.part && this.position < this.size) return;
        if (text(this.checksum) !== this.checksums[part]) throw new TypeError("what came is damaged");
        this.writable.data.flush();     // before the index says that it is there
        this.parts[part] = 1;
        this.writable.index.write(this.parts, { at: 0 });
        this.writable.index.flush();
    }

    cancel() {
        this.reader?.cancel().catch(() => {});
        this.reader = undefined;
    }

    changed() {
        return new PackageError(`${this.name} is another file on the server by now: reload the page`);
    }

    /** @param {any} error */
    broken(error) {
        if (!(error instanceof TypeError)) return error;
        return new PackageError(`the download of ${this.name} stopped (${error.message}): what has arrived is kept; reload the page to go on`);
    }
}

/** A checksum as the package and model.json write it. @param {number} checksum */
function text(checksum) {
    return checksum.toString(16).padStart(8, "0");
}
