"""The command line. What a command needs it imports itself, so that --help need not wait for it."""
from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from .bench import commands, inspection
from .options import Activations, Cache, Context, DeviceName, Dtype, ModelPath, Quantize, load

DEMO = Path(__file__).parent / "frontends" / "demo" / "tales-llama4"

Targets = Annotated[list[str], typer.Option("--target", "--device", help="What to compile for: auto, a part of an adapter's name, a device "
                    "profile or TOML file, or web (browsers). Given several times, or with commas, one file plays on all.")]
MaxTokens = Annotated[int, typer.Option(min=0, help="Tokens to generate at most.")]
Temperature = Annotated[float, typer.Option(help="0 always takes the likeliest token; more gives more variety.")]
TopK = Annotated[int, typer.Option(help="Sample from so many of the likeliest tokens; 0 is off.")]
TopP = Annotated[float, typer.Option(help="Sample from the likeliest tokens that make up this share; 1 is off.")]
MinP = Annotated[float, typer.Option(help="Leave out tokens below this share of the likeliest one's probability; 0 is off.")]
Penalty = Annotated[float, typer.Option("--repeat-penalty", help="Above 1 makes tokens less likely that were there before.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same text; random if not given.")]
Stops = Annotated[list[str] | None, typer.Option("--stop", help="End before this text; may be given several times.")]

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


for more in (inspection.app, commands.app):
    app.add_typer(more)


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


if __name__ == "__main__":
    main()
