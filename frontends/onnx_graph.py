"""Lower an ONNX graph: operators by a table, functions by their bodies, and whatever is known already in numpy.

Operators live in onnx_operators.py and its neighbours, one function each, found by their ONNX name. An operator without one is replaced
by the function that the standard defines it as, or that the model brings.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..compiler.ir import Graph
from .checkpoint import CheckpointError
from .onnx_file import DTYPES, array_of, declared_shape, onnx_library, ordered, outer_names, type_name
from .onnx_tensors import NeedsValue, Shape, Tensor, Tensors, known

STANDARD = ("", "ai.onnx")
Results = Tensor | Sequence[Tensor | None]
Operator = Callable[["Lowering", "Node"], Results]
OPERATORS: dict[str, Operator] = {}
RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")


def operator(*names: str) -> Callable[[Operator], Operator]:
    """Enter a function as the meaning of ONNX operators."""
    def enter(function: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(names, function))
        return function
    return enter


@dataclass(frozen=True)
class Node:
    """One ONNX node with what it is given. outputs: their names, "" where nobody wants one. scope: tensors that subgraphs may read."""

    op: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int
    scope: dict[str, Tensor | None]
    proto: Any
    opsets: Mapping[str, int] = field(default_factory=dict)

    def attr(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def optional(self, i: int) -> Tensor | None:
        return self.inputs[i] if i < len(self.inputs) else None

    def input(self, i: int) -> Tensor:
        """Input i. Raises CheckpointError where it is missing."""
        found = self.optional(i)
        if found is None:
            raise CheckpointError(f"{self.op} lacks its input {i}")
        return found

    def wants(self, i: int) -> bool:
        return i < len(self.outputs) and bool(self.outputs[i])


class Lowering(Tensors):
    """One ONNX model for fixed shapes of its inputs, and fixed contents of those that decide shapes."""

    def __init__(self, model: Any, where: str):
        super().__init__()
        self.model, self.where = model, where
        self.functions = {(f.domain, f.name): f for f in model.functions}
        self.opsets = {o.domain if o.domain != "ai.onnx" else "": o.version for o in model.opset_import}

    def run(self, shapes: Mapping[str, Shape], static: Mapping[str, np.ndarray]) -> tuple[Graph, dict[str, Any]]:
        """The op graph, and what players need to know: dtype, shape and state of every input and output.

        Raises NeedsValue where inputs outside `static` decide a shape, CheckpointError for what cannot be lowered."""
        graph = self.model.graph
        scope: dict[str, Tensor | None] = {t.name: known(array_of(t, self.where)) for t in graph.initializer}
        inputs: dict[str, Any] = {}
        for value in graph.input:
            if value.name not in scope:
                scope[value.name] = tensor = self._input(value, len(inputs), shapes, static)
                inputs[value.name] = self._entry(tensor, f"in.{len(inputs)}", value.name in static)
        self.lower_nodes(ordered(graph.node, set(scope), self.where), scope, self.opsets)
        outputs, names = {}, []
        for i, value in enumerate(graph.output):
            made = scope.get(value.name)
            if made is None:
                raise CheckpointError(f"{self.where}: nothing makes the output {value.name}")
            outputs[value.name] = self._entry(made, f"out.{i}", False)
            if made.size:
                names.append(self._output(made, i))
        return self.graph(*names), {"architecture": "onnx", "inputs": inputs, "outputs": outputs}

    def _entry(self, tensor: Tensor, state: str, static: bool) -> dict[str, Any]:
        return {"dtype": tensor.dtype, "shape": list(tensor.shape), "state": state if tensor.size and not static else ""}

    def _input(self, value: Any, i: int, shapes: Mapping[str, Shape], static: Mapping[str, np.ndarray]) -> Tensor:
        if not value.type.HasField("tensor_type"):
            raise CheckpointError(f"{self.where}: the input {value.name} is no tensor; sequences and optional values are not supported")
        number = value.type.tensor_type.elem_type
        if number not in DTYPES:
            raise CheckpointError(f"{self.where}: the input {value.name} has the unsupported element type {type_name(number)}")
        dtype, shape = DTYPES[number].name, shapes[value.name]
        if value.name in static:
            return known(static[value.name], dtype)
        if 0 in shape:
            return known(np.zeros(shape), dtype)
        return Tensor(shape, dtype, self.state(f"in.{i}", shape, "f32" if "float" in dtype else "i32"), origins=frozenset({value.name}))

    def _output(self, tensor: Tensor, i: int) -> str:
        shape = tensor.shape if len(tensor.shape) > 1 else (1, tensor.size)
        state = self.state(f"out.{i}", shape, "f32" if tensor.floating else "i32")
        return self.store(state, self.named(self.reshape(tensor, shape)))

    def lower_nodes(self, nodes: Sequence[Any], scope: dict[str, Tensor | None], opsets: Mapping[str, int]) -> None:
        """Lower nodes in order; what they make is entered in the scope."""
        for proto in nodes:
            domain = "" if proto.domain == "ai.onnx" else proto.domain
            attributes = {a.name: self._attribute(a) for a in proto.attribute}
            node = Node(proto.op_type, tuple(scope[n] if n else None for n in proto.input), tuple(proto.output), attributes,
                        opsets.get(domain, opsets.get("", 1)), scope, proto, opsets)
            try:
                made = self._lower(node, domain)
            except NeedsValue:
                raise
            except (CheckpointError, ValueError, TypeError, KeyError, IndexError, ArithmeticError) as error:
                if isinstance(error, CheckpointError) and str(error).startswith(self.where):
                    raise
                raise CheckpointError(f"{self.where}: {proto.op_type} {proto.name or proto.output[0]}: {error}") from error
            results = [made] if isinstance(made, Tensor) else list(made)
            scope.update((n, t) for n, t in zip(proto.output, results, strict=False) if n)

    def _attribute(self, attribute: Any) -> Any:
        value = onnx_library().helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], bytes):
            return [v.decode() for v in value]
        return array_of(value, self.where) if type(value).__name__ == "TensorProto" else value

    def _lower(self, node: Node, domain: str) -> Results:
        if (domain, node.op) in self.functions:
            return self.call(self.functions[domain, node.op], node.inputs, node.attributes)
        given = [x for x in node.inputs if x is not None]
        if given and all(x.known for x in given) and domain in STANDARD and not outer_names(node.proto) and node.op not in RANDOM:
            folded = self._fold(node)
            if folded is not None:
                return folded
        if domain in STANDARD and node.op in OPERATORS:
            return OPERATORS[node.op](self, node)
        return self.standard(node, domain)

    def standard(self, node: Node, domain: str = "") -> Results:
        """An operator by the function that the standard defines it as."""
        function, defaults = self._standard_function(node, domain)
        if function is None:
            raise CheckpointError(f"{self.where} uses {self._unknown()}, which Tilewright does not know")
        return self.call(function, node.inputs, defaults | dict(node.attributes))

    def _fold(self, node: Node) -> Results | None:
        """The node in numpy, as the onnx package means it; None where that package cannot compute it."""
        helper, evaluator = onnx_library().helper, _evaluator()
        names = [f"i{k}" if x is not None else "" for k, x in enumerate(node.inputs)]
        proto = type(node.proto).FromString(node.proto.SerializeToString())
        del proto.input[:], proto.output[:]
        proto.input.extend(names)
        proto.output.extend(f"o{k}" if n else "" for k, n in enumerate(node.outputs))
        unknown = helper.make_tensor_value_info
        graph = helper.make_graph([proto], "constant", [unknown(n, 0, None) for n in names if n], [unknown(n, 0, None) for n in proto.output if n])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid(node.proto.domain, node.opset)])
        try:
            made = iter(evaluator(model).run(None, {n: np.ascontiguousarray(x.array) if x.shape else x.array
                                                    for n, x in zip(names, node.inputs, strict=True) if x is not None}))
        except Exception:       # whatever it raises, our own operators are asked next
            return None
        results = [next(made) if n else None for n in node.outputs]
        if any(r is not None and not isinstance(r, (np.ndarray, np.generic)) for r in results):
            return None
        return [None if r is None else known(r) for r in results]

    def call(self, function: Any, inputs: Sequence[Tensor | None], attributes: Mapping[str, Any]) -> list[Tensor | None]:
        """A function's body over these inputs."""
        scope: dict[str, Tensor | None] = dict.fromkeys(function.input)
        scope |= dict(zip(function.input, inputs, strict=False))
        given = {a.name: self._attribute(a) for a in function.attribute_proto} | dict(attributes)
        opsets = {o.domain if o.domain != "ai.onnx" else "": o.version for o in function.opset_import}
        for proto in ordered(function.node, set(scope), f"{self.where}: function {function.name}"):
            self.lower_nodes([_bound(proto, given)], scope, opsets)
        return [scope.get(n) for n in function.output]

    def _standard_function(self, node: Node, domain: str) -> tuple[Any, dict[str, Any]]:
        """The function that the standard defines an operator as, for these inputs (None if there is none), and its default attributes."""
        onnx = onnx_library()
        try:
            schema = onnx.defs.get_schema(node.op, node.opset, domain)
        except onnx.defs.SchemaError:
            return None, {}
        defaults = {name: self._attribute(a.default_value) for name, a in schema.attributes.items() if a.default_value.name}
        if schema.has_function:
            return schema.function_body, defaults
        if not schema.has_context_dependent_function:
            return None, {}
        types = [onnx.TypeProto() if x is None else onnx.helper.make_tensor_type_proto(element_number(x.dtype), x.shape) for x in node.inputs]
        versions = schema.context_dependent_function_opset_versions
        version = max((v for v in versions if v <= node.opset), default=min(versions))
        body = schema.get_context_dependent_function_with_opset_version(version, node.proto.SerializeToString(),
                                                                        [t.SerializeToString() for t in types])
        return onnx.FunctionProto.FromString(body), defaults

    def _unknown(self) -> str:
        """The model's operators that nobody knows, as a list."""
        onnx = onnx_library()

        def knows(proto: Any) -> bool:
            if (proto.domain, proto.op_type) in self.functions or (proto.domain in STANDARD and proto.op_type in OPERATORS):
                return True
            if proto.domain not in STANDARD or not onnx.defs.has(proto.op_type):
                return False
            schema = onnx.defs.get_schema(proto.op_type)
            return bool(schema.has_function or schema.has_context_dependent_function)
        nodes = [*self.model.graph.node, *(n for f in self.model.functions for n in f.node)]
        names = sorted({f"{n.domain}.{n.op_type}".lstrip(".") for n in nodes if not knows(n)})
        return ", ".join(names) or "an operator of a function's body"


def _evaluator() -> Any:
    from onnx.reference import ReferenceEvaluator
    return ReferenceEvaluator


def element_number(dtype: str) -> int:
    """The number of an element type in TensorProto.DataType."""
    return next(n for n, t in DTYPES.items() if t.name == dtype)


def _bound(proto: Any, given: Mapping[str, Any]) -> Any:
    """A node of a function's body with its attributes' references replaced by what the call gives; those that it does not give are dropped."""
    if not any(a.ref_attr_name for a in proto.attribute):
        return proto
    helper, bound = onnx_library().helper, type(proto).FromString(proto.SerializeToString())
    del bound.attribute[:]
    for attribute in proto.attribute:
        if not attribute.ref_attr_name:
            bound.attribute.append(attribute)
        elif given.get(attribute.ref_attr_name) is not None:
            value = given[attribute.ref_attr_name]
            value = onnx_library().numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
            bound.attribute.append(helper.make_attribute(attribute.name, value))
    return bound


def input_shapes(model: Any, where: str, given: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
    """The shape of every input that has no initializer, from what the model declares and what is given by input or by named size.

    Raises CheckpointError for sizes that are open, and for shapes that do not fit the declared ones."""
    dims = {name: int(shape[0]) for name, shape in given.items() if len(shape) == 1}
    found: dict[str, Shape] = {}
    initialized = {t.name for t in model.graph.initializer}
    for value in model.graph.input:
        if value.name in initialized:
            continue
        declared = declared_shape(value, {} if value.name in given else dims)
        asked = tuple(int(n) for n in given[value.name]) if value.name in given else None
        if asked is not None and declared is not None:
            fits = len(asked) == len(declared) and all(isinstance(d, str) or d == a for a, d in zip(asked, declared, strict=True))
            if not fits:
                raise CheckpointError(f"{where}: the input {value.name} has the shape {show_shape(declared)}, not {list(asked)}")
        shape = asked if asked is not None else declared
        if shape is None or any(isinstance(d, str) for d in shape):
            raise CheckpointError(f"{where}: the input {value.name} has the open shape {show_shape(shape)}; say one with --shape {value.name}=1,128")
        found[value.name] = tuple(int(d) for d in shape)
    return found


def show_shape(shape: Sequence[int | str] | None) -> str:
    return f"[{', '.join(map(str, shape))}]" if shape is not None else "[?]"


__all__ = ["OPERATORS", "Lowering", "NeedsValue", "Node", "element_number", "input_shapes", "operator"]
