"""The text of one sequence as its tokens come: whole characters only, cut at stop strings."""
from __future__ import annotations

from collections.abc import Sequence

from .tokenizer import Tokenizer


class Text:
    """push(token) gives the text that is certain by now: incomplete characters, and what may begin a stop string, are held back.
    `stopped` turns true at an end-of-text token or a stop string; flush() gives what was held back when no more tokens come."""

    def __init__(self, tokenizer: Tokenizer | None, stops: Sequence[str]):
        self.stopped = False
        self._decoder = tokenizer.decoder() if tokenizer else None
        self._ends = frozenset(tokenizer.eos) if tokenizer else frozenset()
        self._stops, self._held = tuple(s for s in stops if s), ""

    def push(self, token: int) -> str:
        if token in self._ends:
            self.stopped = True
            return self.flush()
        self._held += self._decoder.push(token) if self._decoder else ""
        if (cut := min((at for s in self._stops if (at := self._held.find(s)) >= 0), default=None)) is not None:
            self.stopped = True
            piece, self._held = self._held[:cut], ""
            return piece
        keep = max((n for s in self._stops for n in range(1, min(len(s), len(self._held) + 1)) if self._held.endswith(s[:n])), default=0)
        piece, self._held = self._held[:len(self._held) - keep], self._held[len(self._held) - keep:]
        return piece

    def flush(self) -> str:
        piece, self._held = self._held + (self._decoder.flush() if self._decoder else ""), ""
        return piece

    def ends(self, token: int) -> bool:
        """Whether a token says that the text is over, rather than being part of it."""
        return token in self._ends
