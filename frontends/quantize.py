"""How a weight is stored on the GPU: as the checkpoint has it, or in the format that rules over names ask for."""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase

from ..compiler.formats import FORMATS
from ..compiler.layouts import LAYOUTS
from .checkpoint import PLAIN_DTYPES, CheckpointError

Quantize = str | Mapping[str, str] | None       # "q4_0", "q4_0,embedding=q8_0", {"embedding": "q8_0", "*": "q4_0"}
Rules = list[tuple[str, str]]                   # a pattern of names and a format; the first that matches counts

EXACT = ("*router*", "*_bias")
INSTEAD = {"q4_k": "q5_0", "q6_k": "q8_0"}      # for rows that do not divide into a format's groups; f32 for others


def rules_of(quantize: Quantize) -> Rules:
    """Rules in the order in which they count. Routers and experts' biases stay f32 unless a pattern other than `*` names them.

    Raises CheckpointError for an unknown format, listing the known ones."""
    if not quantize:
        return []
    parts = [part.strip().rpartition("=") for part in quantize.split(",")] if isinstance(quantize, str) else []
    pairs = list(quantize.items()) if isinstance(quantize, Mapping) else [(name or "*", kind) for name, _, kind in parts]
    known = ["f32", *(name for name, layout in LAYOUTS.items() if name != "row" and not layout.store)]
    if unknown := next((kind for _, kind in pairs if kind not in known), None):
        raise CheckpointError(f"unknown weight format '{unknown}'; known: {', '.join(known)}")
    return [*(p for p in pairs if p[0] != "*"), *((p, "f32") for p in EXACT), *(p for p in pairs if p[0] == "*")]


class Storage:
    """Chooses the layouts of a model's matrices; `notes` says what could not be as asked for."""

    def __init__(self, quantize: Quantize, names: list[str]):
        self.rules, self._fallen = rules_of(quantize), Counter[tuple[str, str, int]]()
        if unused := next((p for p, _ in self.rules if p not in ("*", *EXACT) and not any(fnmatchcase(n, p) for n in names)), None):
            raise CheckpointError(f"no weight is named '{unused}'; the weights are {', '.join(_shorten(names))}")

    def layout(self, name: str, stored: str, columns: int) -> str:
        """The layout of a matrix with such rows that the checkpoint stores in a format."""
        if stored not in PLAIN_DTYPES and stored not in FORMATS:
            raise CheckpointError(f"{name} is stored in {stored}, which is not read ({', '.join(FORMATS)} are): convert the model again")
        asked = next((kind for pattern, kind in self.rules if fnmatchcase(name, pattern)), None)
        if asked is None:
            return stored if _holds(stored, columns) else "row"
        if stored not in PLAIN_DTYPES:
            raise CheckpointError(f"{name} is stored in {stored} already: quantize a checkpoint that holds it as float numbers")
        kind = asked
        while kind != "f32" and not _holds(kind, columns):
            kind = INSTEAD.get(kind, "f32")
        if kind != asked:
            self._fallen[asked, kind, columns] += 1
        return "row" if kind == "f32" else kind

    @property
    def notes(self) -> list[str]:
        return [f"{count} weights are stored in {kind}, since their rows of {columns} do not divide into {asked}'s groups of {LAYOUTS[asked].group}"
                for (asked, kind, columns), count in self._fallen.items()]


def _holds(kind: str, columns: int) -> bool:
    """Whether there is a layout of this name, for rows of so many elements."""
    return kind in LAYOUTS and columns % LAYOUTS[kind].group == 0


def _shorten(names: list[str]) -> list[str]:
    """The names with one entry for all layers."""
    return list(dict.fromkeys(".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names))
