"""Round the activations of quantized projections to 8-bit integers, once for all that read them, where the device multiplies those fastest.

before: %y = matmul(%x, %w)             after: %i, %s = quantize(%x)        %y = matmul_q8(%i, %s, %w)
before: %n = rms_norm(%x, %g)           after: %i, %s = quantize(%x, %g)    %y = matmul_q8(%i, %s, %w, eps=1e-05)
        %y = matmul(%n, %w)
not:    %y = matmul(%x, %w)             of many rows in f16, where some kernel has it from products of small matrices, which are faster still
"""
from __future__ import annotations

from collections.abc import Mapping

from ..device import MATRICES, Device
from ..ir import Graph, Op
from ..kernel import Kernel, Site
from ..layouts import LAYOUTS
from ..liveness import drop_dead
from ..ops import infer

PROJECTIONS = ("matmul", "expert_matmul", "expert_sum")
MANY = 64       # rows; fewer are bound by reading weights, which packed dot products keep up with


def round_activations(graph: Graph, device: Device, kernels: Mapping[str, Kernel]) -> Graph:
    """Every projection whose weight's layout has integer dot products, but for those of many rows by matrices."""
    values, ops, rounded = dict(graph.values), list[Op](), dict[str, tuple[str, ...]]()
    norms = {op.outputs[0]: op for op in graph.ops if op.kind == "rms_norm"}
    for op in graph.ops:
        x = op.inputs[0] if op.inputs else ""
        if op.kind not in PROJECTIONS or LAYOUTS[values[op.inputs[1]].layout].dot is None or _by_matrices(graph, op, device, kernels):
            ops.append(op)
            continue
        if x not in rounded:
            rounded[x] = (f"{x}_integers", f"{x}_scales")
            # a norm is a factor of the result: it need not be known when x is rounded
            quantize = Op("quantize", norms[x].inputs if x in norms else (x,), rounded[x])
            values |= dict(zip(rounded[x], infer(quantize, values), strict=True))
            # behind what makes x, before its other readers, so that fusion can join the two
            ops.insert(next((i for i in reversed(range(len(ops))) if quantize.inputs[0] in ops[i].outputs), -1) + 1, quantize)
        attrs = tuple((k, v) for k, v in op.attrs if k != "dtype") + (("dtype", values[op.outputs[0]].dtype),)
        if x in norms:
            attrs += (("eps", norms[x].attr("eps")),)
        ops.append(Op(f"{op.kind}_q8", (*rounded[x], *op.inputs[1:]), op.outputs, attrs))
    return drop_dead(graph.with_ops(ops, values))


def _by_matrices(graph: Graph, op: Op, device: Device, kernels: Mapping[str, Kernel]) -> bool:
    """Whether the device multiplies matrices, and a kernel takes the op to them."""
    site = Site(graph, op, device)
    return device.matrices != () and site.value("x").shape[0] >= MANY and any(
        MATRICES in kernel.needs(site, s) for kernel in kernels.values() if kernel.accepts(site) for s in kernel.schedules(site))
