"""The kernels that measure arithmetic do all the work that is counted."""
from __future__ import annotations

import numpy as np
import pytest
from tilewright.bench import probing

WORDS = np.random.default_rng(3).integers(0, 1 << 32, (16, 4), np.uint32)


@pytest.fixture(scope="module")
def rig(gpu):
    made = probing.Rig(gpu)
    yield made
    made.close()


def results(rig: probing.Rig, kind: probing.Arithmetic, words: np.ndarray, turns: int) -> np.ndarray:
    """What the first 16 invocations leave, each of which reads other words, as bytes of u32; all others leave the same."""
    rig.gpu.write(rig.pool, 0, words)
    rig.gpu.submit([rig.gpu.replay([rig.products(kind, turns)])])
    found = rig.gpu.read(rig.out).view(np.uint32).reshape(-1, 16)
    assert len(found) == rig.groups * probing.GROUP // 16 and (found == found[0]).all()
    return found[0]


@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_as_many_floats_are_added_as_are_counted(rig, gpu, kind):
    """With factors and summands of one a chain counts its steps; half of what is counted are additions."""
    if kind == "F16" and "shader-f16" not in gpu.features:
        pytest.skip("the adapter has no f16")
    arithmetic, ones = getattr(probing, kind), np.full((16, 4), 0xffffffff, np.uint32)
    begun, ended = (results(rig, arithmetic, ones, turns).view(np.float32) for turns in (0, 25))
    np.testing.assert_array_equal(ended - begun, 25 * arithmetic.operations / 2)


@pytest.mark.parametrize("kind", ["PACKED", "UNPACKED"])
def test_as_many_bytes_are_multiplied_as_are_counted(rig, kind):
    """Every product depends on the one before, so one that is left out would change the result; few enough that f32 is exact."""
    arithmetic, dtype = getattr(probing, kind), {"PACKED": np.int32, "UNPACKED": np.float32}[kind]
    chains = [np.full(16, i + 1, dtype) for i in range(probing.CHAINS)]
    for _ in range(arithmetic.operations // (8 * len(chains)) * 3):
        chains = [s + (s.view(np.int8).reshape(16, 4).astype(np.int32) * WORDS[:, i % 4, None].copy().view(np.int8)).sum(1).astype(dtype)
                  for i, s in enumerate(chains)]
    np.testing.assert_array_equal(results(rig, arithmetic, WORDS, 3).view(dtype), sum(chains))


def test_rates_count_the_time_of_that_work(rig, monkeypatch):
    """Operations of all invocations over the seconds of a dispatch, the best of growing ones until they take long enough."""
    took, turns = iter((1e-3, 1.9e-3, 4e-3)), []
    monkeypatch.setattr(rig, "products", lambda kind, count: turns.append(count))
    monkeypatch.setattr(rig, "seconds", lambda dispatches, runs: next(took))
    assert rig.rate(probing.F32) == rig.groups * probing.GROUP * turns[-1] * probing.F32.operations / 4e-3
    assert turns[2] == 4 * turns[1] == 16 * turns[0]
