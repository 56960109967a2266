"""Calibrated quantization (GPTQ): round a projection's columns one after another, each making up for the errors of those before.

The least change of what a projection gives on a calibration text is sought: of `|W X - Q X|^2`, whose Hessian is `2 X X^T / n`. All windows
of the text go through the model op by op, so that every projection is rounded on inputs that the rounded weights before it give.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .api import Progress, compile_for, plan_for, silent
from .compiler.device import REFERENCE
from .compiler.formats import FORMATS, Fields, Format, write_record
from .compiler.ir import Graph, Op
from .compiler.layouts import LAYOUTS
from .compiler.ops import NUMPY, evaluate_op
from .compiler.package import Package
from .frontends.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from .frontends.lower import Lowered, Plan, lower
from .frontends.quantize import Quantize
from .runtime.tokenizer import Tokenizer

METHODS = ("gptq", "rtn")
PROJECTIONS = ("matmul", "expert_matmul", "expert_sum")
GROUPED = {name: form for name, form in FORMATS.items() if "_g" in name}
BLOCK = 128     # columns between updates of all that follow: whole groups

Envs = list[dict[str, np.ndarray]]      # the values of every window of the calibration text, by name


def quantize(path: str | Path, format: Quantize, calibration: str | Sequence[int] = (), method: str = "gptq", samples: int = 128,
             length: int = 512, act_order: bool = True, damping: float = 0.01, context: int | None = None, dtype: str = "f32",
             cache: str | None = None, progress: Progress = silent) -> Package:
    """Quantize a Hugging Face folder or a GGUF file to a package that `load` compiles for its device.

    format: as `quantize` of `compile`. method: "gptq" rounds matrices in a group-wise format (i4_g64) on a calibration text (or its tokens)
    and all others to nearest; "rtn" rounds all to nearest. samples: windows of `length` tokens taken from the text. act_order: begin with
    the columns that matter most, with scales fixed before. damping: what is added to the Hessian's diagonal, as a share of its mean.
    """
    if method not in METHODS:
        raise CheckpointError(f"unknown method '{method}'; known: {', '.join(METHODS)}")
    checkpoint = open_checkpoint(path)
    rounded: Mapping[str, np.ndarray] = {}
    if method == "gptq":
        if not damping > 0:
            raise CheckpointError(f"damping must be more than 0, not {damping}")
        plan_for(checkpoint, REFERENCE, length, "f32", "f32")       # raises where the model does not go so far
        lowered = lower(checkpoint, Plan(length, prefill=(length,), head=(length,)), format)
        windows = cut_windows(checkpoint, calibration, samples, length)
        rounded = Calibration(lowered, damping, act_order, progress).run(windows)
    return compile_for(checkpoint, REFERENCE, context, dtype, cache, progress, format, rounded)


def cut_windows(checkpoint: Checkpoint, text: str | Sequence[int], samples: int, length: int) -> np.ndarray:
    """int32 [windows, length]: at most so many, evenly over the text, each begun as the tokenizer begins texts."""
    if samples < 1:
        raise CheckpointError(f"the number of samples must be at least 1, not {samples}")
    start: list[int] = []
    if isinstance(text, str):
        if checkpoint.tokenizer is None:
            raise CheckpointError(f"{checkpoint.path} has no tokenizer: pass token ids as the calibration")
        tokenizer = Tokenizer(**vars(checkpoint.tokenizer))
        text, start = tokenizer.encode(text), tokenizer.encode("")[:1]
    if len(text) < length:
        raise CheckpointError(f"the calibration text has {len(text)} tokens, but a sample takes {length}: give a longer text")
    windows = np.asarray(text, np.int32)[:len(text) // length * length].reshape(-1, length)
    windows = windows[np.linspace(0, len(windows) - 1, min(samples, len(windows))).astype(int)]
    if start:
        windows[:, 0] = start[0]
    return windows


@dataclass
class Calibration:
    """Plays a lowered model on windows of text and rounds its projections on the way; `rows` has their stored rows by name."""

    lowered: Lowered
    damping: float
    act_order: bool
    progress: Progress = silent
    rows: dict[str, np.ndarray] = field(default_factory=dict)

    def run(self, windows: np.ndarray) -> Mapping[str, np.ndarray]:
        """Raises CheckpointError when no projection has a group-wise format."""
        length = windows.shape[1]
        prefill, head = self.lowered.graphs[f"prefill_{length}"], self.lowered.graphs[f"head_{length}"]
        gathered = {op.inputs[0] for g in (prefill, head) for op in g.ops if op.kind == "gather"}
        self.wanted = {op.inputs[1] for g in (prefill, head) for op in g.ops if op.kind in PROJECTIONS
                       and g.values[op.inputs[1]].layout in GROUPED and op.inputs[1] not in gathered}
        if not self.wanted:
            raise CheckpointError(f"gptq rounds to {', '.join(GROUPED)}, and no matrix is to be stored in one of them")
        at = {"position": np.arange(length, dtype=np.int32), "slot": np.zeros(length, np.int32)}
        envs = [{**at, **_states(prefill), "token": window} for window in windows]
        self._play(prefill, envs, prefill.outputs)
        envs = [{"hidden": env[prefill.outputs[0]], "row": at["position"]} for env in envs]
        self._play(head, envs, ())
        return self.rows

    def _play(self, graph: Graph, envs: Envs, kept: Sequence[str]) -> None:
        """Run the graph on all windows; when nothing is kept, only as far as the last projection's input."""
        last = {name: i for i, op in enumerate(graph.ops) for name in op.inputs}
        end = len(graph.ops) if kept else max(i for i, op in enumerate(graph.ops) if op.kind in PROJECTIONS)
        hessians: dict[tuple[str, ...], list[np.ndarray]] = {}
        for i, op in enumerate(graph.ops[:end + 1]):
            if op.kind in PROJECTIONS and (name := op.inputs[1]) in self.wanted and name not in self.rows:
                self.progress(f"rounding: {name}", len(self.rows), len(self.wanted))
                if (key := op.inputs[:1] + op.inputs[2:3]) not in hessians:
                    hessians = {key: list(_hessians(op, graph, envs))}
                self._round(name, GROUPED[graph.values[name].layout], hessians[key])
            if i == end:
                return
            weights = {n: self._numbers(n, graph) for n in op.inputs if graph.values[n].role == "weight"}
            for env in envs:
                scope = env | weights
                evaluate_op(op, graph.values, scope)
                env |= {n: scope[n] for n in op.outputs}
                for n in {n for n in op.inputs if last[n] == i and n not in kept}:
                    env.pop(n, None)

    def _round(self, name: str, form: Format, hessians: list[np.ndarray]) -> None:
        weights = np.asarray(self.lowered.leaf(name), np.float32)
        matrices = weights.reshape(-1, *weights.shape[-2:])
        rows = [gptq(w, h, form, self.damping, self.act_order) for w, h in zip(matrices, hessians, strict=True)]
        self.rows[name] = np.stack(rows).reshape(*weights.shape[:-1], -1)

    def _numbers(self, name: str, graph: Graph) -> np.ndarray:
        """A weight as the rounded model has it."""
        value, layout = graph.values[name], LAYOUTS[graph.values[name].layout]
        array = self.rows[name] if name in self.rows else self.lowered.leaf(name)
        return array.astype(NUMPY[value.dtype]) if value.layout == "row" else layout.unpack(layout.pack(array), value.shape)


def _states(graph: Graph) -> dict[str, np.ndarray]:
    return {n: np.zeros(v.shape, NUMPY[v.dtype]) for n, v in graph.role("state").items()}


def _hessians(op: Op, graph: Graph, envs: Envs) -> Iterator[np.ndarray]:
    """Of a projection's inputs over all windows; of every expert's over the rows that are routed to it."""
    experts, columns = ([None] if op.kind == "matmul" else range(graph.values[op.inputs[1]].shape[0])), graph.values[op.inputs[1]].shape[-1]
    for expert in experts:
        total, count = np.zeros((columns, columns)), 0
        for env in envs:
            x = np.asarray(env[op.inputs[0]], np.float32)
            if expert is not None:
                chosen = env[op.inputs[2]]
                x = np.broadcast_to(x[:, None] if x.ndim == chosen.ndim else x, (*chosen.shape, columns))[chosen == expert]
            x = x.reshape(-1, columns)
            total += x.T @ x
            count += len(x)
        yield total * (2 / max(count, 1))


def gptq(weights: np.ndarray, hessian: np.ndarray, form: Format, damping: float = 0.01, act_order: bool = True) -> np.ndarray:
    """A matrix [out, in] as stored rows of a group-wise format, uint8, rounded with the Hessian [in, in] of its inputs.

    Groups get their scales on entering them, with act_order all at first. Columns that no input uses are rounded to nearest."""
    (out, columns), group = weights.shape, form.elements
    order = np.argsort(-np.diag(hessian), kind="stable") if act_order else np.arange(columns)
    upper = _upper(hessian[np.ix_(order, order)], damping)
    w = np.ascontiguousarray(weights.T[order], np.float32)      # a row is what a column of the matrix is
    groups = [_scales(form, weights[:, i:i + group]) for i in range(0, columns, group)]
    low, high = (0, 15) if form.codes["q"].bits == 4 else (-128, 127)
    codes = np.empty((columns, out), np.int16)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        errors = np.empty((stop - start, out), np.float32)
        for i in range(start, stop):
            if not act_order and i % group == 0:
                groups[i // group] = _scales(form, w[i:i + group].T)
            scale, inverse, centre = groups[order[i] // group].numbers
            code = np.clip(np.rint(w[i] * inverse) + centre, low, high)
            errors[i - start] = (w[i] - (code - centre) * scale) / upper[i, i]
            w[i + 1:stop] -= np.outer(upper[i, i + 1:stop], errors[i - start])
            codes[order[i]] = code
        w[stop:] -= upper[start:stop, stop:].T @ errors
    return _stored(form, codes.T.astype(np.uint8), [g.fields for g in groups])


def _upper(hessian: np.ndarray, damping: float) -> np.ndarray:
    """The upper triangular U of U^T U = the inverse of the damped Hessian, in float32."""
    h, diagonal = hessian.astype(np.float64), np.diag(hessian).astype(np.float64)
    dead = diagonal <= 0
    diagonal[dead] = diagonal[~dead].mean() if not dead.all() else 1
    np.fill_diagonal(h, diagonal + damping * diagonal.mean())
    return np.linalg.inv(np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]).astype(np.float32)


class Scales(NamedTuple):
    """Of a group of columns, an entry a row of the matrix: what the format stores, and scale, its inverse and the code of zero."""

    fields: Fields
    numbers: tuple[np.ndarray, np.ndarray, np.ndarray | int]


def _scales(form: Format, weights: np.ndarray) -> Scales:
    """What rounding to nearest takes for a group [out, columns]."""
    with np.errstate(all="ignore"):
        fields = {name: a for name, a in form.quantize(np.ascontiguousarray(weights, np.float32)).items() if name != "q"}
    scale, centre, _ = form.affine(fields)
    scale, centre = scale[:, 0], centre[:, 0] if isinstance(centre, np.ndarray) else centre
    return Scales(fields, (scale, np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0), centre))


def _stored(form: Format, codes: np.ndarray, groups: list[Fields]) -> np.ndarray:
    """Codes [out, columns] and what the groups of columns store, as rows of the format."""
    blocks = np.empty((codes.size // form.elements, form.bytes), np.uint8)
    fields = {name: np.stack([g[name] for g in groups], axis=1).reshape(-1) for name in groups[0]}
    write_record(blocks.view(form.record)[:, 0], form.closed({"q": codes.reshape(-1, form.elements), **fields}), form.codes)
    return blocks.reshape(len(codes), -1)
