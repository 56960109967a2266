/** The conversation on the page: turns as elements, text as it comes, and a copy in the browser's storage so that it survives a reload. */
import { stats } from "./words.js";

const KEY = `tilewright${new URL(".", location.href).pathname}conversation`;
const NEAR = 80;        // pixels from the end at which the page keeps following it

/** @typedef {{ role: "user" | "assistant", content: string, meta?: string }} Turn */

export class Conversation {
    /** @param {HTMLElement} log @param {HTMLElement} scroller */
    constructor(log, scroller) {
        this.log = log;
        this.scroller = scroller;
        /** @type {Turn[]} */
        this.turns = [];
        this.pending = "";      // text that is drawn with the next frame
        this.live = { started: 0, tokens: 0 };
    }

    get empty() {
        return !this.turns.length;
    }

    /** As the model reads them; what an answer lacks is no message. @returns {{ role: string, content: string }[]} */
    get messages() {
        return this.turns.filter(turn => turn.content).map(({ role, content }) => ({ role, content }));
    }

    /** Whether it is one text that goes on, rather than a talk. @param {boolean} story */
    set story(story) {
        this.log.classList.toggle("story", story);
        this.log.setAttribute("aria-label", story ? "Text" : "Conversation");
    }

    /** @param {Turn["role"]} role @param {string} content @param {string} [meta] */
    say(role, content, meta = "") {
        this.turns.push({ role, content, meta });
        const turn = document.createElement("div"), text = document.createElement("div"), below = document.createElement("div");
        turn.className = `turn ${role}`;
        if (role === "assistant" && !content) turn.classList.add("busy");
        turn.setAttribute("aria-busy", String(role === "assistant" && !content));        // is read out when it is whole
        const speaker = Object.assign(document.createElement("span"), { className: "unseen", textContent: role === "user" ? "You: " : "Model: " });
        text.className = "text";
        text.textContent = content;
        below.className = "meta";
        below.textContent = meta;
        turn.append(speaker, text, ...role === "assistant" ? [below] : []);
        this.log.append(turn);
        this.live = { started: 0, tokens: 0 };
        this.scroller.scrollTop = this.scroller.scrollHeight;
        this.save();
    }

    /** @param {string} text @param {number} tokens so far */
    write(text, tokens) {
        if (!this.pending) requestAnimationFrame(() => this.draw());
        this.pending += text;
        this.live.started ||= performance.now();
        this.live.tokens = tokens;
    }

    draw() {
        const turn = this.log.lastElementChild, last = this.turns[this.turns.length - 1];
        if (!this.pending || !turn || last?.role !== "assistant") return;
        const follow = this.scroller.scrollHeight - this.scroller.scrollTop - this.scroller.clientHeight < NEAR;
        last.content += this.pending;
        turn.querySelector(".text").append(this.pending);
        this.pending = "";
        const seconds = (performance.now() - this.live.started) / 1000;
        if (seconds > 0.5) turn.querySelector(".meta").textContent = stats({ tokens: this.live.tokens, rate: (this.live.tokens - 1) / seconds });
        if (follow) this.scroller.scrollTop = this.scroller.scrollHeight;
    }

    /**
     * End the answer.
     *
     * @param {{ reason: string, tokens: number, first: number, rate: number }} [numbers]
     * @param {string} [wrong] what went wrong
     */
    finish(numbers, wrong) {
        this.draw();
        const turn = this.log.lastElementChild, last = this.turns[this.turns.length - 1];
        if (!turn?.classList.contains("busy")) return;
        turn.classList.remove("busy");
        turn.setAttribute("aria-busy", "false");
        if (numbers) last.meta = turn.querySelector(".meta").textContent = stats(numbers);
        if (wrong) this.note(wrong);
        this.save();
    }

    /** A word on the last turn. @param {string} text */
    note(text) {
        this.log.lastElementChild?.append(Object.assign(document.createElement("p"), { className: "note", textContent: text }));
    }

    clear() {
        this.turns = [];
        this.pending = "";
        this.log.replaceChildren();
        this.save();
    }

    save() {
        try {
            localStorage.setItem(KEY, JSON.stringify(this.turns));
        } catch {
            // a conversation that is too long for the storage, or a browser that has none: it lasts as long as the page
        }
    }

    restore() {
        if (!this.empty) return;
        let turns = [];
        try {
            turns = JSON.parse(localStorage.getItem(KEY) ?? "[]");
        } catch {
            return;
        }
        for (const { role, content, meta } of turns) if (content) this.say(role, content, meta);
    }
}
