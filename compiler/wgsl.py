"""Read the tokens and the global declarations of a WGSL module (https://www.w3.org/TR/WGSL/), as far as templates use them."""
from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain

from .ranges import Range, anything

# the most frequent ones first; what is none is one of its own, which nothing understands
TOKEN = re.compile(r"(?>(?:\s+|//.*)*)([A-Za-z_]\w*|[@{}()\[\];:,]|<<=|>>=|&&|\|\||<<|>>|->|[-+*/%&|^]=|[=!<>]=|\+\+|--"
                   r"|0[xX][0-9a-fA-F]+[ui]?|\d+\.\d*(?:[eE][-+]?\d+)?[fh]?|\.\d+|\d+[eE][-+]?\d+[fh]?|\d+[uifh]?|.|\Z)")
CLOSING = {")": "(", "}": "{"}
BYTES = {"f16": 2, "f32": 4, "u32": 4, "i32": 4}


class Unproved(Exception):
    """What could not be shown, or is not understood."""


@lru_cache(1 << 12)     # unrolled loops repeat their lines, and so do modules for other shapes
def _line(text: str) -> list[str]:
    return [token for token in TOKEN.findall(text) if token]


@lru_cache(4)
def tokens(wgsl: str) -> tuple[tuple[str, ...], dict[int, int]]:
    """The tokens, "<end>" the last, and for every opening brace and parenthesis the place of the one that closes it."""
    found = (*chain.from_iterable(map(_line, wgsl.split("\n"))), "<end>")
    partners, opened = dict[int, int](), {"(": list[int](), "{": list[int]()}
    for place in [i for i, token in enumerate(found) if token in "(){}"]:
        if (token := found[place]) in opened:
            opened[token].append(place)
        elif waiting := opened[CLOSING[token]]:
            partners[waiting.pop()] = place
    return found, partners


class Module:
    """The tokens, read one by one from `at`; arrays that can be indexed, functions, and global names, once declarations are read.

    sizes: bytes bound to binding 0, 1, … of group 0."""

    def __init__(self, wgsl: str, sizes: Sequence[int]):
        self.tokens, self.partners = tokens(wgsl)
        self.at = 0
        self.arrays: dict[str, tuple[int, str]] = {}        # name: elements, their type
        self.functions: dict[str, tuple[list[tuple[str, str]], int]] = {}       # parameters and their builtins, and where the body begins
        self.globals: dict[str, Range] = {}
        self.threads = 1
        while self.peek() != "<end>":
            self._declaration(sizes)

    # Tokens

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead]

    def take(self, wanted: str | None = None) -> str:
        token = self.tokens[self.at]
        if wanted and token != wanted:
            raise Unproved(f"'{token}' where '{wanted}' was expected")
        self.at += 1
        return token

    def accept(self, wanted: str) -> bool:
        if self.tokens[self.at] == wanted:
            self.at += 1
            return True
        return False

    def pass_by(self) -> bool:
        """Go to the semicolon that ends the statement here, if nothing in it may index an array."""
        end = self.tokens.index(";", self.at)
        statement = self.tokens[self.at:end]
        if "[" in statement or not self.functions.keys().isdisjoint(statement):
            return False
        self.at = end
        return True

    def skip(self) -> None:
        """What stands in the braces or parentheses that begin here, and they."""
        if self.at not in self.partners:
            raise Unproved(f"'{self.peek()}' opens nothing that is closed")
        self.at = self.partners[self.at] + 1

    def type(self) -> str:
        """A type as text without spaces."""
        text = self.take()
        if self.peek() == "<":
            start = self.at
            depth = 0
            while True:
                token = self.take()
                depth += {"<": 1, ">": -1, ">>": -2}.get(token, 0)
                if depth <= 0:
                    break
            text += "".join(self.tokens[start:self.at])
        return text

    # Declarations

    def _declaration(self, sizes: Sequence[int]) -> None:
        """One global declaration."""
        binding = -1
        while self.accept("@"):
            name, numbers = self.take(), self._numbers() if self.peek() == "(" else []
            if name == "binding":
                binding = numbers[0]
            elif name == "workgroup_size":
                self.threads = numbers[0]
                if any(n != 1 for n in numbers[1:]):
                    raise Unproved("a workgroup of more than one dimension")
        word = self.take()
        if word == "enable":
            while not self.accept(";"):
                self.take()
        elif word == "var":
            if self.peek() == "<":
                self.type_arguments()
            name = self.take()
            self.take(":")
            self.array(name, self.type(), sizes[binding] if binding >= 0 else None)
            self.take(";")
        elif word == "fn":
            self._function()
        else:
            raise Unproved(f"'{word}' is not understood")

    def _numbers(self) -> list[int]:
        """The whole numbers in parentheses."""
        start = self.at + 1
        self.skip()
        return [int(t.rstrip("ui")) for t in self.tokens[start:self.at - 1] if t[0].isdigit()]

    def type_arguments(self) -> None:
        self.at -= 1
        self.type()

    def array(self, name: str, type: str, size: int | None) -> None:
        inner = re.fullmatch(r"array<(.*?)(?:,(\d+)u?)?>", type)
        if inner is None:
            self.globals[name] = anything({"u32": "u", "i32": "i"}.get(type, ""))
            return
        element = inner[1].removeprefix("atomic<").rstrip(">") if inner[1].startswith("atomic") else inner[1]
        if element.startswith("array"):
            raise Unproved(f"{name} is an array of arrays")
        if inner[2]:
            made = int(inner[2]), element
        elif size is None:
            raise Unproved(f"the size of {name} is unknown")
        else:
            vector = re.fullmatch(r"vec([234])<(\w+)>", element)
            each = BYTES.get(vector[2] if vector else element)
            if each is None or (vector and vector[1] == "3"):
                raise Unproved(f"the type {element} of {name} is unknown")
            made = size // (each * (int(vector[1]) if vector else 1)), element
        if self.arrays.setdefault(name, made) != made:
            raise Unproved(f"there are two arrays named {name}")

    def _function(self) -> None:
        name, parameters = self.take(), list[tuple[str, str]]()
        self.take("(")
        while not self.accept(")"):
            builtin = ""
            if self.accept("@"):
                self.take("builtin")
                self.take("(")
                builtin = self.take()
                self.take(")")
            parameter = self.take()
            self.take(":")
            self.type()
            parameters.append((parameter, builtin))
            self.accept(",")
        if self.accept("->"):
            self.type()
        self.functions[name] = parameters, self.at
        self.skip()
