"""The commands that look inside: what a package holds, what the compiler did and why, what the devices are."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..options import ModelPath

if TYPE_CHECKING:
    from ..compiler.device import Device
    from ..compiler.ir import Graph
    from ..runtime.adapter import AdapterInfo

app = typer.Typer()

LIMITS = ("max_buffer_size", "max_storage_buffer_binding_size", "max_storage_buffers_per_shader_stage",
          "max_compute_workgroup_storage_size", "max_compute_invocations_per_workgroup")

Program = Annotated[str, typer.Option(help="decode_1, prefill_128, head_1, sample_1, ... (tilewright inspect lists them)")]
TargetName = Annotated[str, typer.Option("--device", help="auto, a part of an adapter's name, or a device profile such as web-default.")]


@app.command()
def inspect(model: ModelPath, tensors: Annotated[bool, typer.Option("--tensors", help="A line for every tensor too.")] = False,
            as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
            variant: Annotated[str | None, typer.Option(help="Of several variants, the one for this device; if not given the first.")] = None,
            device: TargetName = "auto") -> None:
    """Show what is in a package: variants, programs, kernels, weights, caches, memory. Any other model is compiled first.

    \b
    tilewright inspect model.wgpu-llama --tensors
    tilewright inspect model.wgpu-llama --variant web-default
    tilewright inspect path/to/model --device web-default
    """
    from ..api import compile_for, is_package, open_checkpoint, open_package, targets
    from ..compiler.report import describe, tables
    from ..runtime.terminal import progress, show_table
    with progress() as show:
        done = is_package(model)
        package = open_package(model) if done else compile_for(open_checkpoint(model), targets(device)[0], progress=show)
    told = describe(package.variant_for(variant) if variant else package)
    if as_json:
        import json
        print(json.dumps(told, indent=1))
        return
    for title, columns, rows in tables(told, tensors):
        show_table(title, columns, rows)


@app.command()
def explain(model: ModelPath,
            op: Annotated[str | None, typer.Option(help="An op's number, a value that it makes or reads, or a kind.")] = None,
            program: Program = "decode_1", device: TargetName = "auto") -> None:
    """Follow one op through the compiler: every pass, the schedules considered, the shader. Without --op, list the ops.

    \b
    tilewright explain path/to/model
    tilewright explain path/to/model --op route
    tilewright explain path/to/model --op 3 --device web-default
    """
    from ..api import KERNELS, targets
    from ..compiler import report
    target = targets(device)[0]
    stages, shaders = stages_of(model, target, program)
    ops = stages[-1][1].ops
    if op is None:
        print("\n".join(report.list_ops(stages[-1][1])))
        return
    index = report.find_op(stages[-1][1], op)
    print(f"{program}, op {index} of {len(ops)}\n\n{report.explain(stages, index, target, KERNELS, shaders[index] if shaders else '')}")


@app.command()
def view(model: ModelPath, output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("graph.html"),
         program: Program = "decode_1", device: TargetName = "auto") -> None:
    """Draw the op graph of a program as one HTML page.

    \b
    tilewright view path/to/model -o graph.html
    """
    from ..api import targets
    from ..compiler.page import page
    stages, _ = stages_of(model, targets(device)[0], program)
    graph = stages[-1][1]
    output.write_text(page(graph, f"{model.name}: {program}, {len(graph.ops)} ops"), encoding="utf-8")
    typer.echo(f"wrote {output}: {len(graph.ops)} ops", err=True)


@app.command()
def devices() -> None:
    """List the GPU adapters of this machine, and the device profiles."""
    from ..compiler.device import shipped_devices
    from ..runtime.adapter import adapters
    from ..runtime.terminal import show_table
    found = adapters()
    for number, info in enumerate(found):
        show_table(info.name + ("  (auto takes this one)" if number == 0 else ""), ("", ""), rows_of(info))
    if not found:
        print("no GPU adapter was found, so auto plays in numpy (slowly). Install a Vulkan, Metal or Direct3D 12 driver; "
              "on Debian without a GPU: apt install mesa-vulkan-drivers libvulkan1\n")
    print(f"device profiles to compile for: {', '.join(d.name for d in shipped_devices())}")


def rows_of(info: AdapterInfo) -> list[tuple[str, str]]:
    """What an adapter is and has; it is opened for that."""
    from ..compiler.device import user_file
    from ..runtime.adapter import DeviceError
    from ..runtime.gpu import Gpu
    try:
        gpu = Gpu(info)
        size = str(gpu.subgroup_size or "none")
        opened = [(n.removeprefix("max_").replace("_", " "), f"{gpu.limits[n]:,}") for n in LIMITS]
        gpu.close()
    except DeviceError as error:
        size, opened = "unknown", [("trouble", str(error))]
    features = ", ".join(sorted(info.features & {"shader-f16", "subgroups", "timestamp-query"})) or "none"
    own = user_file(info.name)
    record = str(own) if own.exists() else "none of your own: tilewright probe measures this adapter"
    return [("backend", info.backend), ("kind", info.kind), ("driver", info.driver), ("record", record), ("features", features),
            ("subgroup size", size), *opened]


def stages_of(path: Path, target: Device, program: str) -> tuple[list[tuple[str, Graph]], list[str]]:
    """One program after every pass for a device; of a compiled package, as it stands there, with every op's WGSL."""
    from ..api import KERNELS, REFERENCE, is_package, lower, open_checkpoint, open_package, plan_for
    from ..compiler.ir import GraphError
    from ..compiler.pipeline import run_stages
    package = open_package(path) if is_package(path) else None
    if package:
        graphs = {name: package.graph(name) for name in package.manifest["programs"]}
    else:
        checkpoint = open_checkpoint(path)
        graphs = lower(checkpoint, plan_for(checkpoint, target, None, "f32", "f32")).graphs
    if program not in graphs:
        raise GraphError(f"no program '{program}'; there are: {', '.join(graphs)}")
    if package and package.manifest["shaders"]:
        dispatches = package.manifest["programs"][program]["dispatches"]
        return [("in the package", graphs[program])], [package.manifest["shaders"][d["shader"]]["wgsl"] for d in dispatches]
    stages = run_stages(graphs, target, {} if target is REFERENCE else KERNELS)
    return [(f"after {name}", now[program]) for name, now, _ in stages], []
