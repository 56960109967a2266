"""Give every op the kernel and schedule that run it fastest on the device: tuned choices first, else the cheapest by the cost model.

before: %y = fused(%x, %w)            after: %y = fused(%x, %w) by matvec(lanes=32, groups=4, rows=4, tokens=1, subgroup=32)
"""
from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace

from ..device import Device
from ..ir import Choice, Graph, GraphError, Op
from ..kernel import Kernel, Schedule, Site, form
from ..text import show_op


def tile(graph: Graph, device: Device, kernels: Mapping[str, Kernel]) -> Graph:
    """Raises GraphError for an op that no kernel runs within the device's limits."""
    chosen: dict[Hashable, Choice] = {}     # equal ops are equal work: 48 layers are decided once

    def choose(op: Op) -> Op:
        work, _ = form(op, graph.values)
        if work not in chosen:
            site = Site(graph, op, device)
            chosen[work] = _tuned(site, kernels) or _cheapest(site, kernels)
        return replace(op, choice=chosen[work])
    return graph.with_ops(map(choose, graph.ops))


def candidates(site: Site, kernels: Mapping[str, Kernel]) -> list[tuple[float, Choice]]:
    """Every choice that fits, with its estimated seconds, cheapest first."""
    found = [(kernel.cost(site, s), Choice(kernel.name, tuple(s.items())))
             for kernel in kernels.values() if kernel.accepts(site) for s in kernel.schedules(site) if fits(site, kernel, s)]
    return sorted(found, key=lambda pair: pair[0])


def fits(site: Site, kernel: Kernel, s: Schedule) -> bool:
    """Whether a schedule keeps the device's limits."""
    return not exceeds(site, kernel, s)


def exceeds(site: Site, kernel: Kernel, s: Schedule) -> str:
    """Which limit of the device a schedule breaks, or nothing."""
    device, threads = site.device, kernel.threads(site, s)
    if missing := (kernel.needs(site, s) | site.types_need) - device.features:
        return f"needs {', '.join(sorted(missing))}"
    for what, count, limit in (("invocations", threads, "max_compute_invocations_per_workgroup"),
                               ("invocations in x", threads, "max_compute_workgroup_size_x"),
                               ("bytes of workgroup memory", kernel.workgroup_bytes(site, s), "max_compute_workgroup_storage_size"),
                               ("storage bindings", site.bindings, "max_storage_buffers_per_shader_stage"),
                               ("workgroups in a dimension", max(kernel.grid(site, s)), "max_compute_workgroups_per_dimension"),
                               ("bytes in a binding", site.largest_binding, "max_storage_buffer_binding_size")):
        if count > device.limit(limit):
            return f"{count} {what}, the device allows {device.limit(limit)}"
    return ""


def _tuned(site: Site, kernels: Mapping[str, Kernel]) -> Choice | None:
    choice = site.device.tuned.get(site.signature) if site.device.tuned else None
    kernel = kernels.get(choice.kernel) if choice else None
    if not choice or not kernel or not kernel.accepts(site):
        return None
    schedule = dict(choice.schedule)
    return choice if schedule in list(kernel.schedules(site)) and fits(site, kernel, schedule) else None


def _cheapest(site: Site, kernels: Mapping[str, Kernel]) -> Choice:
    if found := candidates(site, kernels):
        return found[0][1]
    graph = Graph(dict(site.values), (site.op,), site.op.outputs)
    why = sorted({f"{k.name}: {exceeds(site, k, s)}" for k in kernels.values() if k.accepts(site) for s in k.schedules(site)})
    reason = "; ".join(why[:3]) if why else f"tried {', '.join(kernels)}"
    raise GraphError(f"no kernel runs {show_op(graph, site.op)[0]} ({'+'.join(site.op.kinds)}) on {site.device.name}: {reason}")
