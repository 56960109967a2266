"""The ranges of a WGSL shader's expressions, for the proof that its indices stay within its arrays."""
from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from .ranges import OTHER, Range, anything, builtin, combine, made
from .wgsl import Module, Unproved

PRECEDENCE = {op: level for level, ops in enumerate(("||", "&&", "|", "^", "&", "== !=", "< > <= >=", "<< >>", "+ -", "* / %")) for op in ops.split()}
ORDER = PRECEDENCE["<"]
PREFIXES = ("(", "-", "!", "~", "&", "*")
CONTINUING = ("(", "[", ".", "<")      # what makes more of a name or a number


@lru_cache(1 << 12)
def literal(token: str) -> Range:
    """What a number stands for; of no kind where it is no integer."""
    if token[:2] in ("0x", "0X"):
        number = int(token.rstrip("ui"), 16)
    elif re.fullmatch(r"\d+[ui]?", token):
        number = int(token.rstrip("ui"))
    else:
        return OTHER
    return Range(token[-1] if token[-1] in "ui" else "n", number, number)


class Evaluation(Module):
    """A module whose expressions are evaluated where they stand, by what is known of names."""

    def __init__(self, wgsl: str, sizes: Sequence[int]):
        super().__init__(wgsl, sizes)
        self.scopes = [self.globals]        # names, the innermost last
        self.facts: list[tuple[str, str, Range]] = []       # the comparisons that were evaluated
        self.known: dict[tuple, Range] = {}     # results of functions by arguments
        self.returned = OTHER       # the result of the function that runs

    def run(self, place: int) -> None:
        """Interpret the block that begins there."""
        raise NotImplementedError

    def expression(self, least: int = 0) -> Range:
        """Operators of at least this precedence, by climbing (https://www.engr.mun.ca/~theo/Misc/exp_parsing.htm)."""
        start, tokens = self.at, self.tokens
        left = self.unary()
        while (level := PRECEDENCE.get(tokens[self.at], -1)) >= least:
            alone = level == ORDER and (self.at == start + 1 or (self.at == start + 3 and tokens[start + 1] == "."))
            named = "".join(tokens[start:self.at]) if alone else ""
            op = tokens[self.at]
            self.at += 1
            right = self.expression(level + 1)
            if named:
                self.facts.append((named, op, right))
            left = combine(op, left, right)
        return left

    def unary(self) -> Range:
        token = self.tokens[self.at]
        if self.tokens[self.at + 1] not in CONTINUING and token not in PREFIXES:     # a name or a number alone, as most are
            self.at += 1
            return self._plain(token)
        if token == "-":
            self.at += 1
            value = self.unary()
            return made(value.kind, -value.hi, -value.lo) if value.kind in ("i", "n") else OTHER
        if token in ("!", "~", "&", "*"):
            self.at += 1
            value = self.unary()
            return anything(value.kind) if token == "~" and value.kind else OTHER
        return self._postfix()

    def _plain(self, token: str) -> Range:
        known = self.lookup(token)
        if known is not None:
            return known
        if token[0].isdigit() or token[0] == ".":
            return literal(token)
        if token not in ("true", "false") and token not in self.arrays:
            raise Unproved(f"the name {token} is unknown")
        return OTHER

    def _postfix(self) -> Range:
        tokens, token = self.tokens, self.tokens[self.at]
        self.at += 1
        after = tokens[self.at]
        if token == "(":
            value = self.expression()
            self.take(")")
        elif after == "(" or (after == "<" and token in ("vec2", "vec3", "vec4", "array", "mat2x2", "bitcast")):
            value = self._call(token)
        elif after == "[" and token in self.arrays and self.lookup(token) is None:
            value = self._element(token)
        elif after == "." and (found := self.lookup(f"{token}.{tokens[self.at + 1]}")) is not None:
            self.at += 2
            return found
        else:
            value = self._plain(token)
        while (after := tokens[self.at]) == "." or after == "[":
            self.at += 1
            if after == ".":
                self.at += 1
            else:       # a component: its range is unknown, its place must not be
                place = self.expression()
                self.take("]")
                self._component(place)
            value = OTHER
        return value

    def _component(self, place: Range) -> None:
        """Every vector has two components; front ends refuse a constant beyond the last."""
        if not place.kind or place.lo < 0 or (place.hi > 1 and place.lo != place.hi):
            raise Unproved("a component of a vector is chosen as the shader runs")

    def _element(self, name: str) -> Range:
        length, element = self.arrays[name]
        self.take("[")
        i = self.expression()
        self.take("]")
        if not i.kind or i.lo < 0 or i.hi >= length:
            raise Unproved(f"an index of {name} may be {i.lo} to {i.hi}, and it has {length} elements" if i.kind
                           else f"an index of {name} is unknown")
        return anything({"u32": "u", "i32": "i"}.get(element, ""))

    def _call(self, name: str) -> Range:
        self.at -= 1
        name = self.type()
        self.take("(")
        values = []
        while not self.accept(")"):
            values.append(self.expression())
            self.accept(",")
        if name in self.functions:
            return self._own(name, values)
        return builtin(name, values)

    def _own(self, name: str, values: list[Range]) -> Range:
        key = (name, *values)
        if key not in self.known:
            parameters, place = self.functions[name]
            scopes, self.scopes = self.scopes, [self.scopes[0], {p: v for (p, _), v in zip(parameters, values, strict=True)}]
            self.returned = OTHER
            self.run(place)
            self.scopes = scopes
            self.known[key] = self.returned
        return self.known[key]

    def lookup(self, name: str) -> Range | None:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return None
