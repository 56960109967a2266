/** What can go wrong, by whose fault it is; every message is one clear sentence. */

/** A package is bad or cannot be had. */
export class PackageError extends Error {
    name = "PackageError";
}

/** The device is missing, lacks something, or is gone; "failed": it refused what should work. */
export class DeviceError extends Error {
    name = "DeviceError";
    /** @param {string} message @param {"no-webgpu" | "no-adapter" | "lacks" | "memory" | "lost" | "failed"} kind */
    constructor(message, kind) {
        super(message);
        this.kind = kind;
    }
}

/** A prompt or an option that the model cannot take. */
export class PromptError extends Error {
    name = "PromptError";
}

/** A text or a chat cannot become a prompt. */
export class TokenizerError extends Error {
    name = "TokenizerError";
}
