"""Make a graph that plays by itself: what is fed and what is asked for lie in buffers of their own.

before: %x: input   %y = silu(%x)       after: %x: state   %y = silu(%x)   %silu0.out = store(%out.silu0, %y)
"""
from __future__ import annotations

from dataclasses import replace
from typing import Any

from .indexing import row_major
from .ir import Graph, GraphError, Op, Value
from .ops import buffers_of

DTYPES = {"f32": "float32", "f16": "float32", "i32": "int32", "u32": "int32"}      # as players give and take them


def standalone(graph: Graph) -> tuple[Graph, dict[str, Any]]:
    """The graph over states, and what players need to know: dtype, shape and state of every input and output by its name. Other states
    start as zeros and are kept from run to run.

    Raises GraphError for inputs in half precision, and for outputs that continue a state in a packed layout."""
    values = dict(graph.values)
    for name, value in graph.role("input").items():
        if value.dtype not in ("f32", "i32"):
            raise GraphError(f"the input %{name} is {value}; what is fed is f32 or i32")
        values[name] = replace(value, role="state")
    ops, names, outputs = list(graph.ops), [], {}
    continued = buffers_of(graph)
    for name in graph.outputs:
        value, state = graph.values[name], continued.get(name, name)
        if value.layout != "row":
            raise GraphError(f"the output %{name} is {value}, which is packed; give what is computed from it")
        if graph.values[state].role == "state" and value.dtype != "f16":
            names.append(name)
        else:
            state = f"out.{name}"
            more, made = _given(name, value, state)
            ops += more
            values |= made
            names.append(ops[-1].outputs[0])
        outputs[name] = {"dtype": DTYPES[value.dtype], "shape": list(value.shape), "state": state}
    inputs = {n: {"dtype": DTYPES[v.dtype], "shape": list(v.shape), "state": n} for n, v in graph.role("input").items()}
    return Graph(values, tuple(ops), tuple(names)), {"architecture": "graph", "inputs": inputs, "outputs": outputs}


def _given(name: str, value: Value, state: str) -> tuple[list[Op], dict[str, Value]]:
    """The ops that leave a value in a state of its own, which has rows, and the values of these ops."""
    shape = value.shape if len(value.shape) > 1 else (1, value.size)
    kept = Value(shape, "f32" if value.dtype == "f16" else value.dtype, "state")
    store, made = Op("store", (state, name), (f"{name}.out",)), {state: kept, f"{name}.out": replace(kept, role="temp")}
    if shape == value.shape:
        return [store], made
    seen = Op("view", (name,), (f"{name}.row",), (("shape", shape), ("strides", row_major(shape)), ("offset", 0)))
    return [seen, replace(store, inputs=(state, f"{name}.row"))], made | {f"{name}.row": replace(value, shape=shape, role="temp", source=())}


__all__ = ["standalone"]
