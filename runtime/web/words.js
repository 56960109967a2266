/** Numbers and troubles in words. */

/** @param {number} count */
export function bytes(count) {
    const unit = count < 1e6 ? ["kB", 1e3] : count < 1e9 ? ["MB", 1e6] : ["GB", 1e9];
    const value = count / Number(unit[1]);
    return `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ${unit[0]}`;
}

/** @param {number} rate bytes a second */
export function speed(rate) {
    return `${bytes(rate)}/s`;
}

const REASONS = { length: "longest answer reached", context: "context is full", aborted: "stopped" };

/** @param {{ tokens: number, rate?: number | null, first?: number | null, reason?: string }} numbers */
export function stats({ tokens, rate, first, reason = "" }) {
    return [`${tokens} ${tokens === 1 ? "token" : "tokens"}`, rate && `${rate.toFixed(1)} tokens/s`, first && `first after ${first.toFixed(2)} s`, REASONS[reason]]
        .filter(Boolean).join(" · ");
}

/** What there is to say of a loaded model, by term. @param {any} model */
export function facts({ info, adapter, memory, variant, size, stored, seconds }) {
    const gpu = adapter.description || [adapter.vendor, adapter.architecture, adapter.device].filter(Boolean).join(" ") || "unnamed";
    const { weights, states, temporaries } = memory;
    return {
        GPU: gpu,
        Model: `${info.architecture}, ${info.layers} layers`,
        Context: `${info.context.toLocaleString("en")} tokens`,
        "Compiled for": variant,
        File: bytes(size),
        "GPU memory": bytes(weights + states + temporaries),
        "– weights": bytes(weights),
        "– caches": bytes(states),
        "– temporaries": bytes(temporaries),
        Loaded: `in ${seconds.toFixed(1)} s, ${stored ? "from the stored copy" : "from the server"}`,
    };
}

const TROUBLES = {
    "no-webgpu": ["This browser has no WebGPU", [
        "Chrome or Edge 113 and newer have it on Windows, macOS and ChromeOS; Chrome on Android from 121; on Linux it may need chrome://flags/#enable-unsafe-webgpu.",
        "Safari has it from version 26, Firefox from 141 on Windows and 145 on macOS.",
        "The page must come from https:// or from localhost: elsewhere browsers hide WebGPU."]],
    "no-adapter": ["The browser finds no GPU", [
        "See that hardware acceleration is on in the browser's settings, and that the graphics driver is up to date.",
        "chrome://gpu says in Chrome and Edge why WebGPU is disabled."]],
    lacks: ["This GPU lacks what the model was compiled for", [
        "Compile the model for all browsers: tilewright compile MODEL --target web -o FILE.wgpu-llama"]],
    memory: ["The GPU has too little memory", [
        "Close other tabs and programs that use the GPU, and try again.",
        "Or compile the model smaller: tilewright compile MODEL --target web --quantize q4_0 --context 2048 -o FILE.wgpu-llama"]],
    lost: ["The GPU does not come back", ["Close other programs that use the GPU, then try again: the conversation is still here."]],
    failed: ["The GPU refused the work", ["Try again; if it persists, update the graphics driver or the browser."]],
    package: ["The model cannot be loaded", ["See that the server is there and that the file on it is whole, then try again. What has arrived already is kept."]],
};

/** A title and advice for an error. @param {{ name?: string, kind?: string }} error @returns {{ title: string, advice: string[] }} */
export function trouble({ name, kind }) {
    const [title, advice] = TROUBLES[kind ?? (name === "PackageError" ? "package" : "")] ?? ["Something went wrong", ["Reload the page."]];
    return { title, advice };
}
