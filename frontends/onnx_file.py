"""ONNX files: opened whole with their external data, or one clear sentence on what is wrong (https://onnx.ai/onnx/repo-docs/IR.html)."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from .checkpoint import CheckpointError

# element types by their number in TensorProto.DataType; four-bit integers are one a byte here
DTYPES: dict[int, np.dtype] = {n: np.dtype(t) for n, t in {
    1: np.float32, 2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16, 11: np.float64,
    12: np.uint32, 13: np.uint64, 16: ml_dtypes.bfloat16, 17: ml_dtypes.float8_e4m3fn, 18: ml_dtypes.float8_e4m3fnuz,
    19: ml_dtypes.float8_e5m2, 20: ml_dtypes.float8_e5m2fnuz, 21: ml_dtypes.uint4, 22: ml_dtypes.int4}.items()}
OLDEST = 7      # opset; before it operators broadcast otherwise


def onnx_library() -> Any:
    """The `onnx` package. Raises CheckpointError where it is missing."""
    try:
        import onnx
    except ImportError:
        raise CheckpointError("reading ONNX files needs the package onnx: pip install onnx") from None
    return onnx


def is_onnx(path: Any) -> bool:
    """Whether a path is taken for an ONNX file, by its name."""
    return isinstance(path, (str, Path)) and Path(path).suffix == ".onnx"


def open_model(path: str | Path) -> Any:
    """The ModelProto of a file, its external data loaded. Raises CheckpointError when it is not whole."""
    onnx, path = onnx_library(), Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:      # of the protobuf library, whose class depends on its implementation
        raise CheckpointError(f"{path} is no ONNX file, or only a piece of one ({str(error).splitlines()[0]}); export or download it again") from None
    if not model.ir_version or not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise CheckpointError(f"{path} is no ONNX file, or only a piece of one: it holds no graph")
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as error:
        raise CheckpointError(f"{path} keeps weights in files beside it, which cannot be read: {str(error).splitlines()[0]}") from None
    check_model(model, str(path))
    return model


def check_model(model: Any, where: str) -> None:
    """Raise CheckpointError unless every name is made before it is used, element types are known and operator sets are ours."""
    for opset in model.opset_import:
        newest = onnx_library().defs.onnx_opset_version()
        if opset.domain in ("", "ai.onnx") and opset.version > newest:
            raise CheckpointError(f"{where} is written for opset {opset.version}, but the installed onnx package knows up to {newest}: "
                                  "pip install -U onnx")
        if opset.domain in ("", "ai.onnx") and opset.version < OLDEST:
            raise CheckpointError(f"{where} is written for opset {opset.version}; convert it to {OLDEST} or above with onnx.version_converter")
    for tensor in model.graph.initializer:
        if tensor.data_type not in DTYPES:
            raise CheckpointError(f"{where}: initializer {tensor.name} has the unknown element type {tensor.data_type}")
    for value in (*model.graph.input, *model.graph.output):
        kind = value.type
        if kind.HasField("tensor_type") and kind.tensor_type.elem_type not in (0, *DTYPES):
            raise CheckpointError(f"{where}: {value.name} has the unsupported element type {type_name(kind.tensor_type.elem_type)}")


def named(node: Any) -> str:
    """A node as errors call it."""
    return f"{node.op_type} {node.name}".strip()


def type_name(number: int) -> str:
    """The name of an element type, such as STRING."""
    try:
        return str(onnx_library().TensorProto.DataType.Name(number))
    except ValueError:
        return str(number)


def ordered(nodes: Iterable[Any], known: set[str], where: str) -> list[Any]:
    """Nodes in an order in which every input is made before it is read; as they stand if that is one.

    Raises CheckpointError for a cycle, and for an input that nothing makes."""
    left, done = list(nodes), set(known) | {""}
    found: list[Any] = []
    makers = {name for node in left for name in node.output}
    reads = {id(node): {*node.input, *outer_names(node)} for node in left}
    for node in left:
        if missing := [n for n in node.input if n not in done and n not in makers]:
            raise CheckpointError(f"{where}: {named(node)} reads {missing[0]}, which nothing makes")
    while left:
        ready, waiting = [], []
        for node in left:
            if all(n in done or n not in makers for n in reads[id(node)]):
                ready.append(node)
                done.update(node.output)
            else:
                waiting.append(node)
        if not ready:
            raise CheckpointError(f"{where} is cyclic: {named(left[0])} needs its own result, {left[0].output[0]}")
        found, left = found + ready, waiting
    return found


def outer_names(node: Any) -> set[str]:
    """Names that a node's subgraphs read from outside."""
    found: set[str] = set()
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            inside = {v.name for v in graph.input} | {t.name for t in graph.initializer} | {n for k in graph.node for n in k.output}
            for inner in graph.node:
                found |= ({*inner.input} | outer_names(inner)) - inside
            found |= {v.name for v in graph.output} - inside
    return found


def array_of(tensor: Any, where: str) -> np.ndarray:
    """The elements of a TensorProto. Raises CheckpointError when they are not all there."""
    try:
        return np.asarray(onnx_library().numpy_helper.to_array(tensor))
    except Exception as error:
        raise CheckpointError(f"{where}: tensor {tensor.name} cannot be read: {str(error).splitlines()[0] if str(error) else error!r}") from None


def declared_shape(value: Any, dims: Mapping[str, int]) -> tuple[int | str, ...] | None:
    """The shape that a graph input declares, with numbers for the named sizes in `dims`; names, or "?", for what is open."""
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else dims.get(d.dim_param, d.dim_param or "?") for d in kind.shape.dim)


__all__ = ["DTYPES", "array_of", "check_model", "declared_shape", "is_onnx", "onnx_library", "open_model", "ordered", "outer_names", "type_name"]
