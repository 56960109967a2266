"""The options that commands share, and the model that they ask for."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from .runtime.generate import Model

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="A Hugging Face folder, a GGUF or ONNX file, or a .wgpu-llama package.")]
DeviceName = Annotated[str, typer.Option("--device", help="auto, a part of an adapter's name, or reference (numpy, slow).")]
Context = Annotated[int | None, typer.Option(help="Positions for prompt and answer; if not given the model's own, at most 8192.")]
Dtype = Annotated[str | None, typer.Option(help="How activations are stored: f32 (if not given) or f16.")]
Cache = Annotated[str | None, typer.Option(help="How keys and values are stored: f32, f16 or q8_0; as --dtype if not given.")]
Activations = Annotated[str | None, typer.Option(help="What quantized weights meet: f32, or q8 (8-bit integers); if not given what is faster.")]
Quantize = Annotated[str | None, typer.Option(help="Format of the weights, such as q8_0 or q4_0, some by name: q4_0,embedding=q8_0.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers there; - prints them.")]


def load(path: Path, device: str, context: int | None = None, dtype: str | None = None, cache: str | None = None,
         quantize: str | None = None, activations: str | None = None) -> Model:
    """Load a model that writes, with bars while it does; on a terminal, tell how long what took. Raises ValueError for a graph of tensors."""
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
