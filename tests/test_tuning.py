"""Measuring a GPU and tuning on it: records, timings that make sense, and choices that reach the package."""
from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tilewright
from tilewright import measuring, probing, tuning
from tilewright.__main__ import main
from tilewright.api import KERNELS, compile_for, open_checkpoint, record_of
from tilewright.compiler.device import Device, device_for, read_device, shipped_devices, user_devices, user_file, write_device
from tilewright.compiler.ir import Choice
from tilewright.compiler.package import PackageError
from tilewright.runtime import timing

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
    for seconds in (spans[:, 1] - spans[:, 0], timing.each(gpu, work, 3), np.array(gpu.profile(work, 3))):
        assert seconds[1] > 2 * seconds[0] > 0


def test_the_faster_choice_wins(gpu, device):
    """No choice is kept that was timed slower than the default, and none that is faster by less than noise."""
    work = tuning.work_of(tuning.graphs_of(TALES, device, 64), device, KERNELS)
    key, only = next((k, w) for k, w in work.items() if "silu" in w.site.op.kinds and "decode_1" in w.uses)
    result, = tuning.tune(gpu, {key: only}, KERNELS, most=6, seconds=60)
    assert result.signature == key and result.uses["decode_1"] == 6 and result.timed >= 2
    assert result.best == result.default or result.best.seconds < tuning.GAIN * result.default.seconds
    assert result.portable and dict(result.portable.choice.schedule).get("subgroup", 0) == 0
    assert 1e-7 < result.best.seconds < 1


def test_tuned_choices_reach_the_package(gpu, cache, capsys, monkeypatch):
    """Another choice than the cost model's is made to win, and the package plays it and says so."""
    real = tuning.Rig.contest
    monkeypatch.setattr(tuning.Rig, "contest", lambda self, sites, *rest: {c: 1 / (i + 1) for i, c in enumerate(list(sites)[:3])})
    command("tune", TALES, "--context", 64, "--json", cache / "tuned.json")
    told = capsys.readouterr()
    monkeypatch.setattr(tuning.Rig, "contest", real)
    found = json.loads((cache / "tuned.json").read_text())["kernels"]
    record = record_of(gpu)
    assert {k["signature"]: k["tuned"]["choice"] for k in found} == {k: str(c) for k, c in record.tuned.items()} and len(found) > 10
    assert any(k["tuned"]["choice"] != k["default"]["choice"] for k in found) and "decode_1" in told.out and str(user_file(gpu.info.name)) in told.err
    package = compile_for(open_checkpoint(TALES), record, 64)
    played = {s["kernel"] for s in package.manifest["shaders"]}
    assert package.manifest["device"]["tuned"] == len(record.tuned) and {str(c) for c in record.tuned.values()} <= played
    assert compile_for(open_checkpoint(TALES), replace(record, tuned={}), 64).manifest["device"]["tuned"] == 0


def test_a_budget_is_kept(gpu, device):
    work = tuning.work_of(tuning.graphs_of(TALES, device, 64), device, KERNELS)
    assert list(tuning.tune(gpu, work, KERNELS, seconds=0)) == []


def test_a_compiled_package_is_not_tuned(cache, device, tmp_path):
    compile_for(open_checkpoint(TALES), device, 64).save(tmp_path / "x.wgpu-llama")
    with pytest.raises(PackageError, match="is compiled already: tune the model"):
        tuning.graphs_of(tmp_path / "x.wgpu-llama", device)


def test_compile_tunes_if_asked(gpu, cache, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tuning, "tune", lambda gpu, work, *_, **__: iter(()))
    command("compile", TALES, "-o", tmp_path / "x.wgpu-llama", "--context", 64, "--tune")
    assert "tuned 0 kernels" in capsys.readouterr().err and user_file(gpu.info.name).exists()


def test_an_unknown_adapter_is_probed_before_it_is_tuned(gpu, cache, monkeypatch):
    monkeypatch.setattr("tilewright.measuring.record_of", lambda gpu: Device(gpu.info.name))
    monkeypatch.setattr(probing, "probe", lambda gpu, known, show: probing.Probed(replace(known, match="x", width=77), 0, 0, 0))
    assert measuring.measured(gpu, lambda *_: None).width == 77 and read_device(user_file(gpu.info.name)).width == 77


def test_close_choices_are_timed_more_often_and_the_default_as_often_as_any(gpu):
    """Seconds: the default is slow at first sight, which must not cost it its place; two are close; one is behind, one hopeless."""
    true = {Choice("default"): 10e-6, Choice("close"): 9.8e-6, Choice("fast"): 9.5e-6, Choice("behind"): 10.8e-6, Choice("hopeless"): 99e-6}
    asked: dict[Choice, int] = dict.fromkeys(true, 0)

    class Fake(tuning.Rig):
        def _chains(self, sites, kernels):
            return {c: [] for c in true}

        def _round(self, chains, length):
            for c in chains:
                asked[c] += length > 2
            return {c: 50e-6 if length <= 2 and c.kernel == "default" else true[c] for c in chains}

    class Warm(timing.Warmth):
        kept = 0

        def keep(self):
            self.kept += 1
    warmth = Warm(gpu)
    found = Fake(gpu, None, None).contest({}, {}, warmth, 60)     # type: ignore[arg-type]
    assert warmth.kept == 1 and found == true
    assert {c.kernel: n for c, n in asked.items()} == {"default": 16, "close": 16, "fast": 16, "behind": 7, "hopeless": 0}
    assert Fake(gpu, None, None).contest({}, {}, warmth, 0) == {Choice("default"): 50e-6}, "no time"      # type: ignore[arg-type]


def test_chains_depend_and_read_other_weights_every_time(gpu, device):
    demo = Path(tilewright.__file__).parent / "frontends" / "demo" / "tales-llama4"
    work = tuning.work_of({"decode_1": tuning.graphs_of(demo, device, 64)["decode_1"]}, device, KERNELS)
    site = next(w.site for w in work.values() if w.site.anchor.kind == "expert_matmul")
    pool = tuning.Pool(gpu, [site])
    with tuning.Rig(gpu, site, pool) as rig:
        by_name = dict(zip(site.bound, rig.ranges, strict=False))
        assert len(by_name[site.op.outputs[0]]) == 1, "every dispatch writes what the one before wrote"
        weights = [(at, at + size) for ((buffer, at, size), *_) in by_name[site.operands["w"]]]
        assert len(weights) > 10 and all(a[1] <= b[0] for a, b in pairwise(weights)) and weights[-1][1] <= pool.size
        experts = [int(gpu.read(buffer).view(np.int32)[0]) for ((buffer, _, _),) in by_name[site.operands["expert"]][:6]]
        assert experts == [0, 1, 2, 3, 0, 1]
    pool.buffer.destroy()
