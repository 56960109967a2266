"""Profiles: dispatch times that add up to the step, bytes that a step reads, and a trace in order."""
from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tilewright.__main__ import main
from tilewright.api import compile_for, open_checkpoint, record_of
from tilewright.bench import profiling
from tilewright.compiler.kernel import Site
from tilewright.compiler.layouts import plane_bytes
from tilewright.runtime import timing
from tilewright.runtime.adapter import pick
from tilewright.runtime.tracing import TracedGpu

TALES = Path(__file__).parent / "data" / "models" / "tales-llama"
STEPS = 12


@pytest.fixture(scope="module")
def told(gpu, tmp_path_factory):
    """The numbers and the trace that the command writes, for a step at position 40 and a prompt of 20 tokens."""
    folder = tmp_path_factory.mktemp("profile")
    with pytest.MonkeyPatch.context() as patched, pytest.raises(SystemExit) as left:
        patched.setattr("tilewright.runtime.generate.FRAME_SECONDS", 0.0)       # a submission for every step
        main(["profile", str(TALES), "--tokens", str(STEPS), "--context", "40", "--prefill", "20", "--dtype", "f16",
              "--trace", str(folder / "trace.json"), "--json", str(folder / "numbers.json")])
    assert left.value.code == 0
    return json.loads((folder / "numbers.json").read_text()), json.loads((folder / "trace.json").read_text())


def test_dispatches_add_up_to_the_step(gpu):
    """One by one they take what the pass of all takes; the least of several turns, for the machine has other work."""
    traced = TracedGpu(pick(gpu.info.name))
    model = profiling.playing(compile_for(open_checkpoint(TALES), record_of(gpu), 64), traced)
    list(model.stream([1, 2, 3], max_tokens=4))
    dispatches = profiling.traced(model).dispatches("decode_1")
    apart = together = np.inf
    for _ in range(64):
        apart = min(apart, timing.each(traced, dispatches).sum())
        together = min(together, float(np.ptp(timing.passes(traced, [dispatches]))))
        if 0.6 * together < apart < 1.7 * together:
            break
    assert 0.6 * together < apart < 1.7 * together
    model.close()
    traced.close()


def test_the_numbers_fit_together(told):
    numbers = told[0]["decode"]
    assert numbers["step_ms"] > 0 and sum(r["share"] for r in numbers["dispatches"]) == pytest.approx(1)
    assert all(r["us"] > 0 and r["estimate_us"] > 0 and r["ceiling"] >= 0 for r in numbers["dispatches"])
    assert 0 <= numbers["gpu_idle"] < 1 and sum(numbers["cpu_parts_ms"].values()) == pytest.approx(numbers["cpu_ms"])


def test_a_prompt_is_profiled(told):
    prompt = told[0]["prefill"]
    assert prompt["program"].startswith("prefill_") and prompt["seconds"] > 0 and any("matmul" in r["op"] for r in prompt["dispatches"])


def test_the_trace_is_in_order(told):
    events = [e for e in told[1]["traceEvents"] if e["ph"] == "X"]
    by_track = {track: [e for e in events if (e["pid"], e["tid"]) == track] for track in ((1, 1), (1, 2), (2, 1))}
    assert all(e["ts"] >= 0 and e["dur"] >= 0 for e in events)
    assert [e["ts"] for e in events] == sorted(e["ts"] for e in events)
    for track in ((1, 2), (2, 1)):
        assert all(a["ts"] + a["dur"] <= b["ts"] + 1e-3 for a, b in pairwise(by_track[track])), "spans of a track overlap"
    assert {e["name"] for e in by_track[1, 1]} == {"play", "write inputs", "encode", "submit", "wait"}
    submits, frames = [e for e in by_track[1, 1] if e["name"] == "submit"], by_track[1, 2]
    assert STEPS - 1 <= len(frames) == len(submits) <= STEPS + 1 and {e["name"] for e in frames} == {"decode_1 + greedy_1"}
    slack = told[1]["otherData"]["clock slack us"]
    assert all(frame["ts"] >= submit["ts"] - slack for submit, frame in zip(submits, frames, strict=True)), "a frame began before it was submitted"


def test_steps_of_a_frame_are_traced_apart(gpu, monkeypatch):
    monkeypatch.setattr("tilewright.runtime.generate.FRAME_SECONDS", 1e9)
    traced = TracedGpu(pick(gpu.info.name))
    model = profiling.playing(compile_for(open_checkpoint(TALES), record_of(gpu), 128), traced)
    recording = profiling.decode(model, 20, 40).recording
    submits = [s for s in recording.host if s.name == "submit"]
    assert len(recording.gpu) > 24 and len(submits) == -(-len(recording.gpu) // 8) and {s.name for s in recording.gpu} == {"decode_1 + greedy_1"}
    assert all(a.end <= b.start + 1e-9 for a, b in pairwise(recording.gpu)) and 0 <= recording.idle() < 1
    model.close()
    traced.close()


def test_bytes_are_those_that_a_step_looks_at(gpu, device):
    """All weights once, of the embedding one row; of the caches what was written so far."""
    package = compile_for(open_checkpoint(TALES), device, 64)
    graph = package.graph("decode_1")
    moved = [profiling.traffic(Site(graph, op, device), 16) for op in graph.ops]
    again = [profiling.traffic(Site(graph, op, device), 32) for op in graph.ops]
    more = {"+".join(op.kinds): b - a for op, a, b in zip(graph.ops, moved, again, strict=True) if a != b}
    caches = {n: v for n, v in graph.values.items() if v.role == "state" and len(v.shape) == 4}
    assert set(more) == {"attention_split"} or set(more) == {"attention"}
    assert sum(b - a for a, b in zip(moved, again, strict=True)) == pytest.approx(sum(4 * v.size * 16 / v.shape[2] for v in caches.values()))
    read = {p.inputs[1] for op in graph.ops for p in op.parts if p.kind == "matmul"}
    matrices = sum(sum(plane_bytes(v.shape, v.dtype, v.layout)) for n, v in graph.values.items() if n in read)
    assert matrices < sum(moved) < 1.15 * matrices


def test_recording_changes_nothing(gpu):
    """The same tokens with and without; and what is off records nothing."""
    package = compile_for(open_checkpoint(TALES), record_of(gpu), 64)
    traced = TracedGpu(pick(gpu.info.name))
    model = profiling.playing(package, traced)
    plain = [t for t, _ in model.stream([1, 2, 3], max_tokens=10)]
    traced.start()
    recorded = [t for t, _ in model.stream([1, 2, 3], max_tokens=10)]
    recording = traced.stop()
    assert plain == recorded and len(recording.gpu) == 11 and recording.gpu[0].name.startswith("prefill")
    assert 0 < recording.seconds("encode") < recording.seconds("play")
    model.stream([1], max_tokens=2)
    assert len(traced.stop().gpu) == 11
    model.close()
    traced.close()


def test_without_timestamps_inside_passes_there_is_one_a_dispatch(gpu, monkeypatch):
    warmth = timing.Warmth(gpu, first=0.05)
    work = [(*warmth._work[0][:2], (n, 1, 1)) for n in (8, 64)]
    monkeypatch.setattr(gpu, "features", gpu.features - {timing.INSIDE})
    seconds = timing.each(gpu, work, 3)
    assert seconds.shape == (2,) and seconds[1] > 2 * seconds[0] > 0 and np.isfinite(seconds).all()


def test_too_long_a_context_is_a_sentence(gpu, capsys):
    with pytest.raises(SystemExit) as left:
        main(["profile", str(TALES), "--context", "5000"])
    assert left.value.code == 1 and "context" in capsys.readouterr().err
