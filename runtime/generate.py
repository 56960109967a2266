"""Generate text: prefill in chunks, then steps that feed their own token forward while the host reads the one before."""
from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from ..compiler.package import Package, PackageError
from .batch import stream_many
from .player import STEPS, Call, GpuPlayer, ReferencePlayer
from .sampling import pack_params
from .text import Text
from .tokenizer import Tokenizer, TokenizerError

FRAME_SECONDS = 0.005       # what a frame of several steps may take, for text shall flow and a stop not come late

Player = GpuPlayer | ReferencePlayer
Formats = str | Mapping[str, str] | None                                        # of weights, as `load` takes them
Remake = Callable[[Formats], tuple[Package, Callable[[Package], Player]]]       # compiles; and what loads the result


class PromptError(ValueError):
    """A prompt that the model cannot take; the message is one clear sentence."""


class Model:
    """A loaded model: `logits`, `stream`, `generate`, `requantize`, `tokenizer`."""

    def __init__(self, package: Package, player: Player, tokenizer: Tokenizer | None, remake: Remake | None = None):
        self.package, self.player, self._tokenizer, self._remake = package, player, tokenizer, remake
        self.info: dict[str, Any] = package.manifest["model"]
        self.load_seconds: dict[str, float] = {}    # by stage, and `shaders` beside `weights`; total; set by `load`
        self._turn = 0      # a stream that is not the latest has lost the caches

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise TokenizerError("the model has no tokenizer: pass token ids as the prompt")
        return self._tokenizer

    @property
    def tokenizer_or_none(self) -> Tokenizer | None:
        return self._tokenizer

    @property
    def context(self) -> int:
        return self.info["context"]

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Teacher-forced logits, float32 [len(token_ids), vocab]. Raises PromptError for ids out of range or too many."""
        ids = self.checked(token_ids)
        self.interrupt()
        result = np.empty((len(ids), self.info["vocab_size"]), np.float32)
        block = max(self.info["head"])
        for start, count in self.prefill_chunks(ids):
            for row in range(0, count, block):
                rows = np.minimum(np.arange(row, row + block), count - 1)
                self.player.play([(f"head_{block}", {"row": rows})])
                taken = min(block, count - row)
                result[start + row:start + row + taken] = self.player.read("logits", taken)
        return result

    def stream(self, prompt: str | Sequence[int], max_tokens: int = 64, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0,
               min_p: float = 0.0, repeat_penalty: float = 1.0, seed: int | None = None, stop: str | Sequence[str] = ()) -> Stream:
        """Iterate over (token id, text piece); `.finish_reason` afterwards is "stop", "length" or "context".

        Samplers apply in this order: repeat penalty, temperature (0: greedy), top-k (0: off), top-p, min-p.
        """
        ids = self.checked(self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)
        sampler = sampler_of(max_tokens, temperature, top_k, top_p, min_p, repeat_penalty, seed)
        return Stream(self, ids, max_tokens, sampler, (stop,) if isinstance(stop, str) else tuple(stop))

    def stream_many(self, prompts: Iterable[str | Sequence[int]], max_tokens: int = 64, temperature: float = 0.0, top_k: int = 0,
                    top_p: float = 1.0, min_p: float = 0.0, repeat_penalty: float = 1.0, seed: int | None = None,
                    stop: str | Sequence[str] = ()) -> Generator[tuple[int, int, str]]:
        """Iterate over (index of the prompt, token id, text piece) as the tokens of all come; `finish_reasons` has their ends by index.

        As many prompts run at once as the model was loaded with slots (`load(..., batch=)`); others begin when one ends."""
        sampler = sampler_of(max_tokens, temperature, top_k, top_p, min_p, repeat_penalty, seed)
        self.interrupt()
        self.finish_reasons: dict[int, str] = {}
        try:
            yield from stream_many(self, prompts, (stop,) if isinstance(stop, str) else tuple(stop), max_tokens, sampler)
        finally:
            self.player.drain()

    def generate(self, prompt: str | Sequence[int], **options: Any) -> str:
        """The text that `stream` gives, in one piece."""
        return "".join(piece for _, piece in self.stream(prompt, **options))

    def requantize(self, quantize: Formats) -> None:
        """Store the weights in other formats, made anew from the checkpoint; None: as the checkpoint has them. Streams end.

        What the compiler refuses leaves the model as it was; should the new weights not fit the device, the model is of no more use."""
        if self._remake is None:
            raise PackageError("the model was loaded from a package, which lacks the numbers its weights were made of: "
                               "load the checkpoint to requantize it")
        package, player = self._remake(quantize)
        self.interrupt()
        self.player.close(keep_gpu=True)        # before the new one needs memory
        self.player = player(package)
        self.package, self.info = package, package.manifest["model"]

    def close(self) -> None:
        """Free the device's memory; streams end."""
        self.interrupt()
        self.player.close()

    def interrupt(self) -> None:
        """End streams: the next token of one raises RuntimeError, and one that is collected later leaves the player alone."""
        self.player.drain()
        self._turn += 1

    def check(self, turn: int) -> None:
        """Raises RuntimeError in a stream that has lost the caches since its turn."""
        if turn != self._turn:
            raise RuntimeError("this stream ended when the model was put to other work: finish one before the next")

    def checked(self, token_ids: Sequence[int]) -> np.ndarray:
        ids = np.asarray(token_ids, np.int64).reshape(-1)
        vocab = self.info["vocab_size"]
        if not ids.size:
            raise PromptError("the prompt is empty: give at least one token")
        if wrong := ids[(ids < 0) | (ids >= vocab)][:1].tolist():
            raise PromptError(f"token id {wrong[0]} is out of range: the vocabulary has ids 0 to {vocab - 1}")
        if len(ids) > self.context:
            raise PromptError(f"the prompt has {len(ids)} tokens but the context is {self.context}: "
                              "shorten it, or load the model with a larger context")
        return ids.astype(np.int32)

    def prefill(self, ids: np.ndarray, slot: int = 0) -> int:
        """Run a prompt through the caches of a slot. Returns the row of the state `hidden` that its last token has then."""
        count = 0
        for _, count in self.prefill_chunks(ids, slot):
            pass
        return count - 1

    def remember(self, ids: np.ndarray, slot: int, sampler: dict[str, Any]) -> None:
        """Mark the prompt's tokens as seen, if a repeat penalty asks for them."""
        if sampler["repeat_penalty"] != 1:
            seen = np.zeros(self.info["vocab_size"], np.uint32)
            seen[ids] = sampler["stamp"]
            self.player.write("seen", seen, slot * self.info["vocab_size"])

    def prefill_chunks(self, ids: np.ndarray, slot: int = 0) -> Iterator[tuple[int, int]]:
        """Run the prompt through the caches chunk by chunk; after each: its first position and its tokens. Their hidden states stand
        in the state `hidden` then."""
        sizes, start = sorted(self.info["prefill"]), 0
        while start < len(ids):
            left = len(ids) - start
            size = next((s for s in sizes if s >= left), sizes[-1])
            if size > left > sizes[0] and size > 2 * left:
                size = max(s for s in sizes if s <= left)       # two small chunks beat one that is mostly padding
            count = min(size, left)
            token, position = np.zeros(size, np.int32), np.full(size, -1, np.int32)
            token[:count], position[:count] = ids[start:start + count], np.arange(start, start + count)
            self.player.play([(f"prefill_{size}", {"token": token, "position": position, "slot": np.full(size, slot, np.int32)})])
            yield start, count
            start += count


def sampler_of(max_tokens: int, temperature: float, top_k: int, top_p: float, min_p: float, repeat_penalty: float,
               seed: int | None) -> dict[str, Any]:
    """What `pack_params` takes for every step. Raises ValueError for what is out of range, before anything runs."""
    if max_tokens < 0:
        raise ValueError(f"max_tokens must not be negative, not {max_tokens}")
    sampler: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "repeat_penalty": repeat_penalty,
               "seed": random.getrandbits(32) if seed is None else seed, "stamp": 1}
    pack_params(**sampler, step=0)
    return sampler


class Stream:
    """Tokens and text as they come. Stops early when it is closed or dropped; the model can be used again at once."""

    def __init__(self, model: Model, ids: np.ndarray, max_tokens: int, sampler: dict[str, Any], stops: tuple[str, ...]):
        self.finish_reason: str | None = None
        self._model, self._ids, self._sampler, self._stops = model, ids, sampler, stops
        room = model.context - len(ids)
        self._count, self._limit = min(max_tokens, room), "context" if room <= max_tokens else "length"
        self._pieces = self._run()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> tuple[int, str]:
        return next(self._pieces)

    def close(self) -> None:
        self._pieces.close()

    def _run(self) -> Generator[tuple[int, str]]:
        text = Text(self._model.tokenizer_or_none, self._stops)
        with closing(self._tokens()) as tokens:
            for left, token in zip(range(self._count - 1, -1, -1), tokens):
                piece = text.push(token)
                if text.stopped:
                    self.finish_reason = "stop"
                    tokens.close()
                    if piece or not text.ends(token):
                        yield token, piece
                    return
                yield token, piece + ("" if left else text.flush())
        self.finish_reason = self._limit

    def _tokens(self) -> Generator[int]:
        """Sampled tokens: frame n + 1 is submitted before frame n's tokens are read. Frames hold as many steps as the last was fast for."""
        model, player = self._model, self._model.player
        model.interrupt()
        turn, count = model._turn, self._count
        if not count:
            return
        model.remember(self._ids, 0, self._sampler)
        row = model.prefill(self._ids)
        player.play_frame(0, [[("head_1", {"row": np.array([row], np.int32)}), self._sample(0)]])
        frame, submitted, taken, steps, last = 0, 1, 0, 1, time.perf_counter()
        try:
            while taken < count:
                model.check(turn)
                if more := range(submitted, min(submitted + steps, count)):
                    player.play_frame(frame + 1, [[self._decode(n), self._sample(n)] for n in more])
                    submitted = more.stop
                tokens, now = player.tokens(frame)[:, 0].tolist(), time.perf_counter()
                paced = FRAME_SECONDS * len(tokens) / max(now - last, 1e-9)      # a coarse clock may not have moved
                steps, last = min(max(int(paced), 1), STEPS), now
                for token in tokens:
                    model.check(turn)
                    yield token
                taken += len(tokens)
                frame += 1
        finally:
            if turn == model._turn:
                player.drain()

    def _decode(self, n: int) -> Call:
        """The step that takes token n - 1, which the GPU knows, and is followed by the sampling of token n."""
        position = len(self._ids) + n - 1
        return "decode_1", {"token": np.array([-1], np.int32), "position": np.array([position], np.int32), "slot": np.zeros(1, np.int32)}

    def _sample(self, n: int) -> Call:
        name = "sample_1" if self._sampler["temperature"] > 0 else "greedy_1"
        return name, {"params": pack_params(**self._sampler, step=n)}
