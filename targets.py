"""What to compile for, by name: adapters of this machine, and device profiles, which need no such device."""
from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from .compiler.device import MATRICES, REFERENCE, Device, device_for, read_device, shipped_devices, user_devices
from .frontends.checkpoint import CheckpointError
from .runtime.adapter import DeviceError, adapters, pick
from .runtime.gpu import Gpu

WEB = ("web-f16-subgroups", "web-default")      # what "web" means: most browsers on most GPUs, and every one


def open_gpu(device: str) -> Gpu | None:
    """The GPU that a `device` argument means; None for the numpy reference, which "auto" falls back to with a word on stderr."""
    if device == "reference" or os.environ.get("TILEWRIGHT_REFERENCE") == "1":
        return None
    found = adapters()
    if device == "auto" and not found:
        print("tilewright: no GPU adapter was found, so the numpy reference plays (slowly); install a Vulkan, Metal or D3D12 driver, "
              "on Debian without a GPU: apt install mesa-vulkan-drivers libvulkan1", file=sys.stderr)
        return None
    return Gpu(pick(device, found))


def record_of(gpu: Gpu | None, activations: str | None = None) -> Device:
    """The compiler's record of a device; with activations "f32" or "q8", as if it multiplied those best."""
    record = REFERENCE if gpu is None else device_for(gpu.info.name, gpu.features, gpu.limits, gpu.subgroup_size)
    return _multiplying(record, activations)


def _multiplying(record: Device, activations: str | None) -> Device:
    if activations not in (None, "f32", "q8"):
        raise CheckpointError(f"unknown activations '{activations}'; known: f32, q8")
    if not activations or record is REFERENCE:
        return record
    return replace(record.without(MATRICES) if activations == "q8" else record, packed_dot=activations == "q8")


def targets(names: str, activations: str | None = None) -> list[Device]:
    """The records of one name, or of several with commas between them: "auto", a part of an adapter's name, "reference", a profile, a TOML
    file of a device, "web". Raises DeviceError for a name that is none of these, ValueError for a bad file."""
    found: dict[str, Device] = {}
    for name in (part for given in names.split(",") for part in (WEB if given.strip().lower() == "web" else (given.strip(),))):
        record = _multiplying(_record(name), activations)
        found.setdefault(record.name, record)
    if len(found) > 1 and REFERENCE.name in found:
        raise DeviceError("a model for the reference device is not compiled, so that device stands alone: leave it out")
    return list(found.values())


def _record(name: str) -> Device:
    if name.endswith(".toml"):
        return read_device(Path(name))
    profiles = {d.name.lower(): d for d in (*shipped_devices(), *user_devices())}
    try:
        gpu = open_gpu(name)
    except DeviceError as error:
        if name.lower() not in profiles:
            raise DeviceError(f"{error}; device profiles: {', '.join(d.name for d in profiles.values())}, and web for those of browsers") from None
        return profiles[name.lower()]
    try:
        return record_of(gpu)
    finally:
        if gpu:
            gpu.close()
