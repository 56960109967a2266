/** Finds an adapter and the first variant of a package that it can play, and opens it. */
import { DeviceError } from "./errors.js";
import { Gpu } from "./gpu.js";

/** @typedef {import("./package.js").Manifest} Manifest @typedef {import("./package.js").Needs} Needs */

const NO_WEBGPU = "there is no WebGPU here: use a recent Chrome, Edge, Firefox or Safari, and a page from https:// or localhost";
const NO_ADAPTER = "WebGPU finds no GPU here: see that the browser may use it (chrome://gpu says why it may not)";
const POWER = /** @type {const} */ ({ powerPreference: "high-performance" });
/** @type {import("./gpu.js").Shader} */
const SUBGROUP_PROBE = { kernel: "subgroup size", needs: ["subgroups"], bindings: ["write"], wgsl: `
@group(0) @binding(0) var<storage, read_write> size: array<u32>;
@compute @workgroup_size(128)
fn main(@builtin(local_invocation_index) index: u32) {
    let lanes = subgroupAdd(1u);
    if (index == 0u) { size[0] = lanes; }
}` };

/**
 * Open a device for the first variant of a package that the adapter can play.
 * @param {Manifest[]} variants the most demanding first
 * @param {string} name of the package
 * @param {GPU} [api] another WebGPU than the browser's
 * @returns {Promise<{ gpu: Gpu, variant: Manifest }>}
 * @throws {DeviceError} when there is no adapter, or none of the variants suits it: then with what the least demanding one lacks
 */
export async function openGpu(variants, name, api = globalThis.navigator?.gpu) {
    if (!api) throw new DeviceError(NO_WEBGPU, "no-webgpu");
    const adapter = await api.requestAdapter(POWER);
    if (!adapter) throw new DeviceError(NO_ADAPTER, "no-adapter");
    let said = `${name} is converted but not compiled: run tilewright compile with --target web on it`, measured;
    for (const variant of variants.filter(({ shaders }) => shaders.length)) {
        const needs = variant.device, lacks = await lacking(needs, adapter, api, () => measured ??= subgroupSize(adapter.info, api));
        if (!lacks.length) return { gpu: new Gpu(api, adapter, await open(adapter, needs)), variant };
        const { description, vendor } = adapter.info;
        said = `${name} was compiled for ${needs.name} and ${description || vendor || "this GPU"} lacks ${lacks.join("; ")}: `
            + "compile the model for this device";
    }
    throw new DeviceError(said, "lacks");
}

/**
 * With what the package needs and no more, for some limits cost speed; and with timestamps, which only profiles use.
 * @param {GPUAdapter} adapter @param {Pick<Needs, "features" | "limits">} needs
 */
async function open(adapter, { features, limits }) {
    const requiredLimits = Object.fromEntries(Object.entries(limits).map(([limit, least]) => [camelCase(limit), least]));
    const profiled = adapter.features.has("timestamp-query") ? ["timestamp-query"] : [];
    const requiredFeatures = /** @type {GPUFeatureName[]} */ ([...features, ...profiled]);
    return adapter.requestDevice({ label: "tilewright", requiredFeatures, requiredLimits }).catch(error => {
        throw new DeviceError(`the GPU cannot be opened: ${error.message}`, "failed");
    });
}

/**
 * What the adapter lacks, in words.
 * @param {Needs} needs @param {GPUAdapter} adapter @param {GPU} api @param {() => Promise<number>} size of subgroups
 */
async function lacking(needs, adapter, api, size) {
    const lacks = needs.features.filter(f => !adapter.features.has(f)).map(f => `the feature ${f}`);
    lacks.push(...(needs.matrices ?? []).filter(m => !matrices(adapter.info).includes(m)).map(m => `products of matrices ${m}`));
    lacks.push(...needs.language.filter(f => !api.wgslLanguageFeatures.has(f)).map(f => `the language feature ${f}`));
    for (const [limit, least] of Object.entries(needs.limits)) {
        const has = Number(adapter.limits[camelCase(limit)] ?? 0);
        const [wanted, there] = [least, has].map(count => count.toLocaleString("en"));
        if (least > has) lacks.push(`${limit.replace("max_", "").replaceAll("_", " ")} of ${wanted} (it has ${there})`);
    }
    if (!lacks.length && needs.subgroup_size) {
        const has = await size();
        if (has !== needs.subgroup_size) lacks.push(`subgroups of ${needs.subgroup_size} (it has ${has})`);
    }
    return lacks;
}

/** The products of small matrices that an adapter offers, written as the compiler does. @param {any} info @returns {string[]} */
export function matrices(info) {
    const configs = Array.from(info.subgroupMatrixConfigs ?? []);
    return configs.map(c => `${c.componentType}:${c.resultComponentType}:${c.M}x${c.N}x${c.K}`);
}

/** Measured where the adapter leaves it open: what shaders get is what counts. @param {GPUAdapterInfo} info @param {GPU} api */
export async function subgroupSize(info, api) {
    if (info.subgroupMinSize && info.subgroupMinSize === info.subgroupMaxSize) return info.subgroupMinSize;
    const adapter = /** @type {GPUAdapter} */ (await api.requestAdapter(POWER));      // one more, for an adapter opens one device only
    const gpu = new Gpu(api, adapter, await open(adapter, { features: ["subgroups"], limits: {} }));
    const { size } = await gpu.buffers({ size: 4 }), pipeline = await gpu.pipeline(SUBGROUP_PROBE);
    gpu.submit([[{ pipeline, group: gpu.bind(pipeline, [[size, 0, 4]]), grid: [1, 1, 1] }]]);
    const [measured] = new Uint32Array(await gpu.read(size, 4));
    gpu.close();
    return measured;
}

/** @param {string} name max_buffer_size @returns {string} maxBufferSize */
export function camelCase(name) {
    return name.replace(/_(\w)/g, (_, letter) => letter.toUpperCase());
}
