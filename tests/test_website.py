"""The server of the page, and the folder that other servers serve: what has an address, ranges, and what is refused."""
from __future__ import annotations

import http.client
import json
import re
import zlib
from pathlib import Path
from threading import Thread

import pytest
import tilewright
from tilewright import PackageError
from tilewright.__main__ import main
from tilewright.runtime.website import Website, describe, export_site, page_files, range_of

ABSOLUTE = re.compile(r"""(?:src|href|import|from|url|fetch|URL|register)[ =(]*["'](?:/|\w+:)""")     # an address that is not relative
TRUTH = Path(__file__).parent / "data" / "truth"


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("packages") / "My model, v1.5.wgpu-llama"
    tilewright.compile(TRUTH / "llama", device="web-default", context=16).save(path)
    return path


@pytest.fixture(scope="module")
def site(package):
    with Website(package, port=0) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def ask(site: Website, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", site.server_port, timeout=20)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


@pytest.mark.parametrize("path, kind", [("/", "text/html"), ("/index.html", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript"),
                                        ("/sw.js", "text/javascript"), ("/icon.svg", "image/svg+xml"), ("/model.json", "application/json"),
                                        ("/vendor/tokenizers.js", "text/javascript"), ("/My-model-v1.5.wgpu-llama", "application/octet-stream")])
def test_files_and_their_types(site, path, kind):
    response, body = ask(site, path)
    assert response.status == 200 and response.headers["Content-Type"].split(";")[0] == kind and body
    assert int(response.headers["Content-Length"]) == len(body) and response.headers["Accept-Ranges"] == "bytes"
    head, nothing = ask(site, path, "HEAD")
    assert head.headers["Content-Length"] == response.headers["Content-Length"] and not nothing


@pytest.mark.parametrize("asked, start, end", [("bytes=0-0", 0, 1), ("bytes=100-299", 100, 300), ("bytes=-7", -7, None), ("bytes=1000-", 1000, None),
                                               ("bytes=5-99999999999", 5, None), ("bytes=0-", 0, None)])
def test_ranges(site, package, asked, start, end):
    whole = package.read_bytes()
    response, body = ask(site, "/My-model-v1.5.wgpu-llama", Range=asked)
    assert body == whole[start:end]
    if len(body) < len(whole):
        first = start % len(whole)
        assert response.status == 206 and response.headers["Content-Range"] == f"bytes {first}-{first + len(body) - 1}/{len(whole)}"


@pytest.mark.parametrize("asked", ["bytes=5-3", "bytes=0-1,4-5", "lines=1-2", "bytes=-", "bytes=x-"])
def test_ranges_that_are_none_give_all(site, package, asked):
    response, body = ask(site, "/My-model-v1.5.wgpu-llama", Range=asked)
    assert response.status == 200 and len(body) == package.stat().st_size


def test_a_range_behind_the_end(site, package):
    size = package.stat().st_size
    response, _ = ask(site, "/My-model-v1.5.wgpu-llama", Range=f"bytes={size}-")
    assert response.status == 416 and response.headers["Content-Range"] == f"bytes */{size}"
    assert range_of("bytes=9-", 3) == (9, 3) and range_of(None, 3) == (0, 3)


@pytest.mark.parametrize("path", ["/../website.py", "/..%2fwebsite.py", "//etc/passwd", "/vendor/../../website.py", "/nothing", "/cli.mjs", "/vendor",
                                  "/package.json", "/%2e%2e/%2e%2e/pyproject.toml"])
def test_nothing_else_has_an_address(site, path):
    assert ask(site, path)[0].status == 404


def test_other_names_of_this_machine_are_refused(site):
    assert ask(site, "/", Host="evil.example")[0].status == 403
    assert ask(site, "/", Host=f"localhost:{site.server_port}")[0].status == 200


def test_only_this_machine_is_listened_to(site):
    assert site.server_address[0] == "127.0.0.1"


def test_a_port_that_is_taken(site, package):
    with pytest.raises(OSError, match=f"port {site.server_port} cannot be had .*: name another with --port"):
        Website(package, site.server_port)


def test_what_the_page_knows_before_it_has_the_package(package):
    told, raw = describe(package), package.read_bytes()
    header = raw[:told["header"]["size"]]
    assert json.loads(header[4:])["format"] == "wgpu-llama"
    assert told["header"]["crc32"] == f"{zlib.crc32(header):08x}" and told["size"] == len(raw)
    assert told["name"] == "My model, v1.5" and told["file"] == "My-model-v1.5.wgpu-llama"


def test_an_exported_folder_is_whole_and_refers_to_nothing_outside(package, tmp_path):
    size = export_site(package, tmp_path / "site")
    told = json.loads((tmp_path / "site" / "model.json").read_text())
    written = {p.relative_to(tmp_path / "site").as_posix() for p in (tmp_path / "site").rglob("*") if p.is_file()}
    assert written == {"index.html", "model.json", told["file"], *told["page"]} == {*page_files(), "model.json", told["file"]}
    assert (tmp_path / "site" / told["file"]).read_bytes() == package.read_bytes()
    assert size == sum((tmp_path / "site" / name).stat().st_size for name in written)
    for name in ("index.html", "page.css", "page.js", "worker.js", "sw.js"):
        assert not ABSOLUTE.search((tmp_path / "site" / name).read_text()), name


def test_what_cannot_be_written(package, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PackageError, match="cannot be written"):
        export_site(package, tmp_path / "file")


def test_a_package_without_shaders_is_refused(tmp_path):
    tilewright.compile(TRUTH / "llama", device="reference", context=16).save(tmp_path / "plain.wgpu-llama")
    with pytest.raises(PackageError, match="is not compiled, so browsers cannot play it: make one by tilewright compile MODEL --target web"):
        Website(tmp_path / "plain.wgpu-llama", 0)


def test_the_command_compiles_and_exports(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main(["web", str(TRUTH / "llama"), "--context", "16", "--export", str(tmp_path / "site")])
    assert left.value.code == 0
    assert json.loads((tmp_path / "site" / "model.json").read_text())["file"] == "llama.wgpu-llama"
    assert "shaders for web-f16-subgroups" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / "site" / "llama.wgpu-llama")])
    said = capsys.readouterr().out
    assert "variants, the first that a device meets is played" in said and "web-default" in said
