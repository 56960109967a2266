/** Play a package on a GPU: buffers and pipelines at load, then replays of its programs. */

export const FRAMES = 2;        // while the GPU plays one, the host prepares the next
export const STEPS = 16;        // of a frame, at most

/** @typedef {[program: string, feeds: Record<string, ArrayLike<number>>][]} Step programs in order, and their inputs: whole numbers */

/** A loaded package. Every submission plays a few steps in order; a frame also brings the tokens that they sampled back. */
export class Player {
    /**
     * @param {import("./gpu.js").Gpu} gpu
     * @param {import("./package.js").Manifest} manifest of the variant that the GPU was opened for
     * @param {import("./package.js").Package} file
     * @param {(done: number, total: number) => void} progress gets bytes
     */
    static async load(gpu, manifest, file, progress) {
        const player = new Player(gpu, manifest, await gpu.buffers({ ...manifest.buffers, feeds: STEPS * manifest.buffers.step }));
        const prepare = programs => Promise.all(programs.map(program => player.replay(program)));
        const first = prepare([`prefill_${Math.min(...manifest.model.prefill)}`, "head_1", "greedy_1", "decode_1"]);
        first.catch(() => {});      // is reported once the weights are there; they may fail first
        const blobs = Object.entries(file.blobs).filter(([name]) => name in manifest.buffers);
        const total = blobs.reduce((sum, [, { size }]) => sum + size, 0);
        let done = 0, before;
        for (const [name] of blobs.sort(([, a], [, b]) => a.offset - b.offset)) {
            let at = 0;
            for await (const piece of file.pieces(name)) {
                gpu.write(player.buffers[name], at, piece);
                gpu.queue.submit([]);
                await gpu.wait(before);     // one piece is on its way to the GPU while the next one comes in, so little is held
                before = gpu.queue.onSubmittedWorkDone();
                at += piece.length;
                progress(done += piece.length, total);
            }
        }
        await Promise.all([gpu.wait(before), first]);
        prepare(Object.keys(manifest.programs)).catch(() => {});        // behind; whoever needs one waits for it, and is told
        return player;
    }

    /** @param {import("./gpu.js").Gpu} gpu @param {import("./package.js").Manifest} manifest @param {Record<string, GPUBuffer>} buffers */
    constructor(gpu, manifest, buffers) {
        this.gpu = gpu;
        this.manifest = manifest;
        this.buffers = buffers;
        this.words = new Int32Array(manifest.buffers.step / 4);         // what the buffer `step` shall hold: the inputs of every program
        this.feeds = new Int32Array(STEPS * this.words.length);         // and that of every step of a frame
        this.pipelines = /** @type {Promise<GPUComputePipeline>[]} */ ([]);
        this.replays = /** @type {Record<string, Promise<import("./gpu.js").Dispatch[]>>} */ ({});
        /** @type {{ readback: GPUBuffer, tokens?: Promise<Int32Array> }[]} */
        this.frames = Array.from({ length: FRAMES }, () => ({ readback: gpu.readback(STEPS * buffers["state.token"].size) }));
    }

    /** The dispatches of a program, when they can be played: one pipeline a shader, one bind group a dispatch. @param {string} program */
    replay(program) {
        const { shaders, programs } = this.manifest;
        return this.replays[program] ??= Promise.all(programs[program].dispatches.map(async ({ shader, grid, bindings }) => {
            const pipeline = await (this.pipelines[shader] ??= this.gpu.pipeline(shaders[shader]));
            const ranges = bindings.map(([name, offset, size]) => [this.buffers[name], offset, size]);
            return { pipeline, group: this.gpu.bind(pipeline, ranges), grid };
        }));
    }

    /**
     * Submit steps as soon as their programs are ready; with a frame number, their tokens can be had by `tokens` later.
     * @param {() => void} check throws if they shall not be played any more
     * @param {Step[]} steps at most `STEPS`
     * @param {number} [frame]
     */
    async play(check, steps, frame) {
        const replays = await Promise.all(steps.map(calls => Promise.all(calls.map(([program]) => this.replay(program)))));
        check();
        const { feeds, step, "state.token": token } = this.buffers, slot = frame === undefined ? undefined : this.frames[frame % FRAMES];
        const work = steps.flatMap((calls, i) => {
            for (const [program, inputs] of calls) {
                const { step: places, region } = this.manifest.programs[program];
                for (const [name, values] of Object.entries(inputs)) this.words.set(values, region[0] / 4 + places[name][0]);
            }
            this.feeds.set(this.words, i * this.words.length);
            const before = { from: feeds, start: i * step.size, to: step, at: 0, size: step.size };
            const after = slot ? [{ from: token, start: 0, to: slot.readback, at: i * token.size, size: token.size }] : [];
            return [before, ...replays[i], ...after];
        });
        this.gpu.write(feeds, 0, this.feeds.subarray(0, steps.length * this.words.length));
        this.gpu.submit(work);
        if (!slot) return;
        slot.tokens = this.gpu.mapped(slot.readback, steps.length * token.size).then(bytes => new Int32Array(bytes));
        slot.tokens.catch(() => {});        // is reported to whoever takes them
    }

    /** The tokens that a frame sampled, as many a step as the state `token` has; waits for that frame alone. @param {number} frame */
    async tokens(frame) {
        return /** @type {Promise<Int32Array>} */ (this.frames[frame % FRAMES].tokens);
    }

    /** Wait for everything submitted so far, and so that no frame is under way. */
    async drain() {
        await Promise.allSettled(this.frames.map(slot => slot.tokens));
        await this.gpu.finished();
    }

    /** The first rows of a state of f32 numbers, after everything submitted so far. @param {string} state @param {number} rows */
    async read(state, rows) {
        const width = this.manifest.states[state].shape.slice(1).reduce((a, b) => a * b, 1);
        return new Float32Array(await this.gpu.read(this.buffers[`state.${state}`], 4 * rows * width));
    }
}
