"""The report of a device: what a machine without a GPU runs of it, results that are merged and kept, and what is said of llama.cpp."""
from __future__ import annotations

import importlib.util
import json
import stat
import sys
from argparse import Namespace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tilewright.api import open_checkpoint
from tilewright.bench import load_memory, pages, report
from tilewright.bench.llama_cpp import compare
from tilewright.bench.parts import Bench, Part
from tilewright.compiler.device import Device

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


def test_llama_cpp_runs_on_the_same_shapes(tmp_path, gpu):
    """A program in the place of llama-bench tells what it was asked; the file that it is given is a model."""
    program = tmp_path / "llama-bench"
    program.write_text(f"#!{sys.executable}\nimport json, sys\nassert open(sys.argv[2], 'rb').read(4) == b'GGUF' and '-fa' in sys.argv\n"
                       "row = {'build_commit': 'abc', 'backends': 'CUDA', 'stddev_ts': 1.0, 'n_depth': 0}\n"
                       "rows = {'n_prompt': 512, 'n_gen': 0, 'avg_ts': 1e4}, {'n_prompt': 0, 'n_gen': 128, 'avg_ts': 345.0}\n"
                       "print(json.dumps([row | r for r in rows]))")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    bench = Bench(None, Device("x"), 0, 16)     # type: ignore[arg-type]
    (name, found), = compare(program, ("tiny-q4_0",), bench)
    assert name == "tiny-q4_0" and found["decode at 0"]["tok_s"] == 345 and found["prompt of 512 at 0"]["tok_s"] == 1e4
    program.write_text("#!/bin/sh\necho cannot load model >&2\nexit 1")
    assert next(compare(program, ("tiny-q4_0",), bench))[1] == {"failed": ["cannot load model"]}
    part = Part("llama.cpp", lambda b: compare(tmp_path / "nowhere", ("tiny-q4_0",), b))
    assert dict(report.limited(part, bench, 99))["failed"].startswith("FileNotFoundError")


def test_the_files_for_llama_cpp_hold_the_model(tmp_path):
    for stored in ("q4_0", "q8_0", "f16"):
        load_memory.write("tiny", tmp_path / f"{stored}.gguf", stored)
        checkpoint = open_checkpoint(tmp_path / f"{stored}.gguf")
        assert checkpoint.tensors["blk.0.ffn_down.weight"].format == stored and checkpoint.tokenizer is None
        assert checkpoint.config["tokenizer.ggml.model"] == "no_vocab" and checkpoint.config["llama.vocab_size"] == 2048


