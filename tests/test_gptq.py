"""Calibrated quantization: what it gains over rounding to nearest, on random data and on a model that reads."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tilewright
from tilewright.__main__ import main
from tilewright.compiler.formats import FORMATS
from tilewright.frontends.checkpoint import open_checkpoint
from tilewright.frontends.lower import Plan, lower
from tilewright.quantization import GROUPED, Calibration, cut_windows, gptq
from tilewright.runtime.perplexity import measure

ROOT = Path(tilewright.__file__).parent
DEMO = ROOT / "frontends" / "demo" / "tales-llama4"
LICENSE = Path(__file__).parent.parent / "LICENSE"       # a text that is always there
COLUMNS = 256


def correlated(seed: int = 0, rows: int = 1024) -> np.ndarray:
    """Inputs [rows, COLUMNS] that a few directions and some large columns dominate."""
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(rows, 24)) @ random.normal(size=(24, COLUMNS)) + 0.3 * random.normal(size=(rows, COLUMNS))
    return (inputs * random.lognormal(0, 1, COLUMNS)).astype(np.float32)


def weights(rows: int = 48) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(rows, COLUMNS)).astype(np.float32)


def loss(form: str, rows: np.ndarray, w: np.ndarray, x: np.ndarray) -> float:
    return float((((w - FORMATS[form].decode(rows, w.shape[1])) @ x.T)**2).sum())


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("form", GROUPED)
def test_better_than_rounding_to_nearest(form: str, act_order: bool):
    x, w = correlated(), weights()
    rows = gptq(w, 2 * x.T @ x / len(x), FORMATS[form], act_order=act_order)
    assert rows.dtype == np.uint8
    assert loss(form, rows, w, x) < 0.6 * loss(form, FORMATS[form].encode(w), w, x)


@pytest.mark.parametrize("form", GROUPED)
def test_inputs_without_correlation_round_to_nearest(form: str):
    w, kind = weights(), FORMATS[form]
    for act_order in (False, True):
        np.testing.assert_array_equal(gptq(w, np.eye(COLUMNS), kind, act_order=act_order), kind.encode(w))
        np.testing.assert_array_equal(gptq(w, np.zeros((COLUMNS, COLUMNS)), kind, act_order=act_order), kind.encode(w))


def test_the_order_of_columns():
    """Where few columns matter, those are rounded first, and best."""
    x, w = correlated(), weights()
    x[:, 192:] *= 100
    hessian = 2 * x.T @ x / len(x)
    plain, ordered = (loss("i4_g64", gptq(w, hessian, FORMATS["i4_g64"], act_order=a), w, x) for a in (False, True))
    assert ordered < 0.9 * plain


@pytest.mark.parametrize("act_order", [False, True])
def test_dead_columns(act_order: bool):
    """What no input uses is rounded to nearest and changes nothing else."""
    x, w, form = correlated(), weights(), FORMATS["i4_g32"]
    x[:, 64:128] = 0
    found = form.decode(gptq(w, 2 * x.T @ x / len(x), form, act_order=act_order), COLUMNS)
    np.testing.assert_array_equal(found[:, 64:128], form.decode(form.encode(w), COLUMNS)[:, 64:128])
    assert np.isfinite(found).all()
    assert (((w - found) @ x.T)**2).sum() < 0.6 * loss("i4_g32", form.encode(w), w, x)


def test_rows_of_zeros_and_huge_numbers():
    x, w = correlated(), weights(3)
    w[0], w[1] = 0, w[1] * 1e6
    for form in GROUPED:
        found = FORMATS[form].decode(gptq(w, 2 * x.T @ x / len(x), FORMATS[form]), COLUMNS)
        assert np.isfinite(found).all()
        assert not found[0].any()


def test_a_model_stays_closer(tmp_path):
    """Calibrated on one part of a text and measured on another."""
    text = LICENSE.read_text()
    measured, calibration = text[:len(text) // 3], text[len(text) // 3:]
    base, found = tilewright.load(DEMO, device="reference", context=512), {}
    for method in ("rtn", "gptq"):
        package = tilewright.quantize(DEMO, "i4_g128", calibration, method, samples=6, length=256, context=512)
        package.save(tmp_path / "model.wgpu-llama")
        model = tilewright.load(tmp_path / "model.wgpu-llama", device="reference")
        found[method] = measure(model, measured, base, windows=1).against
    assert {w["layout"] for n, w in package.manifest["weights"].items() if "experts" in n or n == "head"} == {"i4_g128"}
    assert found["gptq"].kl_divergence < 0.8 * found["rtn"].kl_divergence
    assert found["gptq"].same_top > found["rtn"].same_top


def test_experts_see_their_own_rows():
    """Projections in group-wise formats get rows of the matrix's own shape, and no others; the embedding is only looked up."""
    checkpoint = open_checkpoint(DEMO)
    windows = cut_windows(checkpoint, LICENSE.read_text(), 2, 64)
    assert windows.shape == (2, 64)
    lowered = lower(checkpoint, Plan(64, prefill=(64,), head=(64,)), "layers.1.experts.*=i4z_g64,head=i8_g64,embedding=i4_g64,layers.0.*=q8_0")
    rows = Calibration(lowered, 0.01, True).run(windows)
    assert rows.keys() == {"head", *(f"layers.1.experts.{n}" for n in ("gate", "up", "down"))}
    assert rows["layers.1.experts.down"].shape == (4, 256, 256 // 64 * FORMATS["i4z_g64"].bytes)
    assert rows["head"].shape == (2048, 256 // 64 * FORMATS["i8_g64"].bytes)


@pytest.mark.parametrize(("options", "words"), [
    ({"method": "awq"}, "unknown method"), ({"format": "q4_0"}, "no matrix"), ({"calibration": "Too short."}, "give a longer text"),
    ({"damping": 0.0}, "damping"), ({"samples": 0}, "samples"), ({"length": 100000}, "not possible")])
def test_what_cannot_be(options: dict, words: str):
    with pytest.raises(tilewright.CheckpointError, match=words):
        tilewright.quantize(DEMO, **{"format": "i4_g64", "calibration": list(range(64)), "length": 64, **options})


def test_the_command(tmp_path, capsys):
    text, output = tmp_path / "text.txt", tmp_path / "model.wgpu-llama"
    text.write_text("It was a dark night, and the wind howled round the old house. " * 8)
    arguments = ["quantize", str(DEMO), "--format", "head=i4_g64", "-o", str(output), "--context", "64"]
    with pytest.raises(SystemExit):
        main([*arguments, "--calibration", str(text), "--samples", "1", "--length", "32", "--no-act-order"])
    assert tilewright.open_package(output).manifest["weights"]["head"]["layout"] == "i4_g64"
    with pytest.raises(SystemExit):
        main(arguments)
    assert "gptq needs a text" in capsys.readouterr().err
