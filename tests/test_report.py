"""The report of a device: what a machine without a GPU runs of it, results that are merged and kept, and what is said of llama.cpp."""
from __future__ import annotations

import importlib.util
import json
import shutil
import stat
import sys
from argparse import Namespace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from tilewright.api import open_checkpoint
from tilewright.bench import loading, pages, report
from tilewright.bench.llama_cpp import compare
from tilewright.bench.parts import Bench, Part
from tilewright.bench.shapes import synthetic, write_gguf
from tilewright.compiler.device import Device

RECORDED = Path(__file__).parent / "data" / "llama_bench"      # what the real program printed
PLOTS = importlib.util.find_spec("matplotlib") is not None


@pytest.fixture(scope="module")
def results(gpu, tmp_path_factory) -> Path:
    """The quick run, its parts one call after the other."""
    folder = tmp_path_factory.mktemp("results")
    for only, tune in (("correct,decode", "1"), ("batch,load", "0")):
        report.main(["--quick", "--out", str(folder), "--only", only, "--tune", tune])
    return folder


def test_the_quick_run_measures_everything(results, gpu):
    file, = results.glob("*.json")
    told = json.loads(file.read_text())
    assert told["adapter"] == gpu.info.name and set(told["parts"]) == {"correct", "decode-tiny-q4_0", "batch-tiny-q4_0", "load-tiny-q4_0"}
    assert not any("failed" in part for part in told["parts"].values()), told["parts"]
    assert all(told["parts"]["correct"][n]["passed"] for n in ("layer_f32", "layer_f16", "demo"))
    for label in ("untuned", "tuned"):
        decoding = told["parts"]["decode-tiny-q4_0"][label]
        assert set(decoding["at"]) == {"32", "128"} and all(r["tok_s"] > 0 and 0 <= r["gpu_idle"] < 1 for r in decoding["at"].values())
        assert decoding["weights"] > 1e6 and decoding["dispatches"]["128"][0]["us"] > 0
    assert told["parts"]["batch-tiny-q4_0"]["untuned"]["batch"]["4"]["tok_s"] > 0
    assert told["parts"]["load-tiny-q4_0"]["warm"]["first_token_s"] > 0
    for part in told["parts"].values():
        assert part["run"]["driver"] == gpu.info.driver and part["run"]["date"] and part["seconds"] > 0


def test_the_page_shows_it(results):
    page = next(results.glob("*.md")).read_text()
    for words in ("## Decoding", "| tiny-q4_0 | 128 |", "## Batches", "## Correctness", "32 of 32 the same", "## Runs"):
        assert words in page
    assert "## Prompts" not in page and "## Stopped" not in page


@pytest.mark.skipif(not PLOTS, reason="matplotlib, which draws the plots, is not installed")
def test_the_plots_are_drawn(results):
    page = next(results.glob("*.md")).read_text()
    for picture in results.glob("*.svg"):
        assert ElementTree.parse(picture).getroot().tag.endswith("svg") and picture.stat().st_size < 300_000 and picture.name in page
    assert len([*results.glob("*.svg")]) == page.count("](") == 3


def test_without_matplotlib_there_is_a_word_and_a_page(results, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    told = json.loads(next(results.glob("*.json")).read_text())
    assert pages.plots(told, results / "x") == [] and "pip install matplotlib" in capsys.readouterr().out


def test_a_page_can_be_made_of_results_that_there_are(results, tmp_path):
    (tmp_path / "x.json").write_text(next(results.glob("*.json")).read_text())
    report.main(["--page", str(tmp_path / "x.json")])
    page = (tmp_path / "x.md").read_text()
    assert page == next(results.glob("*.md")).read_text().replace(next(results.glob("*.json")).stem, "x")


def test_a_part_that_is_stopped_or_fails_keeps_what_it_had():
    def slow(bench):
        yield "a.b", 1
        yield "a.c", 2

    def broken(bench):
        yield "a.b", 1
        raise ValueError("no luck")
    bench = Bench(None, Device("x"), 0, 1)      # type: ignore[arg-type]
    stopped, failed = ({}, {})
    for part, results, limit in ((Part("slow", slow), stopped, -1.0), (Part("broken", broken), failed, 99.0)):
        for name, result in report.limited(part, bench, limit):
            report.enter(results, name, result)
    assert stopped["a"] == failed["a"] == {"b": 1} and "after" in stopped["stopped"] and failed["failed"] == "ValueError: no luck"


def test_parts_are_chosen_by_how_they_begin(capsys):
    args = Namespace(only="decode8b,prefill", all_layers=False, llama_bench=None)
    assert [p.name for p in report.chosen(False, args)] == ["decode8b-q4_0", "decode8b-q8_0", "decode8b-f16", "prefill8b-q4_0"]
    assert "llama.cpp is not compared: give --llama-bench PATH" in capsys.readouterr().out
    args.only = ""
    assert "decodescout-q4_0" not in {p.name for p in report.chosen(False, args)}
    args.all_layers = True
    assert "decodescout-q4_0" in {p.name for p in report.chosen(False, args)}
    args.only = "decoed"
    with pytest.raises(SystemExit, match="no part begins with 'decoed'; there are: correct, "):
        report.chosen(False, args)


@pytest.fixture
def recorded(tmp_path) -> Path:
    """A program that answers as llama-bench did, where it is given a model, and writes down what it was asked."""
    program = tmp_path / "llama-bench"
    program.write_text(f"#!{sys.executable}\nimport sys\nfrom pathlib import Path\na = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
                       "assert open(a['-m'], 'rb').read(4) == b'GGUF' and a['-o'] == 'json'\n"
                       f"with open({str(tmp_path / 'asked')!r}, 'a') as file:\n    print(*sys.argv[3:], file=file)\n"
                       f"print(Path({str(RECORDED)!r}, 'prompts.json' if a['-n'] == '0' else 'decoding.json').read_text())")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def test_llama_cpp_runs_on_the_same_shapes(recorded):
    """What the real program printed (build 0c1e570, with these options) becomes medians of the same prompts and contexts as our own."""
    bench = Bench(None, Device("x"), 0, 16)     # type: ignore[arg-type]
    (name, told), = compare(recorded, ("tiny-q4_0",), (128,), (32, 128), bench)
    rows = {str(r["n_depth"]): sorted(r["samples_ts"]) for r in json.loads((RECORDED / "decoding.json").read_text())}
    assert name == "tiny-q4_0" and told["program"] == "llama.cpp 0c1e570, CPU"
    assert told["at"] == {n: {"tok_s": r[1], "least": r[0], "most": r[2]} for n, r in rows.items()} and set(rows) == {"32", "128"}
    assert set(told["tokens"]) == {"128"} and told["tokens"]["128"]["tok_s"] > 1000
    assert (recorded.parent / "asked").read_text().splitlines() == ["-p 128 -n 0 -r 3 -fa 1 -ngl 999 -o json",
                                                                    "-p 0 -n 16 -d 32,128 -r 3 -fa 1 -ngl 999 -o json"]


def test_the_page_puts_llama_cpp_beside_our_own(recorded, results):
    told = json.loads(next(results.glob("*.json")).read_text())
    bench = Bench(None, Device("x"), 0, 16)     # type: ignore[arg-type]
    told["parts"]["llama.cpp"] = {**dict(compare(recorded, ("tiny-q4_0",), (128,), (32, 128), bench)), "run": told["parts"]["correct"]["run"]}
    told["parts"]["prefill-tiny-q4_0"] = {"untuned": {"tokens": {"128": {"tok_s": 9.0}}}, "run": told["parts"]["correct"]["run"]}
    page = pages.markdown(told, "x").splitlines()
    speeds = {name: f"{entry['tok_s']:,.0f} ({entry['least']:,.0f} to {entry['most']:,.0f}) |" for name, entry in (
        (f"{kind} {n}", r) for kind in ("at", "tokens") for n, r in told["parts"]["llama.cpp"]["tiny-q4_0"][kind].items())}
    for begins, ends in (("| tiny-q4_0 | 32 | ", "at 32"), ("| tiny-q4_0 | 128 | ", "at 128"), ("| tiny-q4_0 | 128 | 9 |", "tokens 128")):
        assert any(line.startswith(begins) and line.endswith(speeds[ends]) for line in page), begins
    assert any("llama.cpp 0c1e570, CPU" in line for line in page)


def test_what_llama_cpp_cannot_do_is_said(recorded):
    bench = Bench(None, Device("x"), 0, 16)     # type: ignore[arg-type]

    def told() -> dict:
        return dict(compare(recorded, ("tiny-q4_0",), (128,), (32,), bench))
    recorded.write_text("#!/bin/sh\necho cannot load model >&2\nexit 1")
    assert told() == {"tiny-q4_0": {"failed": "cannot load model"}}
    recorded.write_text("#!/bin/sh\nkill -SEGV $$")
    assert told() == {"tiny-q4_0": {"failed": "llama-bench was ended by SIGSEGV"}}
    page = pages.markdown({"adapter": "x", "backend": "", "driver": "", "record": {"bandwidth": 1, "flops": 1}, "parts": {
        "llama.cpp": {**told(), "run": {"date": "", "tilewright": "", "wgpu": "", "python": ""}}}}, "x")
    assert "| llama.cpp: tiny-q4_0 | failed llama-bench was ended by SIGSEGV |" in page
    part = Part("llama.cpp", lambda b: compare(recorded.parent / "nowhere", ("tiny-q4_0",), (128,), (32,), b))
    assert dict(report.limited(part, bench, 99))["failed"].startswith("FileNotFoundError")


@pytest.mark.skipif(not shutil.which("llama-bench"), reason="llama.cpp's llama-bench is not on the PATH")
def test_llama_cpp_itself_takes_our_files_and_options():
    bench = Bench(None, Device("x"), 0, 4, 1)     # type: ignore[arg-type]
    for _, told in compare(Path(shutil.which("llama-bench") or ""), ("tiny-q4_0", "tiny-q8_0", "tiny-f16", "tiny-bf16"), (16,), (8, 32), bench):
        assert set(told) == {"program", "at", "tokens"} and set(told["at"]) == {"8", "32"} and told["tokens"]["16"]["tok_s"] > 0


def test_the_files_for_llama_cpp_hold_the_model(tmp_path):
    for stored in ("q4_0", "q8_0", "f16", "bf16"):
        write_gguf(tmp_path / f"{stored}.gguf", "tiny", stored)
        checkpoint, wanted = open_checkpoint(tmp_path / f"{stored}.gguf"), synthetic("tiny", stored)
        assert checkpoint.tensors["blk.0.ffn_down.weight"].format == stored and checkpoint.tokenizer is None
        assert checkpoint.config["tokenizer.ggml.model"] == "no_vocab" and checkpoint.config["llama.vocab_size"] == 2048
        assert all(np.array_equal(checkpoint.tensors[n].data, t.data) for n, t in wanted.tensors.items())


def test_loading_is_timed_in_a_process_of_its_own(results, tmp_path):
    file, = results.glob("*.json")
    told = json.loads(file.read_text())["parts"]["load-tiny-q4_0"]
    for name in ("gguf", "warm"):
        entry = told[name]
        assert 0 < entry["stages"]["weights"] < entry["load_s"] < 60 and 1e6 < entry["gpu_weights"] < entry["gpu_bytes"]
    assert told["gguf"]["stages"]["compile"] > 0 and told["warm"]["bytes"] > told["gguf"]["bytes"]
    assert "nowhere.gguf does not exist" in loading.measure(tmp_path / "nowhere.gguf")["failed"]
