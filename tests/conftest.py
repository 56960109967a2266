"""Fixtures that all tests share: the machine's GPU, and what the compiler knows of it."""

from __future__ import annotations

import pytest
from tilewright.compiler.device import device_for
from tilewright.runtime.adapter import adapters, pick


@pytest.fixture(scope="session")
def gpu():
    if not adapters():
        pytest.skip("no GPU adapter, not even a software one")
    from tilewright.runtime.gpu import Gpu  # needs the wgpu library, which the adapter's absence may be due to

    opened = Gpu(pick("auto"))
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def device(gpu):
    return device_for(gpu.info.name, gpu.features, gpu.limits, gpu.subgroup_size)
