"""The commands that measure: probe, tune, profile, perplexity."""
from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..options import Activations, Cache, Context, DeviceName, Dtype, JsonFile, ModelPath, Quantize, load

app = typer.Typer()

Budget = Annotated[float, typer.Option(help="Seconds to spend at most; what weighs most is timed first.")]


@app.command()
def probe(device: DeviceName = "auto",
          output: Annotated[Path | None, typer.Option("--output", "-o", help="The record to write; if not given that of your cache folder.")] = None,
          ) -> None:
    """Measure the GPU and keep the numbers, which the compiler's cost model goes by from then on.

    \b
    tilewright probe
    tilewright probe --device nvidia -o my-gpu.toml
    """
    from ..runtime.terminal import progress, show_table
    from . import measuring, probing
    gpu = measuring.real_gpu(device)
    with progress() as show:
        found = measuring.probe(gpu, show)
    show_table(str(gpu.info), ("", ""), probing.rows(found))
    typer.echo(f"wrote {measuring.keep(found.device, 'tilewright probe', gpu, output)}", err=True)
    gpu.close()


@app.command()
def tune(model: ModelPath, device: DeviceName = "auto", budget: Budget = 60.0,
         batch: Annotated[int, typer.Option(min=1, help="Tune the programs that decode up to so many sequences at once, too.")] = 1,
         context: Context = None, dtype: Dtype = None, cache: Cache = None, quantize: Quantize = None, json_file: JsonFile = None) -> None:
    """Time the schedules of a model's kernels on the GPU and keep the fastest, which every model is compiled with from then on.

    \b
    tilewright tune path/to/model
    tilewright tune model.gguf --budget 300 --batch 8 --dtype f16
    """
    from ..runtime.terminal import progress, show_table
    from . import measuring
    gpu = measuring.real_gpu(device)
    with progress() as show:
        found, path = measuring.tune(gpu, model, budget, show, context, dtype, cache, quantize, batch)
    if json_file:
        measuring.write_json(measuring.tuned_json(found, gpu), json_file)
    if str(json_file) != "-":
        show_table(str(gpu.info), measuring.TUNED_COLUMNS, measuring.tuned_rows(found))
        show_table("", measuring.SUM_COLUMNS, measuring.step_sums(found))
    other = sum(r.best != r.default for r in found.ops)
    typer.echo(f"wrote {path}: {len(found.ops)} kernels timed, {other} choices other than the default", err=True)
    gpu.close()


@app.command()
def profile(model: ModelPath, device: DeviceName = "auto", tokens: Annotated[int, typer.Option(min=2, help="Decode steps to watch.")] = 64,
            at: Annotated[int, typer.Option("--context", min=1, help="Positions that the first of them finds in the caches.")] = 128,
            prefill: Annotated[int, typer.Option(min=0, help="Profile a prompt of so many tokens, too.")] = 0,
            trace: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a timeline of host and GPU, for ui.perfetto.dev.")] = None,
            dtype: Dtype = None, cache: Cache = None, quantize: Quantize = None, json_file: JsonFile = None) -> None:
    """Show where a model's time goes: by kernel and op against what the GPU could do, and the host against the GPU.

    \b
    tilewright profile path/to/model
    tilewright profile model.wgpu-llama --context 2000 --prefill 512 --trace steps.json
    """
    from ..runtime.terminal import progress, show_table
    from . import measuring
    with progress() as show:
        found = measuring.profile(model, device, tokens, at, prefill, dtype, cache, quantize, show)
    if trace:
        measuring.write_json(found.trace, trace)
    if json_file:
        measuring.write_json(found.numbers, json_file)
    if str(json_file) != "-":
        for title, columns, rows in found.tables:
            show_table(title, columns, rows)


@app.command()
def perplexity(model: ModelPath, text: Annotated[Path, typer.Argument(metavar="TEXT", help="A text file of at least 512 tokens.")],
               against: Annotated[Path | None, typer.Option(metavar="MODEL", help="Tell how far the model is from this one.")] = None,
               windows: Annotated[int | None, typer.Option(help="Take only the first so many windows of 512 tokens.")] = None,
               json_file: JsonFile = None, device: DeviceName = "auto", dtype: Dtype = None, cache: Cache = None, quantize: Quantize = None,
               activations: Activations = None) -> None:
    """Measure how well a model predicts a text, as llama.cpp does; and what quantizing it costs.

    \b
    tilewright perplexity path/to/model book.txt
    tilewright perplexity path/to/model book.txt --quantize q4_0 --against path/to/model
    """
    from dataclasses import asdict

    from ..api import is_package
    from ..runtime.perplexity import WINDOW, measure, read_text, rows
    from ..runtime.terminal import progress, show_table
    from . import measuring
    words, context = read_text(text), {p: None if is_package(p) else WINDOW for p in (model, against) if p}
    loaded = load(model, device, context[model], dtype, cache, quantize, activations)
    base = load(against, device, context[against], dtype, cache) if against else None
    with progress() as show:
        found = measure(loaded, words, base, windows, lambda done, total: show("windows", done, total))
    if json_file:
        measuring.write_json({"model": str(model), "text": str(text), "base": str(against) if against else None, **asdict(found)}, json_file)
    if str(json_file) != "-":
        show_table("", ("", ""), rows(found))
