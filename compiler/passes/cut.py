"""Cut what is above the device's binding limit: caches by heads before fusion, weights by rows after it.

before: %y = matmul(%x, %w)            after: %a = matmul(%x, %w's first rows, width=N)
                                              %b = matmul(%x, %w's other rows, width=N, at=n)   %y = store(%a, %b, at=n, count=N-n)
Each piece of a fused op runs the epilogue on its own columns.
"""
from __future__ import annotations

from dataclasses import replace

from ..device import Device
from ..ir import Graph, GraphError, Op, Value
from ..kernel import Site
from ..layouts import plane_bytes
from ..liveness import drop_dead
from ..ops import infer

PROJECTIONS = ("matmul", "expert_matmul", "expert_sum", "matmul_q8", "expert_matmul_q8", "expert_sum_q8")
ROWS = 8        # pieces are multiples of so many rows, which keeps pairs and blocks together


def cut_weights(graph: Graph, device: Device) -> Graph:
    """Raises GraphError when a single row is above the limit."""
    values, ops = dict(graph.values), list[Op]()
    limit = device.limit("max_storage_buffer_binding_size")
    for op in graph.ops:
        site = Site(graph, op, device)
        weight = site.operands.get({"gather": "table"}.get(site.anchor.kind, "w"), "")
        if site.anchor.kind not in (*PROJECTIONS, "gather") or graph.values[weight].role != "weight" or _bytes(graph.values[weight]) <= limit:
            ops.append(op)
            continue
        pieces = _pieces(values, weight, limit, device)
        ops += _cut_gather(values, site, pieces) if site.anchor.kind == "gather" else _cut_projection(values, site, pieces)
    return drop_dead(graph.with_ops(ops, values))


def _bytes(value: Value) -> int:
    return max(plane_bytes(value.shape, value.dtype, value.layout))


def _pieces(values: dict[str, Value], weight: str, limit: int, device: Device) -> list[tuple[str, int, int]]:
    """Name, first row, rows of each piece; declares them as weights."""
    value = values[weight]
    total = value.shape[-2]
    rows = limit // (_bytes(value) // total) // ROWS * ROWS or limit // (_bytes(value) // total)
    if not rows:
        raise GraphError(f"one row of %{weight}: {value} takes {_bytes(value) // total:,} bytes, but {device.name} binds at most {limit:,}")
    found = []
    for start in range(0, total, rows):
        count = min(rows, total - start)
        name = f"{weight}.rows{start}"
        values[name] = replace(value, shape=(*value.shape[:-2], count, value.shape[-1]), source=("rows", weight, start, start + count))
        found.append((name, start, count))
    return found


def _cut_projection(values: dict[str, Value], site: Site, pieces: list[tuple[str, int, int]]) -> list[Op]:
    made: list[Op] = []
    weight, output = site.operands["w"], site.op.outputs[0]
    width = site.shape("w")[-2]
    stored = next((p for p in site.op.parts if p.kind == "store"), None)
    previous = stored.inputs[0] if stored else ""
    for k, (name, start, count) in enumerate(pieces):
        suffix = "" if k == len(pieces) - 1 else f".{k}"
        attrs = (*site.anchor.attrs, ("width", width), *((("at", start),) if start else ()))
        half = 2 if site.pairs else 1
        body = [replace(p, attrs=attrs, inputs=tuple(name if n == weight else n for n in p.inputs)) if p is site.anchor else p
                for p in site.op.parts if p is not stored]
        last = body[-1].outputs[0] if stored else output
        names = {n: f"{n}.piece{k}" for p in body for n in p.outputs}
        values |= {new: values[old] for old, new in names.items()}
        body = [replace(p, inputs=tuple(names.get(n, n) for n in p.inputs), outputs=tuple(names[n] for n in p.outputs)) for p in body]
        if previous:
            values[f"{output}{suffix}"] = values[output]
            body.append(Op("store", (previous, names[last]), (f"{output}{suffix}",), (("at", start // half), ("count", count // half))))
        previous = body[-1].outputs[0]
        made.append(_fused(body))
    return made


def _cut_gather(values: dict[str, Value], site: Site, pieces: list[tuple[str, int, int]]) -> list[Op]:
    """Indices outside a piece give zeros, so the pieces add up; the last one runs the epilogue."""
    made, total = [], ""
    table, output = site.operands["table"], site.anchor.outputs[0]
    for k, (name, start, _) in enumerate(pieces):
        gathered = f"{output}.piece{k}"
        values[gathered] = values[output]
        body = [replace(site.anchor, inputs=tuple(name if n == table else n for n in site.anchor.inputs), outputs=(gathered,),
                        attrs=(*site.anchor.attrs, ("first", start)))]
        final = k == len(pieces) - 1
        if total:
            total_name = output if final else f"{output}.sum{k}"
            values[total_name] = values[output]
            body.append(Op("add", (gathered, total), (total_name,)))
        total = body[-1].outputs[0]
        made.append(_fused([*body, *site.epilogue] if final else body))
    return made


def _fused(body: list[Op]) -> Op:
    if len(body) == 1:
        return body[0]
    made = {n for p in body for n in p.outputs}
    return Op("fused", tuple(dict.fromkeys(n for p in body for n in p.inputs if n not in made)), body[-1].outputs, body=tuple(body))


def cut_caches(graph: Graph, device: Device) -> Graph:
    """Attention over a cache above the limit becomes one over each group of its heads. Raises GraphError when one head is above it."""
    limit = device.limit("max_storage_buffer_binding_size")
    groups = {n: _head_groups(n, v, limit, device) for n, v in graph.role("state").items() if len(v.shape) == 4 and _bytes(v) > limit}
    if not groups:
        return graph
    values, ops, parts = dict(graph.values), list[Op](), dict[str, list[str]]()

    def emit(kind: str, inputs: tuple[str, ...], output: str, attrs=()) -> str:
        op = Op(kind, inputs, (output,), attrs)
        values[output] = infer(op, values)[0]
        ops.append(op)
        return output

    def share(x: str, g: int, count: int, reader: str, axis: int = 1) -> str:
        heads = values[x].shape[axis] // count
        return emit("slice", (x,), f"{x}.heads{g}.{reader}", (("axis", axis), ("start", g * heads), ("stop", (g + 1) * heads)))

    for op in graph.ops:
        if op.kind == "cache_write" and op.inputs[0] in groups:
            cache, x, *rest = op.inputs
            count = groups[cache]
            for g in range(count):
                shape = values[cache].shape
                values[f"{cache}.{g}"] = replace(values[cache], shape=(shape[0], shape[1] // count, *shape[2:]))
            parts[op.outputs[0]] = [emit("cache_write", (f"{cache}.{g}", share(x, g, count, op.outputs[0]), *rest), f"{op.outputs[0]}.{g}", op.attrs)
                                    for g in range(count)]
        elif op.kind == "attention" and op.inputs[1] in parts:
            q, k, v, *rest = op.inputs
            done = ""
            for g, (keys, vals) in enumerate(zip(parts[k], parts[v], strict=True)):
                sinks = [share(s, g, len(parts[k]), op.outputs[0], axis=0) for s in rest[2:]]
                mine = (share(q, g, len(parts[k]), op.outputs[0]), keys, vals, *rest[:2], *sinks)
                piece = emit("attention", mine, f"{op.outputs[0]}.{g}", op.attrs)
                last = g == len(parts[k]) - 1
                done = emit("concat", (done, piece), op.outputs[0] if last else f"{piece}.sum", (("axis", 1),)) if done else piece
        else:
            ops.append(op)
    return drop_dead(graph.with_ops(ops, values))


def _head_groups(name: str, value: Value, limit: int, device: Device) -> int:
    heads = value.shape[1]
    for count in range(1, heads + 1):
        if heads % count == 0 and _bytes(value) // count <= limit:
            return count
    raise GraphError(f"one head of %{name}: {value} takes {_bytes(value) // heads:,} bytes, but {device.name} binds at most {limit:,}: "
                     "take a smaller context or fewer slots")


__all__ = ["cut_caches", "cut_weights"]
