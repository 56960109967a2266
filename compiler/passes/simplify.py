"""Drop what nothing reads, and join projections of one input into one.

before: %q = matmul(%x, %wq)   %k = matmul(%x, %wk)   (each then split into heads)
after:  %qk = matmul(%x, %wq+wk)   %q, %k = split(%qk)
before: %y = mul(silu(matmul(%x, %gate)), matmul(%x, %up))
after:  %a, %b = unzip(matmul(%x, interleaved %gate and %up))   %y = mul(silu(%a), %b)
"""
from __future__ import annotations

from dataclasses import replace

from ..ir import Graph, Op, Value
from ..liveness import drop_dead
from ..ops import OPS

PROJECTIONS = ("matmul", "expert_matmul")


def simplify(graph: Graph) -> Graph:
    return drop_dead(_join_heads(_join_pairs(drop_dead(graph))))


def _join_pairs(graph: Graph) -> Graph:
    """Two projections that meet in one element-wise op become one with interleaved rows."""
    made, place = {n: op for op in graph.ops for n in op.outputs}, graph.producers()
    uses = {n: len(r) for n, r in graph.readers().items()}
    values = dict(graph.values)
    replaced: dict[str, tuple[Op, ...]] = {}
    for op in graph.ops:
        if not OPS[op.kind].elementwise or len(op.inputs) != 2:
            continue
        first, second = (_projection(n, made, uses, graph) for n in op.inputs)
        if first and second and first is not second and _alike(graph, first, second) and not replaced.keys() & {first.outputs[0], second.outputs[0]}:
            joined, (a, b) = _joined(values, "interleave", [first, second])
            shape = values[first.outputs[0]].shape
            values[joined.outputs[0]] = replace(values[first.outputs[0]], shape=(*shape[:-1], 2 * shape[-1]))
            earlier, later = sorted((a, b), key=place.__getitem__)
            replaced[earlier], replaced[later] = (joined, Op("unzip", joined.outputs, (a, b))), ()
    return graph.with_ops((new for op in graph.ops for new in replaced.get(op.outputs[0], (op,))), values)


def _projection(name: str, made: dict[str, Op], uses: dict[str, int], graph: Graph) -> Op | None:
    """The projection that `name` is computed from by element-wise ops alone."""
    while (op := made.get(name)) and uses.get(name) == 1 and name not in graph.outputs:
        if op.kind in PROJECTIONS:
            return op
        if not OPS[op.kind].elementwise:
            return None
        name = op.inputs[0]
    return None


def _alike(graph: Graph, a: Op, b: Op) -> bool:
    wa, wb = (replace(graph.values[op.inputs[1]], source=()) for op in (a, b))
    return (a.kind, a.attrs, a.inputs[0], a.inputs[2:]) == (b.kind, b.attrs, b.inputs[0], b.inputs[2:]) and wa == wb and wa.role == "weight"


def _joined(values: dict[str, Value], how: str, ops: list[Op]) -> tuple[Op, list[str]]:
    """One projection with the rows of several; declares its weight."""
    parts = [op.inputs[1] for op in ops]
    weight = _join_values(values, how, parts)
    name = "+".join(op.outputs[0] for op in ops).replace("+", "_")
    return replace(ops[0], inputs=(ops[0].inputs[0], weight, *ops[0].inputs[2:]), outputs=(name,)), [op.outputs[0] for op in ops]


def _join_values(values: dict[str, Value], how: str, parts: list[str]) -> str:
    name = f"{parts[0]}_{'_'.join(p.rsplit('.', 1)[-1] for p in parts[1:])}"
    first = values[parts[0]]
    if len(first.shape) == 1:
        shape: tuple[int, ...] = (sum(values[p].size for p in parts),)
    else:
        shape = (*first.shape[:-2], sum(values[p].shape[-2] for p in parts), first.shape[-1])
    values[name] = replace(first, shape=shape, source=(how, *parts))
    return name


def _join_heads(graph: Graph) -> Graph:
    """Projections of one input that are only split into heads (after a bias, perhaps) become one projection and one split."""
    readers, ops = graph.readers(), graph.ops
    groups: dict[tuple, list[list[Op]]] = {}
    for op in ops:
        if op.kind == "matmul" and (chain := _head_chain(graph, op, readers)):
            weight, split = graph.values[op.inputs[1]], chain[-1]
            key = (op.inputs[0], op.attrs, weight.layout, weight.dtype, weight.role, split.attr("head_dim"), len(chain))
            groups.setdefault(key, []).append(chain)
    values = dict(graph.values)
    replaced: dict[Op, tuple[Op, ...]] = {}
    for chains in groups.values():
        if len(chains) > 1:
            first, *rest = chains
            replaced |= {op: () for chain in rest for op in chain} | dict.fromkeys(first, ())
            replaced[first[0]] = _join_chains(values, chains)
    return graph.with_ops((new for op in ops for new in replaced.get(op, (op,))), values)


def _head_chain(graph: Graph, op: Op, readers: dict[str, list[int]]) -> list[Op] | None:
    """[matmul, split] or [matmul, add of a bias, split], when nothing else reads what is between."""
    chain = [op]
    while len(chain) < 4:
        name = chain[-1].outputs[0]
        if len(readers.get(name, ())) != 1 or name in graph.outputs:
            return None
        after = graph.ops[readers[name][0]]
        chain.append(after)
        if after.kind == "split":
            return chain if len(after.outputs) == 1 else None
        bias = after.kind == "add" and graph.values[after.inputs[1]].role == "weight" and len(graph.values[after.inputs[1]].shape) == 1
        if not bias or len(chain) > 2:
            return None
    return None


def _join_chains(values: dict[str, Value], chains: list[list[Op]]) -> tuple[Op, ...]:
    joined, names = _joined(values, "concat", [c[0] for c in chains])
    sizes = tuple(values[n].shape[-1] for n in names)
    made = replace(values[names[0]], shape=(*values[names[0]].shape[:-1], sum(sizes)))
    values[joined.outputs[0]] = made
    result, last = [joined], joined.outputs[0]
    if len(chains[0]) == 3:
        bias = _join_values(values, "concat", [c[1].inputs[1] for c in chains])
        result.append(Op("add", (last, bias), (f"{last}_biased",)))
        last = f"{last}_biased"
        values[last] = made
    split = chains[0][-1]
    attrs = tuple((k, sizes if k == "sizes" else v) for k, v in split.attrs)
    return (*result, replace(split, inputs=(last,), outputs=tuple(c[-1].outputs[0] for c in chains), attrs=attrs))
