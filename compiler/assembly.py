"""Put a model, compiled for a device or several, together as a package: weights into buffers, ops into dispatches over buffer ranges."""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .codegen import step_offsets
from .device import Device
from .formats import FORMATS
from .ir import Graph, GraphError, Value
from .kernel import Site
from .layouts import LAYOUTS, plane_bytes
from .ops import NUMPY, buffers_of
from .package import ALIGN, Package
from .pipeline import Compiled
from .sources import assemble, pieces_of
from .text import show

WEIGHT_BUFFER = 512 << 20       # bytes of weights in one buffer, and so in host memory at once; a larger weight has its own
Range = tuple[str, int, int]    # buffer, offset, bytes
LANGUAGE = {"packed_4x8_integer_dot_product": ("dot4I8Packed", "dot4U8Packed", "pack4x", "unpack4xI8", "unpack4xU8"),
            "subgroup_id": ("builtin(subgroup_id)",)}       # WGSL's extensions


@dataclass(frozen=True)
class Variant:
    """A model as it was compiled for one device. model: what players need to know of it, such as the sizes of its programs."""

    compiled: Compiled
    device: Device
    model: Mapping[str, Any]


def build_package(variants: Sequence[Variant], leaf: Callable[[str], np.ndarray],
                  tokenizer: Mapping[str, Any] | None = None, tokenizer_json: bytes = b"") -> Package:
    """The same model for one device or several, over one copy of the weights. leaf: the array of a weight that has no source, in any
    float dtype, or its rows as its layout's format stores them (uint8). Raises GraphError when variants store a weight in two ways."""
    values = _weights_of(variants)
    used = dict.fromkeys(n for v in variants for g in v.compiled.graphs.values() for op in g.ops for n in op.inputs if g.values[n].role == "weight")
    weights, blobs = _place_weights({n: values[n] for n in used}, min(v.device.limit("max_buffer_size") for v in variants))
    parts = sorted((_variant(v, weights, blobs) for v in variants), key=lambda part: _demands(part["device"]), reverse=True)
    model = {k: x for k, x in parts[0]["model"].items() if all(part["model"].get(k) == x for part in parts)}
    for part in parts:
        part["model"] = {k: x for k, x in part["model"].items() if k not in model}
    if tokenizer_json:
        blobs["tokenizer"] = len(tokenizer_json)
    shared: dict[str, Any] = {
        "model": model,
        "tokenizer": dict(tokenizer) if tokenizer else None,
        "weights": {n: {"shape": list(values[n].shape), "dtype": values[n].dtype, "layout": values[n].layout, "planes": planes,
                        **_quantization(values[n].layout, planes)}
                    for n, planes in weights.items()},
        "blobs": {n: {"size": size} for n, size in blobs.items()},
    }

    def array(weight: str) -> np.ndarray:
        return _typed(values[weight], assemble(weight, values, leaf))

    def blob(name: str) -> np.ndarray:
        if name == "tokenizer":
            return np.frombuffer(tokenizer_json, np.uint8)
        data = np.zeros(blobs[name], np.uint8)
        for weight, planes in weights.items():
            if planes[0][0] == name:
                packed = LAYOUTS[values[weight].layout].pack(array(weight))
                for (_, offset, size), plane in zip(planes, packed, strict=True):
                    data[offset:offset + size] = np.ascontiguousarray(plane).reshape(-1).view(np.uint8)
        return data
    seconds = sum((Counter(v.compiled.seconds) for v in variants), Counter())
    return Package(shared, parts, blob, dict(seconds), array, lambda weight: pieces_of(weight, values, leaf))


def _weights_of(variants: Sequence[Variant]) -> dict[str, Value]:
    """Every weight of any variant."""
    values: dict[str, Value] = {}
    for variant in variants:
        for graph in variant.compiled.graphs.values():
            for name, value in graph.role("weight").items():
                if values.setdefault(name, value) != value:
                    raise GraphError(f"%{name} is stored as {values[name]} for {variants[0].device.name} and as {value} for {variant.device.name}")
    return values


def _variant(variant: Variant, weights: Mapping[str, list[Range]], blobs: Mapping[str, int]) -> dict[str, Any]:
    """What the manifest says of one variant."""
    compiled, device = variant.compiled, variant.device
    states = {n: v for graph in compiled.graphs.values() for n, v in graph.role("state").items()}
    steps, arenas = _step_regions(compiled), _arenas(compiled)
    buffers = {**blobs, **{f"state.{n}": sum(_state_planes(v)[-1]) for n, v in states.items()}, **arenas,
               "step": max((start + size for start, size in steps.values()), default=0)}
    for name, size in buffers.items():
        if compiled.shaders and size > device.limit("max_buffer_size"):
            raise GraphError(f"the buffer {name} takes {size:,} bytes, but {device.name} allows {device.limit('max_buffer_size'):,}: "
                             "take a smaller context or fewer slots")
    return {
        "model": dict(variant.model),
        "device": _requirements(compiled, device, buffers),
        "states": {n: {"shape": list(v.shape), "dtype": v.dtype, "layout": v.layout} for n, v in states.items()},
        "buffers": buffers,
        "shaders": [{"wgsl": s.wgsl, "bindings": list(s.bindings), "needs": sorted(s.needs), "kernel": str(c)}
                    for s, c in zip(compiled.shaders, compiled.choices, strict=True)],
        "programs": {name: _program(name, compiled, weights, steps[name]) for name in compiled.graphs},
        "memory": {"temporaries": sum(arenas.values()), "unshared": max((m.unshared for m in compiled.memories.values()), default=0)},
    }


def _demands(needs: Mapping[str, Any]) -> tuple[int, ...]:
    """Whoever meets the greater of two can likely do more with it."""
    limits = ("max_compute_workgroup_storage_size", "max_compute_invocations_per_workgroup", "max_storage_buffers_per_shader_stage")
    return (len(needs["features"]), *(needs["limits"][name] for name in limits))


def _quantization(layout: str, planes: list[Range]) -> dict[str, Any]:
    """What a quantized weight's planes are: the packing unit and the elements of a scale, and which planes hold scales and zero points."""
    if layout not in FORMATS:
        return {}
    form, wide = FORMATS[layout], 1 + (sum(c.bits for c in FORMATS[layout].codes.values()) in (5, 6))
    return {"quantization": {"format": layout, "blockSize": LAYOUTS[layout].block, "groupSize": form.elements, "scales": wide,
                             "zeroPoints": len(planes) - 1 if "z" in (form.record.names or ()) else None}}


def _typed(value: Value, array: np.ndarray) -> np.ndarray:
    stored = array.dtype == np.uint8 and value.layout != "row"      # rows in the bytes of a format
    if (array.shape[:-1] if stored else array.shape) != (value.shape[:-1] if stored else value.shape):
        raise ValueError(f"a weight has the shape {list(array.shape)} where the model needs {list(value.shape)}")
    return array.astype(NUMPY[value.dtype], copy=False) if value.layout == "row" else array


def _padded(value: Value) -> int:
    return -(-sum(plane_bytes(value.shape, value.dtype, value.layout)) // 4) * 4


def _state_planes(value: Value) -> list[tuple[int, int]]:
    """Offset and bytes of every plane of a state in its buffer."""
    places, at = [], 0
    for size in plane_bytes(value.shape, value.dtype, value.layout):
        places.append((at, -(-size // 4) * 4))
        at += -(-size // ALIGN) * ALIGN
    return places


def _place_weights(values: Mapping[str, Value], limit: int) -> tuple[dict[str, list[Range]], dict[str, int]]:
    """Ranges of every weight's planes, and the size of every weight buffer; limit: bytes that a buffer may have."""
    places: dict[str, list[Range]] = {}
    sizes: dict[str, int] = {}
    most = min(WEIGHT_BUFFER, limit)
    name, at = "weights.0", 0
    for weight, value in values.items():
        planes = plane_bytes(value.shape, value.dtype, value.layout)
        total = sum(-(-b // ALIGN) * ALIGN for b in planes)
        if at and at + total > most:
            name, at = f"weights.{len(sizes)}", 0
        places[weight] = []
        for size in planes:
            places[weight].append((name, at, size))
            at += -(-size // ALIGN) * ALIGN
        sizes[name] = at
    return places, sizes


def _arenas(compiled: Compiled) -> dict[str, int]:
    """Programs run one after the other, so they share arenas."""
    most: dict[str, int] = {}
    for memory in compiled.memories.values():
        for i, size in enumerate(memory.arenas):
            most[f"arena.{i}"] = max(most.get(f"arena.{i}", 0), size)
    return most


def _requirements(compiled: Compiled, device: Device, buffers: Mapping[str, int]) -> dict[str, Any]:
    """What a device must offer to play it: what is used, whatever more the device has that it was compiled for. The workgroups of a
    dimension, 65,535 of which every device allows, are no more than that here. tuned: for how many of its distinct ops tuning chose."""
    shaders = compiled.shaders
    features = sorted({f for s in shaders for f in s.needs})
    sites = [Site(graph, op, device) for name, graph in compiled.graphs.items() if name in compiled.memories for op in graph.ops]
    sizes = [b for site in sites for n in site.bound
             for b in plane_bytes(site.values[n].shape, site.values[n].dtype, site.values[n].layout)]
    tuned = {site.signature for site in sites if device.tuned.get(site.signature) == site.op.choice} if device.tuned else ()
    threads = max((s.threads for s in shaders), default=0)
    limits = {"max_buffer_size": max(buffers.values(), default=0),
              "max_storage_buffer_binding_size": max(sizes, default=0),
              "max_storage_buffers_per_shader_stage": max((len(s.bindings) for s in shaders), default=0),
              "max_compute_workgroup_storage_size": max((s.workgroup_bytes for s in shaders), default=0),
              "max_compute_invocations_per_workgroup": threads,
              "max_compute_workgroup_size_x": threads}
    language = sorted(name for name, words in LANGUAGE.items() if any(word in s.wgsl for s in shaders for word in words))
    matrices = [str(m) for m in device.matrices if any(m.left in s.wgsl for s in shaders)]
    return {"name": device.name, "features": features, "matrices": matrices, "language": language, "limits": limits,
            "subgroup_size": device.subgroup_size if "subgroups" in features else 0, "tuned": len(tuned)}


def _step_regions(compiled: Compiled) -> dict[str, tuple[int, int]]:
    """Every program's own bytes of the step buffer, so that one submission may play several."""
    at, regions = 0, {}
    for name, graph in compiled.graphs.items():
        size = 4 * sum(v.size for v in graph.role("input").values())
        regions[name] = (at, size)
        at += -(-size // ALIGN) * ALIGN
    return regions


def _program(name: str, compiled: Compiled, weights: Mapping[str, list[Range]], region: tuple[int, int]) -> dict[str, Any]:
    graph = compiled.graphs[name]
    offsets = step_offsets(graph.values)
    home = buffers_of(graph)
    dispatches = []
    for op, (shader, grid) in zip(graph.ops, compiled.calls.get(name, ()), strict=False):
        site = Site(graph, op, Device("any"))
        ranges = [r for n in site.bound for r in _ranges(graph, home[n], compiled, name, weights)]
        dispatches.append({"shader": shader, "grid": list(grid), "bindings": [*ranges, *([("step", *region)] if site.steps else [])]})
    return {"graph": show(_as_stored(graph)), "step": {n: [offsets[n], list(graph.values[n].shape)] for n in offsets},
            "region": list(region), "dispatches": dispatches}


def _as_stored(graph: Graph) -> Graph:
    """The graph over the weights that the package holds: joined ones have no source any more."""
    read = {n for op in graph.ops for p in op.parts for n in p.inputs}
    kept = {n: v for n, v in graph.values.items() if v.role != "weight" or n in read}
    return graph.with_values({n: replace(v, source=()) if v.role == "weight" else v for n, v in kept.items()})


def _ranges(graph: Graph, name: str, compiled: Compiled, program: str, weights: Mapping[str, list[Range]]) -> list[Range]:
    value = graph.values[name]
    if value.role == "weight":
        return [(buffer, offset, max(4, -(-size // 4) * 4)) for buffer, offset, size in weights[name]]
    if value.role == "state":
        return [(f"state.{name}", offset, size) for offset, size in _state_planes(value)]
    place = compiled.memories[program].places[name]
    return [(f"arena.{place.arena}", place.offset, _padded(value))]
