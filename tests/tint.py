"""Compile WGSL with Tint, the front end of Chromium, in one start of a headless browser; no GPU is needed."""
from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Collection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Empty, Queue
from threading import Thread

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--disable-gpu", "--disable-quic",
         "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync")
# A device with all that the adapter has; "" for an accepted module. If a pipeline is too large for this adapter, that is no fault.
PAGE = """<!doctype html><script type="module">
async function refusal(device, code, whole) {
    const module = device.createShaderModule({code});
    const errors = (await module.getCompilationInfo()).messages.filter(m => m.type === "error");
    if (errors.length) return errors.map(m => `line ${m.lineNum}: ${m.message}`).join("; ");
    try { if (whole) await device.createComputePipelineAsync({layout: "auto", compute: {module, entryPoint: "main"}}); }
    catch (error) { return error.message.includes("maximum allowed") ? "" : error.message; }
    return "";
}
async function run() {
    const adapter = await navigator.gpu?.requestAdapter();
    if (!adapter) throw new Error("the browser has no WebGPU adapter");
    const requiredLimits = {};
    for (const name in adapter.limits) if (typeof adapter.limits[name] === "number") requiredLimits[name] = adapter.limits[name];
    const device = await adapter.requestDevice({requiredFeatures: [...adapter.features], requiredLimits});
    const {modules, pipelines} = await (await fetch("/work")).json(), results = {};
    for (const name in modules) results[name] = await refusal(device, modules[name], pipelines.includes(name));
    return {results};
}
const answer = await run().catch(error => ({failure: String(error)}));
await fetch("/results", {method: "POST", body: JSON.stringify(answer)});
</script>"""


class TintError(Exception):
    """The browser gave no answer; the message says why."""


def find_chromium() -> str | None:
    """The first Chromium on PATH."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def as_f32(wgsl: str) -> str:
    """The module with f32 wherever it says f16, for adapters without shader-f16; conversions and literals included."""
    if "f16" not in wgsl:
        return wgsl
    text = re.sub(r"\benable\s+f16\s*;[ \t]*\n?", "", wgsl)
    text = re.sub(r"\b(vec[234]|mat[234]x[234])h\b", r"\1f", re.sub(r"\bf16\b", "f32", text))
    return re.sub(r"\b(\d[\d.]*(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?)h\b", r"\1f", text)


def check(modules: dict[str, str], pipelines: Collection[str] = (), timeout: float = 120) -> dict[str, str]:
    """What Tint says of each module; "" where it accepts it. For those named in `pipelines`, also of a pipeline with the entry point
    `main`, which takes seconds where a module takes milliseconds.

    Raises TintError when there is no Chromium, or none that answers within `timeout` seconds."""
    if not (browser := find_chromium()):
        raise TintError(f"none of {', '.join(BROWSERS)} is on PATH")
    answers: Queue[dict] = Queue()
    work = json.dumps({"modules": modules, "pipelines": list(pipelines)}).encode()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(work, answers.put))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        answer = _browse(browser, f"http://localhost:{server.server_port}/", answers, timeout)
    finally:
        server.shutdown()
        server.server_close()
    if "failure" in answer:
        raise TintError(f"{browser}: {answer['failure']}")
    return {name: answer["results"][name] for name in modules}


def _browse(browser: str, url: str, answers: Queue[dict], timeout: float) -> dict:
    """Open a page in a fresh browser and wait for what it posts."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, tempfile.TemporaryFile() as log:
        process = subprocess.Popen([browser, *FLAGS, f"--user-data-dir={profile}", url], stdout=log, stderr=log)
        try:
            return answers.get(timeout=timeout)
        except Empty:
            log.seek(0)
            said = log.read().decode(errors="replace").strip()[-500:]
            raise TintError(f"{browser} gave no answer within {timeout:g} s; the end of what it wrote: {said or 'nothing'}") from None
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _handler(work: bytes, answer: Callable[[dict], None]) -> type[BaseHTTPRequestHandler]:
    """Serves the page at / and its work at /work, and hands what is posted to `answer`."""
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = {"/": ("text/html", PAGE.encode()), "/work": ("application/json", work)}.get(self.path)
            self.reply(*page) if page else self.send_error(404)

        def do_POST(self) -> None:
            answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.reply("text/plain", b"")

        def reply(self, kind: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass
    return Handler


__all__ = ["TintError", "as_f32", "check", "find_chromium"]
