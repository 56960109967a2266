"""A graph of ONNX as rewriting sees it: nodes, tensors, and for every value who makes it, who takes it, its shape and its type."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper, shape_inference, version_converter

OPSET = min(28, onnx.defs.onnx_opset_version())     # 28 brought SwiGLU, the last operator that rewriting knows
SMALL = 1024            # elements of a tensor that shape inference may need to look into

Dim = int | str         # unknown dimensions are names that equal no other
Shape = tuple[Dim, ...]


class View:
    """A model taken apart. `nodes` and `tensors` may be changed; `look` then brings what is known of the values up to date.

    Large tensors are never handed to shape inference or version conversion, which could not take more than 2 GB."""

    def __init__(self, model: onnx.ModelProto):
        graph = model.graph
        self.metadata = {p.key: p.value for p in model.metadata_props}
        self.ir_version, self.name = model.ir_version, graph.name
        self.opsets = {o.domain: o.version for o in model.opset_import}
        self.tensors: dict[str, TensorProto] = {t.name: t for t in graph.initializer}
        self.inputs = [i for i in graph.input if i.name not in self.tensors]
        self.outputs = list(graph.output)
        self.nodes: list[NodeProto] = list(graph.node)
        self.known: list[ValueInfoProto] = [v for v in graph.value_info if v.name not in self.tensors]
        self._arrays: dict[str, np.ndarray] = {}
        self._names = {n for node in self.nodes for n in node.output} | set(self.tensors) | {i.name for i in graph.input}
        self._interned: dict[tuple, str] = {}
        if self.opsets.get("", 1) < OPSET:
            light = version_converter.convert_version(self._light(), OPSET)
            self.nodes, self.ir_version = list(light.graph.node), max(self.ir_version, light.ir_version)
            self.tensors |= {t.name: t for t in light.graph.initializer}
            self._names |= {n for node in self.nodes for n in node.output} | set(self.tensors)
            self.opsets[""] = OPSET
        self.look()

    def _light(self) -> onnx.ModelProto:
        """The model with its large tensors as inputs."""
        small = {n: t for n, t in self.tensors.items() if np.prod(t.dims) <= SMALL and t.data_location != TensorProto.EXTERNAL}
        large = [helper.make_tensor_value_info(n, t.data_type, t.dims) for n, t in self.tensors.items() if n not in small]
        return self._model(self.inputs + large, small.values())

    def _model(self, inputs: list[ValueInfoProto], tensors: Iterable[TensorProto]) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, self.name or "graph", inputs, self.outputs, list(tensors), value_info=self.known)
        opsets = [helper.make_opsetid(domain, version) for domain, version in self.opsets.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=self.ir_version, producer_name="tilewright")

    def model(self) -> onnx.ModelProto:
        """The model put together again."""
        model = self._model(self.inputs, self.tensors.values())
        helper.set_model_props(model, self.metadata)
        return model

    def look(self) -> None:
        """Drop what no output needs; find producers, users, shapes and types anew."""
        self._prune()
        self.producer = {name: node for node in self.nodes for name in node.output if name}
        self.kept = {o.name for o in self.outputs}
        self.users: Counter[str] = Counter(n for node in self.nodes for n in used(node))
        self.captured = {n for node in self.nodes for n in inner(node)}
        self.known = [v for v in self.known if v.name in self.producer]
        inferred = shape_inference.infer_shapes(self._light(), data_prop=True).graph
        self.known = list(inferred.value_info)
        self.shapes: dict[str, Shape] = {t.name: tuple(t.dims) for t in self.tensors.values()}
        self.types: dict[str, int] = {t.name: t.data_type for t in self.tensors.values()}
        for value in (*inferred.value_info, *inferred.input, *inferred.output):
            if value.type.HasField("tensor_type"):
                self.types[value.name] = value.type.tensor_type.elem_type
                if value.type.tensor_type.HasField("shape"):
                    self.shapes[value.name] = tuple(self._dim(value.name, i, d) for i, d in enumerate(value.type.tensor_type.shape.dim))

    @staticmethod
    def _dim(name: str, axis: int, dim) -> Dim:
        return dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"?{name}.{axis}"

    def _prune(self) -> None:
        wanted, nodes = {o.name for o in self.outputs}, []
        for node in reversed(self.nodes):
            if wanted.intersection(node.output):
                nodes.append(node)
                wanted.update(used(node))
        self.nodes = nodes[::-1]
        self.tensors = {n: t for n, t in self.tensors.items() if n in wanted}

    def shape(self, name: str) -> Shape | None:
        return self.shapes.get(name)

    def array(self, name: str) -> np.ndarray | None:
        """The elements of a constant that lies in the model itself; None for other values."""
        tensor = self.tensors.get(name)
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
            return None
        if name not in self._arrays:
            self._arrays[name] = numpy_helper.to_array(tensor)
        return self._arrays[name]

    def scalar(self, name: str) -> float | None:
        """The number that a constant of one element holds."""
        tensor = self.tensors.get(name)
        array = self.array(name) if tensor is not None and list(tensor.dims) in ([], [1]) else None
        return None if array is None or array.dtype.kind not in "fiuV" else float(array.ravel()[0])

    def constant(self, array: np.ndarray, hint: str = "constant") -> str:
        """The name of a tensor with these elements: one for all that are alike."""
        array = np.ascontiguousarray(array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if self._interned.get(key) not in self.tensors:
            name = self.fresh(hint)
            self.tensors[name] = numpy_helper.from_array(array, name)
            self.shapes[name], self.types[name] = array.shape, self.tensors[name].data_type
            self._interned[key] = name
        return self._interned[key]

    def fresh(self, hint: str) -> str:
        """A name that is not taken."""
        name, count = hint, 0
        while name in self._names:
            name, count = f"{hint}.{count}", count + 1
        self._names.add(name)
        return name

    def change(self, old: Iterable[NodeProto], new: Iterable[NodeProto], names: Mapping[str, str] = MappingProxyType({})) -> None:
        """Nodes for others, and values for others in all that take them; each node is put after those that it depends on."""
        def last(name: str) -> str:
            return last(names[name]) if name in names else name
        gone = {id(node) for node in old}
        nodes = [*(n for n in self.nodes if id(n) not in gone), *new]
        for i, node in enumerate(nodes):
            if any(n in names for n in node.input):
                nodes[i] = changed = NodeProto()
                changed.CopyFrom(node)
                changed.input[:] = map(last, node.input)
        self.nodes = list(_ordered(nodes))
        self.look()


def used(node: NodeProto) -> Iterator[str]:
    """Names of the values that a node takes, those of the graphs inside it too."""
    yield from filter(None, node.input)
    yield from inner(node)


def inner(node: NodeProto) -> Iterator[str]:
    """Names that the graphs inside a node take or give."""
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            yield from (o.name for o in graph.output)
            for each in graph.node:
                yield from used(each)


def attribute(node: NodeProto, name: str):
    """An attribute of a node, its default where the node says nothing; None if it has none."""
    for given in node.attribute:
        if given.name == name:
            return helper.get_attribute_value(given)
    known = onnx.defs.get_schema(node.op_type, OPSET, node.domain).attributes if onnx.defs.has(node.op_type, node.domain) else {}
    return helper.get_attribute_value(known[name].default_value) if name in known and known[name].default_value.type else None


def _ordered(nodes: list[NodeProto]) -> Iterator[NodeProto]:
    """The nodes in their order, each after those that it depends on."""
    producer = {name: node for node in nodes for name in node.output}
    done: set[int] = set()
    for first in nodes:
        stack = [first]
        while stack:
            node = stack[-1]
            waiting = [] if id(node) in done else [p for n in used(node) if (p := producer.get(n)) is not None and id(p) not in done]
            if waiting:
                stack.extend(waiting)
                continue
            stack.pop()
            if id(node) not in done:
                done.add(id(node))
                yield node
