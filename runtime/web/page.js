/** The page: shows what the worker, which holds the model, tells, and asks it for answers. */
import { Conversation } from "./conversation.js";
import { Settings } from "./settings.js";
import { bytes, facts, speed, trouble } from "./words.js";

/** @template {HTMLElement} T @param {string} id @returns {T} */
const at = id => /** @type {any} */ (document.getElementById(id));
const prompt = /** @type {HTMLTextAreaElement} */ (at("prompt"));
const settings = new Settings(at("settings"));
const conversation = new Conversation(at("log"), document.querySelector("main"));
const IDEAS = {
    chat: ["Explain how rainbows form, in three sentences.", "Write a short poem about the sea.", "What should I cook with eggs and spinach?"],
    story: ["Once upon a time", "The old man looked at her, and said:", "It was a dark and stormy night"],
};

/** @type {any} what the worker told when the model was ready */
let model;
let begun = 0;          // ms, when the download began
let worker = start();

function start() {
    const made = new Worker(new URL("worker.js", location.href), { type: "module" });
    made.addEventListener("message", ({ data: { event, ...values } }) => events[event](values));
    made.addEventListener("error", event => {
        event.preventDefault();
        fail({ message: event.message || "the player could not be started", during: "open" });
    });
    return made;
}

/** @param {"loading" | "ready" | "busy" | "trouble"} state */
function enter(state) {
    document.body.dataset.state = state;
    prompt.disabled = !["ready", "busy"].includes(state);
    at("send").hidden = state === "busy";
    at("stop").hidden = state !== "busy";
    at("fresh").hidden = !model || conversation.empty;
    at("welcome").hidden = state !== "ready" || !conversation.empty;
    prompt.placeholder = at("prompt-label").textContent = !model || model.chats ? "Ask something" : conversation.empty ? "Write a beginning" : "Add to it, or let it go on";
    ready();
}

function ready() {
    const continues = model && !model.chats && !conversation.empty;        // a text may go on by itself
    at("send").disabled = document.body.dataset.state !== "ready" || !(prompt.value.trim() || continues);
}

const events = {
    progress({ done, total, fetched }) {
        begun ||= performance.now();
        const seconds = (performance.now() - begun) / 1000, bar = /** @type {HTMLProgressElement} */ (at("bar"));
        bar.max = total;
        bar.value = done;
        at("loading-detail").textContent = fetched ? `Downloading: ${bytes(done)} of ${bytes(total)}${seconds > 1 ? `, ${speed(fetched / seconds)}` : ""}`
            : `Reading the stored copy: ${bytes(done)} of ${bytes(total)}`;
        if (done === total) at("loading-detail").textContent = "Preparing the GPU …";
    },

    ready(told) {
        model = told;
        conversation.story = !model.chats;
        at("name").textContent = document.title = model.name;
        at("adapter").textContent = facts(model).GPU;
        at("facts").replaceChildren(...Object.entries(facts(model)).flatMap(([term, value]) => [element("dt", term), element("dd", value)]));
        showStored();
        const mode = model.chats ? "chat" : "story";
        at("instructions").hidden = !model.chats;
        at("send").textContent = model.chats ? "Send" : "Continue";
        at("welcome-title").textContent = model.chats ? "What would you like to know?" : "How does it begin?";
        at("welcome-text").textContent = model.chats ? `${model.name} answers on this machine.`
            : `${model.name} has learned no conversation: it goes on from what you write.`;
        at("ideas").replaceChildren(...IDEAS[mode].map(idea => {
            const button = element("button", idea);
            button.addEventListener("click", () => { prompt.value = idea; send(); });
            return button;
        }));
        conversation.restore();
        enter("ready");
        if (!matchMedia("(pointer: coarse)").matches) prompt.focus();
    },

    begun({ dropped }) {
        if (dropped) conversation.note(model.chats ? "The context is full: the oldest messages were left out." : "The context is full: the beginning was left out.");
    },

    piece({ text, tokens }) {
        conversation.write(text, tokens);
    },

    done(values) {
        conversation.finish(values);
        enter("ready");
    },

    lost() {
        notice("The GPU was lost; getting it back …");
    },

    recovered() {
        notice("The GPU is back, and the conversation goes on.", 6000);
    },

    evicted() {
        model.kept = model.stored = false;
        showStored();
    },

    failed: fail,
};

/** @param {{ message: string, during: string, name?: string, kind?: string }} error */
function fail(error) {
    conversation.finish(undefined, error.during === "answer" ? error.message : "");
    notice("");
    if (error.during === "answer" && error.kind !== "lost") return enter("ready");
    const { title, advice } = trouble(error);
    at("trouble-title").textContent = title;
    at("trouble-text").textContent = error.message;
    at("trouble-advice").replaceChildren(...advice.map(line => element("li", line)));
    at("adapter").textContent = title;
    at("trouble").hidden = false;
    enter("trouble");
}

function send() {
    if (document.body.dataset.state !== "ready") return;
    const text = model.chats ? prompt.value.trim() : prompt.value;
    if (text) conversation.say("user", text);
    else if (model.chats || conversation.empty) return;
    prompt.value = "";
    grow();
    const messages = conversation.messages, { system, ...options } = settings.values;
    conversation.say("assistant", "");
    enter("busy");
    at("stop").focus();
    worker.postMessage({ do: "answer", messages: model.chats && system ? [{ role: "system", content: system }, ...messages] : messages, options });
}

function stop() {
    worker.postMessage({ do: "stop" });
}

/** @param {string} text @param {number} [ms] after which it goes */
function notice(text, ms) {
    at("notice").textContent = text;
    at("notice").hidden = !text;
    if (ms) setTimeout(() => { if (at("notice").textContent === text) notice(""); }, ms);
}

function showStored() {
    at("stored").textContent = !model.kept ? "This browser keeps no copy: the model is downloaded at every visit."
        : `A copy (${bytes(model.size)}) is kept in this browser, so that the next visit needs no download.`;
    at("evict").hidden = !model.kept;
}

/** @param {string} tag @param {string} text */
function element(tag, text) {
    return Object.assign(document.createElement(tag), { textContent: text });
}

/** As many lines as there are, up to the limit of the style sheet. */
function grow() {
    prompt.style.height = "auto";
    prompt.style.height = `${prompt.scrollHeight + 2}px`;
    ready();
}

/** @param {boolean} open */
function showPanel(open) {
    at("panel").hidden = !open;
    at("toggle").setAttribute("aria-expanded", String(open));
    if (matchMedia("(max-width: 52rem)").matches) at(open ? "close" : "toggle").focus();
}

at("composer").addEventListener("submit", event => { event.preventDefault(); send(); });
at("stop").addEventListener("click", () => { stop(); prompt.focus(); });
at("fresh").addEventListener("click", () => { stop(); conversation.clear(); if (model) enter(document.body.dataset.state); prompt.focus(); });
at("toggle").addEventListener("click", () => showPanel(at("panel").hidden));
at("close").addEventListener("click", () => showPanel(false));
at("evict").addEventListener("click", () => worker.postMessage({ do: "evict" }));
at("defaults").addEventListener("click", () => settings.restore());
at("retry").addEventListener("click", () => {
    worker.terminate();
    at("trouble").hidden = true;
    begun = 0;
    enter("loading");
    worker = start();
    worker.postMessage({ do: "open" });
});
prompt.addEventListener("input", grow);
prompt.addEventListener("keydown", event => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
});
addEventListener("keydown", event => {
    if (event.key !== "Escape") return;
    if (!at("panel").hidden && matchMedia("(max-width: 52rem)").matches) showPanel(false);
    else if (document.body.dataset.state === "busy") stop();
});

navigator.storage?.persist?.().catch(() => {});         // asks that the copy is not thrown out when the disk runs low
navigator.serviceWorker?.register("sw.js").catch(() => {});
worker.postMessage({ do: "open" });
