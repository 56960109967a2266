/** An opened GPU: buffers, pipelines, replays and submissions; with `adapter.js` all that knows WebGPU. */
import { choose, required } from "./adapter.js";
import { DeviceError } from "./errors.js";
import { Recording } from "./recording.js";

/**
 * @typedef {[buffer: GPUBuffer, offset: number, size: number]} Range
 * @typedef {{ pipeline: GPUComputePipeline, group: GPUBindGroup, grid: [number, number, number] }} Dispatch
 * @typedef {{ wgsl: string, bindings: ("read" | "write")[], needs: string[], kernel: string }} Shader
 */

const ENABLES = { "shader-f16": "enable f16;\n", subgroups: "enable subgroups;\n" };

export class Gpu {
    /**
     * Open a device for the first variant that the adapter can play.
     * @param {import("./package.js").Manifest[]} variants
     * @param {string} name of the package
     * @param {GPU} [api]
     * @returns {Promise<{ gpu: Gpu, variant: import("./package.js").Manifest }>}
     * @throws {DeviceError} when there is none
     */
    static async open(variants, name, api = globalThis.navigator?.gpu) {
        const { adapter, variant } = await choose(variants, name, api);
        const device = await adapter.requestDevice(required(variant.device, adapter)).catch(error => {
            throw new DeviceError(`the GPU cannot be opened: ${error.message}`, "failed");
        });
        return { gpu: new Gpu(api, adapter, device), variant };
    }

    /** @param {GPU | undefined} api @param {GPUAdapter} adapter @param {GPUDevice} device */
    constructor(api, adapter, device) {
        this.owners = [api, adapter];       // Dawn in Node dies with them, device and all
        this.device = device;
        this.queue = device.queue;
        this.info = adapter.info;
        this.name = adapter.info.description || [adapter.info.vendor, adapter.info.architecture].filter(Boolean).join(" ") || "the GPU";
        this.recording = device.features.has("timestamp-query") ? new Recording(device) : undefined;
        this.closed = false;
        /** @type {DeviceError | undefined} what makes everything that is computed from now on worthless */
        this.failure = undefined;
        /** @type {Map<string, [GPUBindGroupLayout, GPUPipelineLayout]>} */
        this.layouts = new Map();
        /** @type {Map<string, Promise<GPUComputePipeline>>} */
        this.pipelines = new Map();
        device.onuncapturederror = ({ error }) => { this.failure ??= new DeviceError(`${this.name} refused: ${error.message}`, "failed"); };
        /** @type {Promise<GPUDeviceLostInfo>} resolves when the device is lost, not when it is closed */
        this.lost = new Promise(resolve => device.lost.then(info => {
            if (this.closed) return;
            this.failure = new DeviceError(`the device was lost (${info.message || info.reason}): load the model again`, "lost");
            resolve(info);
        }));
    }

    /** Throws what went wrong since the device was opened. */
    check() {
        if (this.closed) throw new DeviceError("the model was disposed of; load it again", "failed");
        if (this.failure) throw this.failure;
    }

    // Memory

    /**
     * Storage buffers, all zero.
     * @param {Record<string, number>} sizes bytes by name
     * @returns {Promise<Map<string, GPUBuffer>>}
     * @throws {DeviceError} which says how much was needed and how much fitted
     */
    async buffers(sizes) {
        const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
        const made = new Map(), answers = [];
        for (const [label, bytes] of Object.entries(sizes)) {
            const size = Math.max(4, Math.ceil(bytes / 4) * 4);
            this.device.pushErrorScope("out-of-memory");
            made.set(label, this.device.createBuffer({ label, size, usage }));
            answers.push(this.device.popErrorScope());
        }
        const refused = (await Promise.all(answers)).findIndex(error => error !== null);
        if (refused >= 0) {
            const total = list => megabytes(list.reduce((sum, buffer) => sum + buffer.size, 0));
            const all = [...made.values()];
            const message = `${this.name} is out of memory: the model needs ${total(all)}, and only ${total(all.slice(0, refused))} could be had; `
                + "use a smaller model, or compile it with fewer bits a weight or a smaller context";
            all.forEach(buffer => buffer.destroy());
            throw new DeviceError(message, "memory");
        }
        this.check();
        return made;
    }

    /** @param {number} size @param {string} label a buffer that submissions copy into and the host reads */
    readback(size, label) {
        return this.device.createBuffer({ label, size: Math.max(4, Math.ceil(size / 4) * 4), usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
    }

    /** @param {GPUBuffer} buffer @param {number} offset @param {Uint8Array | Int32Array | Uint32Array} data before the next submission */
    write(buffer, offset, data) {
        const whole = data.byteLength & ~3;
        this.queue.writeBuffer(buffer, offset, data.buffer, data.byteOffset, whole);
        if (whole === data.byteLength) return;
        const last = new Uint8Array(4);
        last.set(new Uint8Array(data.buffer, data.byteOffset + whole, data.byteLength - whole));
        this.queue.writeBuffer(buffer, offset + whole, last);
    }

    /**
     * Write a stream of bytes into a buffer. One piece is on its way to the GPU while the next one comes in, so little is held.
     * @param {GPUBuffer} buffer
     * @param {AsyncIterable<Uint8Array>} pieces
     * @param {(bytes: number) => void} [progress] gets the size of every piece
     */
    async fill(buffer, pieces, progress = () => {}) {
        let at = 0, before = Promise.resolve();
        for await (const piece of pieces) {
            this.write(buffer, at, piece);
            this.queue.submit([]);
            await this.wait(before);
            before = this.queue.onSubmittedWorkDone();
            at += piece.byteLength;
            progress(piece.byteLength);
        }
        await this.wait(before);
    }

    /** The first bytes of a buffer, after everything submitted so far. @param {GPUBuffer} buffer @param {number} size a multiple of four */
    async read(buffer, size) {
        const readback = this.readback(size, "read");
        try {
            this.submit([], [buffer, readback]);
            return await this.wait(readback.mapAsync(GPUMapMode.READ, 0, size).then(() => readback.getMappedRange(0, size).slice(0)));
        } finally {
            readback.destroy();
        }
    }

    /** What an answer of the GPU becomes, or why it does not. @template T @param {Promise<T>} answer @returns {Promise<T>} */
    async wait(answer) {
        let result, refusal;
        try {
            result = await answer;
        } catch (error) {
            refusal = error;
            await new Promise(resolve => setTimeout(resolve));      // a loss is told after what it broke
        }
        this.check();
        if (refusal instanceof DeviceError) throw refusal;
        if (refusal) throw new DeviceError(`${this.name} gave no answer: ${refusal.message}`, "failed");
        return /** @type {T} */ (result);
    }

    // Pipelines

    /** Compiled in parallel with others; equal shaders once. @param {Shader} shader @returns {Promise<GPUComputePipeline>} */
    pipeline(shader) {
        const key = JSON.stringify([shader.wgsl, shader.bindings]), pipeline = this.pipelines.get(key) ?? this.wait(this.compile(shader));
        this.pipelines.set(key, pipeline);
        return pipeline;
    }

    /** @param {Shader} shader @returns {Promise<GPUComputePipeline>} */
    async compile({ wgsl, bindings, needs, kernel }) {
        const enables = Object.entries(ENABLES).map(([feature, line]) => needs.includes(feature) ? line : "").join("");
        this.device.pushErrorScope("validation");
        const module = this.device.createShaderModule({ label: kernel, code: enables + wgsl });
        const refused = this.device.popErrorScope().catch(() => null);      // a lost device answers nothing
        try {
            return await this.device.createComputePipelineAsync({ label: kernel, layout: this.layout(bindings)[1], compute: { module, entryPoint: "main" } });
        } catch (error) {
            throw new DeviceError(`${this.name} refuses the shader ${kernel}: ${((await refused) ?? error).message.split("\n")[0]}`, "failed");
        }
    }

    /**
     * Made from the list of bindings and not from the shader, whose automatic layout drops what it does not use.
     * @param {("read" | "write")[]} bindings
     * @returns {[GPUBindGroupLayout, GPUPipelineLayout]}
     */
    layout(bindings) {
        const key = bindings.join();
        const known = this.layouts.get(key);
        if (known) return known;
        const group = this.device.createBindGroupLayout({ entries: bindings.map((access, binding) => ({
            binding, visibility: GPUShaderStage.COMPUTE, buffer: { type: access === "read" ? "read-only-storage" : "storage" } })) });
        /** @type {[GPUBindGroupLayout, GPUPipelineLayout]} */
        const made = [group, this.device.createPipelineLayout({ bindGroupLayouts: [group] })];
        this.layouts.set(key, made);
        return made;
    }

    /** @param {("read" | "write")[]} bindings @param {Range[]} ranges by binding */
    bind(bindings, ranges) {
        const entries = ranges.map(([buffer, offset, size], binding) => ({ binding, resource: { buffer, offset, size } }));
        return this.device.createBindGroup({ layout: this.layout(bindings)[0], entries });
    }

    // Submissions

    /**
     * Encode and submit dispatches in one compute pass, and then a copy of the second buffer's size.
     * @param {Dispatch[][]} replays
     * @param {[from: GPUBuffer, to: GPUBuffer]} [copy]
     */
    submit(replays, copy) {
        this.check();
        const encoder = this.device.createCommandEncoder();
        if (replays.length) {
            const pass = encoder.beginComputePass({ timestampWrites: this.recording?.next() });
            for (const dispatches of replays) encode(pass, dispatches);
            pass.end();
        }
        if (copy) encoder.copyBufferToBuffer(copy[0], 0, copy[1], 0, copy[1].size);
        this.queue.submit([encoder.finish()]);
    }

    /** Give all memory back. */
    close() {
        this.closed = true;
        this.device.destroy();
    }
}

/** @param {GPUComputePassEncoder} pass @param {Dispatch[]} dispatches */
function encode(pass, dispatches) {
    let bound;
    for (const { pipeline, group, grid } of dispatches) {
        if (pipeline !== bound) pass.setPipeline(bound = pipeline);
        pass.setBindGroup(0, group);
        pass.dispatchWorkgroups(grid[0], grid[1], grid[2]);
    }
}

/** @param {number} bytes */
function megabytes(bytes) {
    return `${Math.ceil(bytes / 1e6).toLocaleString("en")} MB`;
}
