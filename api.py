"""The Python interface: checkpoint to package to model."""
from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np

from .compiler.assembly import Variant, build_package
from .compiler.device import REFERENCE, Device, with_least_storage
from .compiler.ir import Graph
from .compiler.package import Package, PackageError, open_package
from .compiler.pipeline import compile_graphs
from .compiler.proof import proved
from .frontends.checkpoint import Checkpoint, CheckpointError, TokenizerData, open_checkpoint, read_tokenizer
from .frontends.lower import CACHES, Plan, lower, raw_config
from .frontends.models import register_model
from .frontends.quantize import Quantize
from .frontends.weights.loading import Stages, fill, read_ahead
from .runtime.generate import Model, Player
from .runtime.gpu import Gpu
from .runtime.player import GpuPlayer, ReferencePlayer
from .runtime.requirements import playable
from .runtime.tokenizer import Tokenizer
from .sessions import Session, compile_onnx, is_onnx, is_tensors, session
from .targets import open_gpu, record_of, targets
from .templates import KERNELS

MOST_CONTEXT = 8192             # what context=None gives at most
BUCKETS = (1, 2, 4, 8, 16, 32)  # rows of the programs that decode several sequences
NARROW = 1024                   # a device with fewer invocations at once takes smaller chunks

Progress = Callable[[str, int, int], None]      # what, done, total


def silent(what: str, done: int, total: int) -> None:
    pass


def compile(path: str | Path, device: str = "auto", context: int | None = None, dtype: str = "f32", cache: str | None = None,
            progress: Progress = silent, quantize: Quantize = None, batch: int = 1, activations: str | None = None) -> Package:
    """Compile a Hugging Face folder or a GGUF file for a device: "auto", a part of an adapter's name, "reference" (numpy), a profile or TOML
    file of a device that need not be here, or "web", which stands for the profiles of browsers. Several, with commas between them, become
    variants over one copy of the weights.

    context: positions, by default the model's, at most 8,192. dtype: storage of activations ("f32", "f16"); cache: that of keys and
    values ("q8_0" too), as dtype by default. quantize: the format of the weight matrices ("q4_0"), with others for some names if need be
    ("q4_0,embedding=q8_0", or {"embedding": "q8_0", "*": "q4_0"}: the first pattern that matches counts); routers stay f32.
    batch: sequences that `stream_many` runs at once, each with caches of its own. activations: how quantized weights meet them: rounded to
    8-bit integers by blocks of 32 ("q8") or not ("f32"); by default what the device does faster.
    An ONNX file of fixed shapes is compiled as it is; the other arguments are for language models.
    Raises CheckpointError, GraphError or DeviceError with one clear sentence.
    """
    if is_onnx(path):
        return compile_onnx(path, targets(device))
    return compile_for(open_checkpoint(path), targets(device, activations), context, dtype, cache, progress, quantize, batch=batch)


def compile_for(checkpoint: Checkpoint, device: Device | Sequence[Device], context: int | None = None, dtype: str = "f32",
                cache: str | None = None, progress: Progress = silent, quantize: Quantize = None,
                rounded: Mapping[str, np.ndarray] = MappingProxyType({}), batch: int = 1) -> Package:
    """Compile an opened checkpoint for a device record or several; needs no such device. Of several, those without shader-f16 store in f32
    what others store in f16. rounded: stored rows (uint8) of weights that have been rounded to their formats already."""
    for what, given, known in (("dtype", dtype, ("f32", "f16")), ("cache", cache or dtype, tuple(CACHES))):
        if given not in known:
            raise CheckpointError(f"unknown {what} '{given}'; known: {', '.join(known)}")
    devices = [device] if isinstance(device, Device) else list(device) if len(device) == 1 else with_least_storage(device)

    def stored(kind: str, on: Device) -> str:
        return "f32" if kind == "f16" and len(devices) > 1 and "shader-f16" not in on.features else kind
    plans = [plan_for(checkpoint, d, context, stored(dtype, d), stored(cache or dtype, d), batch) for d in devices]
    lowered = [lower(checkpoint, plan, quantize) for plan in plans]
    for note in lowered[0].notes:
        print(f"tilewright: {note}", file=sys.stderr)

    def leaf(name: str) -> np.ndarray:
        return rounded[name] if name in rounded else lowered[0].leaf(name)
    return _package([(low.graphs, each, low.model) for low, each in zip(lowered, devices, strict=True)], leaf, checkpoint.tokenizer, progress)


def _package(parts: Sequence[tuple[dict[str, Graph], Device, dict[str, Any]]], leaf, tokenizer: TokenizerData | None, progress: Progress) -> Package:
    """parts: for each device its graphs, itself, and what players need to know of the model."""
    done, variants = 0, []

    def stage(name: str) -> None:
        nonlocal done
        done += 1
        progress(f"compiling: {name}", done, 8 * len(parts))
    for graphs, device, model in parts:
        variants.append(Variant(compile_graphs(graphs, device, {} if device is REFERENCE else KERNELS, stage), device, model))
    described = tokenizer.settings if tokenizer else None
    return build_package(variants, leaf, described, tokenizer.json if tokenizer else b"")


def plan_for(checkpoint: Checkpoint, device: Device, context: int | None, dtype: str, cache: str, batch: int = 1) -> Plan:
    """Program sizes for a device. Raises CheckpointError for a context beyond the model's."""
    most = int(raw_config(checkpoint).get("max_position_embeddings") or 2048)
    if context is not None and not 1 <= context <= most:
        raise CheckpointError(f"a context of {context} is not possible: the model's own is {most}, so give 1 to {most}")
    context = context or min(most, MOST_CONTEXT)
    chunks = (16, 128) if device.width < NARROW else (64, 512)
    if batch < 1:
        raise CheckpointError(f"a batch of {batch} sequences is not possible: give 1 or more")
    decode = tuple(n for n in BUCKETS if n < batch) + (batch,)
    return Plan(context, slots=batch, decode=decode, prefill=tuple(sorted({min(c, context) for c in chunks})), dtype=dtype, cache=cache)


def load(path: str | Path, device: str = "auto", context: int | None = None, dtype: str | None = None, cache: str | None = None,
         progress: Progress = silent, quantize: Quantize = None, batch: int = 1, activations: str | None = None) -> Model:
    """Load a Hugging Face folder, a GGUF file, or a .wgpu-llama package, and get it ready to generate.

    device: "auto", a part of an adapter's name, or "reference" (numpy). context, dtype, cache, quantize, batch and activations as for
    `compile`; a package has its own. How long what took is in the model's `load_seconds`. An ONNX file, or a package of one, gives a
    Session, as `session` does.
    """
    path, stages = Path(path), Stages()
    if is_onnx(path):
        return cast(Model, session(path, device))
    read_ahead(path)
    with stages("device"):
        gpu = open_gpu(device)
        record = record_of(gpu, activations)
    if is_package(path):
        if quantize:
            raise PackageError(f"{path} is a package, whose weights have their formats: compile the model again with quantize")
        fitting = partial(_fitting, gpu=gpu, device=record, context=context, dtype=dtype, cache=cache, progress=progress)
        return _load_package(path, gpu, record, fitting, progress, stages)
    with stages("open"):
        checkpoint = open_checkpoint(path)

    def remake(quantize: Quantize) -> tuple[Package, Callable[[Package], Player]]:
        package = compile_for(checkpoint, record, context, dtype or "f32", cache, progress, quantize, batch=batch)
        return package, partial(_player, gpu, progress)
    with stages("compile"):
        package, player = remake(quantize)
    tokenizer = Tokenizer(**vars(checkpoint.tokenizer)) if checkpoint.tokenizer else None
    return stages.end(Model(package, player(package), tokenizer, remake))


def _load_package(path: Path, gpu: Gpu | None, device: Device, fitting: Callable[[Package], Package], progress: Progress, stages: Stages) -> Model:
    """Checksums are computed while weights travel; what fails for a damaged file says that it is."""
    with stages("open"):
        whole = open_package(path, checked=False)
    if is_tensors(whole):
        whole.check()
        return cast(Model, Session(whole, str(path), gpu, device))
    with ThreadPoolExecutor(1) as beside:
        checking = beside.submit(whole.check)
        try:
            with stages("compile"):
                package = fitting(whole)
            model = Model(package, _player(gpu, progress, package), tokenizer_of(package))
        except Exception:
            checking.result()
            raise
        try:
            checking.result()
        except PackageError:
            model.close()
            raise
    return stages.end(model)


def _player(gpu: Gpu | None, progress: Progress, package: Package) -> Player:
    """The package, loaded; the GPU itself makes the blocks of weights that were float numbers."""
    if gpu is None:
        return ReferencePlayer(package)
    return GpuPlayer(package, gpu, lambda done, total: progress("loading weights", done, total), owns_gpu=True,
                     fill=partial(fill, package) if package.array else None,
                     trusted=partial(proved, package.manifest))     # whoever made the package, its word is not enough


def is_package(path: str | Path) -> bool:
    return Path(path).is_file() and Path(path).suffix not in (".gguf", ".json", ".onnx")


def _fitting(package: Package, gpu: Gpu | None, device: Device, context: int | None, dtype: str | None, cache: str | None,
             progress: Progress) -> Package:
    """The package as asked for, with the variant that the device plays; one without compiled programs is compiled for the device."""
    if gpu and package.manifest["shaders"]:
        package = playable(package, gpu)
    model = package.manifest["model"]
    for what, asked in (("context", context), ("dtype", dtype), ("cache", cache)):
        if asked is not None and asked != model[what]:
            raise PackageError(f"the package was compiled with {what} {model[what]}, not {asked}: compile the model again")
    if package.manifest["shaders"] or device is REFERENCE:
        return package
    return compile_package(package, device, progress)


def compile_package(package: Package, device: Device, progress: Progress = silent) -> Package:
    """A package without compiled programs, compiled for a device."""
    graphs = {name: package.graph(name) for name in package.manifest["programs"]}
    tokenizer = package.manifest["tokenizer"]
    data = TokenizerData(json=bytes(package.blob("tokenizer")), **tokenizer) if tokenizer else None
    return _package([(graphs, device, package.manifest["model"])], package.stored, data, progress)


def tokenizer_of(package: Package) -> Tokenizer | None:
    described = package.manifest["tokenizer"]
    return Tokenizer(json=bytes(package.blob("tokenizer")), **described) if described else None


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of anything that holds one: a Hugging Face folder, a GGUF file, a package, a tokenizer.json."""
    if is_package(path):
        if (found := tokenizer_of(open_package(path))) is None:
            raise PackageError(f"{path} holds no tokenizer")
        return found
    return Tokenizer(**vars(read_tokenizer(path)))


__all__ = ["compile", "compile_for", "load", "load_tokenizer", "open_gpu", "record_of", "register_model", "session", "targets"]
