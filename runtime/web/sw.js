/** Keeps the page itself, so that it opens without a network; the model is kept by store.js. */

const CACHE = `tilewright${new URL(self.registration.scope).pathname}`;

self.addEventListener("install", event => {
    event.waitUntil(keep().then(() => self.skipWaiting()));
});
self.addEventListener("activate", event => {
    event.waitUntil(self.clients.claim());
});

async function keep() {
    const described = await (await fetch("model.json", { cache: "no-cache" })).json(), cache = await caches.open(CACHE);
    await cache.addAll(["./", "model.json", ...described.page]);
}

self.addEventListener("fetch", event => {
    const { request } = event, url = new URL(request.url);
    if (request.method !== "GET" || url.origin !== location.origin || url.pathname.endsWith(".wgpu-llama")) return;
    event.respondWith(newest(request));
});

/** From the network, so that no page plays with modules of two versions; from the cache without one. @param {Request} request */
async function newest(request) {
    const cache = await caches.open(CACHE);
    try {
        const response = await fetch(request);
        if (response.ok) await cache.put(request, response.clone());
        return response;
    } catch (error) {
        const kept = await cache.match(request, { ignoreSearch: true });
        if (kept) return kept;
        throw error;
    }
}
