/** What an adapter offers, as a device record for the compiler: `tilewright compile --target FILE.toml` compiles for it. */
import { camelCase, matrices, subgroupSize } from "./player/adapter.js";
import { DeviceError } from "./player/errors.js";

const FEATURES = ["shader-f16", "subgroups", "chromium-experimental-subgroup-matrix"];      // those that the compiler makes use of
const LIMITS = ["max_buffer_size", "max_storage_buffer_binding_size", "max_storage_buffers_per_shader_stage", "max_compute_workgroup_storage_size",
    "max_compute_invocations_per_workgroup", "max_compute_workgroup_size_x", "max_compute_workgroups_per_dimension"];
const NOTE = `# What the adapter says of itself. How fast it is nobody measured: bandwidth (bytes/s), launch (s a dispatch), flops (f32 a second), width
# (invocations at once) and packed_dot (whether packed dot products beat f32) may be added, from another record of the same GPU perhaps.`;

/** @param {GPU} api @returns {Promise<string>} TOML @throws {DeviceError} when there is no adapter */
export async function record(api) {
    const adapter = await api.requestAdapter({ powerPreference: "high-performance" });
    if (!adapter) throw new DeviceError("WebGPU finds no GPU here", "no-adapter");
    const { vendor, architecture, device, description } = adapter.info;
    const features = FEATURES.filter(feature => adapter.features.has(feature));
    const values = {
        name: [vendor, architecture, device, description].filter(Boolean).join(" ") || "GPU",
        features, subgroup_size: features.includes("subgroups") ? await subgroupSize(adapter.info, api) : 0, matrices: matrices(adapter.info),
    };
    const lines = Object.entries(values).map(([key, value]) => `${key} = ${JSON.stringify(value)}`);
    return [NOTE, ...lines, "", "[limits]", ...LIMITS.map(limit => `${limit} = ${adapter.limits[camelCase(limit)]}`)].join("\n");
}
