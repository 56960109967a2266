/** When the GPU began and ended each step, from its own clock: the proof that it does not wait for the host. */

const MOST = 2048;      // steps, two timestamps each: WebGPU allows 4096 in a set

export class Recording {
    /** Record from now on. @param {import("./player/gpu.js").Gpu} gpu whose device has the feature timestamp-query */
    constructor(gpu) {
        gpu.recording = this;
        this.gpu = gpu;
        this.device = gpu.device;
        this.count = 0;
        this.queries = this.device.createQuerySet({ type: "timestamp", count: 2 * MOST });
    }

    /** @returns {GPUComputePassTimestampWrites | undefined} what the next compute pass shall write, if anything */
    next() {
        if (this.count === MOST) return undefined;
        const i = 2 * this.count++;
        return { querySet: this.queries, beginningOfPassWriteIndex: i, endOfPassWriteIndex: i + 1 };
    }

    /** Stop. @returns {Promise<[begin: number, end: number][]>} nanoseconds since the first of at most 2,048 steps began */
    async stop() {
        this.gpu.recording = undefined;
        if (!this.count) return [];
        const size = 16 * this.count;
        const ticks = this.device.createBuffer({ size, usage: GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC });
        const copy = this.device.createBuffer({ size, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
        const encoder = this.device.createCommandEncoder();
        encoder.resolveQuerySet(this.queries, 0, 2 * this.count, ticks, 0);
        encoder.copyBufferToBuffer(ticks, 0, copy, 0, size);
        this.device.queue.submit([encoder.finish()]);
        await copy.mapAsync(GPUMapMode.READ);
        const stamps = [...new BigUint64Array(copy.getMappedRange())];
        ticks.destroy();
        copy.destroy();
        return Array.from({ length: this.count }, (_, i) => [Number(stamps[2 * i] - stamps[0]), Number(stamps[2 * i + 1] - stamps[0])]);
    }
}
