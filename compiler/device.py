"""What the compiler knows of a GPU: one record, read from devices/NAME.toml or made from an adapter's answers."""
from __future__ import annotations

import json
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from .ir import Choice

# products of small matrices by a subgroup; Chromium and Dawn have them behind a switch
# (https://github.com/gpuweb/gpuweb/blob/main/proposals/subgroup-matrix.md)
MATRICES = "chromium-experimental-subgroup-matrix"

# WebGPU's guaranteed limits (https://www.w3.org/TR/webgpu/#limits); sizes in bytes
DEFAULT_LIMITS = {
    "max_buffer_size": 256 << 20,
    "max_storage_buffer_binding_size": 128 << 20,
    "max_storage_buffers_per_shader_stage": 8,
    "max_compute_workgroup_storage_size": 16384,
    "max_compute_invocations_per_workgroup": 256,
    "max_compute_workgroup_size_x": 256,
    "max_compute_workgroups_per_dimension": 65535,
}

MEASURED = ("bandwidth", "launch", "flops", "width")


@dataclass(frozen=True)
class Matrices:
    """A product that a subgroup computes at once, result[m, n] += left[m, k] @ right[k, n]: its sizes, and the WGSL types of what is
    multiplied and summed. Written as f16:f32:16x16x16."""

    component: str
    result: str
    m: int
    n: int
    k: int

    @property
    def left(self) -> str:
        """The WGSL type of the left operand."""
        return f"subgroup_matrix_left<{self.component}, {self.k}, {self.m}>"

    @property
    def right(self) -> str:
        return f"subgroup_matrix_right<{self.component}, {self.n}, {self.k}>"

    @property
    def sums(self) -> str:
        """The WGSL type of the result."""
        return f"subgroup_matrix_result<{self.result}, {self.n}, {self.m}>"

    def __str__(self) -> str:
        return f"{self.component}:{self.result}:{self.m}x{self.n}x{self.k}"

    @staticmethod
    def read(text: str) -> Matrices:
        """Raises ValueError for what is not written so."""
        if not (found := re.fullmatch(r"(\w+):(\w+):(\d+)x(\d+)x(\d+)", text)):
            raise ValueError(f"'{text}' is no product of matrices; write it as f16:f32:16x16x16, the sizes m, n and k")
        return Matrices(found[1], found[2], *(int(n) for n in found.groups()[2:]))


@dataclass(frozen=True)
class Device:
    """What a device can do and what was measured on it.

    features: WebGPU names (shader-f16, subgroups); subgroup_size: measured, 0 when subgroups vary or are missing;
    bandwidth: bytes/s read from memory; launch: s a dependent dispatch; flops: f32 FLOP/s;
    width: invocations that run at once (cost model, split-KV); packed_dot: whether dot4I8Packed is faster than f32;
    f16_flops, packed_ops: FLOP/s in f16 and operations/s by dot4I8Packed, 0 where nobody measured them (reports only);
    matrices: the products of small matrices that it offers with the feature MATRICES, which browsers alone do;
    tuned: op signature to the choice that tuning found best.
    """

    name: str
    match: str = ""
    features: frozenset[str] = frozenset()
    limits: Mapping[str, int] = field(default_factory=lambda: dict(DEFAULT_LIMITS))
    subgroup_size: int = 0
    bandwidth: float = 100e9
    launch: float = 5e-6
    flops: float = 2e12
    width: int = 16384
    packed_dot: bool = False
    f16_flops: float = 0.0
    packed_ops: float = 0.0
    matrices: tuple[Matrices, ...] = ()
    tuned: Mapping[str, Choice] = field(default_factory=dict)

    def limit(self, name: str) -> int:
        return self.limits.get(name, DEFAULT_LIMITS[name])

    @property
    def subgroups(self) -> bool:
        return "subgroups" in self.features and self.subgroup_size > 0

    @property
    def f16_matrices(self) -> Matrices | None:
        """The product of f16 matrices that sums in f32, if there is one; by quads, as kernels keep its operands."""
        fitting = (m for m in self.matrices if (m.component, m.result) == ("f16", "f32") and not (m.m % 4 or m.n % 4 or m.k % 4))
        return next(fitting, None) if self.subgroups else None

    def without(self, *features: str) -> Device:
        """The same device as if it lacked some features."""
        left = self.features - set(features)
        return replace(self, features=left, subgroup_size=self.subgroup_size if "subgroups" in left else 0,
                       matrices=self.matrices if MATRICES in left else ())


def with_least_storage(devices: Sequence[Device]) -> list[Device]:
    """The devices as if none had larger buffers and bindings than another, so that all cut weights alike."""
    least = {name: min(d.limit(name) for d in devices) for name in ("max_buffer_size", "max_storage_buffer_binding_size")}
    return [replace(d, limits={**d.limits, **least}) for d in devices]


# plays graphs in numpy; nothing is generated for it
REFERENCE = Device("reference", features=frozenset({"shader-f16"}))


def read_device(path: Path) -> Device:
    """A record from a TOML file. Raises ValueError naming the file and what is wrong."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        tuned = {key: _choice(text) for key, text in data.pop("tuned", {}).items()}
        limits = DEFAULT_LIMITS | data.pop("limits", {})
        matrices = tuple(map(Matrices.read, data.pop("matrices", ())))
        re.compile(data.get("match", ""))
        if wrong := [k for k in MEASURED if not (isinstance(data.get(k, 1), (int, float)) and data.get(k, 1) > 0)]:
            raise ValueError(f"{wrong[0]} is {data[wrong[0]]!r}, not a number above 0")
        return Device(**{**data, "features": frozenset(data.get("features", ())), "limits": limits, "matrices": matrices, "tuned": tuned})
    except (OSError, TypeError, ValueError, re.error) as err:
        raise ValueError(f"{path} is no device record: {err}") from err


def _choice(text: str) -> Choice:
    if not (m := re.fullmatch(r"(\w+)\((.*)\)", text)):
        raise ValueError(f"'{text}' is no choice; write it as kernel(name=1, name=2)")
    pairs = (p.split("=") for p in m[2].split(", ") if p)
    return Choice(m[1], tuple((k, int(v)) for k, v in pairs))


def write_device(device: Device, note: str = "") -> str:
    """The record as TOML, under a comment."""
    lines = [*(f"# {line}" for line in note.splitlines()), f"name = {_quoted(device.name)}", f"match = {_quoted(device.match)}",
             f"features = {json.dumps(sorted(device.features))}",
             *(f"{k} = {getattr(device, k)!r}" for k in ("subgroup_size", *MEASURED, "f16_flops", "packed_ops")),
             f"packed_dot = {str(device.packed_dot).lower()}", f"matrices = {json.dumps([str(m) for m in device.matrices])}",
             "", "[limits]", *(f"{k} = {v}" for k, v in device.limits.items())]
    if device.tuned:
        lines += ["", "[tuned]", *(f"{_quoted(key)} = {_quoted(str(choice))}" for key, choice in device.tuned.items())]
    return "\n".join(lines) + "\n"


def save_device(device: Device, path: Path, note: str = "") -> None:
    """Write a record, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(write_device(device, note), encoding="utf-8")
    part.replace(path)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)     # the escapes of a JSON string are TOML's


def user_folder() -> Path:
    """Where records measured on this machine are kept: `tilewright` in the user's cache folder, which XDG_CACHE_HOME names if it is set."""
    home = Path.home()
    fallback = {"darwin": home / "Library" / "Caches", "win32": Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))}
    return Path(os.environ.get("XDG_CACHE_HOME") or fallback.get(sys.platform, home / ".cache")) / "tilewright" / "devices"


def user_file(adapter: str) -> Path:
    """The user's record of an adapter."""
    return user_folder() / f"{re.sub(r'[^a-z0-9]+', '-', adapter.lower()).strip('-')}.toml"


def user_devices() -> list[Device]:
    """Raises ValueError naming a file that is no record."""
    try:
        return [read_device(p) for p in sorted(user_folder().glob("*.toml"))]
    except ValueError as err:
        raise ValueError(f"{err}; delete it, or measure again with tilewright probe") from err


def shipped_devices() -> list[Device]:
    return [read_device(p) for p in sorted((Path(__file__).parent / "devices").glob("*.toml"))]


def device_for(name: str, features: Iterable[str], limits: Mapping[str, int], subgroup_size: int,
               records: Iterable[Device] | None = None) -> Device:
    """The record for an adapter: its own features and limits, with what a matching record has measured, by default the user's
    before those that come with the package. Raises ValueError naming a file that is no record."""
    records = (*user_devices(), *shipped_devices()) if records is None else records
    known = next((d for d in records if d.match and re.search(d.match, name, re.I)), Device(name))
    return replace(known, name=name, features=frozenset(features), limits={k: limits.get(k, v) for k, v in DEFAULT_LIMITS.items()},
                   subgroup_size=subgroup_size, matrices=known.matrices if MATRICES in features else ())
