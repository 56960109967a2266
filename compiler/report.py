"""What there is to tell of a compiled model, and of one op on its way through the compiler: records, tables and text."""
from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from .caches import caches, spans
from .codegen import render
from .device import Device
from .ir import Graph, GraphError, Op
from .kernel import Kernel, Site
from .ops import OPS
from .package import Package
from .passes.tiling import candidates, exceeds
from .text import show_op

SHOWN = 12              # schedules of a long list that are worth a line
OUTSIDE = -1            # the layer of an op that belongs to none

Table = tuple[str, tuple[str, ...], list[tuple[Any, ...]]]      # title, columns, rows
Stages = Sequence[tuple[str, Graph]]                            # one program after every pass
Record = dict[str, Any]


# ---- a whole package

def describe(package: Package) -> Record:
    """A package in numbers: plain data, as `inspect --json` prints it."""
    manifest = package.manifest
    programs, shaders = manifest["programs"], manifest["shaders"]
    return {
        "model": manifest["model"],
        "device": manifest["device"],
        "variants": [{**v["device"], "shaders": len(v["shaders"]), "temporaries": v["memory"]["temporaries"]} for v in package.variants],
        "programs": {name: {"dispatches": len(p["dispatches"]), "shaders": len({d["shader"] for d in p["dispatches"]})}
                     for name, p in programs.items()},
        "shaders": len(shaders),
        "decode": _decode(package),
        "kernels": _kernels(shaders, programs, _decode(package)["program"]),
        "weights": _weights(manifest["weights"]),
        "states": _states(manifest),
        "caches": caches(package),
        "memory": {**manifest["memory"], "step": manifest["buffers"]["step"], "weights": sum(t["bytes"] for t in _tensors(manifest)),
                   "states": sum(s["bytes"] for s in _states(manifest))},
        "tensors": _tensors(manifest),
    }


def _decode(package: Package) -> Record:
    """The dispatches of a decode step: in all, of every layer, and outside the layers."""
    name = next((n for n in package.manifest["programs"] if n.startswith("decode")), None)
    if name is None or not package.manifest["programs"][name]["dispatches"]:
        return {"program": name, "dispatches": 0, "layers": [], "outside": 0}
    graph = package.graph(name)
    counts = Counter(_layers(graph))
    return {"program": name, "dispatches": len(graph.ops), "outside": counts[OUTSIDE],
            "layers": [n for layer, n in sorted(counts.items()) if layer != OUTSIDE]}


def _layers(graph: Graph) -> Iterator[int]:
    """The layer of every op: that of the layer's weights or states that it reads, else of the op before it."""
    layer, readers = OUTSIDE, graph.readers()
    for op in graph.ops:
        found = [int(m[1]) for n in op.inputs if (m := re.match(r"layers\.(\d+)\.", n))]
        alone = any(graph.values[n].role == "weight" and len(readers[n]) == 1 for n in op.inputs)    # such as the last norm
        layer = found[0] if found else OUTSIDE if alone else layer
        yield layer


def _kernels(shaders: list[Record], programs: Record, decode: str) -> dict[str, Record]:
    """By kernel: its shaders, and its dispatches in a decode step and in one run of every program."""
    found: dict[str, Record] = {}
    for number, shader in enumerate(shaders):
        uses = {name: sum(d["shader"] == number for d in p["dispatches"]) for name, p in programs.items()}
        entry = found.setdefault(shader["kernel"].split("(")[0], {"shaders": 0, "decode": 0, "all": 0})
        entry["shaders"] += 1
        entry["decode"] += uses.get(decode, 0)
        entry["all"] += sum(uses.values())
    return dict(sorted(found.items(), key=lambda item: (-item[1]["decode"], -item[1]["all"])))


def _weights(weights: Record) -> dict[str, Record]:
    """By layout: tensors, elements, bytes, bits an element."""
    found: dict[str, Record] = {}
    for weight in weights.values():
        entry = found.setdefault(_format(weight), {"tensors": 0, "elements": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["elements"] += math.prod(weight["shape"])
        entry["bytes"] += sum(size for _, _, size in weight["planes"])
    return {name: {**entry, "bits": 8 * entry["bytes"] / entry["elements"]} for name, entry in found.items()}


def _format(weight: Record) -> str:
    return weight["dtype"] if weight["layout"] == "row" else weight["layout"]


def _states(manifest: Record) -> list[Record]:
    """Caches and other states, those of all layers that are alike in one entry."""
    groups: dict[tuple, int] = Counter()
    for name, state in manifest["states"].items():
        groups[re.sub(r"\.\d+\.", ".*.", name), state["dtype"], state["layout"], tuple(state["shape"]), manifest["buffers"][f"state.{name}"]] += 1
    return [{"name": name, "dtype": dtype, "layout": layout, "shape": list(shape), "count": count, "bytes": size * count}
            for (name, dtype, layout, shape, size), count in groups.items()]


def _tensors(manifest: Record) -> list[Record]:
    return [{"name": name, "shape": w["shape"], "dtype": w["dtype"], "layout": w["layout"], "format": _format(w),
             "bits": 8 * sum(size for _, _, size in w["planes"]) / math.prod(w["shape"]),
             "bytes": sum(size for _, _, size in w["planes"]), "buffer": w["planes"][0][0], "offset": w["planes"][0][1]}
            for name, w in manifest["weights"].items()]


def tables(told: Record, tensors: bool = False) -> list[Table]:
    """What `describe` gives, as tables to print."""
    device, memory = told["device"], told["memory"]
    limits = [(k.removeprefix("max_").replace("_", " "), f"at least {v:,}") for k, v in device["limits"].items() if v]
    subgroups = [("subgroup size", device["subgroup_size"])] if device["subgroup_size"] else []
    found: list[Table] = [
        ("model", ("", ""), [(k, " ".join(map(str, v)) if isinstance(v, list) else v) for k, v in told["model"].items()]),
        ("device", ("", ""), [("compiled for", device["name"]), ("features", ", ".join(device["features"]) or "none"), *subgroups,
                              ("ops whose kernels tuning chose", device.get("tuned", 0)), *limits]),
        *([("variants, the first that a device meets is played", ("for", "features", "subgroup size", "shaders", "temporaries"),
            [(v["name"], ", ".join(v["features"]) or "none", v["subgroup_size"], v["shaders"], amount(v["temporaries"]))
             for v in told["variants"]])] if len(told["variants"]) > 1 else []),
        ("programs", ("program", "dispatches", "distinct shaders"),
         [(n, p["dispatches"], p["shaders"]) for n, p in told["programs"].items()]),
        *(_dispatch_tables(told) if told["shaders"] else []),
        ("weights", ("format", "tensors", "elements", "bits a weight", "size"),
         [(n, w["tensors"], f"{w['elements']:,}", f"{w['bits']:.4g}", amount(w["bytes"])) for n, w in told["weights"].items()]),
        ("states", ("state", "type", "count", "size"), [(s["name"], _typed(s), s["count"], amount(s["bytes"])) for s in told["states"]]),
        ("caches", ("layers", "attention", "positions", "size"),
         [(spans(c["layers"]), f"{c['mask']}, {c['window']} keys" if c["window"] else c["mask"], f"{c['positions']:,}", amount(c["bytes"]))
          for c in told["caches"]]),
        ("memory", ("", ""), [("weights", amount(memory["weights"])), ("states", amount(memory["states"])),
                              ("temporaries", f"{amount(memory['temporaries'])} ({amount(memory['unshared'])} without sharing)"),
                              ("step buffer", amount(memory["step"]))]),
    ]
    if tensors:
        found.append(("tensors", ("tensor", "shape", "format", "bits a weight", "size", "buffer", "offset"),
                      [(t["name"], " x ".join(map(str, t["shape"])), t["format"], f"{t['bits']:.4g}", amount(t["bytes"]), t["buffer"],
                       f"{t['offset']:,}") for t in told["tensors"]]))
    return found


def _dispatch_tables(told: Record) -> list[Table]:
    decode, kernels = told["decode"], told["kernels"]
    least, most = min(decode["layers"], default=0), max(decode["layers"], default=0)
    return [("a decode step", ("", ""), [("dispatches", decode["dispatches"]), ("outside the layers", decode["outside"]),
                                         ("a layer", f"{least} to {most}" if least < most else most)]),
            (f"kernels ({told['shaders']} distinct shaders)",
             ("kernel", "shaders", f"dispatches in {decode['program']}", "in all programs"),
             [(n, k["shaders"], k["decode"], k["all"]) for n, k in kernels.items()])]


def _typed(entry: Record) -> str:
    return f"{_format(entry)}[{','.join(map(str, entry['shape']))}]"


def amount(size: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB" if size < 1000 else f"{size:,.0f} GB"


# ---- one op

def main_kind(op: Op) -> str:
    """The kind that an op is about."""
    return next((k for k in op.kinds if OPS[k].anchor), op.kinds[-1])


def list_ops(graph: Graph) -> list[str]:
    """A line an op: index, first result, kinds, kernel."""
    rows = [(str(i), f"%{op.outputs[0]}", str(graph.values[op.outputs[0]]), "+".join(op.kinds), str(op.choice or ""))
            for i, op in enumerate(graph.ops)]
    widths = [max(len(row[c]) for row in rows) for c in range(4)] if rows else []
    return ["  ".join([row[0].rjust(widths[0]), *(row[c].ljust(widths[c]) for c in (1, 2, 3)), row[4]]).rstrip() for row in rows]


def find_op(graph: Graph, name: str) -> int:
    """The index of an op: by number, by a value that it makes (at least inside), by one that it reads, or the first of a kind, or of one
    that goes on so, as attention is split for some devices."""
    key = name.removeprefix("%")
    if key.isdigit() and int(key) < len(graph.ops):
        return int(key)
    names: tuple[Callable[[Op], Iterable[str]], ...] = (lambda op: op.outputs, lambda op: [n for p in op.parts for n in p.outputs],
                                                        lambda op: op.inputs, lambda op: op.kinds,
                                                        lambda op: [key for kind in op.kinds if kind.startswith(f"{key}_")])
    for these in names:
        for i, op in enumerate(graph.ops):
            if key in these(op):
                return i
    near = get_close_matches(key, [n for op in graph.ops for n in (*op.outputs, *op.inputs, *op.kinds)], cutoff=0.4)
    hint = f"; near it: {', '.join(dict.fromkeys(near))}" if near else ""
    raise GraphError(f"no op '{name}' among the {len(graph.ops)} (0 to {len(graph.ops) - 1}) of the program{hint}")


def trace(stages: Stages, index: int) -> list[tuple[str, Graph, list[Op]]]:
    """The ops of every stage that an op of the last one stands for, first stage first."""
    name, graph = stages[-1]
    ops = [graph.ops[index]]
    found = [(name, graph, ops)]
    for (name, before), (_, after) in zip(reversed(stages[:-1]), reversed(stages[1:]), strict=True):
        ops = _origins(ops, before, after)
        found.append((name, before, ops))
    return found[::-1]


def _made(graph: Graph) -> set[str]:
    return {n for op in graph.ops for p in (op, *op.parts) for n in p.outputs}


def _origins(ops: Sequence[Op], before: Graph, after: Graph) -> list[Op]:
    """The ops of `before` that became these ops of `after`. A name that a pass brought in is followed to its readers, one that it
    took away back from them."""
    old, new, readers = _made(before), _made(after), after.readers()
    wanted, queue = set[str](), [n for op in ops for p in (op, *op.parts) for n in p.outputs]
    while queue:
        name = queue.pop()
        if name in old:
            wanted.add(name)
        else:
            queue += [n for i in readers.get(name, ()) for n in after.ops[i].outputs]
    made = {n: op for op in before.ops for p in (op, *op.parts) for n in p.outputs}
    queue = list(wanted)
    while queue:
        gone = [n for n in made[queue.pop()].inputs if n in made and n not in new and n not in wanted]
        wanted.update(gone)
        queue += gone
    return [op for op in before.ops if wanted & {n for p in (op, *op.parts) for n in p.outputs}]


def explain(stages: Stages, index: int, device: Device, kernels: Mapping[str, Kernel], wgsl: str = "") -> str:
    """One op through every stage, the schedules considered on a device, and its shader (rendered, where none is given)."""
    graph = stages[-1][1]
    op, lines, before = graph.ops[index], list[str](), ""
    for name, stage, ops in trace(stages, index):
        text = "\n".join(f"    {line}" for part in ops for line in show_op(stage, part))
        lines += [f"{name}: as before" if text == before else f"{name}:\n{text}"]
        before = text
    if op.choice is None:
        lines += ["", "no kernel: the numpy reference evaluates the op as it is (--device picks an adapter or a device profile)"]
        return "\n".join(lines)
    site = Site(graph, op, device)
    same = sum(Site(graph, o, device).signature == site.signature for o in graph.ops)
    lines += ["", f"schedules considered, estimated for {device.name}:", *_schedules(site, kernels), "",
              f"chosen: {op.choice}" + (f", as for {same - 1} equal ops of this program" if same > 1 else ""),
              f"binds: {', '.join(f'a{i} = %{n}: {graph.values[n]}' for i, n in enumerate(site.bound))}{', step' if site.steps else ''}"]
    kernel = kernels.get(op.choice.kernel)
    if kernel and kernel.accepts(site):
        grid = kernel.grid(site, dict(op.choice.schedule))
        lines.append(f"runs: {' x '.join(map(str, grid))} workgroups of {kernel.threads(site, dict(op.choice.schedule))} invocations")
        wgsl = wgsl or render(site, kernel, op.choice).wgsl
    return "\n".join([*lines, "", wgsl.rstrip()])


def _schedules(site: Site, kernels: Mapping[str, Kernel]) -> list[str]:
    """The schedules that fit, cheapest first, and how many break a limit."""
    found = candidates(site, kernels)
    lines = [f"  {'->' if choice == site.op.choice else '  '} {1e6 * cost:10.2f} us  {choice}"
             for i, (cost, choice) in enumerate(found) if i < SHOWN or choice == site.op.choice]
    if len(found) > len(lines):
        lines.append(f"     … {len(found) - len(lines)} more, up to {1e6 * found[-1][0]:.2f} us")
    refused = [f"{k.name}: {why}" for k in kernels.values() if k.accepts(site) for s in k.schedules(site) if (why := exceeds(site, k, s))]
    return [*lines, *([f"     {len(refused)} do not fit the device, the first: {refused[0]}"] if refused else [])]
