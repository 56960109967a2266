"""ONNX models as op graphs: any graph of tensors, for fixed shapes (https://onnx.ai/onnx/operators)."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..compiler.ir import Graph
from . import (  # noqa: F401   these enter their operators
    onnx_attention,
    onnx_control,
    onnx_elementwise,
    onnx_images,
    onnx_lookups,
    onnx_products,
    onnx_rearranging,
    onnx_recurrent,
    onnx_reductions,
    onnx_windows,
)
from .onnx_file import onnx_library, ordered
from .onnx_graph import Lowering, NeedsValue
from .onnx_rows import as_rows
from .onnx_tensors import Shape


@dataclass(frozen=True)
class LoweredOnnx:
    """graph: with the states that the inputs are written to and the outputs read from; leaves: its weights by name; model: what players
    need to know. static: the inputs whose contents the graph was made for, because shapes depend on them."""

    graph: Graph
    leaves: dict[str, np.ndarray]
    model: dict[str, Any]
    static: frozenset[str]


def lower_onnx(model: Any, where: str, shapes: Mapping[str, Shape], feeds: Mapping[str, np.ndarray],
               static: frozenset[str] = frozenset()) -> LoweredOnnx:
    """The op graph of a ModelProto for these shapes of its inputs. feeds: contents, of those that may decide shapes. static: inputs known to.

    Raises NeedsValue when an input without contents decides a shape, CheckpointError for what cannot be lowered."""
    model = recognised(model, where, shapes)
    while True:
        lowering = Lowering(model, where)
        try:
            graph, described = lowering.run(shapes, {n: feeds[n] for n in static})
            return LoweredOnnx(as_rows(graph), lowering.leaves, described, static)
        except NeedsValue as error:
            if not error.origins - static or error.origins - feeds.keys():
                raise
            static = static | error.origins


def recognised(model: Any, where: str, shapes: Mapping[str, Shape]) -> Any:
    """The model for these shapes, with what its exporter took apart put together again; one operator alone stays as it is."""
    if len(model.graph.node) < 2 or any(0 in shape for shape in shapes.values()):
        return model
    from .onnx_rewriting import rewrite
    failures = onnx_library().shape_inference.InferenceError, onnx_library().checker.ValidationError
    sized = type(model)()
    sized.CopyFrom(model)
    del sized.graph.value_info[:]
    for value in sized.graph.input:
        if value.name in shapes:
            kind = value.type.tensor_type
            kind.ClearField("shape")
            kind.shape.SetInParent()
            for size in shapes[value.name]:
                kind.shape.dim.add().dim_value = size
    nodes = ordered(model.graph.node, {v.name for v in (*model.graph.input, *model.graph.initializer)}, where)
    del sized.graph.node[:]
    sized.graph.node.extend(nodes)
    try:
        return rewrite(sized)
    except failures:        # what the onnx package does not understand is lowered as it stands
        return model


__all__ = ["LoweredOnnx", "NeedsValue", "lower_onnx"]
