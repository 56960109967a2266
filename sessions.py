"""Graphs of tensors: an ONNX model, or a package of one, that takes arrays and gives arrays."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from .compiler.assembly import Variant, build_package
from .compiler.device import REFERENCE, Device
from .compiler.ir import Graph, GraphError
from .compiler.package import Package, open_package
from .compiler.pipeline import compile_graphs
from .compiler.standalone import standalone
from .frontends.checkpoint import CheckpointError
from .frontends.onnx import NeedsValue, lower_onnx
from .frontends.onnx_file import DTYPES, check_model, is_onnx, open_model
from .frontends.onnx_graph import input_shapes
from .frontends.onnx_tensors import Shape
from .runtime.gpu import Gpu
from .runtime.requirements import playable
from .runtime.tensors import PROGRAM, ReferenceTensors, TensorError, TensorPlayer, named_dtype
from .targets import open_gpu, record_of
from .templates import KERNELS

Shapes = Mapping[str, Sequence[int]]


class Session:
    """An opened graph. It is compiled at its first run, again for other shapes of the inputs, and for other contents of those inputs that
    decide shapes (such as the axes of a reduction); what was compiled is kept."""

    def __init__(self, source: Any, where: str, gpu: Gpu | None, record: Device):
        """source: a ModelProto, or a Package that was compiled for fixed shapes."""
        self._source, self._where, self._gpu, self._record = source, where, gpu, record
        self._static: frozenset[str] = frozenset()
        self._players: dict[tuple, TensorPlayer | ReferenceTensors] = {}

    @property
    def inputs(self) -> dict[str, tuple[str, list[int | str]]]:
        """Dtype and shape of every input; open sizes have the names that the model gives them."""
        if isinstance(self._source, Package):
            return {n: (e["dtype"], e["shape"]) for n, e in self._source.manifest["model"]["inputs"].items()}
        made = {t.name for t in self._source.graph.initializer}
        return {v.name: _declared(v) for v in self._source.graph.input if v.name not in made}

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name. feeds: an array for every input.

        Raises TensorError for feeds that do not fit the graph, CheckpointError or GraphError where it cannot be compiled."""
        arrays = self._checked(feeds)
        key = self._key(arrays)
        if key not in self._players:
            package = self._package(arrays)
            key = self._key(arrays)
            self._players[key] = ReferenceTensors(package) if self._gpu is None else TensorPlayer(package, self._gpu)
        return self._players[key].run(arrays)

    def _key(self, arrays: Mapping[str, np.ndarray]) -> tuple:
        """What the compiled graph depends on."""
        return tuple((n, a.shape, a.tobytes() if n in self._static else b"") for n, a in sorted(arrays.items()))

    def _package(self, arrays: Mapping[str, np.ndarray]) -> Package:
        if isinstance(self._source, Package):
            return fitting(self._source, self._gpu, self._record)
        shapes = input_shapes(self._source, self._where, {n: a.shape for n, a in arrays.items()})
        package, self._static = compile_tensors(self._source, self._where, [self._record], shapes, arrays, self._static)
        return package

    def _checked(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        inputs = self.inputs
        if missing := [n for n in inputs if n not in feeds]:
            raise TensorError(f"{self._where}: the input {missing[0]} is missing; the graph takes {', '.join(inputs)}")
        if unknown := [n for n in feeds if n not in inputs]:
            raise TensorError(f"{self._where} has no input {unknown[0]}; it takes {', '.join(inputs)}")
        arrays = {}
        for name, (dtype, shape) in inputs.items():
            array = np.asarray(feeds[name])
            fits = len(array.shape) == len(shape) and all(isinstance(d, str) or d == a for a, d in zip(array.shape, shape, strict=True))
            if not fits and shape != "?":
                raise TensorError(f"{self._where}: the input {name} has the shape {shape}, not {list(array.shape)}")
            if array.dtype != named_dtype(dtype):
                raise TensorError(f"{self._where}: the input {name} is {dtype}, not {array.dtype}")
            arrays[name] = array
        return arrays

    def forget(self) -> None:
        """Free the memory of all that was compiled."""
        for player in self._players.values():
            player.close()
        self._players.clear()

    def close(self) -> None:
        """Free the memory, and the device."""
        self.forget()
        if self._gpu:
            self._gpu.close()


def _declared(value: Any) -> tuple[str, Any]:
    kind = value.type.tensor_type
    dtype = DTYPES[kind.elem_type].name if kind.elem_type in DTYPES else "unknown"
    if not kind.HasField("shape"):
        return dtype, "?"
    return dtype, [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim]


def compile_tensors(model: Any, where: str, devices: Sequence[Device], shapes: Mapping[str, Shape], feeds: Mapping[str, np.ndarray] | None = None,
                    static: frozenset[str] = frozenset()) -> tuple[Package, frozenset[str]]:
    """The package of a ModelProto for devices and these shapes, and the inputs whose contents it was compiled for."""
    try:
        lowered = lower_onnx(model, where, shapes, feeds or {}, static)
    except NeedsValue as error:
        raise CheckpointError(f"{where}: {error} depends on the contents of {', '.join(sorted(error.origins)) or 'what is computed'}, so it "
                              "cannot be compiled ahead; use tilewright.session, or make these initializers") from None
    return _package(lowered.graph, devices, lowered.model, lowered.leaves.__getitem__), lowered.static


def _package(graph: Graph, devices: Sequence[Device], model: Mapping[str, Any], leaf: Callable[[str], np.ndarray]) -> Package:
    return build_package([Variant(compile_graphs({PROGRAM: graph}, d, {} if d is REFERENCE else KERNELS), d, model) for d in devices], leaf)


def fitting(package: Package, gpu: Gpu | None, device: Device) -> Package:
    """The package with the variant that the device plays; compiled for it if it holds no shaders."""
    if package.manifest["shaders"] or gpu is None:
        return playable(package, gpu) if gpu else package
    return _package(package.graph(PROGRAM), [device], package.manifest["model"], package.weight)


def compile_onnx(path: str | Path, devices: Sequence[Device], shapes: Shapes | None = None) -> Package:
    """The package of an ONNX file. shapes: by input, or sizes by the name of an open dimension ({"batch": [1]}).

    Raises CheckpointError for a bad file, and where shapes stay open."""
    model = open_model(path)
    return compile_tensors(model, str(path), devices, input_shapes(model, str(path), shapes or {}))[0]


def parse_shapes(texts: Sequence[str]) -> dict[str, list[int]]:
    """Shapes from the command line: NAME=1,128. Raises CheckpointError naming the text that is none."""
    found = {}
    for text in texts:
        name, _, numbers = text.rpartition("=")
        if not name or not all(n.strip().isdigit() for n in numbers.split(",") if numbers):
            raise CheckpointError(f"--shape {text} is no shape: give it as NAME=1,128")
        found[name] = [int(n) for n in numbers.split(",") if n]
    return found


def compile_graph(graph: Graph, device: Device, weights: Mapping[str, np.ndarray]) -> Package:
    """The package of a graph, with these arrays as its weights, in any float dtype or as their layouts store them (uint8).

    Raises GraphError for graphs that do not hold together, and for weights that are missing or do not fit."""
    needed = {n for op in graph.ops for n in op.inputs if graph.values[n].role == "weight"}
    if missing := sorted(needed - weights.keys()):
        raise GraphError(f"the graph needs {len(needed)} weights, and {', '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing")
    for name in sorted(needed):
        shape = graph.values[name].shape
        if weights[name].shape != shape and weights[name].dtype != np.uint8:
            raise GraphError(f"the weight %{name} has the shape {list(weights[name].shape)} where the graph needs {list(shape)}")
    whole, described = standalone(graph)
    return _package(whole, [device], described, weights.__getitem__)


def is_tensors(package: Package) -> bool:
    """Whether a package is a graph of tensors rather than a language model."""
    return "outputs" in package.manifest["model"]


def session(source: Any, device: str = "auto", weights: Mapping[str, np.ndarray] = MappingProxyType({})) -> Session:
    """Open an ONNX file, an onnx.ModelProto, a package that was compiled from one, or a Graph, to run with arrays.

    device: "auto", a part of an adapter's name, or "reference" (numpy). weights: those of a Graph by name, whose states start as zeros
    and are kept from run to run. Floats compute in float32, integers in 32 bits.
    Raises CheckpointError when the file is not whole, PackageError when the package is not, GraphError when the graph or a weight is not.
    """
    model: Any
    if isinstance(source, Graph):
        gpu = open_gpu(device)
        return Session(compile_graph(source, record_of(gpu), weights), "the graph", gpu, record_of(gpu))
    where = str(source) if isinstance(source, (str, Path)) else "the model"
    if not isinstance(source, (str, Path)):
        check_model(source, where)
        model = source
    elif is_onnx(source) or not Path(source).exists():
        model = open_model(source)
    else:
        model = open_package(source)
        if not is_tensors(model):
            raise CheckpointError(f"{source} is a language model: open it with tilewright.load")
    gpu = open_gpu(device)
    return Session(model, where, gpu, record_of(gpu))


__all__ = ["Session", "compile_onnx", "compile_tensors", "is_onnx", "is_tensors", "parse_shapes", "session"]
