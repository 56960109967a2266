/** Finds an adapter, and the first variant of a package that it can play. */
import { DeviceError } from "./errors.js";

const SUBGROUP_PROBE = `enable subgroups;
@group(0) @binding(0) var<storage, read_write> size: array<u32>;
@compute @workgroup_size(128)
fn main(@builtin(local_invocation_index) index: u32) {
    let lanes = subgroupAdd(1u);
    if (index == 0u) { size[0] = lanes; }
}`;

/**
 * @param {import("./package.js").Manifest[]} variants the most demanding first
 * @param {string} name of the package
 * @param {GPU} [api]
 * @returns {Promise<{ adapter: GPUAdapter, variant: import("./package.js").Manifest }>}
 * @throws {DeviceError} when there is no adapter, or none of the variants suits it: then with what the least demanding one lacks
 */
export async function choose(variants, name, api) {
    if (!api) {
        throw new DeviceError("there is no WebGPU here: use a recent Chrome, Edge, Firefox or Safari, and a page from https:// or localhost", "no-webgpu");
    }
    const adapter = await findAdapter(api);
    if (variants.every(v => !v.shaders.length)) {
        throw new DeviceError(`${name} is converted but not compiled: run tilewright compile with --target web on it`, "lacks");
    }
    let lacks = /** @type {string[]} */ ([]), asked = variants[0], /** @type {Promise<number> | undefined} */ measured;
    const size = () => measured ??= subgroupSize(adapter.info, api);
    for (const variant of variants.filter(v => v.shaders.length)) {
        asked = variant;
        lacks = await lacking(variant.device, adapter, api.wgslLanguageFeatures, size);
        if (!lacks.length) return { adapter, variant };
    }
    const device = adapter.info.description || adapter.info.vendor || "this GPU";
    throw new DeviceError(`${name} was compiled for ${asked.device.name} and ${device} lacks ${lacks.join("; ")}: compile the model for this device`, "lacks");
}

/** @param {GPU} api */
async function findAdapter(api) {
    const adapter = await api.requestAdapter({ powerPreference: "high-performance" });
    if (!adapter) throw new DeviceError("WebGPU finds no GPU here: see that the browser may use it (chrome://gpu says why it may not)", "no-adapter");
    return adapter;
}

/**
 * @param {import("./package.js").Needs} needs
 * @param {GPUAdapter} adapter
 * @param {WGSLLanguageFeatures} language
 * @param {() => Promise<number>} size of subgroups
 * @returns {Promise<string[]>} what the adapter lacks, in words
 */
async function lacking(needs, adapter, language, size) {
    const lacks = needs.features.filter(f => !adapter.features.has(f)).map(f => `the feature ${f}`);
    lacks.push(...(needs.language ?? []).filter(f => !language.has(f)).map(f => `the language feature ${f}`));
    for (const [limit, least] of Object.entries(needs.limits)) {
        const has = Number(adapter.limits[camelCase(limit)] ?? 0);
        if (least > has) lacks.push(`${limit.replace("max_", "").replaceAll("_", " ")} of ${least.toLocaleString("en")} (it has ${has.toLocaleString("en")})`);
    }
    if (!lacks.length && needs.subgroup_size) {
        const has = await size();
        if (has !== needs.subgroup_size) lacks.push(`subgroups of ${needs.subgroup_size} (it has ${has})`);
    }
    return lacks;
}

/** Measured where the adapter leaves it open: what shaders get is what counts. @param {GPUAdapterInfo} info @param {GPU} api */
async function subgroupSize(info, api) {
    if (info.subgroupMinSize && info.subgroupMinSize === info.subgroupMaxSize) return info.subgroupMinSize;
    const adapter = await findAdapter(api);     // one more, for an adapter opens one device only
    const device = await adapter.requestDevice({ requiredFeatures: [/** @type {GPUFeatureName} */ ("subgroups")] });
    const size = device.createBuffer({ size: 4, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC });
    const copy = device.createBuffer({ size: 4, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
    const module = device.createShaderModule({ code: SUBGROUP_PROBE });
    const pipeline = await device.createComputePipelineAsync({ layout: "auto", compute: { module, entryPoint: "main" } });
    const encoder = device.createCommandEncoder(), pass = encoder.beginComputePass();
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries: [{ binding: 0, resource: { buffer: size } }] }));
    pass.dispatchWorkgroups(1);
    pass.end();
    encoder.copyBufferToBuffer(size, 0, copy, 0, 4);
    device.queue.submit([encoder.finish()]);
    await copy.mapAsync(GPUMapMode.READ);
    const measured = new Uint32Array(copy.getMappedRange())[0];
    device.destroy();
    return measured;
}

/**
 * What to ask of the adapter: what the package needs and no more, for some limits cost speed; and timestamps, which only profiles use.
 * @param {import("./package.js").Needs} needs
 * @param {GPUAdapter} adapter
 * @returns {GPUDeviceDescriptor}
 */
export function required(needs, adapter) {
    const requiredLimits = Object.fromEntries(Object.entries(needs.limits).map(([limit, least]) => [camelCase(limit), least]));
    requiredLimits.maxComputeWorkgroupSizeX ??= needs.limits.max_compute_invocations_per_workgroup ?? 0;
    const optional = ["timestamp-query"].filter(feature => adapter.features.has(feature));
    return { label: "tilewright", requiredFeatures: /** @type {GPUFeatureName[]} */ ([...needs.features, ...optional]), requiredLimits };
}

/** @param {string} name max_buffer_size @returns {string} maxBufferSize */
function camelCase(name) {
    return name.replace(/_(\w)/g, (_, letter) => letter.toUpperCase());
}
