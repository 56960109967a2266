"""Tilewright: a graph compiler from transformer checkpoints to WGSL specialised for one GPU, and its player.

    import tilewright
    model = tilewright.load("path/to/model")
    print(model.generate("Once upon a time"))
"""
from __future__ import annotations

from .api import compile, load, load_tokenizer, register_model, session
from .compiler.builder import Builder
from .compiler.ir import GraphError
from .compiler.package import Package, PackageError, open_package
from .frontends.checkpoint import CheckpointError
from .quantization import quantize
from .runtime.adapter import DeviceError
from .runtime.generate import Model, PromptError, Stream
from .runtime.tensors import TensorError
from .runtime.tokenizer import Tokenizer, TokenizerError
from .sessions import Session

__version__ = "0.1.0"
__all__ = ["Builder", "CheckpointError", "DeviceError", "GraphError", "Model", "Package", "PackageError", "PromptError", "Session", "Stream",
           "TensorError", "Tokenizer", "TokenizerError", "compile", "load", "load_tokenizer", "open_package", "quantize", "register_model", "session"]
