"""ONNX models as op graphs: any graph of tensors, for fixed shapes (https://onnx.ai/onnx/operators)."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..compiler.ir import Graph
from . import onnx_elementwise, onnx_products, onnx_rearranging, onnx_reductions  # noqa: F401: these enter their operators
from .onnx_graph import Lowering, NeedsValue
from .onnx_tensors import Shape


@dataclass(frozen=True)
class LoweredOnnx:
    """graph: with the states that the inputs are written to and the outputs read from; leaves: its weights by name; model: what players
    need to know. static: the inputs whose contents the graph was made for, because shapes depend on them."""

    graph: Graph
    leaves: dict[str, np.ndarray]
    model: dict[str, Any]
    static: frozenset[str]


def lower_onnx(model: Any, where: str, shapes: Mapping[str, Shape], feeds: Mapping[str, np.ndarray], static: frozenset[str] = frozenset()) -> LoweredOnnx:
    """The op graph of a ModelProto for these shapes of its inputs. feeds: contents, of those that may decide shapes. static: inputs known to.

    Raises NeedsValue when an input without contents decides a shape, CheckpointError for what cannot be lowered."""
    while True:
        lowering = Lowering(model, where)
        try:
            graph, described = lowering.run(shapes, {n: feeds[n] for n in static})
            return LoweredOnnx(graph, lowering.leaves, described, static)
        except NeedsValue as error:
            if not error.origins - static or error.origins - feeds.keys():
                raise
            static = static | error.origins


__all__ = ["LoweredOnnx", "NeedsValue", "lower_onnx"]
