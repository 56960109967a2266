"""Attention: queries by keys, scaled, capped, masked, through Softmax, by values.

before: %s = MatMul(%q, Transpose(%k))   %p = Softmax(Add(Mul(%s, scale), %mask))   %y = MatMul(%p, %v)
after:  %y = Attention(%q, %k, %v, %mask, scale=…)

A mask whose elements are known is told by them: causal, sliding, or none at all. Keys and values that are repeated for groups of queries, or
appended to those of the past, are given as they are.
"""
from __future__ import annotations

from typing import NamedTuple

import numpy as np
from onnx import NodeProto, TensorProto, helper

from .patterns import Any, As, Pattern, cast, op, product
from .rules import Found, Rule
from .view import OPSET, Shape, View, attribute

NEVER = -6e4        # what is added to a score so that its weight is 0; half precision has nothing below -65504

q, k, v, mask = (Any(n) for n in ("q", "k", "v", "mask"))
SWAP = [0, 1, 3, 2]

keys = op.Transpose(product(k, constant="k_scale"), perm=SWAP) | product(op.Transpose(k, perm=SWAP), constant="k_scale") \
    | product(op.Transpose(Any("k_rows"), perm=[0, 2, 3, 1]), constant="k_scale")
dots = op.MatMul(product(q, constant="q_scale"), keys)
scores = product(op.Tanh(product(dots, constant="scale")), constant="cap") | product(dots, constant="scale")
masked = op.Add(scores, mask) | op.Where(Any("keep"), scores, Any("floor")) | op.Where(Any("drop"), Any("floor"), scores) | scores
softmax = As("weights", op.Softmax(cast(masked), axis=-1) | op.Softmax(cast(masked), axis=3))
weights = op.Where(op.IsNaN(softmax), 0.0, softmax) | softmax
attention: Pattern = op.MatMul(cast(weights), v)


class Mask(NamedTuple):
    """What a mask is: causal or not, how many keys before its own a query sees (-1: all), or the name of its elements."""

    causal: int = 0
    window: int = -1
    value: str = ""


def told(view: View, value: str, queries: int, keys: int, past: int) -> Mask:
    """What a constant mask says, by its elements."""
    array = view.array(value) if value in view.tensors else None
    if array is None or array.ndim < 2 or array.shape[-2:] != (queries, keys):
        return Mask(value=value)
    array, *others = array.reshape(-1, queries, keys)
    if any((array != other).any() for other in others):
        return Mask(value=value)
    keep = array if array.dtype == bool else np.asarray(array, np.float64) == 0
    if array.dtype != bool and not (np.asarray(array, np.float64)[~keep] <= NEVER).all():
        return Mask(value=value)
    own, key = np.arange(queries)[:, None] + past, np.arange(keys)
    if keep.all():
        return Mask()
    if (keep == (key <= own)).all():
        return Mask(causal=1)
    window = int(keep[-1].sum()) - 1
    if OPSET >= 25 and keys == queries + past and (keep == ((key <= own) & (key >= own - window))).all():
        return Mask(1, window)
    return Mask(value=value)


def ungrouped(view: View, value: str, heads: object) -> tuple[str, list[NodeProto]]:
    """Keys or values [batch, groups, n, d], where they are repeated to so many heads, and the nodes that do; else the value itself."""
    reshape = view.producer.get(value)
    expand = view.producer.get(reshape.input[0]) if reshape is not None and reshape.op_type == "Reshape" else None
    insert = view.producer.get(expand.input[0]) if expand is not None and expand.op_type in ("Expand", "Tile") else None
    if expand is None or insert is None or insert.op_type not in ("Unsqueeze", "Reshape"):
        return value, []
    source, one, many, whole = (view.shape(n) or () for n in (insert.input[0], insert.output[0], expand.output[0], value))
    if len(source) != 4 or len(many) != 5 or not isinstance(many[1], int) or not isinstance(many[2], int) or whole[1:2] != (heads,):
        return value, []
    kept = one == (*source[:2], 1, *source[2:]) and many == (*source[:2], many[2], *source[2:])
    fits = kept and whole == (source[0], many[1] * many[2], *source[2:])
    return (insert.input[0], [reshape, expand, insert]) if fits and reshape is not None else (value, [])


def _past(found: Found, key: str, value: str, repeats: list[NodeProto]) -> list[NodeProto]:
    """The nodes that append keys and values to those of the past, if no one else inside the graph needs what they make."""
    view = found.view
    made = [n for n in map(view.producer.get, (key, value)) if n is not None and n.op_type == "Concat" and len(n.input) == 2]
    if len(made) < 2 or key == value or any(attribute(n, "axis") % 4 != 2 for n in made):
        return []
    inside = [i for n in (*(view.producer[n] for n in found.match.nodes), *repeats) for i in n.input]
    alone = all(view.users[n.output[0]] == 1 and n.output[0] not in view.kept for n in repeats)
    return made if alone and all(view.users[n] == inside.count(n) for n in (key, value)) else []


def _added(found: Found) -> str | None:
    """The mask as a value that is added to scores, or says which are kept; "" where there is none, None where it cannot be had."""
    if not found.get("floor"):
        return found.get("mask")
    view, floor = found.view, found.view.scalar(found["floor"])
    if floor is None or floor > NEVER:
        return None
    chosen = found.get("keep") or found.get("drop")
    array = view.array(chosen) if chosen in view.tensors else None
    if array is not None and (array if found.get("keep") else ~array).any(-1).all():
        return found.constant(array if found.get("keep") else ~array, "mask")
    zero = found.constant(np.zeros((), helper.tensor_dtype_to_np_dtype(view.types[found["floor"]])))
    made = found.node("Where", chosen, *((zero, found["floor"]) if found.get("keep") else (found["floor"], zero)))
    view.shapes[made], view.types[made] = found.shape(chosen), view.types[found["floor"]]
    return made


def _fits(view: View, mask: str, scores: Shape, typed: int | None) -> bool:
    """Whether Attention takes this value as a mask."""
    shape = view.shape(mask)
    if not mask:
        return True
    return shape is not None and 2 <= len(shape) <= 4 and shape[-1] == scores[-1] and view.types.get(mask) in (typed, TensorProto.BOOL)


def _write(found: Found, key: str, value: str, mask: str, scores: Shape, causal: int = 0, **attributes) -> bool:
    """The node, unless its operands do not fit; scores: the shape of queries by keys."""
    view, query = found.view, found["q"]
    (few_keys, repeats), (few_values, more) = (ungrouped(view, n, scores[1]) for n in (key, value))
    if found.shape(few_keys)[1:2] == found.shape(few_values)[1:2]:
        key, value, repeats = few_keys, few_values, repeats + more
    else:
        repeats = []
    shapes = [found.shape(n) for n in (key, value)]
    if any(len(s) != 4 or s[0] != scores[0] for s in shapes) or shapes[0][1] != shapes[1][1] or view.types.get(query) != view.types.get(found.root):
        return False
    found.others = _past(found, key, value, repeats)
    past = found.shape(found.others[0].input[0])[2] if found.others else 0
    known = [d for d in (*scores[2:], past) if isinstance(d, int)]
    said = told(view, mask, *known) if mask and len(known) == 3 and not causal else Mask(causal, value=mask)
    if not _fits(view, said.value, scores, view.types.get(query)):
        return False
    before = [n.input[0] for n in found.others]
    (key, value) = [n.input[1] for n in found.others] or (key, value)
    attributes |= {"left_window_size": said.window} if said.window >= 0 else {}
    found.node("Attention", query, key, value, said.value, *before, outputs=(found.root, *(n.output[0] for n in found.others)),
               is_causal=said.causal, **attributes)
    return True


def _make(found: Found) -> bool:
    view, query, value, scores = found.view, found["q"], found["v"], found.shape(found["weights"])
    mask = _added(found)
    if mask is None or any(len(found.shape(n)) != 4 for n in (query, value, found["weights"])):
        return False
    if not (key := found.get("k")):
        key = found.node("Transpose", found["k_rows"], perm=[0, 2, 1, 3])
        view.shapes[key] = tuple(found.shape(found["k_rows"])[axis] for axis in (0, 2, 1, 3))
    cap = found.number("cap") if "cap" in found.match.numbers else None
    scale = found.number("scale") * found.number("q_scale") * found.number("k_scale") * (1 if cap is None else cap)
    typed = view.types.get(found["weights"])
    return _write(found, key, value, mask, scores, scale=scale, softcap=cap, softmax_precision=typed if typed != view.types.get(query) else None)


already = op.Attention(q, k, v, mask) | op.Attention(q, k, v)
ORDINARY = {"qk_matmul_output_mode": 0, "left_window_size": -1, "right_window_size": -1}


def _again(found: Found) -> bool:
    """What exporters that know Attention leave around it: repeated keys and values, masks that are merely causal."""
    node, shapes = found.view.producer[found.root], [found.shape(found[n]) for n in "qk"]
    if any(len(s) != 4 for s in shapes) or len(node.output) > 1 or any(attribute(node, n) not in (None, d) for n, d in ORDINARY.items()):
        return False
    given = {name: attribute(node, name) for name in ("scale", "softcap", "softmax_precision")}
    scores = (*shapes[0][:3], shapes[1][2])
    fits = _write(found, found["k"], found["v"], found.get("mask"), scores, attribute(node, "is_causal"), **given)
    return fits and list(found.nodes[-1].input) != list(node.input)


RULES = (Rule(attention, _make), Rule(already, _again))
