"""Fixtures that all tests share: the machine's GPU, and what the compiler knows of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tilewright.compiler.device import device_for
from tilewright.runtime.adapter import adapters, pick


@pytest.fixture(scope="session", autouse=True)
def no_records_of_the_user(tmp_path_factory):
    """What someone measured on this machine decides nothing in tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MESA_SHADER_CACHE_DIR", os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")))      # is not to start empty
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


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
