"""Packages for several devices: every variant plays, weights lie there once, and what a variant asks for is what it uses."""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tilewright
from tilewright import DeviceError, GraphError, PackageError
from tilewright.api import compile_for, open_checkpoint, targets
from tilewright.bench.shapes import synthetic
from tilewright.compiler.device import DEFAULT_LIMITS, write_device
from tilewright.runtime.generate import Model
from tilewright.runtime.player import GpuPlayer
from tilewright.runtime.requirements import playable

TRUTH = Path(__file__).parent / "data" / "truth"
F16_SUBGROUPS, DEFAULT = targets("web")


@pytest.fixture(scope="module")
def web(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("packages") / "web.wgpu-llama"
    tilewright.compile(TRUTH / "llama4", device="web").save(path)
    return path


@pytest.fixture(scope="module", params=["llama", "llama4"])
def mixed(request, device):
    """Compiled for this machine's subgroups, for browsers that have them, and for all browsers; and the truth. Activations are stored in
    f16 where that is possible."""
    folder = TRUTH / request.param
    here = replace(F16_SUBGROUPS, name="here", subgroup_size=device.subgroup_size)
    return compile_for(open_checkpoint(folder), [DEFAULT, here, F16_SUBGROUPS], dtype="f16"), np.load(folder / "truth.npz")


def test_every_variant_plays_as_the_truth_says(mixed, gpu):
    package, truth = mixed
    assert [v["device"]["name"] for v in package.variants] == ["here", "web-f16-subgroups", "web-default"], "the most demanding first"
    for name, most in (("here", 1e-5), ("web-default", 1e-9)):
        if name == "here" and not {"shader-f16", "subgroups"} <= gpu.features:
            continue
        chosen = package.variant_for(name)
        model = Model(chosen, GpuPlayer(chosen, gpu), None)
        assert model.info["dtype"] == ("f16" if name == "here" else "f32")
        got, want = model.logits(truth["token_ids"]), truth["logits"]
        assert ((got - want) ** 2).sum() / (want**2).sum() <= most, name
        model.close()


def test_every_variant_means_the_same_in_numpy(mixed):
    package, truth = mixed
    ids = truth["token_ids"][:24]
    for number in range(3):
        chosen = package.variant(number)
        got = Model(chosen, tilewright.api.ReferencePlayer(chosen), None).logits(ids)
        assert ((got - truth["logits"][:24]) ** 2).sum() / (truth["logits"][:24] ** 2).sum() <= 1e-5


def test_weights_lie_in_the_file_once(web, tmp_path):
    alone = tilewright.compile(TRUTH / "llama4", device="web-default")
    both = tilewright.open_package(web)
    assert both.shared["blobs"].keys() == alone.shared["blobs"].keys()
    assert both.shared["weights"] == json.loads(json.dumps(alone.shared["weights"]))
    for name, blob in alone.shared["blobs"].items():
        assert both.shared["blobs"][name]["size"] == blob["size"]
        np.testing.assert_array_equal(both.blob(name), alone.blob(name))
    alone.save(tmp_path / "alone.wgpu-llama")
    sizes = web.stat().st_size, (tmp_path / "alone.wgpu-llama").stat().st_size
    header = sizes[1] - sum(b["size"] for b in alone.shared["blobs"].values())
    assert 0 < sizes[0] - sizes[1] < 1.2 * header, "another variant is text only"


def test_weights_of_devices_with_other_limits_are_cut_alike():
    small = replace(DEFAULT, name="small", limits={**DEFAULT_LIMITS, "max_storage_buffer_binding_size": 16384})
    package = compile_for(open_checkpoint(TRUTH / "llama4"), [F16_SUBGROUPS, small], context=16)
    for variant in package.variants:
        assert largest_binding(variant) <= 16384
    assert any(".rows" in name for name in package.shared["weights"])


def largest_binding(variant: dict) -> int:
    return max(size for program in variant["programs"].values() for d in program["dispatches"] for _, _, size in d["bindings"])


def test_an_8b_model_fits_the_least_that_browsers_guarantee():
    package = compile_for(synthetic("8b", "q4_0", layers=2, empty=True), targets("web"), context=8192)
    assert [v["device"]["name"] for v in package.variants] == ["web-f16-subgroups", "web-default"]
    for variant in package.variants:
        needs = variant["device"]
        assert all(least <= DEFAULT_LIMITS[name] for name, least in needs["limits"].items())
        assert largest_binding(variant) <= 128 << 20 and max(variant["buffers"].values()) <= 256 << 20
        assert needs["language"] == ["packed_4x8_integer_dot_product"]
        assert all(at % 256 == 0 for p in variant["programs"].values() for d in p["dispatches"] for _, at, _ in d["bindings"])
        assert all("enable" not in shader["wgsl"] for shader in variant["shaders"])
    used = [any("subgroupAdd" in shader["wgsl"] for shader in variant["shaders"]) for variant in package.variants]
    assert used == [True, False] and package.variants[1]["device"]["features"] == []


def test_a_buffer_above_the_limit():
    with pytest.raises(GraphError, match="allows 300,000: take a smaller context"):
        compile_for(open_checkpoint(TRUTH / "llama"), replace(DEFAULT, limits={**DEFAULT_LIMITS, "max_buffer_size": 300_000}))


def test_a_variant_asks_for_what_it_uses_alone(device):
    """Not for what the device has that it was compiled for, so that others play it."""
    rich = replace(device, features=device.features | {"shader-f16", "subgroups"}, limits={**device.limits, "max_buffer_size": 1 << 40})
    needs = compile_for(open_checkpoint(TRUTH / "llama"), rich.without("subgroups")).manifest["device"]
    assert needs["features"] == [] and needs["subgroup_size"] == 0
    assert needs["limits"]["max_buffer_size"] < 1 << 26
    assert needs["limits"]["max_compute_workgroup_size_x"] == needs["limits"]["max_compute_invocations_per_workgroup"]


def test_a_gpu_takes_the_first_variant_that_it_meets(web, gpu, mixed):
    package = tilewright.open_package(web)
    wanted = "web-f16-subgroups" if gpu.subgroup_size == 32 else "web-default"
    assert playable(package, gpu).manifest["device"]["name"] == wanted
    model = tilewright.load(web)
    truth = np.load(TRUTH / "llama4" / "truth.npz")
    assert np.abs(model.logits(truth["token_ids"]) - truth["logits"]).max() <= 1e-3
    model.close()
    if {"shader-f16", "subgroups"} <= gpu.features:
        assert playable(mixed[0], gpu).manifest["device"]["name"] == "here"


def test_a_gpu_that_meets_no_variant_is_told_why(web, gpu):
    package = tilewright.open_package(web)
    for variant in package.variants:
        variant["device"]["features"].append("warp-drive")
    with pytest.raises(DeviceError, match=r"compiled for web-f16-subgroups and web-default and .* lacks the feature warp-drive for the last: "
                                          r"compile the model for this device"):
        playable(package, gpu)


def test_a_variant_that_is_not_there(web):
    with pytest.raises(PackageError, match="no variant for 'x'; it has: web-f16-subgroups, web-default"):
        tilewright.open_package(web).variant_for("x")


def test_names_of_targets(tmp_path, device):
    (tmp_path / "probed.toml").write_text(write_device(replace(device, name="probed")))
    assert [d.name for d in targets(f"web, {tmp_path / 'probed.toml'},web-default")] == ["web-f16-subgroups", "web-default", "probed"]
    with pytest.raises(DeviceError, match="stands alone"):
        targets("web,reference")
    with pytest.raises(ValueError, match="is no device record"):
        targets(str(tmp_path / "nowhere.toml"))
