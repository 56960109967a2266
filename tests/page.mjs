// Scenarios of the page in a real browser. Reads a job as JSON from standard input and writes what it saw, as JSON, to standard output.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const { chromium } = createRequire(`${process.env.NODE_MODULES}/`)("playwright-core");
const job = JSON.parse(readFileSync(0, "utf8"));
const PATIENCE = 90_000;

const text = (page, id) => page.locator(`#${id}`).textContent();
const state = (page, ...names) => page.waitForSelector(names.map(name => `body[data-state=${name}]`).join());

async function open(page, url = job.url) {
    await page.goto(url);
    await state(page, "ready", "trouble");
}

async function ask(page, prompt, { settings = {}, wait = true } = {}) {
    for (const [id, value] of Object.entries(settings)) {
        await page.evaluate(([id, value]) => {
            const control = document.getElementById(id);
            control.value = value;
            control.dispatchEvent(new Event("input", { bubbles: true }));
        }, [id, String(value)]);
    }
    await page.fill("#prompt", prompt);
    await page.click("#send");
    if (wait) await state(page, "ready", "trouble");
}

const answer = page => page.locator(".turn.assistant .text").last().textContent();
const settle = page => page.waitForFunction(() => document.querySelectorAll(".turn.busy").length === 0);

const scenarios = {
    /** Load, with what the progress bar showed; again with a copy that was damaged; without a network; remove the copy. */
    async visits(page) {
        await page.addInitScript(() => {
            globalThis.seen = [];
            addEventListener("DOMContentLoaded", () => new MutationObserver(() => seen.push([bar.value / bar.max, document.getElementById("loading-detail").textContent]))
                .observe(document.getElementById("loading-detail"), { childList: true }));
        });
        const started = Date.now();
        await open(page);
        const first = { ms: Date.now() - started, seen: await page.evaluate("seen"), facts: await text(page, "facts"), trouble: await text(page, "trouble") };
        await page.evaluate(() => navigator.serviceWorker.ready);
        await page.waitForTimeout(300);         // the rest of the copy is written, and the page's files are kept
        await page.evaluate(async at => {
            const root = await (await navigator.storage.getDirectory()).getDirectoryHandle("tilewright");
            for await (const folder of root.values()) {
                for await (const file of folder.values()) {
                    if (!file.name.endsWith(".data")) continue;
                    const writable = await file.createWritable({ keepExistingData: true });
                    await writable.write({ type: "write", position: at, data: Uint8Array.of(1, 2, 3, 4, 5, 6, 7) });
                    await writable.close();
                }
            }
        }, job.damage);
        await page.reload();
        await state(page, "ready", "trouble");
        const repaired = await page.evaluate("document.body.dataset.state");
        await page.waitForTimeout(300);
        await fetch(new URL("test-down", job.url));
        const again = Date.now();
        await page.reload();
        await state(page, "ready", "trouble");
        const second = { ms: Date.now() - again, facts: await text(page, "facts"), trouble: await text(page, "trouble"), stored: await text(page, "stored") };
        await page.click("#toggle");
        await page.click("#evict");
        await page.waitForFunction(() => document.getElementById("evict").hidden);
        const left = await page.evaluate(async () => {
            const names = [];
            for await (const name of (await (await navigator.storage.getDirectory()).getDirectoryHandle("tilewright")).keys()) names.push(name);
            return names;
        });
        return { first, repaired, second, evicted: await text(page, "stored"), left };
    },

    /** Chat: a greedy answer twice, a long one that is stopped, another page load that finds the conversation. */
    async chat(page) {
        await open(page);
        const welcome = await text(page, "welcome");
        await ask(page, "w1 w2 w3", { settings: { temperature: 0, maxTokens: 12 } });
        const first = await answer(page), meta = await page.locator(".meta").last().textContent();
        await page.click("#fresh");
        await ask(page, "w1 w2 w3");
        const second = await answer(page);
        await ask(page, "w4", { settings: { temperature: 1.2, maxTokens: 60, system: "w9 w9" }, wait: false });
        await page.waitForFunction(() => document.querySelector(".turn.busy .text")?.textContent.length > 4);
        const busy = await page.evaluate(() => [document.activeElement.id, document.querySelector(".turn.busy").getAttribute("aria-busy")]);
        await page.keyboard.press("Escape");
        await state(page, "ready");
        await settle(page);
        const stopped = await page.locator(".meta").last().textContent();
        const before = await text(page, "log");
        await ask(page, "w5", { settings: { maxTokens: 3 } });       // the model is usable at once
        const next = await page.locator(".meta").last().textContent();
        const turns = await page.locator(".turn .text").allTextContents();
        await page.reload();
        await state(page, "ready");
        const kept = await page.locator(".turn .text").allTextContents();
        await page.setViewportSize({ width: 360, height: 640 });
        const wide = await page.evaluate(() => document.documentElement.scrollWidth);
        await page.click("#toggle");
        const focus = await page.evaluate(() => document.activeElement.id);
        await page.keyboard.press("Escape");
        const unnamed = await page.evaluate(() => [...document.querySelectorAll("button, input, textarea")].filter(control =>
            !(control.labels?.length || control.textContent.trim() || control.getAttribute("aria-label"))).map(control => control.id));
        return { welcome, first, meta, second, busy, stopped, before, next, turns, kept, wide, focus, unnamed };
    },

    /** The device is destroyed in the middle of an answer. */
    async lost(page) {
        await open(page);
        await ask(page, "w1 w2", { settings: { temperature: 0, maxTokens: 100 } });
        const whole = await answer(page);
        await page.click("#fresh");
        await page.workers()[0].evaluate("self.fuse = 12");
        await ask(page, "w1 w2");
        const after = await answer(page), notice = await text(page, "notice");
        await page.workers()[0].evaluate("self.opened.at(-1).destroy()");        // and while nothing is computed
        await page.waitForFunction(() => document.getElementById("notice").textContent.includes("getting it back"));
        await page.waitForFunction(() => document.getElementById("notice").textContent.includes("is back"));
        await ask(page, "w3", { settings: { maxTokens: 4 } });
        return { whole, after, notice, devices: await page.workers()[0].evaluate("self.opened.length"), trouble: await text(page, "trouble"),
                 turns: await page.locator(".turn").count(), next: await answer(page) };
    },

    /** What the page says where it cannot play. */
    async trouble(page) {
        await open(page);
        return { title: await text(page, "trouble-title"), text: await text(page, "trouble-text"), advice: await text(page, "trouble-advice"),
                 shown: await page.locator("#trouble").isVisible(), disabled: await page.locator("#prompt").isDisabled() };
    },

    /** The page from a folder on a server that knows no ranges. */
    async folder(page) {
        await open(page);
        const first = await text(page, "facts"), trouble = await text(page, "trouble");
        await page.waitForTimeout(300);
        await page.reload();
        await state(page, "ready", "trouble");
        return { first, trouble, second: await text(page, "facts") };
    },

    /** Logits of ids, and greedy continuations. */
    async logits(page) {
        await page.goto(`${job.url}icon.svg`);
        return page.evaluate(async ({ file, ids, rows, prompts, count }) => {
            const { load } = await import("./tilewright.js"), model = await load(file), width = model.info.vocab_size;
            const all = await model.logits(ids), started = performance.now(), greedy = [];
            for (const prompt of prompts) {
                const tokens = [];
                for await (const { token } of model.stream(prompt, { maxTokens: count })) tokens.push(token);
                greedy.push(tokens);
            }
            const seconds = (performance.now() - started) / 1000;
            const bytes = new Uint8Array(Float32Array.from(rows.flatMap(row => [...all.subarray(row * width, (row + 1) * width)])).buffer);
            let binary = "";
            for (let i = 0; i < bytes.length; i += 4096) binary += String.fromCharCode(...bytes.subarray(i, i + 4096));
            return { logits: btoa(binary), greedy, rate: prompts.length * count / seconds, adapter: model.adapter };
        }, job);
    },
};

const browser = await chromium.launch({ executablePath: job.browser, args: job.flags });
const said = [];
let result, failure;
try {
    const page = await browser.newPage();
    page.setDefaultTimeout(PATIENCE);
    page.on("console", message => said.push(message.text()));
    page.on("pageerror", error => said.push(error.stack));
    result = await scenarios[job.scenario](page).catch(async error => {
        said.push(await page.locator("body").innerText());
        throw error;
    });
} catch (error) {
    failure = error;
}
await browser.close();
if (failure) {
    console.log(said.join("\n"));
    throw failure;
}
console.log(JSON.stringify({ ...result, said }));
