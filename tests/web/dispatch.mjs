/** One dispatch on the adapter that Dawn prefers, with all that it offers: node dispatch.mjs JOBS.json; the buffers' files are written back. */
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const { create, globals } = await import(pathToFileURL(createRequire(join(process.cwd(), "_")).resolve("webgpu")).href);
Object.assign(globalThis, globals);
const { wgsl, bindings, grid, files, toggles } = JSON.parse(readFileSync(process.argv[2], "utf8"));
const gpu = create([`enable-dawn-features=${toggles}`]), adapter = await gpu.requestAdapter(), requiredLimits = {};
for (const name of ["maxComputeWorkgroupStorageSize", "maxComputeInvocationsPerWorkgroup", "maxComputeWorkgroupSizeX", "maxStorageBuffersPerShaderStage"]) {
    requiredLimits[name] = adapter.limits[name];
}
const features = ["shader-f16", "subgroups", "chromium-experimental-subgroup-matrix"];
const device = await adapter.requestDevice({ requiredFeatures: features, requiredLimits });
device.onuncapturederror = ({ error }) => { throw error; };
const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
const buffers = files.map(file => {
    const data = readFileSync(file), buffer = device.createBuffer({ size: data.length, usage });
    device.queue.writeBuffer(buffer, 0, data);
    return buffer;
});
const layout = device.createBindGroupLayout({ entries: bindings.map((access, binding) => ({
    binding, visibility: GPUShaderStage.COMPUTE, buffer: { type: access === "read" ? "read-only-storage" : "storage" } })) });
const pipeline = await device.createComputePipelineAsync({
    layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }), compute: { module: device.createShaderModule({ code: wgsl }), entryPoint: "main" } });
const encoder = device.createCommandEncoder(), pass = encoder.beginComputePass();
pass.setPipeline(pipeline);
pass.setBindGroup(0, device.createBindGroup({ layout, entries: buffers.map((buffer, binding) => ({ binding, resource: { buffer } })) }));
pass.dispatchWorkgroups(...grid);
pass.end();
device.queue.submit([encoder.finish()]);
for (const [i, buffer] of buffers.entries()) {
    if (bindings[i] === "read") continue;
    const copy = device.createBuffer({ size: buffer.size, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST }), encoder = device.createCommandEncoder();
    encoder.copyBufferToBuffer(buffer, 0, copy, 0, buffer.size);
    device.queue.submit([encoder.finish()]);
    await copy.mapAsync(GPUMapMode.READ);
    writeFileSync(files[i], new Uint8Array(copy.getMappedRange()));
}
console.log("{}");
