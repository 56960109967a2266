"""Perplexity by llama.cpp's protocol, and how far the predictions of a model are from those of another.

The whole text is tokenised once and cut into windows of 512 tokens. Each starts anew, with BOS in the place of its first token if the
tokenizer begins texts with it, and what counts is its second half: 255 predictions, from the one at position 256 on.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .generate import Model

WINDOW = 512
ROWS = 64       # predictions that are judged at once, which bounds the memory that they take in float64
PERCENTILES = (0, 0.1, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9, 100)


@dataclass(frozen=True)
class Against:
    """How a model's predictions differ from those of a base model. change: of the right token's probability."""

    perplexity: float           # of the base
    kl_divergence: float        # mean, in nats, from the base to the model
    kl_error: float
    same_top: float             # share of the predictions whose likeliest token is the same
    change_mean: float
    change_rms: float
    change_percentiles: dict[str, float]


@dataclass(frozen=True)
class Perplexity:
    """error: one standard error. tokens: predictions that count."""

    perplexity: float
    error: float
    tokens: int
    windows: int
    against: Against | None = None


@dataclass(frozen=True)
class _Judged:
    """Of every prediction: the loss, and with a base its loss, the divergence, and whether the likeliest token is the same."""

    loss: np.ndarray
    base_loss: np.ndarray
    divergence: np.ndarray
    same: np.ndarray


def measure(model: Model, text: str | Sequence[int], base: Model | None = None, windows: int | None = None,
            progress: Callable[[int, int], None] = lambda done, total: None) -> Perplexity:
    """The perplexity of a model on a text (or its tokens), and with a `base` how far it is from that.

    windows: only so many of the text's. progress(windows done, of how many). Raises ValueError with one clear sentence."""
    cut = _windows(model, text, windows)
    if base:
        _check_base(model, base, text)
    found: list[_Judged] = []
    for done, window in enumerate(cut):
        progress(done, len(cut))
        found += _judge(window, model.logits(window), base.logits(window) if base else None)
    progress(len(cut), len(cut))
    loss = np.concatenate([j.loss for j in found])
    perplexity = math.exp(loss.mean())
    return Perplexity(perplexity, perplexity * _error(loss), len(loss), len(cut), _compare(found) if base else None)


def read_text(path: Path) -> str:
    """The text of a file as it stands there, line ends and all."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no UTF-8 text") from None


def _windows(model: Model, text: str | Sequence[int], count: int | None) -> np.ndarray:
    """int64 [windows, WINDOW]"""
    if model.context < WINDOW:
        raise ValueError(f"perplexity is measured on windows of {WINDOW} tokens, but the context is {model.context}")
    if count is not None and count < 1:
        raise ValueError(f"the number of windows must be at least 1, not {count}")
    ids = np.asarray(model.tokenizer.encode(text) if isinstance(text, str) else text, np.int64)
    if len(ids) < WINDOW:
        raise ValueError(f"the text has {len(ids)} tokens, but perplexity needs a window of {WINDOW}: give a longer text")
    cut = ids[:len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)[:count].copy()
    if isinstance(text, str) and (start := model.tokenizer.encode("")[:1]):
        cut[:, 0] = start[0]
    return cut


def _check_base(model: Model, base: Model, text: str | Sequence[int]) -> None:
    if base.context < WINDOW:
        raise ValueError(f"perplexity is measured on windows of {WINDOW} tokens, but the context of the model to compare with is {base.context}")
    if model.info["vocab_size"] != base.info["vocab_size"]:
        raise ValueError(f"the models cannot be compared: their vocabularies have {model.info['vocab_size']} and {base.info['vocab_size']} tokens")
    if isinstance(text, str) and model.tokenizer.encode(text) != base.tokenizer.encode(text):
        raise ValueError("the models cannot be compared: their tokenizers cut the text differently")


def _judge(window: np.ndarray, logits: np.ndarray, base: np.ndarray | None) -> Iterator[_Judged]:
    """The predictions of the window's second half, some at a time."""
    for start in range(WINDOW // 2, WINDOW - 1, ROWS):
        rows = np.arange(start, min(start + ROWS, WINDOW - 1))
        mine = _log_softmax(logits[rows])
        right = np.arange(len(rows)), window[rows + 1]
        if base is None:
            yield _Judged(-mine[right], *[np.empty(0)] * 3)
            continue
        other = _log_softmax(base[rows])
        yield _Judged(-mine[right], -other[right], (np.exp(other) * (other - mine)).sum(-1), mine.argmax(-1) == other.argmax(-1))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _error(samples: np.ndarray) -> float:
    """The standard error of a mean, as llama.cpp computes it."""
    return math.sqrt(samples.var() / (len(samples) - 1))


def _compare(found: Sequence[_Judged]) -> Against:
    loss, base_loss, divergence, same = (np.concatenate([getattr(j, name) for j in found]) for name in ("loss", "base_loss", "divergence", "same"))
    change = np.exp(-loss) - np.exp(-base_loss)
    return Against(math.exp(base_loss.mean()), float(divergence.mean()), _error(divergence), float(same.mean()), float(change.mean()),
                   float(np.sqrt((change**2).mean())),
                   {f"{p:g}": float(v) for p, v in zip(PERCENTILES, np.percentile(change, PERCENTILES), strict=True)})


def rows(found: Perplexity) -> list[tuple[str, str]]:
    """The numbers for people."""
    lines = [("perplexity", f"{found.perplexity:.4f} ± {found.error:.4f}"), ("predictions", f"{found.tokens:,} in {found.windows:,} windows")]
    if base := found.against:
        at = base.change_percentiles
        lines += [("perplexity of the base", f"{base.perplexity:.4f}, of which this is {found.perplexity / base.perplexity:.4f}"),
                  ("divergence from it", f"{base.kl_divergence:.6f} ± {base.kl_error:.6f} nats"), ("same likeliest token", f"{base.same_top:.3%}"),
                  ("the right token's probability", f"{base.change_mean:+.4%} on average, {base.change_rms:.4%} RMS"),
                  ("at percentiles", ", ".join(f"{p}: {at[p]:+.3%}" for p in ("0", "1", "5", "25", "50", "75", "95", "99", "100")))]
    return lines
