/** The controls of sampling, remembered by the browser. */

const KEY = "tilewright/settings";
const DEFAULTS = { temperature: 0.7, topP: 0.95, minP: 0, repeatPenalty: 1, topK: 0, maxTokens: 512, seed: "", system: "" };

export class Settings {
    /** @param {HTMLFormElement} form whose controls have the names of the options as ids */
    constructor(form) {
        this.form = form;
        this.show({ ...DEFAULTS, ...read() });
        form.addEventListener("input", () => this.changed());
        form.addEventListener("submit", event => event.preventDefault());
    }

    /** @returns {import("./player/generate.js").Options & { system: string }} */
    get values() {
        const numbers = Object.fromEntries(Object.keys(DEFAULTS).filter(name => name !== "system").map(name => [name, this.number(name)]));
        return { .../** @type {any} */ (numbers), seed: this.control("seed").value === "" ? undefined : numbers.seed, system: this.control("system").value.trim() };
    }

    restore() {
        this.show(DEFAULTS);
        this.changed();
    }

    /** @param {string} name @returns {HTMLInputElement} */
    control(name) {
        return /** @type {HTMLInputElement} */ (this.form.elements.namedItem(name));
    }

    /** What was typed, kept in the control's range. @param {string} name */
    number(name) {
        const { value, min, max, step } = this.control(name), given = value === "" ? Number(DEFAULTS[name]) : Number(value);
        const bounded = Math.max(Number(min), max ? Math.min(given, Number(max)) : given);
        return step === "1" ? Math.round(bounded) : bounded;
    }

    /** @param {Record<string, string | number>} values */
    show(values) {
        for (const name of Object.keys(DEFAULTS)) this.control(name).value = String(values[name]);
        this.label();
    }

    label() {
        for (const output of this.form.querySelectorAll("output")) {
            const name = output.htmlFor.value, off = { topP: 1, minP: 0, repeatPenalty: 1 }[name];
            output.value = this.number(name) === off ? "off" : String(this.number(name));
        }
    }

    changed() {
        this.label();
        try {
            localStorage.setItem(KEY, JSON.stringify(Object.fromEntries(Object.keys(DEFAULTS).map(name => [name, this.control(name).value]))));
        } catch {
            // nothing is remembered, then
        }
    }
}

function read() {
    try {
        return JSON.parse(localStorage.getItem(KEY) ?? "{}");
    } catch {
        return {};
    }
}
