/** An opened GPU: buffers, pipelines and submissions; with adapter.js all that knows WebGPU. */
import { DeviceError } from "./errors.js";

/**
 * @typedef {{ wgsl: string, bindings: ("read" | "write")[], needs: string[], kernel: string }} Shader
 * @typedef {{ pipeline: GPUComputePipeline, group: GPUBindGroup, grid: [number, number, number] }} Dispatch
 * @typedef {{ from: GPUBuffer, start: number, to: GPUBuffer, at: number, size: number }} Copy
 */

const ENABLES = {
    "shader-f16": "enable f16;\n", subgroups: "enable subgroups;\n",
    "chromium-experimental-subgroup-matrix": "enable chromium_experimental_subgroup_matrix;\n",
};

export class Gpu {
    /** @param {GPU | undefined} api @param {GPUAdapter} adapter @param {GPUDevice} device */
    constructor(api, adapter, device) {
        this.owners = [api, adapter];       // Dawn in Node dies with them, device and all
        this.device = device;
        this.queue = device.queue;
        this.info = adapter.info;
        this.name = adapter.info.description || [adapter.info.vendor, adapter.info.architecture].filter(Boolean).join(" ") || "the GPU";
        /** @type {{ next: () => GPUComputePassTimestampWrites | undefined } | undefined} asked at every pass when they are timed */
        this.recording = undefined;
        this.closed = false;
        /** @type {DeviceError | undefined} what makes everything that is computed from now on worthless */
        this.failure = undefined;
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

    /** What an answer of the GPU becomes, or why it does not. @template T @param {Promise<T>} answer @returns {Promise<T>} */
    async wait(answer) {
        try {
            const result = await answer;
            this.check();
            return result;
        } catch (error) {
            await new Promise(resolve => setTimeout(resolve));      // a loss is told after what it broke
            this.check();
            throw error instanceof DeviceError ? error : new DeviceError(`${this.name} gave no answer: ${error.message}`, "failed");
        }
    }

    /** Wait for everything submitted and written so far. */
    async finished() {
        await this.wait(this.queue.onSubmittedWorkDone());
    }

    /**
     * Storage buffers, all zero.
     * @param {Record<string, number>} sizes bytes by name
     * @returns {Promise<Record<string, GPUBuffer>>}
     * @throws {DeviceError} which says how much was needed and how much fitted
     */
    async buffers(sizes) {
        const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST, answers = [];
        const made = /** @type {Record<string, GPUBuffer>} */ ({});
        for (const [label, size] of Object.entries(sizes)) {
            this.device.pushErrorScope("out-of-memory");
            made[label] = this.device.createBuffer({ label, size, usage });
            answers.push(this.device.popErrorScope());
        }
        const refused = (await Promise.all(answers)).findIndex(error => error !== null);
        if (refused >= 0) {
            const sum = count => Object.values(sizes).slice(0, count).reduce((a, b) => a + b, 0);
            const [needed, fitted] = [sum(Infinity), sum(refused)].map(bytes => Math.ceil(bytes / 1e6).toLocaleString("en"));
            throw new DeviceError(`${this.name} is out of memory: the model needs ${needed} MB, and only ${fitted} MB could be had; `
                + "use a smaller model, or compile it with fewer bits a weight or a smaller context", "memory");
        }
        this.check();
        return made;
    }

    /** A buffer that submissions copy into and the host reads. @param {number} size */
    readback(size) {
        return this.device.createBuffer({ size, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
    }

    /** Before the next submission. @param {GPUBuffer} buffer @param {number} offset @param {Uint8Array | Int32Array | Uint32Array} data */
    write(buffer, offset, data) {
        this.queue.writeBuffer(buffer, offset, data.buffer, data.byteOffset, data.byteLength);
    }

    /** The first bytes of a readback as soon as the submissions so far are done. @param {GPUBuffer} readback @param {number} size */
    async mapped(readback, size) {
        await this.wait(readback.mapAsync(GPUMapMode.READ, 0, size));
        const bytes = readback.getMappedRange(0, size).slice(0);
        readback.unmap();
        return bytes;
    }

    /** The first bytes of a buffer, after everything submitted so far. @param {GPUBuffer} buffer @param {number} size a multiple of four */
    async read(buffer, size) {
        const readback = this.readback(size);
        this.submit([{ from: buffer, start: 0, to: readback, at: 0, size }]);
        return this.mapped(readback, size).finally(() => readback.destroy());
    }

    /** Compiled beside others. @param {Shader} shader @returns {Promise<GPUComputePipeline>} */
    async pipeline({ wgsl, bindings, needs, kernel }) {
        // From the list of bindings and not from the shader, whose automatic layout drops what it does not use.
        const group = this.device.createBindGroupLayout({ entries: bindings.map((access, binding) => ({
            binding, visibility: GPUShaderStage.COMPUTE, buffer: { type: access === "read" ? "read-only-storage" : "storage" } })) });
        const layout = this.device.createPipelineLayout({ bindGroupLayouts: [group] });
        this.device.pushErrorScope("validation");
        const code = needs.map(feature => ENABLES[feature] ?? "").join("") + wgsl;
        const module = this.device.createShaderModule({ label: kernel, code });
        const refused = this.device.popErrorScope().catch(() => null);      // a lost device answers nothing
        const made = this.device.createComputePipelineAsync({ label: kernel, layout, compute: { module, entryPoint: "main" } });
        return this.wait(made.catch(async error => {
            const [reason] = ((await refused) ?? error).message.split("\n");
            throw new DeviceError(`${this.name} refuses the shader ${kernel}: ${reason}`, "failed");
        }));
    }

    /** @param {GPUComputePipeline} pipeline @param {[buffer: GPUBuffer, offset: number, size: number][]} ranges by binding */
    bind(pipeline, ranges) {
        const entries = ranges.map(([buffer, offset, size], binding) => ({ binding, resource: { buffer, offset, size } }));
        return this.device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries });
    }

    /** Encode and submit replays and copies in their order; replays next to each other share a pass. @param {(Dispatch[] | Copy)[]} work */
    submit(work) {
        this.check();
        const encoder = this.device.createCommandEncoder();
        let pass, bound;
        for (const item of work) {
            if (!Array.isArray(item)) {
                pass?.end();
                pass = bound = undefined;
                encoder.copyBufferToBuffer(item.from, item.start, item.to, item.at, item.size);
                continue;
            }
            pass ??= encoder.beginComputePass({ timestampWrites: this.recording?.next() });
            for (const { pipeline, group, grid } of item) {
                if (pipeline !== bound) pass.setPipeline(bound = pipeline);
                pass.setBindGroup(0, group);
                pass.dispatchWorkgroups(grid[0], grid[1], grid[2]);
            }
        }
        pass?.end();
        this.queue.submit([encoder.finish()]);
    }

    /** Give all memory back. */
    close() {
        this.closed = true;
        this.device.destroy();
    }
}
