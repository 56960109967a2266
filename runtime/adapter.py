"""Lists the GPU adapters of this machine, best first, and picks one by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

# wgpu calls a virtual GPU "Unknown", which any other kind name falls to as well.
KINDS = ("DiscreteGPU", "IntegratedGPU", "Unknown", "CPU")


class DeviceError(Exception):
    """What went wrong with an adapter or a device, in one sentence."""


@dataclass(frozen=True)
class AdapterInfo:
    name: str
    backend: str  # "Vulkan", "Metal", "D3D12", "OpenGL"
    kind: str  # one of KINDS
    driver: str
    features: frozenset[str]  # WebGPU's names: "shader-f16", "subgroups", ...
    limits: dict[str, int] = field(hash=False)  # snake case: max_buffer_size, ...
    handle: Any = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.name} ({self.backend}, {self.kind}, {self.driver})"


def webgpu_name(feature: str) -> str:
    """WebGPU's name of a feature that wgpu may spell in its own way."""
    return "subgroups" if feature == "subgroup" else feature


def adapters() -> list[AdapterInfo]:
    """Every adapter, best first; an empty list where there is no driver or no wgpu library."""
    # Mesa's device-select layer only reorders adapters, which is done here too, and complains on stderr where there is no display.
    os.environ.setdefault("NODEVICE_SELECT", "1")
    try:
        import wgpu  # here and not above: what needs no GPU must work where the library cannot be loaded

        found = [_describe(handle) for handle in wgpu.gpu.enumerate_adapters_sync()]
    except Exception:  # whatever a missing loader or a broken driver raises, the answer is that there is nothing to use
        return []
    return sorted(_without_doubles(found), key=_rank)


def pick(name: str = "auto", among: Sequence[AdapterInfo] | None = None) -> AdapterInfo:
    """The best adapter, or the best whose name contains `name`, in any case. among: what `adapters` gave."""
    found = adapters() if among is None else among
    if not found:
        raise DeviceError(
            "no GPU adapter found: a Vulkan, Metal or Direct3D 12 driver is needed (on Linux, mesa-vulkan-drivers has a software one)"
        )
    matching = found if name == "auto" else [adapter for adapter in found if name.lower() in adapter.name.lower()]
    if not matching:
        raise DeviceError(f"no adapter named '{name}'; there are: {', '.join(str(adapter) for adapter in found)}")
    return matching[0]


def _describe(handle: Any) -> AdapterInfo:
    info = handle.info
    return AdapterInfo(
        name=info["device"],
        backend=info["backend_type"],
        kind=info["adapter_type"],
        driver=info["description"],
        features=frozenset(webgpu_name(feature) for feature in handle.features),
        limits={name.replace("-", "_"): int(value) for name, value in handle.limits.items()},
        handle=handle,
    )


def _without_doubles(found: list[AdapterInfo]) -> list[AdapterInfo]:
    """Drops an OpenGL adapter that is also there under a better backend; OpenGL adds words behind the name ("NVIDIA H200/PCIe/SSE2")."""
    better = [adapter.name for adapter in found if not _is_opengl(adapter)]
    return [a for a in found if not (_is_opengl(a) and any(a.name.startswith(name) for name in better))]


def _is_opengl(adapter: AdapterInfo) -> bool:
    return adapter.backend.startswith("OpenGL")


def _rank(adapter: AdapterInfo) -> tuple[int, bool]:
    kind = adapter.kind if adapter.kind in KINDS else "Unknown"
    return KINDS.index(kind), _is_opengl(adapter)
