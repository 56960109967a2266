"""Prove that a shader's indices are in range, so that a player may leave out the checks that a front end adds.

An abstract interpreter (https://doi.org/10.1145/512950.512973) for the WGSL that templates write: every integer is an interval, loops run
once with what they change unknown but for their counter, and conditions narrow the names that they compare. It reads the text of the shader
and the sizes of what is bound, not what a kernel claims; what it does not understand is not proved.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from .evaluation import Evaluation
from .ranges import OTHER, Range, alike, anything, combine, join
from .wgsl import Unproved

ASSIGNING = {"=", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=", "<<=", ">>=", "++", "--"}
COMPARISONS = {"<", ">", "<=", ">=", "==", "!="}
CONTRARY = {"<": ">=", ">=": "<", ">": "<=", "<=": ">"}


def proved(manifest: Mapping[str, Any]) -> frozenset[int]:
    """The shaders of a package (by number) whose indices are in range in every dispatch that uses them."""
    uses: dict[int, set[tuple]] = {}
    for program in manifest["programs"].values():
        for d in program["dispatches"]:
            uses.setdefault(d["shader"], set()).add((tuple(d["grid"]), tuple(size for _, _, size in d["bindings"])))
    return frozenset(number for number, ways in uses.items()
                     if all(unproved(manifest["shaders"][number]["wgsl"], grid, sizes) is None for grid, sizes in ways))


def unproved(wgsl: str, grid: Sequence[int], sizes: Sequence[int]) -> str | None:
    """The first index that may leave its array, or construct that is not understood; None when all are in range.

    grid: workgroups dispatched in x, y, z. sizes: bytes bound to binding 0, 1, … of group 0.
    """
    return _unproved(wgsl, tuple(grid), tuple(sizes))


@lru_cache(1 << 10)     # of a process that loads more than once
def _unproved(wgsl: str, grid: tuple[int, ...], sizes: tuple[int, ...]) -> str | None:
    try:
        _Shader(wgsl, grid, sizes)
    except Unproved as reason:
        return str(reason)
    return None


class _Shader(Evaluation):
    """`main` interpreted, statement by statement."""

    def __init__(self, wgsl: str, grid: Sequence[int], sizes: Sequence[int]):
        super().__init__(wgsl, sizes)
        if "main" not in self.functions:
            raise Unproved("no entry point main")
        self.assigned: dict[int, set[str]] = {}     # names by the place of the block that assigns them
        parameters, body = self.functions["main"]
        self.scopes.append({})
        for name, builtin_name in parameters:
            if builtin_name == "local_invocation_index":
                self.scopes[1][name] = Range("u", 0, self.threads - 1)
            elif builtin_name == "workgroup_id":
                self.scopes[1] |= {name: OTHER} | {f"{name}.{axis}": Range("u", 0, n - 1) for axis, n in zip("xyz", grid, strict=True)}
            else:
                raise Unproved(f"the builtin {builtin_name} is not understood")
        self.run(body)

    # Statements

    def run(self, place: int) -> None:
        back, self.at = self.at, place
        self._block()
        self.at = back

    def _block(self, facts: Sequence[tuple[str, str, Range]] = ()) -> None:
        assigned = self._assigned() if facts else set()
        self.take("{")
        self.scopes.append({})
        for name, op, bound in facts:
            if name not in assigned:
                self._narrow(name, op, bound)
        while not self.accept("}"):
            self._statement()
        self.scopes.pop()

    def _assigned(self) -> set[str]:
        """The names that the block from here on assigns."""
        start = self.at
        if start not in self.assigned:
            self.skip()
            end, self.at = self.at, start
            self.assigned[start] = {self.tokens[i] for i in range(start, end) if self.tokens[i + 1] in ASSIGNING}
        return self.assigned[start]

    def _statement(self) -> None:
        word = self.peek()
        if word == "{":
            self._block()
        elif word in ("let", "var", "const"):
            self.take()
            self._let()
        elif word == "if":
            self._if()
        elif word == "for":
            self._for()
        elif word == "return":
            self.take()
            self.returned = OTHER if self.peek() == ";" else self.expression()
            self.take(";")
        elif word in ("break", "continue"):
            self.take()
            self.take(";")
        elif word in ("loop", "while", "switch"):
            raise Unproved(f"'{word}' is not understood")
        elif not self.accept(";"):
            self._assignment()
            self.take(";")

    def _let(self) -> None:
        if self.peek() == "<":
            self.type_arguments()
        name, type = self.take(), ""
        if self.accept(":"):
            type = self.type()
        if type.startswith("array"):
            self.array(name, type, None)
        value = self.expression() if self.accept("=") else Range({"u32": "u", "i32": "i"}.get(type, ""))
        if not type.startswith("array"):
            self.scopes[-1][name] = value._replace(kind={"u32": "u"}.get(type, "i")) if value.kind == "n" else value
        self.take(";")

    def _assignment(self) -> None:
        """An assignment, a call, or a step; names that stand for integers get their new range."""
        name, plain = self.peek(), self.peek(1) in ASSIGNING
        if plain and self.lookup(name) == OTHER and self.pass_by():     # most of what is unrolled; the name stays no integer
            return
        target = self.unary()
        operator = self.peek()
        if operator in (";", ")"):
            return
        self.take()
        if operator in ("++", "--"):
            value = combine(operator[0], target, Range(target.kind, 1, 1))
        else:
            value = self.expression()
            value = value if operator == "=" else combine(operator[:-1], target, value)
        if plain:
            self._set(name, value)

    def _set(self, name: str, value: Range) -> None:
        for scope in reversed(self.scopes[1:]):     # what is global, functions may change
            if name in scope:
                scope[name] = value
                return

    def _if(self) -> None:
        self.take("if")
        start = self.at
        facts = self._condition()
        single = len(facts) == 1 and "&&" not in self.tokens[start:self.at]
        before = [dict(s) for s in self.scopes]
        self._block(facts)
        after, self.scopes = self.scopes, before
        if self.accept("else"):
            self.scopes.append({})
            if single and facts[0][1] in CONTRARY and facts[0][0] not in self._assigned_by_else():
                self._narrow(facts[0][0], CONTRARY[facts[0][1]], facts[0][2])
            if self.peek() == "if":
                self._if()
            else:
                self._block()
            self.scopes.pop()
        self.scopes = [{n: join(a[n], v) if a[n] != v else v for n, v in b.items()} for a, b in zip(after, self.scopes, strict=True)]

    def _assigned_by_else(self) -> set[str]:
        """The names that the rest of a chain of conditions assigns."""
        start, names = self.at, set[str]()
        while True:
            while self.peek() != "{":
                self.take()
            names = names | self._assigned()
            self.skip()
            if not self.accept("else"):
                self.at = start
                return names

    def _condition(self) -> list[tuple[str, str, Range]]:
        """What holds where the condition does: its comparisons, if they are joined by && alone and none is part of something else."""
        self.facts, start = [], self.at
        self.expression()
        text = self.tokens[start:self.at]
        depth, least = 0, 1 if text[0] == "(" else 0
        for token in text:
            depth += {"(": 1, ")": -1}.get(token, 0)
            if token in ("||", "!", "true", "false") or (depth > least and token in COMPARISONS):
                return []
        return self.facts

    def _narrow(self, name: str, op: str, bound: Range) -> None:
        """Within a block where `name op bound` holds."""
        value = self.lookup(name)
        if value is None:
            return
        value, bound = alike(value, bound)
        if not value.kind or value.kind != bound.kind:
            return
        lo, hi = value.lo, value.hi
        if op in ("<", "<="):
            hi = min(hi, bound.hi - (op == "<"))
        elif op in (">", ">="):
            lo = max(lo, bound.lo + (op == ">"))
        elif op == "==":
            lo, hi = max(lo, bound.lo), min(hi, bound.hi)
        self.scopes[-1][name] = Range(value.kind, lo, max(lo, hi))

    def _for(self) -> None:
        self.take("for")
        after = self.partners.get(self.at, 0) + 1
        self.take("(")
        self.scopes.append({})
        counter, first = "", OTHER
        if not self.accept(";"):
            self.take("var")
            counter = self.peek()
            self._let()
            first = self.scopes[-1][counter]
        facts = self._condition()
        self.take(";")
        update, self.at = self.at, after
        self._forget(counter)
        self.scopes[-1][counter] = self._counted(counter, first, facts, update)
        self._block()
        self.scopes.pop()

    def _forget(self, counter: str) -> None:
        """What the loop's body assigns is unknown when it begins again."""
        assigned = self._assigned()
        if counter in assigned:
            raise Unproved(f"the loop over {counter} changes it")
        for name in assigned:
            value = self.lookup(name)
            if value is not None and value.kind:
                self._set(name, anything(value.kind))

    def _counted(self, counter: str, first: Range, facts: list[tuple[str, str, Range]], update: int) -> Range:
        """The values of a loop's counter in its body."""
        if first.kind == "n":
            first = first._replace(kind="i")
        bound = next(((op, b) for name, op, b in facts if name == counter and alike(first, b)[1].kind == first.kind != ""), None)
        back, self.at = self.at, update
        self.take(counter)
        step = self.take()
        by = Range(first.kind, 1, 1) if step == "++" else alike(first, self.expression())[1]
        self.at = back
        if bound is None:
            raise Unproved(f"the loop over {counter} has no bound")
        op, limit = bound
        if op in ("<", "<=") and step in ("+=", "++") and by.lo > 0:
            most = limit.hi - (op == "<")
            if by.lo == by.hi and limit.lo == limit.hi and first.hi - first.lo < by.lo:     # the last value is known but for where it began
                most = max((most - start) // by.lo * by.lo + start for start in range(first.lo, first.hi + 1))
            return Range(first.kind, first.lo, max(first.lo, most))
        if op == ">" and step in ("/=", "-=", ">>="):
            return Range(first.kind, limit.lo + 1, max(first.hi, limit.lo + 1))
        raise Unproved(f"the loop over {counter} is not counted")
