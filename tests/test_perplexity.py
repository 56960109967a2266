"""Perplexity by llama.cpp's protocol: the protocol itself, numbers known from before, and the command."""
from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import tilewright
from tilewright.__main__ import main
from tilewright.runtime.perplexity import measure, rows

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "frontends" / "demo" / "tales-llama4"
LICENSE = ROOT / "LICENSE"          # a text that is always there
MODELS = Path(os.environ["TILEWRIGHT_MODELS"]) if "TILEWRIGHT_MODELS" in os.environ else None
VOCAB = 7
# Of the first window of alice.txt, as numpy gives them; of the whole text it gives 45.869, 46.458, 46.120 and 47.290 as float32 maths should.
KNOWN = {"tales-llama4-q8_0.gguf": 38.923167, "tales-llama4-q4_0.gguf": 40.351196, "tales-llama-q8_0.gguf": 46.272324,
         "tales-llama-q4_0.gguf": 47.964628}


class Words:
    """A tokenizer of digits that begins a text with 6."""

    def __init__(self, start: tuple[int, ...] = (6,)):
        self.start = start

    def encode(self, text: str) -> list[int]:
        return [*self.start, *map(int, text)]


class Table:
    """A model whose logits depend on token and position; remembers what it was asked."""

    def __init__(self, seed: int = 0, context: int = 512, tokenizer: Words | None = None, vocab: int = VOCAB):
        self.context, self.tokenizer, self.info, self.asked = context, tokenizer or Words(), {"vocab_size": vocab}, []
        self.table = np.random.default_rng(seed).normal(0, 2, (512, vocab, vocab)).astype(np.float32)

    def logits(self, ids: np.ndarray) -> np.ndarray:
        self.asked.append(ids.tolist())
        return self.table[np.arange(512), ids]


def plainly(table: np.ndarray, windows: list[list[int]]) -> np.ndarray:
    """Log-probabilities of every scored position, all tokens."""
    found = []
    for window in windows:
        for i in range(256, 511):
            row = table[i, window[i]].astype(float)
            found.append(row - row.max() - math.log(sum(math.exp(x - row.max()) for x in row)))
    return np.array(found)


def test_the_protocol():
    text = "".join(map(str, np.random.default_rng(1).integers(0, 6, 1200)))
    model = Table()
    found = measure(model, text)
    ids = [6, *map(int, text)]
    windows = [[6, *ids[1:512]], [6, *ids[513:1024]]]
    assert model.asked == windows, "windows follow each other, each with its first token replaced, and the rest is dropped"
    right = np.array([w[i + 1] for w in windows for i in range(256, 511)])
    losses = [-row[token] for row, token in zip(plainly(model.table, windows), right, strict=True)]
    mean = sum(losses) / 510
    error = math.sqrt((sum(x * x for x in losses) / 510 - mean * mean) / 509)
    assert (found.tokens, found.windows, found.against) == (510, 2, None)
    assert found.perplexity == pytest.approx(math.exp(mean), rel=1e-12) and found.error == pytest.approx(math.exp(mean) * error, rel=1e-9)


def test_without_a_bos_windows_stay_as_they_are():
    model = Table(tokenizer=Words(()))
    measure(model, "12345" * 300, windows=1)
    assert model.asked == [[int(c) for c in "12345" * 300][:512]]
    measure(model, [3] * 512)
    assert model.asked[1:] == [[3] * 512], "and so do given tokens"


def test_against_another_model():
    model, base = Table(1), Table(2)
    ids = np.random.default_rng(3).integers(0, VOCAB, 1024)
    found = measure(model, ids, base).against
    windows = ids.reshape(2, 512).tolist()
    mine, other = plainly(model.table, windows), plainly(base.table, windows)
    right = np.array([w[i + 1] for w in windows for i in range(256, 511)])
    divergence = [sum(math.exp(q) * (q - p) for p, q in zip(a, b, strict=True)) for a, b in zip(mine, other, strict=True)]
    change = np.array([math.exp(a[t]) - math.exp(b[t]) for a, b, t in zip(mine, other, right, strict=True)])
    assert found.kl_divergence == pytest.approx(np.mean(divergence)) and found.kl_error == pytest.approx(np.std(divergence) / math.sqrt(509))
    assert found.same_top == np.mean(mine.argmax(1) == other.argmax(1))
    assert found.change_mean == pytest.approx(change.mean()) and found.change_rms == pytest.approx(math.sqrt((change**2).mean()))
    assert found.change_percentiles["0"] == pytest.approx(change.min()) and found.change_percentiles["50"] == pytest.approx(np.median(change))
    assert found.perplexity == pytest.approx(math.exp(-np.mean([b[t] for b, t in zip(other, right, strict=True)])))
    itself = measure(model, ids, Table(1)).against
    assert (itself.kl_divergence, itself.same_top, itself.change_rms) == (0, 1, 0)


@pytest.mark.parametrize(("arguments", "sentence"), [
    ((Table(), "123"), "the text has 4 tokens, but perplexity needs a window of 512: give a longer text"),
    ((Table(context=256), "1" * 600), "windows of 512 tokens, but the context is 256"),
    ((Table(), "1" * 600, None, 0), "number of windows must be at least 1, not 0"),
    ((Table(), "1" * 600, Table(context=64)), "the context of the model to compare with is 64"),
    ((Table(), "1" * 600, Table(vocab=8)), "vocabularies have 7 and 8 tokens"),
    ((Table(), "1" * 600, Table(tokenizer=Words((5,)))), "their tokenizers cut the text differently"),
])
def test_what_cannot_be_measured(arguments, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        measure(*arguments)
    assert "\n" not in str(error.value)


def perplexity(path: Path, text: Path, **options) -> float:
    model = tilewright.load(path, context=512, **options)
    try:
        return measure(model, text.read_text(), windows=1).perplexity
    finally:
        model.close()


@pytest.mark.parametrize(("quantize", "known"), [(None, 427.298240), ("q4_0", 417.582039)])
def test_the_demo_on_a_gpu(gpu, quantize, known):
    assert perplexity(DEMO, LICENSE, quantize=quantize) == pytest.approx(known, rel=1e-4)


@pytest.mark.parametrize("name", KNOWN)
def test_files_on_a_gpu(gpu, name):
    if MODELS is None:
        pytest.skip("TILEWRIGHT_MODELS names no folder of models beside a text/alice.txt whose perplexities are known")
    assert perplexity(MODELS / name, MODELS.parent / "text" / "alice.txt") == pytest.approx(KNOWN[name], rel=1e-4)


def run(capsys, *arguments: object) -> tuple[int | str | None, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["perplexity", *map(str, arguments)])
    return left.value.code, *capsys.readouterr()


def test_the_command(capsys, tmp_path):
    common = (DEMO, LICENSE, "--windows", 1, "--device", "reference", "--quantize", "q4_0")
    code, out, _ = run(capsys, *common, "--json", "-", "--against", DEMO)
    told = json.loads(out)
    assert code == 0 and told["windows"] == 1 and told["tokens"] == 255 and told["model"] == told["base"] == str(DEMO)
    against = told["against"]
    assert told["perplexity"] != against["perplexity"] and 0.001 < against["kl_divergence"] < 0.1 and 0.8 < against["same_top"] < 1
    code, out, _ = run(capsys, *common, "--json", tmp_path / "told.json")
    again = json.loads((tmp_path / "told.json").read_text())
    assert code == 0 and again["perplexity"] == told["perplexity"] and again["against"] is None and f"{again['perplexity']:.4f} ± " in out


def test_the_command_says_what_is_wrong(capsys, tmp_path):
    (tmp_path / "short.txt").write_text("Too short.")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    for name, sentence in (("short", "perplexity needs a window of 512: give a longer text"), ("bytes", "bytes.txt is no UTF-8 text"),
                           ("none", "none.txt: No such file")):
        code, out, err = run(capsys, DEMO, tmp_path / f"{name}.txt", "--device", "reference")
        assert (code, out) == (1, "") and err.startswith("tilewright: ") and sentence in err and err.count("\n") == 1


def test_the_table_for_people():
    names = [name for name, _ in rows(measure(Table(1), [1] * 512, Table(2)))]
    assert names[0] == "perplexity" and "same likeliest token" in names
