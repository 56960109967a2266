"""Whether a device can play a package, which of its variants, and what it lacks if none."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..compiler.package import Package
from .adapter import DeviceError
from .gpu import Gpu


def playable(package: Package, gpu: Gpu) -> Package:
    """The package with the first variant chosen that the device meets. Raises DeviceError saying what it lacks for the last, which asks
    for least."""
    for number, variant in enumerate(package.variants):
        if not lacks(variant["device"], gpu):
            return package.variant(number)
    check_requirements(package.variants[-1]["device"], gpu, [variant["device"]["name"] for variant in package.variants[:-1]])
    return package


def check_requirements(needs: Mapping[str, Any], gpu: Gpu, others: list[str] | None = None) -> None:
    """Raise DeviceError naming what the package was compiled for and what this device lacks. others: variants that ask for more."""
    if missing := lacks(needs, gpu):
        names = f"{', '.join(others)} and {needs['name']}" if others else needs["name"]
        raise DeviceError(f"the package was compiled for {names} and {gpu.info.name} lacks {'; '.join(missing)}"
                          f"{' for the last' if others else ''}: compile the model for this device")


def lacks(needs: Mapping[str, Any], gpu: Gpu) -> list[str]:
    """What a variant needs and the device does not have, as phrases."""
    missing = [f"the feature {f}" for f in needs["features"] if f not in gpu.features]
    missing += [f"{name.removeprefix('max_').replace('_', ' ')} of {least:,} (it has {gpu.limits.get(name, 0):,})"
                for name, least in needs["limits"].items() if least > gpu.limits.get(name, 0)]
    if not missing and needs["subgroup_size"] and needs["subgroup_size"] != gpu.subgroup_size:
        missing.append(f"subgroups of {needs['subgroup_size']} (it has {gpu.subgroup_size})")
    return missing
