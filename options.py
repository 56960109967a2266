"""The options that commands share."""
from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="A Hugging Face folder, a GGUF or ONNX file, or a .wgpu-llama package.")]
DeviceName = Annotated[str, typer.Option("--device", help="auto, a part of an adapter's name, or reference (numpy, slow).")]
Context = Annotated[int | None, typer.Option(help="Positions for prompt and answer; if not given the model's own, at most 8192.")]
Dtype = Annotated[str | None, typer.Option(help="How activations are stored: f32 (if not given) or f16.")]
Cache = Annotated[str | None, typer.Option(help="How keys and values are stored: f32, f16 or q8_0; as --dtype if not given.")]
Quantize = Annotated[str | None, typer.Option(help="Format of the weights, such as q8_0 or q4_0, some by name: q4_0,embedding=q8_0.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers there; - prints them.")]
