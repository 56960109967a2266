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
        const player = new Player(gpu, manifest, await gpu.buffers(manifest.buffers));
        const first = player.ready([`prefill_${Math.min(...manifest.model.prefill)}`, "head_1", "greedy_1", "decode_1"]);
        first.catch(() => {});      // is reported once the weights are there; they may fail first
        const names = Object.keys(file.blobs).filter(blob => player.buffers.has(blob)).sort((a, b) => file.blobs[a].offset - file.blobs[b].offset);
        const total = names.reduce((sum, blob) => sum + file.blobs[blob].size, 0);
        let done = 0;
        for (const blob of names) {
            await gpu.fill(/** @type {GPUBuffer} */ (player.buffers.get(blob)), file.pieces(blob), bytes => progress(done += bytes, total));
        }
        await first;
        player.ready(Object.keys(manifest.programs)).catch(() => {});      // behind; whoever needs one waits for it, and is told
        return player;
    }

    /** @param {import("./gpu.js").Gpu} gpu @param {import("./package.js").Manifest} manifest @param {Map<string, GPUBuffer>} buffers */
    constructor(gpu, manifest, buffers) {
        this.gpu = gpu;
        this.manifest = manifest;
        this.buffers = buffers;
        /** @type {Map<string, Promise<void>>} */
        this.preparing = new Map();
        /** @type {Record<string, import("./gpu.js").Dispatch[]>} */
        this.replays = {};
        this.steps = Object.fromEntries(Object.entries(manifest.programs).map(([name, { region }]) => [name, new Int32Array(region[1] / 4)]));
        /** @type {Frame[]} */
        this.frames = Array.from({ length: FRAMES }, (_, i) => ({ readback: gpu.readback(manifest.buffers["state.token"], `tokens ${i}`) }));
    }

    /** Wait until programs can be played. @param {Iterable<string>} programs */
    async ready(programs) {
        for (const name of programs) if (!this.preparing.has(name)) this.preparing.set(name, this.prepare(name));
        await Promise.all(Array.from(programs, name => this.preparing.get(name)));
    }

    /** One pipeline a shader, one bind group a dispatch. @param {string} program */
    async prepare(program) {
        const { shaders, programs } = this.manifest;
        this.replays[program] = await Promise.all(programs[program].dispatches.map(async ({ shader, grid, bindings }) => {
            const ranges = bindings.map(([name, offset, size]) => [this.buffers.get(name), offset, size]);
            return { pipeline: await this.gpu.pipeline(shaders[shader]), group: this.gpu.bind(shaders[shader].bindings, ranges), grid };
        }));
    }

    /**
     * Submit programs that are ready; with a frame number, its tokens can be had by `tokens` later.
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
