/** What is said when there is no GPU, or one without memory, or one that goes away. node --test gpu.test.mjs */
import assert from "node:assert/strict";
import { test } from "node:test";

import { openGpu } from "../../runtime/web/player/adapter.js";
import { Gpu } from "../../runtime/web/player/gpu.js";

globalThis.GPUBufferUsage = { STORAGE: 1, COPY_SRC: 2, COPY_DST: 4, MAP_READ: 8 };
const INFO = { vendor: "acme", architecture: "mk-1", device: "", description: "" };

/** As much of a device as buffers need; it has room for so many bytes. */
function deviceWith(room) {
    let refused = null, lose;
    const device = {
        features: new Set(), queue: {}, lost: new Promise(resolve => { lose = resolve; }),
        pushErrorScope: () => { refused = null; },
        createBuffer: ({ size }) => {
            room -= size;
            if (room < 0) refused = { message: "no" };
            return { size };
        },
        lose: info => lose(info),
    };
    device.popErrorScope = () => Promise.resolve(refused);      // as it is when asked, not when answered
    return device;
}

const adapterWith = (features, limits = {}, info = INFO) => {
    const adapter = { features: new Set(features), limits: { maxBufferSize: 1000, maxComputeWorkgroupSizeX: 512, ...limits }, info };
    return { ...adapter, requestDevice: async asked => ({ ...deviceWith(0), asked }) };
};
const apiWith = adapter => ({ requestAdapter: async () => adapter, wgslLanguageFeatures: new Set(["packed_4x8_integer_dot_product"]) });
const variant = (name, features = [], limits = {}, more = {}) => ({ shaders: [{}], device: { name, features, language: [], limits, subgroup_size: 0, ...more } });

test("no WebGPU, no GPU, nothing compiled", async () => {
    await assert.rejects(openGpu([variant("any")], "m", undefined), { name: "DeviceError", kind: "no-webgpu", message: /use a recent Chrome/ });
    await assert.rejects(openGpu([variant("any")], "m", apiWith(null)), { kind: "no-adapter" });
    await assert.rejects(openGpu([{ ...variant("any"), shaders: [] }], "m", apiWith(adapterWith([]))), { kind: "lacks", message: /not compiled/ });
});

test("the first variant that the adapter meets", async () => {
    const variants = [variant("f16", ["shader-f16"]), variant("big", [], { max_buffer_size: 2000 }), variant("dot", [], {}, { language: ["unheard_of"] }), variant("small")];
    const pick = async adapter => (await openGpu(variants, "m", apiWith(adapter))).variant.device.name;
    assert.equal(await pick(adapterWith(["shader-f16"])), "f16");
    assert.equal(await pick(adapterWith([], { maxBufferSize: 2000 })), "big");
    assert.equal(await pick(adapterWith([])), "small");
    await assert.rejects(openGpu(variants.slice(0, 2), "m", apiWith(adapterWith([]))),
        { kind: "lacks", message: "m was compiled for big and acme lacks buffer size of 2,000 (it has 1,000): compile the model for this device" });
});

test("subgroups count by their size", async () => {
    const fixed = adapterWith(["subgroups"], {}, { ...INFO, subgroupMinSize: 32, subgroupMaxSize: 32 });
    const of = size => variant("lanes", ["subgroups"], {}, { subgroup_size: size });
    assert.equal((await openGpu([of(64), of(32)], "m", apiWith(fixed))).variant.device.subgroup_size, 32);
    await assert.rejects(openGpu([of(16)], "m", apiWith(fixed)), /subgroups of 16 \(it has 32\)/);
});

test("a device is asked for what the package needs and no more", async () => {
    const needed = variant("x", ["shader-f16"], { max_buffer_size: 7, max_compute_workgroup_size_x: 512 });
    const { gpu } = await openGpu([needed], "m", apiWith(adapterWith(["shader-f16", "timestamp-query", "subgroups"])));
    assert.deepEqual(gpu.device.asked, { label: "tilewright", requiredFeatures: ["shader-f16", "timestamp-query"],
        requiredLimits: { maxBufferSize: 7, maxComputeWorkgroupSizeX: 512 } });
});

test("memory that does not suffice is counted, and given back", async () => {
    const device = deviceWith(25e6), gpu = new Gpu(undefined, { info: INFO }, device);
    await assert.rejects(gpu.buffers({ a: 10e6, b: 10e6, c: 10e6 }), { name: "DeviceError", kind: "memory",
        message: /^acme mk-1 is out of memory: the model needs 30 MB, and only 20 MB could be had; use a smaller model/ });
    assert.deepEqual(Object.keys(await new Gpu(undefined, { info: INFO }, deviceWith(100)).buffers({ a: 4, b: 96 })), ["a", "b"]);
});

test("a device that is lost says so, one that is closed does not", async () => {
    const device = deviceWith(0), gpu = new Gpu(undefined, { info: INFO }, device);
    gpu.check();
    device.lose({ reason: "unknown", message: "driver reset" });
    assert.equal((await gpu.lost).message, "driver reset");
    assert.throws(() => gpu.check(), { kind: "lost", message: "the device was lost (driver reset): load the model again" });
    await assert.rejects(gpu.wait(Promise.reject(new Error("aborted"))), { kind: "lost" });
});
