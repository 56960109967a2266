"""Recognise in a graph of ONNX what exporters took apart, and put the standard operators of ONNX 23 to 28 in its place.

before: %a = Sigmoid(%x)   %y = Mul(%x, %a)        after: %y = Swish(%x)

Known are RMSNormalization, LayerNormalization, Gelu, Swish, SwiGLU, RotaryEmbedding (rotate-half, halves, interleaved, partial) and Attention
(grouped heads, causal and sliding masks, soft caps, past keys and values). A pattern that does not match exactly leaves its nodes alone;
masks are told by their values, not by the nodes that made them. Semantics are those of https://onnx.ai/onnx/operators.
"""
from __future__ import annotations

import onnx
from onnx import inliner, version_converter

from . import activations, attention, heads, norms, rotary
from .folding import simplify
from .rules import apply
from .view import View

STAGES = (norms.RULES, activations.RULES, rotary.RULES, attention.RULES, heads.RULES)


def rewrite(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model that computes the same with fewer and larger operators. The one given is not changed.

    Its functions are inlined, its opset becomes 28 at most (what the installed onnx knows), constants are computed and nodes that do
    nothing are dropped. Dimensions should be numbers: masks and tables that depend on unknown ones stay computed. A model in which
    nothing is recognised, whose opset onnx cannot raise, or that has sparse tensors, is returned as it is.
    """
    if model.graph.sparse_initializer:
        return model
    try:
        view = View(inliner.inline_local_functions(model) if model.functions else model)
    except (RuntimeError, version_converter.ConvertError):
        return model
    simplify(view)
    found = 0
    for rules in STAGES:
        while replaced := sum(apply(view, rule) for rule in rules):
            found += replaced
            simplify(view)
    return view.model() if found else model


__all__ = ["rewrite"]
