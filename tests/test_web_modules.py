"""The web player's modules that need no GPU answer what their Python models answer: tokenizers, text, sampling, packages, downloads."""
from __future__ import annotations

import json
import random
import re
import struct
import zlib

import pytest
from dawn import SCRIPTS, WEB, needs_node, node, pure
from test_tokenizer import DATA, REDUCED, WHOLE
from tilewright.api import compile_for
from tilewright.compiler.device import REFERENCE
from tilewright.frontends.checkpoint import TokenizerData, open_checkpoint, read_tokenizer
from tilewright.frontends.gguf_tokenizer import build_tokenizer
from tilewright.runtime.sampling import pack_params
from tilewright.runtime.text import Text
from tilewright.runtime.tokenizer import Tokenizer

pytestmark = needs_node
ODD = [*"abc ABC 123 '\t", "ſ", "İ", "\u200b", "e\u0301", "Ⅻ", "٣", "𝒳", "\x85", "\xa0", "🏳️‍🌈", "ß", "ﬁ", "中", "한", "\r\n", "  ",
       "<s>", "</s>", "<|eot_id|>", "<|end_of_text|>", "▁"]
PLAIN = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}


def tokenizers() -> list[str]:
    return ["tales", *(p.stem for p in REDUCED), *(f"whole {name}" for name in ("llama-bpe", "llama-spm", "qwen2"))]


def data_of(name: str) -> tuple[TokenizerData, list[str]]:
    """A tokenizer and texts to try it on."""
    if name == "tales":
        return read_tokenizer(DATA / "tales-tokenizer.json"), json.loads((DATA / "vocab" / "llama-bpe.json").read_text())["texts"]
    if name.startswith("whole "):
        path = WHOLE / f"ggml-vocab-{name.removeprefix('whole ')}.gguf"
        if not path.exists():
            pytest.skip(f"no {path}; set TILEWRIGHT_VOCAB to a folder with llama.cpp's ggml-vocab files")
        return read_tokenizer(path), path.with_name(path.name + ".inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    data = json.loads((DATA / "vocab" / f"{name}.json").read_text(encoding="utf-8"))
    metadata = {f"tokenizer.ggml.{key}": value for key, value in data.items() if key not in ("texts", "ids", "chat_template")}
    return build_tokenizer(metadata | {"tokenizer.chat_template": data.get("chat_template")}), data["texts"]


def described(data: TokenizerData) -> dict:
    """What a package has of a tokenizer."""
    return {"json": data.json.decode(), "settings": data.settings}


@pytest.mark.parametrize("name", tokenizers())
def test_tokenizers(name, tmp_path):
    """Ids of the public vectors and of texts made of their letters and odd ones; pieces of these, and the text of any ids at all."""
    data, texts = data_of(name)
    ours, rng = Tokenizer(data.json, **data.settings), random.Random(name)
    letters = [*dict.fromkeys("".join(texts)), *ODD]
    texts = texts + ["".join(rng.choices(letters, k=rng.randrange(1, 40))) for _ in range(150)]
    encoded = [ours.encode(text, add_special_tokens=False) for text in texts]
    scattered = [[rng.randrange(ours.vocab_size) for _ in range(rng.randrange(1, 20))] for _ in range(100)]
    [got] = pure(tmp_path, [{"do": "tokenizer", **described(data), "texts": texts, "ids": encoded + scattered}])
    assert got["plain"] == encoded
    assert got["whole"] == [ours.encode(text) for text in texts]
    for skip, pieces in ((True, got["skipped"]), (False, got["kept"])):
        for ids, theirs in zip(encoded + scattered, pieces, strict=True):
            decoder = ours.decoder(skip)
            mine = [*map(decoder.push, ids), decoder.flush()]
            assert "".join(theirs) == "".join(mine)
            # Python waits for the third byte of half a surrogate pair, which no text has, before it says that it is none
            assert theirs == mine or "\ufffd" in "".join(mine)


def test_what_cannot_be_encoded(tmp_path):
    data, _ = data_of("tales")
    bad = pure(tmp_path, [{"do": "tokenizer", **described(data), "texts": ["\ud800"], "ids": []},
                          {"do": "tokenizer", "json": "{}", "settings": {}, "texts": [], "ids": []}])
    assert [b["error"] for b in bad] == ["TokenizerError"] * 2 and "cannot be encoded" in bad[0]["message"] and "cannot be used" in bad[1]["message"]


@pytest.mark.parametrize("messages", [[{"role": "user", "content": "Hi"}],
                                      [{"role": "system", "content": "<é>"}, {"role": "user", "content": "a\nb"}]])
@pytest.mark.parametrize("name", [p.stem for p in REDUCED if json.loads(p.read_text()).get("chat_template")])
def test_chats(name, messages, tmp_path):
    data, _ = data_of(name)
    assert pure(tmp_path, [{"do": "chat", **described(data), "messages": messages}]) == [Tokenizer(data.json, **data.settings).chat(messages)]


TEMPLATE = """{{ bos_token }}{% for message in messages %}
    {% if message.role == 'note' %}{% continue %}{% endif %}
[{{ message['role'] }}] {% generation %}{{ message.content | tojson }}{% endgeneration %}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}[assistant]{% endif %}"""


def test_chat_templates(tmp_path):
    data, _ = data_of("tales")
    messages = [{"role": "user", "content": "<é>"}, {"role": "note", "content": "x"}]
    told = described(data)
    told["settings"] |= {"bos_token": "<s>", "eos_token": "</s>"}
    templates = (TEMPLATE, None, "{% if %}", "{{ raise_exception('roles must alternate') }}")
    jobs = [{"do": "chat", **told, "settings": {**told["settings"], "chat_template": t}, "messages": messages} for t in templates]
    good, *bad = pure(tmp_path, jobs)
    assert good == '<s>[user] "<é>"</s>\n[assistant]'
    for refusal, reason in zip(bad, ("no chat template", "is broken", "refuses these messages: roles must alternate"), strict=True):
        assert refusal["error"] == "TokenizerError" and reason in refusal["message"]


@pytest.mark.parametrize("stops", [[], ["sea"], ["the sea,", "e s"], ["nowhere"], ["xyz", ""], [" ship\n"]])
def test_stop_strings(stops, tmp_path):
    data, _ = data_of("tales")
    tokenizer = Tokenizer(data.json, **data.settings)
    for ids in (tokenizer.encode("over the sea, the sea and a ship\nthe end", False), [*tokenizer.encode("over the s", False), *data.eos, 70]):
        text = Text(tokenizer, stops)
        pieces = [text.push(i) for i in ids if not text.stopped]
        [got] = pure(tmp_path, [{"do": "text", **described(data), "ids": ids, "stops": stops}])
        assert got == {"pieces": pieces, "stopped": text.stopped, "rest": text.flush()}


def test_sampling_records(tmp_path):
    rng, jobs, wanted = random.Random(1), [], []
    for i in range(300):
        options = {"temperature": rng.choice([0, 1e-6, 0.7, 1.0, 3.3, 1e6]), "top_k": rng.choice([0, 1, 40]),
                   "top_p": rng.choice([1.0, 0.95, rng.random()]), "min_p": rng.choice([0.0, 2.0**-30, 0.05, 1.0, rng.random()]),
                   "repeat_penalty": rng.choice([1.0, 1.1, 0.01, 1e9]), "seed": rng.choice([0, 7, 2**32 - 1, 2**40 + 3, 2**63, -5])}
        step, slot = rng.choice([0, 1, 2**32 - 1]), rng.choice([0, 3])
        camel = {"topK": options["top_k"], "topP": options["top_p"], "minP": options["min_p"], "repeatPenalty": options["repeat_penalty"]}
        given = {"temperature": options["temperature"], "seed": str(options["seed"]), **camel}
        jobs.append({"do": "sampling", "options": given, "step": step, "slot": slot})
        wanted.append(pack_params(**options, step=step, slot=slot, stamp=1).tolist())
    assert pure(tmp_path, jobs) == wanted


@pytest.mark.parametrize("options", [{"temperature": -1}, {"temperature": "hot"}, {"topK": 1.5}, {"topP": 0}, {"minP": 2}, {"repeatPenalty": 0},
                                     {"seed": 0.5}, {"maxTokens": -1}])
def test_options_out_of_range(options, tmp_path):
    [refusal] = pure(tmp_path, [{"do": "refused", "options": options}])
    assert refusal["error"] == "PromptError" and next(iter(options)) in refusal["message"]


def test_checksums(tmp_path):
    bytes_ = list(random.Random(2).randbytes(1003))
    jobs = [{"do": "crc32", "bytes": bytes_[:size], "cut": cut} for size, cut in ((0, 0), (1, 0), (8, 3), (1003, 500), (1003, 1003))]
    assert pure(tmp_path, jobs) == [zlib.crc32(bytes(job["bytes"])) for job in jobs]


def test_packages(tmp_path):
    """A whole one reads; a damaged one says in one sentence what is wrong with it."""
    path = tmp_path / "good.wgpu-llama"
    package = compile_for(open_checkpoint(DATA / "truth" / "llama"), REFERENCE)
    package.save(path)
    whole = path.read_bytes()
    start = struct.unpack("<I", whole[:4])[0] + 4
    wrong = {
        "empty": (b"", "its header is longer than the file"),
        "cut in the header": (whole[:start // 2], "its header is longer than the file"),
        "cut in the weights": (whole[:-300], "is truncated: 'weights.0' ends at byte"),
        "flipped": (whole[:start] + bytes([whole[start] ^ 1]) + whole[start + 1:], "the checksum of 'weights.0' does not match"),
        "magic": (whole.replace(b'"wgpu-llama"', b'"wgpu-zebra"', 1), "is a 'wgpu-zebra' file"),
        "version": (whole.replace(b'"version": 1', b'"version": 9', 1), "is version 9 of the format"),
        "no JSON": (whole[:4] + b"#" + whole[5:], "its header is damaged"),
        "another file": (b"GGUF" + whole, "its header is longer than the file"),
        "lacking": (whole.replace(b'"shaders"', b'"shadows"', 1), "its header lacks shaders"),
    }
    for name, (data, _) in wrong.items():
        (tmp_path / name).write_bytes(data)
    good, *bad = pure(tmp_path, [{"do": "open", "path": str(p)} for p in (path, *(tmp_path / name for name in wrong))])
    assert good == {name: blob["size"] for name, blob in package.manifest["blobs"].items()}
    for refusal, (_, sentence) in zip(bad, wrong.values(), strict=True):
        assert refusal["error"] == "PackageError" and sentence in refusal["message"] and "\n" not in refusal["message"]


@pytest.mark.parametrize("script", ["source.test.mjs", "gpu.test.mjs"])
def test_in_javascript(script):
    """Downloads; adapters, memory, and devices that go away, with as much of them as that needs."""
    ran = node("--test", SCRIPTS / script)
    assert ran.returncode == 0, ran.stdout


PLAYER = [WEB / "tilewright.js", *sorted((WEB / "player").glob("*.js"))]      # what loads and plays a package; all else is the page or the command
IMPORT = re.compile(r"""^(?:import|export) .*from "(.*)";$""", re.MULTILINE)


def test_modules_are_what_a_browser_loads():
    """No bare imports, and nothing that only Node has, but in the command."""
    for path in (*WEB.glob("*.js"), *PLAYER):
        text = path.read_text()
        assert "node:" not in text and "process." not in text, path
        assert all(name.startswith(("./", "../")) for name in IMPORT.findall(text)), path


def test_the_player_is_small_and_needs_no_page():
    """Plain lines, with comments and empty ones. It imports itself and the tokenizer alone."""
    assert sum(len(path.read_text().splitlines()) for path in PLAYER) < 1000
    assert max(len(line) for path in PLAYER for line in path.read_text().splitlines()) <= 140
    for path in PLAYER:
        imported = {(path.parent / name).resolve() for name in IMPORT.findall(path.read_text())}
        assert imported <= {*PLAYER, WEB / "tokenizer.js"}, path


def test_files_are_short():
    long = {p.name: n for p in (*WEB.rglob("*.js"), *WEB.glob("*.mjs")) if p.parent.name != "vendor" and (n := len(p.read_text().splitlines())) > 300}
    assert not long
