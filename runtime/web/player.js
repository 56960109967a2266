/** Play a package on a GPU: buffers and pipelines at load, then replays of its programs. */

const FRAMES = 2;       // while the GPU plays one, the host prepares the next

/**
 * @typedef {[program: string, feeds: Record<string, ArrayLike<number>>]} Call a program and its inputs, whole numbers
 * @typedef {{ readback: GPUBuffer, tokens?: Promise<Int32Array> }} Frame
 */

/** A loaded package. Every submission plays a few programs in order; a frame also brings the sampled tokens back. */
export class Player {
    /**
     * @param {import("./gpu.js").Gpu} gpu
     * @param {import("./package.js").Manifest} manifest of the variant that the GPU was opened for
     * @param {import("./package.js").Package} file
     * @param {(done: number, total: number) => void} progress gets bytes
     */
    static async load(gpu, manifest, file, progress) {
        const pipelines = gpu.pipelines(manifest.shaders);
        pipelines.catch(() => {});      // is reported once the weights are there; they may fail first
        const buffers = await gpu.buffers(manifest.buffers);
        const names = Object.keys(file.blobs).filter(blob => buffers.has(blob)).sort((a, b) => file.blobs[a].offset - file.blobs[b].offset);
        const total = names.reduce((sum, blob) => sum + file.blobs[blob].size, 0);
        let done = 0;
        for (const blob of names) {
            await gpu.fill(/** @type {GPUBuffer} */ (buffers.get(blob)), file.pieces(blob), bytes => progress(done += bytes, total));
        }
        return new Player(gpu, manifest, buffers, await gpu.wait(pipelines));
    }

    /**
     * @param {import("./gpu.js").Gpu} gpu
     * @param {import("./package.js").Manifest} manifest
     * @param {Map<string, GPUBuffer>} buffers
     * @param {GPUComputePipeline[]} pipelines by shader
     */
    constructor(gpu, manifest, buffers, pipelines) {
        this.gpu = gpu;
        this.manifest = manifest;
        this.buffers = buffers;
        const range = ([name, offset, size]) => [buffers.get(name), offset, size];
        const dispatch = ({ shader, grid, bindings }) => (
            { pipeline: pipelines[shader], group: gpu.bind(manifest.shaders[shader].bindings, bindings.map(range)), grid });
        const programs = Object.entries(manifest.programs);
        this.replays = Object.fromEntries(programs.map(([name, program]) => [name, program.dispatches.map(dispatch)]));
        this.steps = Object.fromEntries(programs.map(([name, program]) => [name, new Int32Array(program.region[1] / 4)]));
        /** @type {Frame[]} */
        this.frames = Array.from({ length: FRAMES }, (_, i) => ({ readback: gpu.readback(manifest.buffers["state.token"], `tokens ${i}`) }));
    }

    /**
     * Submit programs; with a frame number, its tokens can be had by `tokens` later.
     *
     * @param {Call[]} calls
     * @param {number} [frame]
     */
    play(calls, frame) {
        for (const [program, feeds] of calls) this.writeStep(program, feeds);
        const replays = calls.map(([program]) => this.replays[program]);
        if (frame === undefined) return this.gpu.submit(replays);
        const slot = this.frames[frame % FRAMES], { readback } = slot;
        this.gpu.submit(replays, [this.buffer("token"), readback]);
        slot.tokens = this.gpu.wait(readback.mapAsync(GPUMapMode.READ).then(() => {
            const tokens = new Int32Array(readback.getMappedRange().slice(0));
            readback.unmap();
            return tokens;
        }));
        slot.tokens.catch(() => {});        // is reported to whoever takes them
    }

    /** @param {string} program @param {Record<string, ArrayLike<number>>} feeds */
    writeStep(program, feeds) {
        const { step, region } = this.manifest.programs[program], words = this.steps[program];
        for (const [name, values] of Object.entries(feeds)) words.set(values, step[name][0]);
        this.gpu.write(/** @type {GPUBuffer} */ (this.buffers.get("step")), region[0], words);
    }

    /** The tokens that a frame sampled, one a row; waits for that frame alone. @param {number} frame @returns {Promise<Int32Array>} */
    async tokens(frame) {
        const slot = this.frames[frame % FRAMES];
        try {
            return await /** @type {Promise<Int32Array>} */ (slot.tokens);
        } finally {
            slot.tokens = undefined;
        }
    }

    /** Let go of frames whose tokens nobody took, and wait until the GPU is idle. */
    async drain() {
        await Promise.all(this.frames.map(async (slot, frame) => { if (slot.tokens) await this.tokens(frame); }));
        await this.finished();
    }

    /** Wait for everything submitted so far. */
    finished() {
        return this.gpu.wait(this.gpu.queue.onSubmittedWorkDone());
    }

    /** The first rows of a state of f32 numbers, after everything submitted so far. @param {string} state @param {number} rows */
    async read(state, rows) {
        const width = this.manifest.states[state].shape.slice(1).reduce((a, b) => a * b, 1);
        return new Float32Array(await this.gpu.read(this.buffer(state), 4 * rows * width));
    }

    /** Set a state of whole numbers from its element `at` on. @param {string} state @param {Uint32Array} array @param {number} at */
    write(state, array, at) {
        this.gpu.write(this.buffer(state), 4 * at, array);
    }

    /** @param {string} state @returns {GPUBuffer} */
    buffer(state) {
        return /** @type {GPUBuffer} */ (this.buffers.get(`state.${state}`));
    }
}
