"""Simplify a graph of ONNX without regard to what it is for: compute what is constant, drop what does nothing, make what is equal once."""
from __future__ import annotations

import numpy as np
from onnx import NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from .view import OPSET, SMALL, Shape, View, attribute

LARGE = 1 << 22         # elements beyond which nothing is computed ahead: weights stay as they are
RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")
KEPT = (*RANDOM, "DequantizeLinear")    # a quantized weight stays quantized


def simplify(view: View) -> None:
    """All of this module, until nothing changes."""
    while fold(view) + forward(view) + merge_reshapes(view) + merge_transposes(view) + share(view):
        pass


def fold(view: View) -> int:
    """Constants for the nodes that depend on nothing but constants, and for Shapes that are known."""
    gone = []
    for node in view.nodes:
        arrays = _computed(view, node)
        if arrays is None:
            continue
        gone.append(node)
        for name, array in zip(node.output, arrays):
            view.tensors[name] = tensor = numpy_helper.from_array(array, name)
            view.shapes[name], view.types[name] = tuple(array.shape), tensor.data_type
    if gone:
        view.change(gone, ())
    return len(gone)


def _computed(view: View, node: NodeProto) -> list[np.ndarray] | None:
    if node.domain or node.op_type in KEPT or any(a.HasField("g") or a.graphs for a in node.attribute) or view.kept.intersection(node.output):
        return None
    if node.op_type == "Shape":
        return _known_shape(view.shape(node.input[0]), node)
    sizes = [np.prod(view.tensors[n].dims) if n in view.tensors else np.inf for n in node.input if n]
    if max(sizes, default=0) > LARGE or any(view.array(n) is None for n in node.input if n):
        return None
    if any(not isinstance(d, int) for n in node.output for d in view.shape(n) or ()) or sum(_size(view, n) for n in node.output) > LARGE:
        return None
    inputs = [helper.make_tensor_value_info(n, view.types[n], view.shapes[n]) for n in dict.fromkeys(node.input) if n]
    outputs = [helper.make_empty_tensor_value_info(n) for n in node.output if n]
    graph = helper.make_graph([node], "constant", inputs, outputs)
    run = ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", view.opsets.get("", OPSET))]))
    try:
        arrays = [np.asarray(a) for a in run.run(None, {i.name: view.array(i.name) for i in inputs})]
    except Exception:       # whatever the evaluator cannot compute is left to be computed
        return None
    return None if any(a.dtype.kind in "OUS" for a in arrays) else arrays


def _size(view: View, name: str) -> int:
    return int(np.prod([d for d in view.shape(name) or () if isinstance(d, int)]))


def _known_shape(shape: Shape | None, node: NodeProto) -> list[np.ndarray] | None:
    part = None if shape is None else shape[attribute(node, "start") or 0:attribute(node, "end")]
    return None if part is None or any(isinstance(d, str) for d in part) else [np.array(part, np.int64)]


def forward(view: View) -> int:
    """Nodes that hand their input on are passed by."""
    fixed = view.kept | view.captured
    sources = {node.output[0]: source for node in view.nodes if (source := _source(view, node))}
    names = {name: source for name, source in sources.items() if name not in fixed}
    old, new = [view.producer[n] for n in names], []
    for name, source in sources.items():        # an output of the graph keeps its name, so its source gives up its own
        made = view.producer.get(source)
        if name not in names and made is not None and fixed.union(names).isdisjoint(made.output):
            old += [view.producer[name], made]
            new.append(_renamed(made, source, name))
            names[source] = name
    if old:
        view.change(old, new, names)
    return len(old)


def _renamed(node: NodeProto, before: str, after: str) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.output[:] = [after if n == before else n for n in node.output]
    return copy


def _source(view: View, node: NodeProto) -> str | None:
    """The input that a node's output equals."""
    if node.domain or not node.input:
        return None
    x, y = node.input[0], node.output[0]
    shape = view.shape(x)
    same = shape is not None and shape == view.shape(y)
    kind = node.op_type
    if kind == "Identity" or (kind in ("Concat", "Sum", "Max", "Min", "Mean") and len(node.input) == 1):
        return x
    if kind == "Concat":        # with nothing
        return next((n for n in node.input if view.shape(n) is not None and view.shape(n) == view.shape(y)), None)
    if kind == "Cast" and _type(view, x) == _type(view, y):
        return x
    if kind == "Dropout" and not any(view.users[n] for n in node.output[1:]) and (len(node.input) < 3 or _is(view, node.input[2], 0)):
        return x
    if kind == "Transpose" and list(attribute(node, "perm") or ()) == list(range(len(shape or ()))) and shape:
        return x
    if same and (kind in ("Reshape", "Expand", "Flatten") or (kind == "Slice" and (len(node.input) < 5 or _is(view, node.input[4], 1)))):
        return x
    if same and ((kind in ("Mul", "Div") and _is(view, node.input[1], 1)) or (kind in ("Add", "Sub") and _is(view, node.input[1], 0))):
        return x
    flipped = kind in ("Mul", "Add") and view.shape(y) is not None and view.shape(y) == view.shape(node.input[1])
    return node.input[1] if flipped and _is(view, x, int(kind == "Mul")) else None


def _type(view: View, name: str) -> object:
    return view.types.get(name, name)


def _is(view: View, name: str, number: int) -> bool:
    """Whether a constant of a few elements holds this number throughout."""
    return name in view.tensors and _size(view, name) < 16 and (array := view.array(name)) is not None and bool((array == number).all())


def merge_reshapes(view: View) -> int:
    """One Reshape for two, where it can say its shape; and Transposes of the last two axes that go through three dimensions do not."""
    old, new = [], []
    for node in view.nodes:
        before = view.producer.get(node.input[0]) if node.op_type == "Reshape" else None
        if before is None or (to := target(view.shape(node.output[0]))) is None:
            continue
        if before.op_type == "Reshape":
            new.append(reshape(view, before.input[0], to, node.output[0]))
        elif swapped := _swapped(view, before, node):
            flat = view.fresh("unflattened")
            new += [reshape(view, swapped, [*to[:-2], to[-1], to[-2]], flat),
                    helper.make_node("Transpose", [flat], [node.output[0]], perm=[*range(len(to) - 2), len(to) - 1, len(to) - 2])]
        else:
            continue
        old.append(node)
    if old:
        view.change(old, new)
    return len(old)


def _swapped(view: View, transpose: NodeProto, last: NodeProto) -> str | None:
    """x, where the three are Reshape to [batch, n, d], Transpose to [batch, d, n], Reshape to [..., d, n]."""
    first = view.producer.get(transpose.input[0])
    out, middle = view.shape(last.output[0]), view.shape(transpose.output[0])
    if first is None or (first.op_type, transpose.op_type) != ("Reshape", "Transpose") or list(attribute(transpose, "perm") or ()) != [0, 2, 1]:
        return None
    return first.input[0] if out and middle and len(out) > 3 and out[-2:] == middle[1:] else None


def merge_transposes(view: View) -> int:
    """One Transpose for two."""
    old, new = [], []
    for node in view.nodes:
        before = view.producer.get(node.input[0]) if node.op_type == "Transpose" else None
        if before is not None and before.op_type == "Transpose" and (first := attribute(before, "perm")) and (then := attribute(node, "perm")):
            old.append(node)
            new.append(helper.make_node("Transpose", before.input, node.output, perm=[first[axis] for axis in then]))
    if old:
        view.change(old, new)
    return len(old)


def target(shape: Shape | None) -> list[int] | None:
    """What to tell Reshape so that it makes this shape; None if two or more dimensions are unknown."""
    if shape is None or sum(isinstance(d, str) for d in shape) > 1 or 0 in shape:
        return None
    return [-1 if isinstance(d, str) else d for d in shape]


def reshape(view: View, x: str, to: list[int], out: str) -> NodeProto:
    return helper.make_node("Reshape", [x, view.constant(np.array(to, np.int64), "shape")], [out])


def share(view: View) -> int:
    """Equal nodes become one, and equal small tensors too."""
    names: dict[str, str] = {}
    fixed = view.kept | view.captured
    seen: dict[object, str] = {}
    gone = []
    for name, tensor in view.tensors.items():
        if name not in view.captured and np.prod(tensor.dims) <= SMALL and (array := view.array(name)) is not None:
            first = seen.setdefault((tensor.data_type, array.shape, array.tobytes()), name)
            names |= {name: first} if first != name else {}
    for node in view.nodes:
        if any(a.HasField("g") or a.graphs for a in node.attribute) or node.op_type in RANDOM or fixed.intersection(node.output):
            continue
        inputs = tuple(names.get(n, n) for n in node.input)
        key = (node.op_type, node.domain, inputs, tuple(sorted(a.SerializeToString(deterministic=True) for a in node.attribute)), len(node.output))
        first = seen.setdefault(key, node.output[0])
        if first != node.output[0]:
            gone.append(node)
            names |= dict(zip(node.output, view.producer[first].output))
    taken = {n: m for n, m in names.items() if view.users[n]}
    if taken:
        view.change(gone, (), taken)
    return len(taken)

