"""Measuring a GPU and tuning on it: records, timings that make sense, and choices that reach the package."""
from __future__ import annotations

import json
import re
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tilewright.__main__ import main
from tilewright.api import KERNELS, compile_for, open_checkpoint, record_of
from tilewright.bench import measuring, probing, steps, tuning
from tilewright.bench.steps import Step, Work, steps_of
from tilewright.compiler.device import REFERENCE, Device, device_for, read_device, shipped_devices, user_devices, user_file, write_device
from tilewright.compiler.ir import Choice
from tilewright.compiler.package import PackageError
from tilewright.compiler.passes.tiling import candidates
from tilewright.compiler.proof import proved
from tilewright.runtime import timing
from tilewright.runtime.generate import Model
from tilewright.runtime.player import GpuPlayer

TALES = Path(__file__).parent / "data" / "models" / "tales-llama"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def command(*arguments: object) -> None:
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    assert left.value.code == 0


@pytest.mark.parametrize("device", shipped_devices(), ids=lambda d: d.name)
def test_records_read_back(device, tmp_path):
    tuned = {'f32[1,4]w | matmul(a0,a1 mask=full)->t0:f32[1,4] | t0': Choice("matvec", (("lanes", 8), ("rows", 2))), 'a "b\\': Choice("map")}
    device = replace(device, match="^A \\(B\\)$", tuned=tuned)
    (tmp_path / "x.toml").write_text(write_device(device, "two\nlines"))
    assert read_device(tmp_path / "x.toml") == device


@pytest.mark.parametrize("text, why", [("name = ", "Invalid value"), ('name = "a"\nmatch = "("', "unterminated"), ('name = "a"\nwidht = 3', "widht"),
                                       ('name = "a"\nlaunch = 0', "launch is 0"), ('name = "a"\n[tuned]\nx = "y"', "'y' is no choice")])
def test_a_record_that_does_not_parse_is_named(cache, text, why, capsys):
    file = user_file("Some GPU")
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"{file} is no device record: ")) as error:
        device_for("Some GPU", (), {}, 0)
    assert why in str(error.value) and "measure again with tilewright probe" in str(error.value)


def test_probe_replaces_a_record_that_does_not_parse(gpu, cache, monkeypatch):
    user_file(gpu.info.name).parent.mkdir(parents=True)
    user_file(gpu.info.name).write_text("name = ")
    monkeypatch.setattr(probing, "probe", lambda gpu, known, show: probing.Probed(replace(known, width=77), 0, 0, 0))
    command("probe")
    assert read_device(user_file(gpu.info.name)).width == 77


def test_the_users_record_comes_first(cache):
    mine = Device("x", match="^llvmpipe", bandwidth=1e9, tuned={"a": Choice("map")})
    user_file("llvmpipe").parent.mkdir(parents=True)
    user_file("llvmpipe").write_text(write_device(mine))
    assert user_devices() == [mine]
    found = device_for("llvmpipe (LLVM)", ("subgroups",), {"max_buffer_size": 5}, 4)
    assert (found.bandwidth, found.tuned, found.subgroup_size, found.limit("max_buffer_size")) == (1e9, mine.tuned, 4, 5)
    assert device_for("llvmpipe", (), {}, 0, shipped_devices()).bandwidth != 1e9


def test_probe(gpu, cache, capsys):
    command("probe")
    told = capsys.readouterr()
    record = read_device(user_file(gpu.info.name))
    assert re.search(record.match, gpu.info.name) and record_of(gpu) == replace(record, name=gpu.info.name, features=gpu.features)
    assert gpu.info.name in user_file(gpu.info.name).read_text() and str(user_file(gpu.info.name)) in told.err
    assert 2e8 < record.bandwidth < 2e13 and 1e-7 < record.launch < 1e-2 and 1e8 < record.flops < 1e16
    assert 1 <= record.width < 1 << 24 and record.width % (gpu.subgroup_size or 32) == 0 and record.packed_ops > 0
    assert (record.f16_flops > 0) == ("shader-f16" in gpu.features) and record.subgroup_size == gpu.subgroup_size
    for line in ("bandwidth", "tiny dispatch", "f16", "packed 8-bit products", "invocations at once"):
        assert f"\n{line}" in told.out


def test_probe_without_a_gpu_is_a_sentence(capsys):
    with pytest.raises(SystemExit) as left:
        main(["probe", "--device", "reference"])
    assert left.value.code == 1 and "the numpy reference is no GPU" in capsys.readouterr().err


def test_timestamps_grow_with_the_work(gpu):
    warmth = timing.Warmth(gpu, first=0.05)
    warmth.keep()
    pipeline, group, _ = warmth._work[0]
    work = [(pipeline, group, (n, 1, 1)) for n in (8, 64, 8)]
    spans = timing.passes(gpu, [[d] for d in work])
    assert (np.diff(spans.ravel()) >= 0).all()
    for seconds in (spans[:, 1] - spans[:, 0], timing.each(gpu, work, 3)):
        assert seconds[1] > 2 * seconds[0] > 0


def loaded(gpu, record: Device, context: int = 64) -> Model:
    package = compile_for(open_checkpoint(TALES), record, context)
    return Model(package, GpuPlayer(package, gpu, trusted=lambda: proved(package.manifest)), None)


@pytest.fixture(scope="module")
def model(gpu, device):
    yield (made := loaded(gpu, device))
    made.close()


@pytest.fixture
def untimed(monkeypatch) -> None:
    """Nothing is measured: a step takes a second, and of two choices for an op the second wins."""
    def look(self, sites, until):
        self.variants = self.step.variants(self.key, dict(list(sites.items())[:2]), self.kernels)

    def decide(self, eligible, until):
        winner = next(c for c in self.variants if c in eligible)
        return winner, {self.work.site.op.choice: 2e-6, winner: 1e-6}
    monkeypatch.setattr(tuning.Contest, "look", look)
    monkeypatch.setattr(tuning.Contest, "decide", decide)
    monkeypatch.setattr(Step, "warm", lambda self, seconds: None)
    monkeypatch.setattr(Step, "seconds", lambda self, lists, rounds, contexts=1: np.ones((contexts, rounds, len(lists))))


def test_a_faster_choice_is_found_in_the_model(gpu, device, model, monkeypatch):
    """The model is compiled with what the cost model likes least for one op."""
    sites = [w.site for w in steps_of(model, device)["decode_1"].works.values()]
    site = min((s for s in sites if s.op.kinds == ("matmul", "add")), key=lambda s: s.value("w").size)
    slow = candidates(site, KERNELS)[-1][1]
    slowed = loaded(gpu, replace(device, tuned={site.signature: slow}))
    before = slowed.logits([1, 2, 3])
    monkeypatch.setattr(tuning, "_heaviest", lambda steps, kernels: [(1.0, "decode_1", site.signature)])
    found = tuning.tune(slowed, device, KERNELS, most=4, seconds=60, programs=lambda name: name == "decode_1")
    result, = found.ops
    assert result.signature == site.signature and result.default.choice == slow and result.uses["decode_1"] == 6 and result.timed >= 4
    assert result.best.choice != slow and result.best.seconds < 0.9 * result.default.seconds
    default, tuned = found.steps["decode_1"]
    assert tuned < 0.99 * default
    np.testing.assert_array_equal(slowed.logits([1, 2, 3]), before, "tuning leaves the model as it was")
    slowed.close()


class Timed:
    """Stands for a step whose lists are choices, with true seconds and some noise. looked: how often each was timed."""

    def __init__(self, true: dict[Choice, float], rng: np.random.Generator):
        self.true, self.rng, self.took, self.feeds, self.looked = true, rng, 1e-3, [{}], Counter[Choice]()
        self.now = [NOW]
        site = SimpleNamespace(op=SimpleNamespace(choice=NOW, kinds=("matmul",)))
        self.works = {"key": Work(site, [0])}       # type: ignore[arg-type]

    def variants(self, key, sites, kernels):
        return {c: c for c in sites}

    def exchanged(self, key, variant):
        return [variant]

    def without(self, key):
        return [None]

    def alone(self, key, variants):
        return [self.true[c] for c in (NOW, *variants)]

    def fitting(self, seconds, rounds, contexts):
        return int(seconds)

    def seconds(self, lists, rounds, contexts=1):
        self.looked.update({c: rounds for c, in lists})
        steps = np.array([1e-3 + (self.true[c] - self.true[NOW] if c else -self.true[NOW]) for c, in lists])
        clock = self.rng.uniform(0.8, 1.2, (contexts, rounds, 1))       # changes between rounds, and not within one
        return steps * clock * (1 + 0.002 * self.rng.standard_normal((contexts, rounds, len(lists))))


NOW, FAST, CLOSE, BEHIND, HOPELESS = (Choice(n) for n in ("now", "fast", "close", "behind", "hopeless"))


def contest(true: dict[Choice, float], seed: int, seconds: float = 99.0) -> tuple[tuning.Contest, tuple | None]:
    made = tuning.Contest(Timed(true, np.random.default_rng(seed)), "key", {})      # type: ignore[arg-type]
    sites = dict.fromkeys(c for c in true if c != NOW)
    made.look(sites, time.perf_counter() + seconds)     # type: ignore[arg-type]
    return made, made.decide(list(sites), time.perf_counter() + seconds)


@pytest.mark.parametrize("seed", range(4))
def test_the_faster_choice_wins_through_noise(seed):
    made, (winner, took) = contest({NOW: 100e-6, FAST: 80e-6, CLOSE: 86e-6, BEHIND: 120e-6, HOPELESS: 900e-6}, seed)
    looked = made.step.looked
    assert winner == FAST and took[FAST] < took[CLOSE] < took[NOW] < took[BEHIND] and took[NOW] == pytest.approx(100e-6, rel=0.2)
    assert looked[FAST] == tuning.LOOKS + tuning.ROUNDS + tuning.DUEL and looked[CLOSE] == tuning.LOOKS + tuning.ROUNDS, "close calls are timed again"
    assert looked[BEHIND] == tuning.LOOKS and looked[HOPELESS] == 0 and took[HOPELESS] > 800e-6


def test_no_choice_wins_by_noise():
    alike = dict.fromkeys((NOW, *(Choice(f"c{i}") for i in range(30))), 100e-6)
    assert [contest(alike, seed)[1][0] for seed in range(20)] == [None] * 20


def test_without_time_there_is_no_result():
    made, result = contest({NOW: 100e-6, FAST: 80e-6}, 0, seconds=0)
    assert result is None and not made.step.looked


def test_attention_is_judged_at_both_contexts():
    seconds = np.array([[[10, 9]], [[10, 12]]], float)      # faster at one context, slower at the other
    assert tuning.better(seconds[:1]) and not tuning.better(seconds) and tuning.gains(seconds)[0] == pytest.approx(0.5)
    for kind, contexts in (("attention_split", 2), ("matmul", 1)):
        step = Timed({}, np.random.default_rng(0))
        step.feeds, step.works["key"].site.op.kinds = [{}, {}], (kind,)
        assert tuning.Contest(step, "key", {}).contexts == contexts     # type: ignore[arg-type]


def test_steps_are_fed_a_short_and_a_long_context(gpu, device):
    model = loaded(gpu, device, 512)
    found = steps_of(model, device)
    assert {name: [int(next(iter(f.values()))["position"][0]) for f in step.feeds] for name, step in found.items()} == {
        "decode_1": [128, 256], "prefill_16": [0, 256], "prefill_128": [0, 256]}
    assert list(steps_of(model, device, lambda name: name == "decode_1")) == ["decode_1"]
    assert any(w.attends for w in found["decode_1"].works.values()) and not all(w.attends for w in found["decode_1"].works.values())
    assert sum(w.uses.total() for w in found["decode_1"].works.values()) == sum(len(model.player.dispatches(p)) for p in ("decode_1", "greedy_1"))
    model.close()


def test_what_the_driver_refuses_is_left_out(model, device, monkeypatch):
    step = steps_of(model, device)["decode_1"]
    key, work = next((k, w) for k, w in step.works.items() if "silu" in w.site.op.kinds)
    choices = [c for _, c in candidates(work.site, KERNELS)[:3]]
    real = steps.render

    def render(site, kernel, choice):
        shader = real(site, kernel, choice)
        return replace(shader, wgsl="fn main( {") if choice == choices[1] else shader
    monkeypatch.setattr(steps, "render", render)
    made = step.variants(key, dict.fromkeys(choices, work.site), KERNELS)
    assert list(made) == [choices[0], choices[2]]
    assert made[choices[0]][0] is step.default[work.places[0]][0], "the default as the player made it, checks left out where they are proved needless"
    there = step.exchanged(key, made[choices[2]])
    assert [i for i, (a, b) in enumerate(zip(there, step.default, strict=True)) if a != b] == work.places


def test_every_kind_of_choice_is_tried(model, device):
    site = next(w.site for w in steps_of(model, device)["decode_1"].works.values() if "silu" in w.site.op.kinds)
    options = candidates(site, KERNELS)
    found = tuning.likely(options, site, KERNELS, 16)
    sizes = [KERNELS[c.kernel].threads(site, dict(c.schedule)) for _, c in options]
    assert found[:12] == [c for _, c in options[:12]] and len(found) <= 16 < len(options)
    assert {KERNELS[c.kernel].threads(site, dict(c.schedule)) for c in found[12:]} - set(sizes[:12])


def test_tuned_choices_reach_the_package(gpu, cache, capsys, monkeypatch, untimed):
    """Another choice than the cost model's is made to win, and the package plays it and says so."""
    monkeypatch.setattr(tuning, "better", lambda seconds: True)
    command("tune", TALES, "--context", 64, "--json", cache / "tuned.json")
    told = capsys.readouterr()
    found = json.loads((cache / "tuned.json").read_text())
    record = record_of(gpu)
    assert {k["signature"]: k["tuned"]["choice"] for k in found["kernels"]} == {k: str(c) for k, c in record.tuned.items()} and len(record.tuned) > 10
    assert all(k["tuned"]["choice"] != k["default"]["choice"] for k in found["kernels"])
    assert set(found["steps"]) == {"decode_1", "prefill_16", "prefill_64"} and "decode_1" in told.out and str(user_file(gpu.info.name)) in told.err
    package = compile_for(open_checkpoint(TALES), record, 64)
    played = {s["kernel"] for s in package.manifest["shaders"]}
    assert package.manifest["device"]["tuned"] == len(record.tuned) and {str(c) for c in record.tuned.values()} <= played
    assert compile_for(open_checkpoint(TALES), replace(record, tuned={}), 64).manifest["device"]["tuned"] == 0


def test_a_step_that_is_not_faster_as_a_whole_keeps_its_defaults(model, device, untimed, monkeypatch):
    monkeypatch.setattr(tuning, "better", lambda seconds: False)
    found = tuning.tune(model, device, KERNELS, programs=lambda name: name == "decode_1")
    assert len(found.ops) > 5 and all(r.best == r.default for r in found.ops) and found.steps == {"decode_1": (1.0, 1.0)}


def test_a_budget_is_kept(model, device):
    assert tuning.tune(model, device, KERNELS, seconds=0) == tuning.Tuning((), {})


def test_packages_are_tuned_unless_they_are_compiled(gpu, cache, device, tmp_path):
    compile_for(open_checkpoint(TALES), device, 64).save(tmp_path / "x.wgpu-llama")
    compile_for(open_checkpoint(TALES), REFERENCE, 64).save(tmp_path / "y.wgpu-llama")
    with pytest.raises(PackageError, match="is compiled already: tune the model"):
        measuring.tune(gpu, tmp_path / "x.wgpu-llama", 0.0, lambda *_: None)
    assert measuring.tune(gpu, tmp_path / "y.wgpu-llama", 0.0, lambda *_: None)[0] == tuning.Tuning((), {})


def test_compile_tunes_if_asked(gpu, cache, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tuning, "tune", lambda *_, **__: tuning.Tuning((), {}))
    command("compile", TALES, "-o", tmp_path / "x.wgpu-llama", "--context", 64, "--tune")
    assert "tuned 0 kernels" in capsys.readouterr().err and user_file(gpu.info.name).exists()


def test_an_unknown_adapter_is_probed_before_it_is_tuned(gpu, cache, monkeypatch):
    monkeypatch.setattr("tilewright.bench.measuring.record_of", lambda gpu: Device(gpu.info.name))
    monkeypatch.setattr(probing, "probe", lambda gpu, known, show: probing.Probed(replace(known, match="x", width=77), 0, 0, 0))
    assert measuring.measured(gpu, lambda *_: None).width == 77 and read_device(user_file(gpu.info.name)).width == 77
