"""The page that plays a package in a browser: its files, a server of them on this machine, and a folder of them for any other."""
from __future__ import annotations

import json
import re
import shutil
import struct
import zlib
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any

from ..compiler.package import PackageError, open_package

PORT = 8640         # always the same, for a browser keeps what it stores by host and port
PAGE = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml",
        ".LICENSE": "text/plain; charset=utf-8"}
TYPES = {**PAGE, ".json": "application/json", ".wgpu-llama": "application/octet-stream"}
HOSTS = ("localhost", "127.0.0.1", "[::1]")
PIECE = 1 << 20     # bytes that are read from a file at once
PART = 4 << 20      # bytes that the page downloads, checks and marks as there together
HEADERS = {
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def page_files() -> dict[str, Path]:
    """The files of the page by their addresses, relative to it."""
    folder = Path(__file__).parent / "web"
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.suffix in PAGE}


def describe(package: Path) -> dict[str, Any]:
    """model.json: what the page knows of a package before it has it. Raises PackageError when it is bad or not compiled."""
    if not any(variant["shaders"] for variant in open_package(package).variants):
        raise PackageError(f"{package} is not compiled, so browsers cannot play it: make one by tilewright compile MODEL --target web")
    with open(package, "rb") as file:
        start = file.read(4)
        header = start + file.read(struct.unpack("<I", start)[0])
        file.seek(0)
        parts = [crc32(part) for part in iter(partial(file.read, PART), b"")]
    return {"file": address_of(package), "name": package.stem, "size": package.stat().st_size,
            "header": {"size": len(header), "crc32": crc32(header)}, "parts": {"size": PART, "crc32": parts},
            "page": [name for name in page_files() if name != "index.html"]}


def crc32(data: bytes) -> str:
    return f"{zlib.crc32(data):08x}"


def address_of(package: Path) -> str:
    """What a package is called on the server: its name, as far as that needs no quoting in addresses."""
    return re.sub(r"[^\w.-]+", "-", package.stem, flags=re.ASCII).strip("-.") + ".wgpu-llama"


def export_site(package: Path, folder: Path) -> int:
    """Write a folder that any web server can serve as it lies. Returns its bytes. Raises PackageError when that cannot be done."""
    described = describe(package)
    try:
        for name, path in {**page_files(), described["file"]: package}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
        (folder / "model.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    except OSError as err:
        raise PackageError(f"{folder} cannot be written: {err.strerror}") from err
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


class Website(ThreadingHTTPServer):
    """Serves the page and one package on this machine alone, at `address`."""

    daemon_threads = True

    def __init__(self, package: Path, port: int = PORT):
        """port: 0 takes any that is free. Raises PackageError for a bad package, OSError for a port that is taken."""
        described = describe(package)
        self.files: dict[str, Path | bytes] = {**page_files(), described["file"]: package, "model.json": json.dumps(described).encode()}
        self.files[""] = self.files["index.html"]
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except OSError as err:
            raise OSError(f"port {port} cannot be had ({err.strerror}): name another with --port") from err

    @property
    def address(self) -> str:
        return f"http://localhost:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error."""


class Handler(BaseHTTPRequestHandler):
    """Answers with the files of the server's table, so that no other file of this machine has an address; ranges as RFC 9110 has them."""

    server: Website
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        self.reply(body=True)

    def do_HEAD(self) -> None:
        self.reply(body=False)

    def reply(self, body: bool) -> None:
        if self.headers.get("Host", "").rsplit(":", 1)[0] not in HOSTS:     # another site's name that leads here: DNS rebinding
            return self.send_error(HTTPStatus.FORBIDDEN)
        name = self.path.partition("?")[0].removeprefix("/")
        if (found := self.server.files.get(name)) is None:
            return self.send_error(HTTPStatus.NOT_FOUND)
        size = len(found) if isinstance(found, bytes) else found.stat().st_size
        start, end = range_of(self.headers.get("Range"), size)
        if start >= end and size:
            self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        part = (start, end) != (0, size)
        self.send_response(HTTPStatus.PARTIAL_CONTENT if part else HTTPStatus.OK)
        if part:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        headers = {"Content-Type": TYPES[Path(name or "index.html").suffix], "Content-Length": str(end - start), "Accept-Ranges": "bytes", **HEADERS}
        for header, value in headers.items():
            self.send_header(header, value)
        self.end_headers()
        if body:
            self.send(found, start, end)

    def send(self, found: Path | bytes, start: int, end: int) -> None:
        if isinstance(found, bytes):
            self.wfile.write(found[start:end])
            return
        with open(found, "rb") as file:
            file.seek(start)
            self.copy(file, end - start)

    def copy(self, file: IO[bytes], count: int) -> None:
        while count and (piece := file.read(min(count, PIECE))):
            self.wfile.write(piece)
            count -= len(piece)

    def log_message(self, *args: object) -> None:
        pass


def range_of(header: str | None, size: int) -> tuple[int, int]:
    """First byte and the one behind the last that a Range header asks for; all for one that is none or asks for several ranges.
    The first is not below the other where no byte is meant."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if not found or not any(found.groups()):
        return 0, size
    first, last = found.groups()
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return 0, size
    return int(first), min(size, int(last) + 1) if last else size
