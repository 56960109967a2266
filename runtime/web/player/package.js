/** The `.wgpu-llama` file as compiler/package.py describes it: a manifest, and blobs that are read in pieces. */
import { crc32 } from "./crc32.js";
import { PackageError } from "./errors.js";

const FORMAT = "wgpu-llama", VERSION = 1;
const LONGEST = 1 << 28;    // bytes of a header: more means that the file is something else
const PIECE = 4 << 20;      // bytes of a blob that are in memory at once
const SHARED = ["model", "weights", "blobs"], VARYING = ["model", "device", "states", "buffers", "shaders", "programs"];

/**
 * @typedef {Record<string, any>} Manifest one variant's programs, with what all variants share
 * @typedef {{ name: string, features: string[], matrices?: string[], language: string[], limits: Record<string, number>,
 *     subgroup_size: number }} Needs
 */

export class Package {
    /** Read the header. @param {import("./source.js").Source} source @throws {PackageError} when it is not whole, or is something else */
    static async open(source) {
        const name = source.name ?? "the package", head = await source.read(0, 4);
        const length = head.length === 4 ? new DataView(head.buffer, head.byteOffset).getUint32(0, true) : Infinity;
        const text = length <= Math.min(LONGEST, source.size - 4) ? await source.read(4, length) : head;
        if (text.length < length) {
            throw new PackageError(`${name} is no .wgpu-llama file, or only a piece of one: its header is longer than the file`);
        }
        let manifest;
        try {
            manifest = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(text));
        } catch (error) {
            throw new PackageError(`${name} is no .wgpu-llama file: its header is damaged (${error.message})`);
        }
        if (manifest?.format !== FORMAT) throw new PackageError(`${name} is a '${manifest?.format}' file, not a .wgpu-llama package`);
        if (manifest.version === VERSION) return new Package(source, name, manifest, 4 + length);
        throw new PackageError(`${name} is version ${manifest.version} of the format, this player reads ${VERSION}: compile it again`);
    }

    /** @param {import("./source.js").Source} source @param {string} name @param {Manifest} manifest @param {number} start of the blobs */
    constructor(source, name, manifest, start) {
        const { variants = [{}], ...shared } = manifest;
        const lacks = [...SHARED.filter(key => !shared[key]), ...VARYING.filter(key => variants.some(variant => !variant[key]))];
        if (lacks.length) throw new PackageError(`${name} is damaged: its header lacks ${[...new Set(lacks)].join(", ")}`);
        this.source = source;
        this.name = name;
        this.start = start;
        /** @type {Manifest[]} the most demanding first */
        this.variants = variants.map(variant => ({ ...shared, ...variant, model: { ...shared.model, ...variant.model } }));
        /** @type {Record<string, { offset: number, size: number, crc32: string }>} */
        this.blobs = shared.blobs;
        for (const blob of Object.keys(this.blobs)) this.within(blob, source.size);
    }

    /**
     * The bytes of a blob in order. The next piece is read while the caller works on the one before.
     * @param {string} blob
     * @returns {AsyncGenerator<Uint8Array>}
     * @throws {PackageError} after the last one when the checksum does not match
     */
    async *pieces(blob) {
        const { offset, size, crc32: expected } = this.blobs[blob];
        const read = async at => at < size ? this.source.read(this.start + offset + at, Math.min(PIECE, size - at)) : new Uint8Array();
        let checksum = 0;
        for (let at = 0, next = read(0), piece; at < size; at += piece.length) {
            piece = await next;
            if (piece.length < Math.min(PIECE, size - at)) this.within(blob, this.start + offset + at + piece.length);
            next = read(at + piece.length);
            next.catch(() => {});       // is reported when its turn comes, if it comes
            checksum = crc32(piece, checksum);
            yield piece;
        }
        if (checksum.toString(16).padStart(8, "0") !== expected) {
            throw new PackageError(`${this.name} is damaged: the checksum of '${blob}' does not match; copy or compile it again`);
        }
    }

    /** All of a blob. @param {string} blob */
    async read(blob) {
        const pieces = [];
        for await (const piece of this.pieces(blob)) pieces.push(piece);
        return new Uint8Array(await new Blob(pieces).arrayBuffer());
    }

    /** Throws if a blob is not within the bytes that the file has. @param {string} blob @param {number} bytes */
    within(blob, bytes) {
        const { offset, size } = this.blobs[blob], end = this.start + offset + size;
        if (offset >= 0 && size >= 0 && end <= bytes) return;
        const [last, has] = [end, bytes].map(count => count.toLocaleString("en")), { name } = this;
        throw new PackageError(`${name} is truncated: '${blob}' ends at byte ${last} but the file has ${has}; copy or compile it again`);
    }
}
