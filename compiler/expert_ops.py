"""Ops of mixtures of experts: the choice, projections by chosen experts, their sums and biases."""
from __future__ import annotations

import numpy as np

from .ir import Value
from .ops import columns, define, need, sigmoid


def _route(logits: Value, *, top_k: int, score: str, normalize: bool = False) -> tuple[Value, Value]:
    need(1 <= top_k <= logits.shape[-1], f"cannot choose {top_k} of {logits.shape[-1]} experts")
    need(score in ("sigmoid", "softmax", "softmax_chosen"), f"unknown score {score}; known: sigmoid, softmax, softmax_chosen")
    shape = (*logits.shape[:-1], top_k)
    return Value(shape, "i32"), Value((*shape, 1), "f32")       # the scores broadcast over what an expert gives


def _route_reference(logits, *, top_k, score, normalize=False):
    chosen = np.argsort(-logits, axis=-1, kind="stable")[..., :top_k]
    best = np.take_along_axis(logits, chosen, -1)
    if score == "sigmoid":
        scores = sigmoid(best)
    else:
        over = best if score == "softmax_chosen" else logits
        scores = np.exp(best - best[..., :1]) / np.exp(over - best[..., :1]).sum(-1, keepdims=True)
    if normalize:
        scores = scores / scores.sum(-1, keepdims=True)
    return chosen.astype(np.int32), scores[..., None]


def _expert_matmul(x: Value, w: Value, expert: Value, *, dtype: str = "", width: int = 0, at: int = 0) -> Value:
    need(len(w.shape) == 3, f"w must be [experts, out, in], not {w}")
    need(x.shape[-1] == w.shape[2], f"x has {x.shape[-1]} columns but w takes {w.shape[2]}")
    need(x.shape[:-1] in (expert.shape, expert.shape[:1]), f"x {x} does not fit the choice {expert}")
    return Value((*expert.shape, width or w.shape[1]), dtype or x.dtype)


def _expert_matmul_reference(x, w, expert, *, dtype="", width=0, at=0):
    x = np.broadcast_to(x[:, None] if x.ndim == 2 else x, (*expert.shape, x.shape[-1]))
    out = np.zeros((*expert.shape, w.shape[1]), np.float32)
    for e in np.unique(expert):
        out[expert == e] = x[expert == e] @ w[e].T
    return columns(width, at, out)


def _expert_sum(x: Value, w: Value, expert: Value, score: Value | None = None, *, width: int = 0, at: int = 0) -> Value:
    need(len(w.shape) == 3 and x.shape[-1] == w.shape[2], f"x {x} does not fit w {w}")
    need(x.shape[:-1] == expert.shape, f"x {x} does not fit the choice {expert}")
    return Value((x.shape[0], width or w.shape[1]), x.dtype)


def _expert_sum_reference(x, w, expert, score=None, *, width=0, at=0):
    each = _expert_matmul_reference(x, w, expert, width=width, at=at)
    return (each if score is None else each * score.reshape(*expert.shape, 1)).sum(1)


def _expert_bias(x: Value, bias: Value, expert: Value, score: Value | None = None) -> Value:
    need(len(bias.shape) == 2 and bias.shape[1] == x.shape[-1], f"the bias must be [experts, {x.shape[-1]}], not {bias}")
    need(x.shape[:-1] in (expert.shape, expert.shape[:-1]), f"x {x} does not fit the choice {expert}")
    need(score is None or score.shape == (*expert.shape, 1), f"the score {score} does not fit the choice {expert}")
    return Value(x.shape, x.dtype)


def chosen_rows(bias, expert, score=None, *, summed: bool):
    """The rows of bias that expert [tokens, choices] names, times their scores; with `summed`, their sum over a token's choices."""
    each = bias[expert] if score is None else bias[expert] * score
    return each.sum(-2) if summed else each


define("expert_bias", "x bias expert score?", _expert_bias,
        lambda x, bias, expert, score=None: x + chosen_rows(bias, expert, score, summed=x.ndim == expert.ndim), wgsl="({0} + {1})", chosen=True)


def _sum_choices(x: Value, score: Value | None = None, *, dtype: str = "") -> Value:
    need(len(x.shape) == 3, f"x must be [rows, choices, columns], not {x}")
    need(score is None or score.size == x.shape[0] * x.shape[1], f"the score {score} does not fit x {x}")
    return Value((x.shape[0], x.shape[2]), dtype or x.dtype)


def _sum_choices_reference(x, score=None, *, dtype=""):
    return (x if score is None else x * score.reshape(*x.shape[:2], 1)).sum(1)


define("route", "logits", _route, _route_reference, anchor=True)
define("expert_matmul", "x w expert", _expert_matmul, _expert_matmul_reference, anchor=True)
define("expert_sum", "x w expert score?", _expert_sum, _expert_sum_reference, anchor=True)
define("sum_choices", "x score?", _sum_choices, _sum_choices_reference, anchor=True)
