"""The command line: compile a model, play it, and look at what the compiler made of it."""
from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:       # what a command needs it imports itself, so that --help need not wait for it
    from .compiler.device import Device
    from .compiler.ir import Graph
    from .compiler.report import Table
    from .runtime.generate import Model, Stream

DEMO = Path(__file__).parent / "frontends" / "demo" / "tales-llama4"
LIMITS = ("max_buffer_size", "max_storage_buffer_binding_size", "max_storage_buffers_per_shader_stage", "max_compute_workgroup_storage_size",
          "max_compute_invocations_per_workgroup")

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="A Hugging Face folder, a GGUF file, or a .wgpu-llama package.")]
Checkpoint = Annotated[Path, typer.Argument(metavar="MODEL", help="A Hugging Face folder or a GGUF file.")]
DeviceName = Annotated[str, typer.Option("--device", help="auto, a part of an adapter's name (see: tilewright devices), or reference (numpy, slow).")]
TargetName = Annotated[str, typer.Option("--device", help="auto, a part of an adapter's name, or a device profile such as web-default.")]
Context = Annotated[int | None, typer.Option(help="Positions of a sequence, prompt and answer together; the model's own, at most 8192, if not given.")]
Dtype = Annotated[str | None, typer.Option(help="How activations are stored: f32 or f16.")]
Cache = Annotated[str | None, typer.Option(help="How keys and values are stored: f32 or f16; as --dtype if not given.")]
MaxTokens = Annotated[int, typer.Option(min=0, help="Tokens to generate at most.")]
Temperature = Annotated[float, typer.Option(help="0 always takes the likeliest token; more gives more variety.")]
TopK = Annotated[int, typer.Option(help="Sample from this many of the likeliest tokens; 0 is off.")]
TopP = Annotated[float, typer.Option(help="Sample from the likeliest tokens that make up this share; 1 is off.")]
MinP = Annotated[float, typer.Option(help="Leave out tokens with less than this share of the likeliest one's probability; 0 is off.")]
Penalty = Annotated[float, typer.Option("--repeat-penalty", help="Above 1 makes tokens that were there before less likely.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same text; a random one if not given.")]
Program = Annotated[str, typer.Option(help="The program to look at: decode_1, prefill_128, head_1, sample_1, ...")]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


def main(arguments: list[str] | None = None) -> None:
    """The entry point: what goes wrong becomes one sentence and exit code 1."""
    try:
        app(arguments, prog_name="tilewright")
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        from . import CheckpointError, DeviceError, GraphError, PackageError, TokenizerError
        if not isinstance(error, (CheckpointError, DeviceError, GraphError, PackageError, TokenizerError, ValueError)):
            raise
        fail(str(error))


def fail(sentence: str) -> None:
    print(f"tilewright: {sentence}", file=sys.stderr)
    sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        from . import __version__
        print(f"tilewright {__version__}")
        raise typer.Exit


@app.callback()
def tilewright(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False) -> None:
    """Compile a transformer decoder to WGSL for one GPU, and play it.

    \b
    tilewright demo                               try it with the model that is built in
    tilewright generate path/to/model --prompt "Once upon a time"
    tilewright compile path/to/model -o model.wgpu-llama

    A model is a Hugging Face folder (config.json, *.safetensors, tokenizer.json) or a GGUF file.
    TILEWRIGHT_REFERENCE=1 plays in numpy instead of on the GPU; TILEWRIGHT_DUMP=fusion (or all) prints graphs after a pass.
    """


@app.command()
def demo(device: DeviceName = "auto", prompt: Annotated[str, typer.Option(help="The text to go on from.")] = "The old house stood at the end of the lane,",
         max_tokens: MaxTokens = 120, temperature: Temperature = 0.8, seed: Seed = 0) -> None:
    """Compile the small model that is built in (8 layers, 4 experts, trained on old novels) and let it write.

    \b
    tilewright demo
    tilewright demo --prompt "My dear Watson" --seed 7
    """
    start = time.perf_counter()
    model = load(DEMO, device)
    loading = time.perf_counter() - start
    compiling = sum(model.package.timings.values())
    ids = model.tokenizer.encode(prompt)
    typer.secho(prompt, bold=True, nl=False)
    count, first, rest = play(model.stream(ids, max_tokens=max_tokens, temperature=temperature, seed=seed))
    typer.echo("\n")
    manifest = model.package.manifest
    dispatches = sum(len(manifest["programs"][p]["dispatches"]) for p in ("decode_1", "sample_1" if temperature > 0 else "greedy_1"))
    show_table(("", ("", ""), [
        ("adapter", adapter_of(model)),
        ("kernels", f"{len(manifest['shaders'])} distinct shaders, {dispatches} dispatches a token" if dispatches else "none: numpy plays the graph"),
        ("compiling", f"{compiling:.2f} s"), ("loading", f"{max(loading - compiling, 0):.2f} s"),
        ("prompt", f"{len(ids)} tokens, {rate(len(ids), first)}"), ("answer", f"{count} tokens, {rate(count - 1, rest)}")]))


@app.command(name="compile")
def compile_(model: Checkpoint, output: Annotated[Path, typer.Option("--output", "-o", help="The package to write, NAME.wgpu-llama.")],
             device: TargetName = "auto", context: Context = None, dtype: Dtype = "f32", cache: Cache = None) -> None:
    """Compile a model into one file that any player can run.

    \b
    tilewright compile path/to/model -o model.wgpu-llama
    tilewright compile model.gguf -o model.wgpu-llama --device web-default --context 2048
    """
    start = time.perf_counter()
    from .api import compile_for
    from .compiler.report import amount
    from .frontends.checkpoint import open_checkpoint
    target = target_of(device)
    with progress() as show:
        package = compile_for(open_checkpoint(model), target, context, dtype or "f32", cache, show)
        package.save(output, lambda done, total: show("writing", done, total))
    typer.echo(f"wrote {output}: {amount(output.stat().st_size)}, {len(package.manifest['shaders'])} shaders for {target.name}, "
               f"in {time.perf_counter() - start:.1f} s", err=True)


@app.command()
def generate(model: ModelPath, prompt: Annotated[str, typer.Option(help="The text to go on from; - reads it from standard input.")],
             max_tokens: MaxTokens = 256, temperature: Temperature = 0.0, top_k: TopK = 0, top_p: TopP = 1.0, min_p: MinP = 0.0,
             repeat_penalty: Penalty = 1.0, seed: Seed = None,
             stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")] = None,
             device: DeviceName = "auto", context: Context = None, dtype: Dtype = None, cache: Cache = None) -> None:
    """Go on from a prompt. The text goes to standard output, all else to standard error.

    \b
    tilewright generate path/to/model --prompt "Once upon a time" --temperature 0.8 --top-p 0.95
    cat question.txt | tilewright generate model.wgpu-llama --prompt - > answer.txt
    """
    text = sys.stdin.read() if prompt == "-" else prompt
    loaded = load(model, device, context, dtype, cache)
    stream = loaded.stream(text, max_tokens, temperature, top_k, top_p, min_p, repeat_penalty, seed, stop or ())
    count, _, rest = play(stream)
    typer.echo()
    typer.echo(f"{count} tokens, {rate(count - 1, rest)}, finished: {stream.finish_reason}", err=True)


@app.command()
def chat(model: ModelPath, system: Annotated[str | None, typer.Option(help="What the assistant is told first.")] = None,
         max_tokens: MaxTokens = 1024, temperature: Temperature = 0.7, top_k: TopK = 0, top_p: TopP = 0.95, min_p: MinP = 0.0,
         repeat_penalty: Penalty = 1.0, seed: Seed = None,
         device: DeviceName = "auto", context: Context = None, dtype: Dtype = None, cache: Cache = None) -> None:
    """Talk with a model that has a chat template. Ctrl-C stops an answer; /new starts over; /quit or Ctrl-D leaves.

    \b
    tilewright chat path/to/model
    tilewright chat model.wgpu-llama --system "Answer in one sentence."
    """
    loaded = load(model, device, context, dtype, cache)
    opening = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    loaded.tokenizer.chat([*messages, {"role": "user", "content": "Hello"}])       # a model that cannot chat says so before the first question
    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
                               "repeat_penalty": repeat_penalty, "seed": seed}
    for line in questions():
        if line == "/new":
            messages = list(opening)
        elif line:
            messages = answer(loaded, [*messages, {"role": "user", "content": line}], options)




@app.command()
def inspect(model: ModelPath, tensors: Annotated[bool, typer.Option("--tensors", help="A line for every tensor too.")] = False,
            json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False, device: TargetName = "auto") -> None:
    """Show what is in a package: programs, kernels, weights, caches, memory. Another model is compiled first.

    \b
    tilewright inspect model.wgpu-llama --tensors
    tilewright inspect path/to/model --device web-default
    """
    from .api import compile_for, is_package, open_package
    from .compiler.report import describe, tables
    from .frontends.checkpoint import open_checkpoint
    with progress() as show:
        package = open_package(model) if is_package(model) else compile_for(open_checkpoint(model), target_of(device), progress=show)
    told = describe(package)
    if json:
        from json import dumps
        typer.echo(dumps(told, indent=1))
        return
    for table in tables(told, tensors):
        show_table(table)


@app.command()
def explain(model: ModelPath, op: Annotated[str | None, typer.Option(help="An op's number, a value that it makes or reads, or its kind.")] = None,
            program: Program = "decode_1", device: TargetName = "auto") -> None:
    """Follow one op through the compiler: every pass, the schedules considered, the shader. Without --op, list the ops.

    \b
    tilewright explain path/to/model
    tilewright explain path/to/model --op attention
    tilewright explain path/to/model --op 3 --device web-default
    """
    from .compiler import report
    from .templates import KERNELS
    target = target_of(device)
    stages, shaders = stages_of(model, target, program)
    if op is None:
        typer.echo("\n".join(report.list_ops(stages[-1][1])))
        return
    index = report.find_op(stages[-1][1], op)
    typer.echo(f"{program}, op {index} of {len(stages[-1][1].ops)}\n")
    typer.echo(report.explain(stages, index, target, KERNELS, shaders[index] if shaders else ""))


@app.command()
def view(model: ModelPath, output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("graph.html"),
         program: Program = "decode_1", device: TargetName = "auto") -> None:
    """Draw a program's op graph as one HTML page.

    \b
    tilewright view path/to/model -o graph.html
    """
    from .compiler.page import page
    target = target_of(device)
    stages, _ = stages_of(model, target, program)
    graph = stages[-1][1]
    output.write_text(page(graph, f"{model.name}: {program}, {len(graph.ops)} ops"), encoding="utf-8")
    typer.echo(f"wrote {output}: {len(graph.ops)} ops", err=True)


@app.command()
def devices() -> None:
    """List the GPU adapters of this machine and the device profiles."""
    from .compiler.device import shipped_devices
    from .runtime.adapter import adapters
    found = adapters()
    for number, info in enumerate(found):
        from .runtime.gpu import Gpu
        gpu = Gpu(info)
        rows = [("backend", info.backend), ("kind", info.kind), ("driver", info.driver), ("features", ", ".join(sorted(gpu.features)) or "none"),
                ("subgroup size", gpu.subgroup_size or "none"), *((n.removeprefix("max_").replace("_", " "), f"{gpu.limits[n]:,}") for n in LIMITS)]
        show_table((info.name + ("  (auto takes this one)" if not number else ""), ("", ""), rows))
        gpu.close()
    if not found:
        typer.echo("no GPU adapter: auto plays in numpy (slowly). Install a Vulkan, Metal or Direct3D 12 driver; on Debian without a GPU: "
                   "apt install mesa-vulkan-drivers libvulkan1")
    typer.echo(f"device profiles to compile for: {', '.join(d.name for d in shipped_devices())}")


# ---- what the commands share

def load(path: Path, device: str, context: int | None = None, dtype: str | None = None, cache: str | None = None) -> Model:
    from .api import load as load_model
    with progress() as show:
        return load_model(path, device, context, dtype, cache, show)


def target_of(device: str) -> Device:
    """What to compile for: an adapter of this machine, or a device profile, which needs no such device."""
    from .api import open_gpu, record_of
    from .compiler.device import shipped_devices
    from .runtime.adapter import DeviceError
    profiles = {d.name: d for d in shipped_devices()}
    try:
        gpu = open_gpu(device)
    except DeviceError as error:
        if device not in profiles:
            raise DeviceError(f"{error}; device profiles: {', '.join(profiles)}") from None
        return profiles[device]
    try:
        return record_of(gpu)
    finally:
        if gpu:
            gpu.close()


def stages_of(path: Path, target: Device, program: str) -> tuple[list[tuple[str, Graph]], list[str]]:
    """One program after every pass for a device; of a compiled package, as it stands there, with the WGSL of every op."""
    from .api import is_package, open_package, plan_for
    from .compiler.device import REFERENCE
    from .compiler.ir import GraphError
    from .compiler.pipeline import run_stages
    from .frontends.checkpoint import open_checkpoint
    from .frontends.lower import lower
    from .templates import KERNELS
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
    kernels = {} if target is REFERENCE else KERNELS
    return [(f"after {name}", now[program]) for name, now, _ in run_stages(graphs, target, kernels)], []


def adapter_of(model: Model) -> str:
    gpu = getattr(model.player, "gpu", None)
    return str(gpu.info) if gpu else "numpy reference"




if __name__ == "__main__":
    main()
