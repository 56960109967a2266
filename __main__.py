"""The command line: compile a model, play it, and look at what the compiler made of it."""
from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .bench.commands import app as measuring
from .options import Cache, Context, DeviceName, Dtype, ModelPath, Quantize

if TYPE_CHECKING:       # what a command needs it imports itself, so that --help need not wait for it
    from .compiler.device import Device
    from .compiler.ir import Graph
    from .runtime.generate import Model

DEMO = Path(__file__).parent / "frontends" / "demo" / "tales-llama4"
LIMITS = ("max_buffer_size", "max_storage_buffer_binding_size", "max_storage_buffers_per_shader_stage",
          "max_compute_workgroup_storage_size", "max_compute_invocations_per_workgroup")

TargetName = Annotated[str, typer.Option("--device", help="auto, a part of an adapter's name, or a device profile such as web-default.")]
Targets = Annotated[list[str], typer.Option("--target", "--device", help="What to compile for: auto, a part of an adapter's name, a device "
                    "profile or TOML file, or web (browsers). Given several times, or with commas, one file plays on all.")]
MaxTokens = Annotated[int, typer.Option(min=0, help="Tokens to generate at most.")]
Temperature = Annotated[float, typer.Option(help="0 always takes the likeliest token; more gives more variety.")]
TopK = Annotated[int, typer.Option(help="Sample from so many of the likeliest tokens; 0 is off.")]
TopP = Annotated[float, typer.Option(help="Sample from the likeliest tokens that make up this share; 1 is off.")]
MinP = Annotated[float, typer.Option(help="Leave out tokens below this share of the likeliest one's probability; 0 is off.")]
Penalty = Annotated[float, typer.Option("--repeat-penalty", help="Above 1 makes tokens less likely that were there before.")]
Activations = Annotated[str | None, typer.Option(help="What quantized weights meet: f32, or q8 (8-bit integers); if not given what is faster.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same text; random if not given.")]
Stops = Annotated[list[str] | None, typer.Option("--stop", help="End before this text; may be given several times.")]
Program = Annotated[str, typer.Option(help="decode_1, prefill_128, head_1, sample_1, ... (tilewright inspect lists them)")]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


def main(arguments: list[str] | None = None) -> None:
    """The entry point: what goes wrong becomes one sentence and exit code 1."""
    try:
        app(arguments, prog_name="tilewright")
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        from . import CheckpointError, DeviceError, GraphError, PackageError, TokenizerError
        if not isinstance(error, (CheckpointError, DeviceError, GraphError, PackageError, TokenizerError, ValueError, OSError)):
            raise
        sentence = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        print(f"tilewright: {sentence}", file=sys.stderr)
        sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        from . import __version__
        print(f"tilewright {__version__}")
        raise typer.Exit


@app.callback()
def tilewright(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False) -> None:
    """Compile a transformer decoder to WGSL for one GPU, and play it.

    \b
    tilewright demo
    tilewright generate path/to/model --prompt "Once upon a time"
    tilewright compile path/to/model -o model.wgpu-llama --quantize q4_0

    The demo brings its own model. Others are Hugging Face folders (config.json, *.safetensors, tokenizer.json) or GGUF files.

    TILEWRIGHT_REFERENCE=1 plays in numpy instead of on the GPU; TILEWRIGHT_DUMP=fusion (or all) prints the graphs after a pass.
    """


@app.command()
def demo(device: DeviceName = "auto",
         prompt: Annotated[str, typer.Option(help="The text to go on from.")] = "The old man looked at her, and said:",
         max_tokens: MaxTokens = 120, temperature: Temperature = 0.8, seed: Seed = 0) -> None:
    """Compile the small model that is built in (8 layers, 4 experts, trained on old novels) and let it write.

    \b
    tilewright demo
    tilewright demo --prompt "My dear Watson," --seed 7
    """
    from .runtime.terminal import play, rate, show_table
    start = time.perf_counter()
    model = load(DEMO, device)
    loading, compiling = time.perf_counter() - start, sum(model.package.timings.values())
    ids = model.tokenizer.encode(prompt)
    typer.secho(prompt, bold=True, nl=False)
    count, first, rest = play(model.stream(ids, max_tokens=max_tokens, temperature=temperature, seed=seed))
    print("\n")
    manifest, gpu = model.package.manifest, getattr(model.player, "gpu", None)
    dispatches = sum(len(manifest["programs"][p]["dispatches"]) for p in ("decode_1", "sample_1" if temperature > 0 else "greedy_1"))
    kernels = f"{len(manifest['shaders'])} distinct shaders, {dispatches} dispatches a token" if gpu else "none: numpy plays the graph"
    show_table("", ("", ""), [("adapter", gpu.info if gpu else "none: the numpy reference"), ("kernels", kernels),
                              ("compiling", f"{compiling:.2f} s"), ("loading", f"{loading - compiling:.2f} s"),
                              ("prompt", f"{len(ids)} tokens, {rate(len(ids), first)}"),
                              ("answer", f"{count} tokens, {rate(count - 1, rest)}")])


@app.command(name="compile")
def compile_(model: ModelPath, output: Annotated[Path, typer.Option("--output", "-o", help="The package to write, NAME.wgpu-llama.")],
             target: Targets = ["auto"], context: Context = None, dtype: Dtype = None, cache: Cache = None,       # noqa: B006
             quantize: Quantize = None,
             tune: Annotated[bool, typer.Option("--tune", help="First find this GPU's fastest kernels; they are kept.")] = False,
             shape: Annotated[list[str] | None, typer.Option(metavar="NAME=1,128", help="Of an ONNX input; repeatable.")] = None) -> None:
    """Compile a model into one file that any player can run.

    \b
    tilewright compile path/to/model -o model.wgpu-llama
    tilewright compile model.gguf -o model.wgpu-llama --target web
    tilewright compile model.gguf -o model.wgpu-llama --target web,nvidia-h200
    tilewright compile path/to/model -o model.wgpu-llama --quantize q4_0,embedding=q8_0 --tune
    tilewright compile model.onnx -o model.wgpu-llama --shape input_ids=1,128
    """
    if tune:
        from .bench import measuring
        measuring.tune_first(model, target[0], context, dtype, cache, quantize)
    pack(model, output, ",".join(target), context, dtype, cache, quantize, shape or ())


@app.command()
def convert(model: ModelPath, output: Annotated[Path, typer.Option("--output", "-o", help="The package to write, NAME.wgpu-llama.")],
            context: Context = None, dtype: Dtype = None, cache: Cache = None, quantize: Quantize = None) -> None:
    """Pack a model into one file without compiling it; what plays the file compiles it for its device.

    \b
    tilewright convert path/to/model -o model.wgpu-llama --quantize q8_0
    """
    pack(model, output, "reference", context, dtype, cache, quantize)


@app.command()
def quantize(model: ModelPath, output: Annotated[Path, typer.Option("--output", "-o", help="The package to write, NAME.wgpu-llama.")],
             form: Annotated[str, typer.Option("--format", help="Format of the weights, some by name: i4_g64,head=q8_0.")] = "i4_g64",
             method: Annotated[str, typer.Option(help="gptq (weighs errors by what the text does) or rtn (rounds to nearest).")] = "gptq",
             calibration: Annotated[Path | None, typer.Option(metavar="TEXT", help="A text file like what the model will read.")] = None,
             samples: Annotated[int, typer.Option(min=1, help="Take at most so many windows of the text.")] = 128,
             length: Annotated[int, typer.Option(min=1, help="Tokens of a window.")] = 512,
             act_order: Annotated[bool, typer.Option(help="Begin with the columns that matter most.")] = True,
             damping: Annotated[float, typer.Option(help="How much to distrust the text: more is closer to rounding to nearest.")] = 0.01,
             context: Context = None, dtype: Dtype = None, cache: Cache = None) -> None:
    """Round a model's weights so that what it computes on a text changes least. What plays the file compiles it for its device.

    \b
    tilewright quantize path/to/model --format i4_g64 --calibration book.txt -o model.wgpu-llama
    """
    from . import quantization
    from .compiler.report import amount
    from .runtime.perplexity import read_text
    from .runtime.terminal import progress
    if method == "gptq" and calibration is None:
        raise ValueError("gptq needs a text: give one with --calibration, or round to nearest with --method rtn")
    start, text = time.perf_counter(), read_text(calibration) if calibration else ""
    with progress() as show:
        package = quantization.quantize(model, form, text, method, samples, length, act_order, damping, context, dtype or "f32", cache, show)
        package.save(output, lambda done, total: show("writing", done, total))
    typer.echo(f"wrote {output}: {amount(output.stat().st_size)}, not compiled, in {time.perf_counter() - start:.1f} s", err=True)


@app.command()
def generate(model: ModelPath, prompt: Annotated[str, typer.Option(help="The text to go on from; - reads it from standard input.")],
             max_tokens: MaxTokens = 256, temperature: Temperature = 0.0, top_k: TopK = 0, top_p: TopP = 1.0, min_p: MinP = 0.0,
             repeat_penalty: Penalty = 1.0, seed: Seed = None, stop: Stops = None,
             device: DeviceName = "auto", context: Context = None, dtype: Dtype = None, cache: Cache = None, quantize: Quantize = None,
             activations: Activations = None) -> None:
    """Go on from a prompt. The text goes to standard output, all else to standard error.

    \b
    tilewright generate path/to/model --prompt "Once upon a time"
    tilewright generate model.wgpu-llama --prompt - < question > answer
    """
    from .runtime.terminal import play, rate
    text = sys.stdin.read() if prompt == "-" else prompt
    loaded = load(model, device, context, dtype, cache, quantize, activations)
    stream = loaded.stream(text, max_tokens, temperature, top_k, top_p, min_p, repeat_penalty, seed, stop or ())
    count, _, rest = play(stream)
    print()
    typer.echo(f"{count} tokens, {rate(count - 1, rest)}, finished: {stream.finish_reason}", err=True)


@app.command()
def chat(model: ModelPath, system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
         max_tokens: MaxTokens = 1024, temperature: Temperature = 0.7, top_k: TopK = 0, top_p: TopP = 0.95, min_p: MinP = 0.0,
         repeat_penalty: Penalty = 1.0, seed: Seed = None,
         device: DeviceName = "auto", context: Context = None, dtype: Dtype = None, cache: Cache = None) -> None:
    """Talk with a model that has a chat template. Ctrl-C stops an answer; /new starts over; /quit or Ctrl-D leaves.

    \b
    tilewright chat path/to/model
    tilewright chat model.wgpu-llama --system "Answer in one sentence."
    """
    from .runtime.terminal import converse
    converse(load(model, device, context, dtype, cache), system,
             {"max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
              "repeat_penalty": repeat_penalty, "seed": seed})


@app.command()
def web(model: ModelPath, export: Annotated[Path | None, typer.Option(metavar="DIR", help="Write a folder for any web server instead.")] = None,
        port: Annotated[int, typer.Option(min=0, max=65535, help="Where to serve it; 0 takes any that is free.")] = 8640,
        launch: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
        context: Context = None, dtype: Dtype = None, cache: Cache = None, quantize: Quantize = None) -> None:
    """Play a package in a web page, on this machine or from any web server. Any other model is compiled for browsers first.

    \b
    tilewright web model.wgpu-llama
    tilewright web path/to/model --quantize q4_0
    tilewright web model.wgpu-llama --export site
    """
    import tempfile

    from .api import is_package
    from .compiler.report import amount
    from .runtime.website import Website, export_site
    with tempfile.TemporaryDirectory() as folder:
        package = model
        if not is_package(model):
            package = Path(folder) / f"{model.resolve().stem}.wgpu-llama"
            pack(model, package, "web", context, dtype, cache, quantize)
        if export:
            typer.echo(f"wrote {export}: {amount(export_site(package, export))}; any web server can serve it, over https", err=True)
            return
        with Website(package, port) as site:
            typer.echo(f"{package.name} plays at {site.address} (Ctrl-C ends)", err=True)
            if launch:
                typer.launch(site.address)
            site.serve_forever()


@app.command()
def perplexity(model: ModelPath, text: Annotated[Path, typer.Argument(metavar="TEXT", help="A text file of at least 512 tokens.")],
               against: Annotated[Path | None, typer.Option(metavar="MODEL", help="Tell how far the model is from this one.")] = None,
               windows: Annotated[int | None, typer.Option(help="Take only the first so many windows of 512 tokens.")] = None,
               json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers there; - prints them.")] = None,
               device: DeviceName = "auto", dtype: Dtype = None, cache: Cache = None, quantize: Quantize = None,
               activations: Activations = None) -> None:
    """Measure how well a model predicts a text, as llama.cpp does; and what quantizing it costs.

    \b
    tilewright perplexity path/to/model book.txt
    tilewright perplexity path/to/model book.txt --quantize q4_0 --against path/to/model
    """
    import json
    from dataclasses import asdict

    from .api import is_package
    from .runtime.perplexity import WINDOW, measure, read_text, rows
    from .runtime.terminal import progress, show_table
    words, context = read_text(text), {p: None if is_package(p) else WINDOW for p in (model, against) if p}
    loaded = load(model, device, context[model], dtype, cache, quantize, activations)
    base = load(against, device, context[against], dtype, cache) if against else None
    with progress() as show:
        found = measure(loaded, words, base, windows, lambda done, total: show("windows", done, total))
    if json_file:
        told = json.dumps({"model": str(model), "text": str(text), "base": str(against) if against else None, **asdict(found)}, indent=1)
        if str(json_file) == "-":
            print(told)
            return
        json_file.write_text(told + "\n", encoding="utf-8")
    show_table("", ("", ""), rows(found))


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
    from .api import compile_for, is_package, open_checkpoint, open_package
    from .compiler.report import describe, tables
    from .runtime.terminal import progress, show_table
    with progress() as show:
        done = is_package(model)
        package = open_package(model) if done else compile_for(open_checkpoint(model), target_of(device), progress=show)
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
    from .api import KERNELS
    from .compiler import report
    target = target_of(device)
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
    from .compiler.page import page
    stages, _ = stages_of(model, target_of(device), program)
    graph = stages[-1][1]
    output.write_text(page(graph, f"{model.name}: {program}, {len(graph.ops)} ops"), encoding="utf-8")
    typer.echo(f"wrote {output}: {len(graph.ops)} ops", err=True)


@app.command()
def devices() -> None:
    """List the GPU adapters of this machine, and the device profiles."""
    from .compiler.device import shipped_devices, user_file
    from .runtime.adapter import DeviceError, adapters
    from .runtime.gpu import Gpu
    from .runtime.terminal import show_table
    found = adapters()
    for number, info in enumerate(found):
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
        known = [("backend", info.backend), ("kind", info.kind), ("driver", info.driver), ("record", record), ("features", features),
                 ("subgroup size", size)]
        show_table(info.name + ("  (auto takes this one)" if number == 0 else ""), ("", ""), [*known, *opened])
    if not found:
        print("no GPU adapter was found, so auto plays in numpy (slowly). Install a Vulkan, Metal or Direct3D 12 driver; "
              "on Debian without a GPU: apt install mesa-vulkan-drivers libvulkan1\n")
    print(f"device profiles to compile for: {', '.join(d.name for d in shipped_devices())}")


app.add_typer(measuring)


def load(path: Path, device: str, context: int | None = None, dtype: str | None = None, cache: str | None = None,
         quantize: str | None = None, activations: str | None = None) -> Model:
    from . import api
    from .runtime.terminal import loading, progress
    from .sessions import Session
    with progress() as show:
        model = api.load(path, device, context, dtype, cache, show, quantize, activations=activations)
    if isinstance(model, Session):
        raise ValueError(f"{path} is a graph of tensors, which has no text to go on from: run it in Python with tilewright.session")
    if sys.stderr.isatty():
        typer.echo(loading(model), err=True)
    return model


def pack(model: Path, output: Path, names: str, context: int | None, dtype: str | None, cache: str | None, quantize: str | None,
         shapes: Sequence[str] = ()) -> None:
    """Write a package; a model for the reference device is not compiled."""
    from .api import compile_for, open_checkpoint, targets
    from .compiler.report import amount
    from .runtime.terminal import progress
    from .sessions import compile_onnx, is_onnx, parse_shapes
    start = time.perf_counter()
    with progress() as show:
        package = compile_onnx(model, targets(names), parse_shapes(shapes)) if is_onnx(model) \
            else compile_for(open_checkpoint(model), targets(names), context, dtype or "f32", cache, show, quantize)
        package.save(output, lambda done, total: show("writing", done, total))
    made = [f"{len(v['shaders'])} shaders for {v['device']['name']}" for v in package.variants if v["shaders"]]
    typer.echo(f"wrote {output}: {amount(output.stat().st_size)}, {', '.join(made) or 'not compiled'}, "
               f"in {time.perf_counter() - start:.1f} s", err=True)


def target_of(device: str) -> Device:
    """The one device that explain, view and inspect are about."""
    from .api import targets
    return targets(device)[0]


def stages_of(path: Path, target: Device, program: str) -> tuple[list[tuple[str, Graph]], list[str]]:
    """One program after every pass for a device; of a compiled package, as it stands there, with every op's WGSL."""
    from .api import KERNELS, REFERENCE, is_package, lower, open_checkpoint, open_package, plan_for
    from .compiler.ir import GraphError
    from .compiler.pipeline import run_stages
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


if __name__ == "__main__":
    main()
