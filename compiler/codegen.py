"""Turn a tiled op into one WGSL module: bindings and accessors from its operands, the rest from its kernel's template.

Operands are named by position (a0, a1, …), so equal layers give equal text and share one pipeline. Modules carry no `enable` lines:
each player adds what its front end wants (`Shader.needs` says which features are used).
"""
from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import jinja2

from .device import MATRICES
from .elementwise_ops import FUNCTIONS
from .expressions import broadcast_index, chooses, chosen_rows, element, literal, operands_read
from .head_results import FinishHeads
from .ir import Choice, GraphError, Op
from .kernel import Kernel, Site
from .layouts import LAYOUTS
from .template_cache import TemplateCache

SCALAR = {"f32": "f32", "f16": "f32", "i32": "i32", "u32": "u32"}     # what a load gives: f16 is a storage type only


@dataclass(frozen=True)
class Shader:
    """A WGSL module with the entry point `main`; one access ("read" or "write") a binding of group 0; the features it uses;
    invocations and bytes of memory of a workgroup."""

    wgsl: str
    bindings: tuple[str, ...]
    needs: frozenset[str]
    threads: int
    workgroup_bytes: int


@cache
def template_environment(folder: Path | None = None) -> jinja2.Environment:
    """Templates of a folder, and those of this package; `{$ $}` and `$$` stay readable beside WGSL's braces."""
    own = Path(__file__).parent.parent / "templates"
    return jinja2.Environment(loader=jinja2.FileSystemLoader([folder or own, own]),
                              undefined=jinja2.StrictUndefined, block_start_string="{$", block_end_string="$}", line_statement_prefix="$$",
                              line_comment_prefix="$#", trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
                              extensions=["jinja2.ext.do"], bytecode_cache=TemplateCache())


class Operand:
    """A value as a template sees it: expressions and statements that read and write it.

    load(i), store(i, v): one element; load4, store4: the i-th group of four; `unit` is 4 where rows divide by four, else 1, and
    load_unit, store_unit follow it. store_rounded(i, v, most): store4 in a layout that rounds, within a group whose largest magnitude is
    `most`. fetch(i, var), quad(var, j): blocks of a weight, as layouts.py describes.
    """

    def __init__(self, name: str, value, access: str, base: int | None = None):
        self.name, self.value, self.access, self.base = name, value, access, base
        self.shape, self.dtype, self.layout = value.shape, value.dtype, LAYOUTS[value.layout]
        self.unit = 4 if value.shape and value.shape[-1] % 4 == 0 and base is None else 1
        self.block = self.layout.block if value.layout != "row" else self.unit
        self.used: set[str] = set()

    def _call(self, what: str, *args: str) -> str:
        self.used.add(what)
        return f"{self.name}_{what}({', '.join(args)})"

    def load(self, i: str) -> str:
        return self._call("load", i)

    def load4(self, i: str) -> str:
        return self._call("load4", i)

    def half4(self, i: str) -> str:
        """The i-th group of four, without the way through f32: of values stored in f16."""
        return self._call("half4", i)

    def load_unit(self, i: str) -> str:
        return self._call("load4" if self.unit == 4 else "load", i)

    def store(self, i: str, v: str) -> str:
        return self._call("store", i, v)

    def store4(self, i: str, v: str) -> str:
        return self._call("store4", i, v)

    def store_unit(self, i: str, v: str) -> str:
        return self._call("store4" if self.unit == 4 else "store", i, v)

    def store_rounded(self, i: str, v: str, most: str) -> str:
        return self._call("store_rounded", i, v, most)

    def fetch(self, i: str, var: str) -> str:
        """Statements that load block i into `var`."""
        if self.value.layout == "row":
            return f"let {var} = {self.load_unit(i)};"
        self.used.add("fetch")
        return self.layout.fetch(self.planes, i, var)

    def quad(self, var: str, j: int) -> str:
        """The j-th group of four (one element, where `unit` is 1) of the block in `var`."""
        return var if self.value.layout == "row" else self.layout.quad(var, j)

    def dot(self, var: str, low: str, high: str, x: str) -> str:
        """The product of the block in `var` with 32 rounded numbers, as layouts.py describes."""
        assert self.layout.dot
        return self.layout.dot(var, low, high, x)

    def word(self, var: str, j: int) -> str:
        """The codes of quad j of the block in `var` as the bytes of a word."""
        assert self.layout.word
        return self.layout.word(var, j)

    def scaling(self, var: str) -> str:
        """Scales and shifts of the block in `var`, as layouts.py describes."""
        assert self.layout.scaling
        return self.layout.scaling(var)

    @property
    def planes(self) -> list[str]:
        return [self.name] + [f"{self.name}_{p}" for p in range(1, len(self.layout.planes))]

    @property
    def wide(self) -> bool:
        return bool(self.used & {"load4", "half4", "store4"})

    def declare(self, first: int) -> str:
        """Bindings from `first` on."""
        mode = "read" if self.access == "read" else "read_write"
        if self.value.layout != "row":
            types = [p.type for p in self.layout.planes]
        else:
            types = [f"vec4<{self.dtype}>" if self.wide else self.dtype]
        return "".join(f"@group(0) @binding({first + k}) var<storage, {mode}> {name}: array<{t}>;\n"
                       for k, (name, t) in enumerate(zip(self.planes, types, strict=True)))

    def accessors(self) -> str:
        return self._plain_accessors() if self.value.layout == "row" else self._layout_accessors()

    def _layout_accessors(self) -> str:
        """Those of a layout with blocks of four elements."""
        text, layout = "", self.layout
        if "load4" in self.used:
            text += f"fn {self.name}_load4(i: u32) -> vec4<f32> {{ {layout.fetch(self.planes, 'i', 'x')} return {layout.quad('x', 0)}; }}\n"
        if "store_rounded" in self.used:
            assert layout.store
            text += f"fn {self.name}_store_rounded(i: u32, v: vec4<f32>, most: f32) {{ {layout.store(self.planes, 'i', 'v', 'most')} }}\n"
        return text

    def _plain_accessors(self) -> str:
        n, scalar, base = self.name, SCALAR[self.dtype], f"{self.base}u + " if self.base else ""
        element = f"{n}[i >> 2u][i & 3u]" if self.wide else f"{'step' if self.base is not None else n}[{base}i]"
        text = {
            "load": f"fn {n}_load(i: u32) -> {scalar} {{ return {scalar}({element}); }}\n",
            "load4": f"fn {n}_load4(i: u32) -> vec4<{scalar}> {{ return vec4<{scalar}>({n}[i]); }}\n",
            "half4": f"fn {n}_half4(i: u32) -> vec4<f16> {{ return {n}[i]; }}\n",
            "store": f"fn {n}_store(i: u32, v: {scalar}) {{ {element} = {self.dtype}(v); }}\n",
            "store4": f"fn {n}_store4(i: u32, v: vec4<{scalar}>) {{ {n}[i] = vec4<{self.dtype}>(v); }}\n",
        }
        return "".join(text[u] for u in ("load", "load4", "half4", "store", "store4") if u in self.used)


def step_offsets(values) -> dict[str, int]:
    """Where each host input starts in the step buffer, in 32-bit words."""
    at, offsets = 0, {}
    for name, value in values.items():
        if value.role == "input":
            offsets[name] = at
            at += value.size
    return offsets


def render(site: Site, kernel: Kernel, choice: Choice) -> Shader:
    """The shader of one op. Raises GraphError when its template cannot be rendered."""
    operands = _operands(site)
    schedule = dict(choice.schedule)
    context = {**{name: operands[value] for name, value in site.operands.items() if value in operands},
               "outs": [operands[n] for n in site.op.outputs], "out": operands[site.op.outputs[0]],
               "attr": SimpleNamespace(**dict(site.anchor.attrs)), "norm": _norm(site, operands), "at": operands.__getitem__,
               "finish": (FinishHeads if site.to_caches else Finish)(site, operands), "rounding": _rounding(site, operands), "pairs": site.pairs,
               "literal": literal, **schedule}
    try:
        body = template_environment(kernel.source.parent).get_template(kernel.source.name).render(context | kernel.context(site, schedule))
    except jinja2.TemplateError as err:
        raise GraphError(f"the template of {choice} for {site.op.kind} cannot be rendered: {err}") from err
    bound = [operands[n] for n in site.bound]
    header, bindings = "", list[str]()
    for operand in bound:
        header += operand.declare(len(bindings))
        bindings += [operand.access] * len(operand.planes)
    if site.steps:
        header += f"@group(0) @binding({len(bindings)}) var<storage, read> step: array<i32>;\n"
        bindings.append("read")
    header += "".join(o.accessors() for o in {id(o): o for o in operands.values()}.values())
    needs = kernel.needs(site, schedule) | ({"shader-f16"} if any(o.dtype == "f16" and o.value.layout == "row" for o in bound) else set())
    return Shader(f"// {choice}\n{header}{_functions(header + body)}{body}", tuple(bindings), frozenset(needs),
                  kernel.threads(site, schedule), kernel.workgroup_bytes(site, schedule))


def _functions(text: str) -> str:
    """The functions of element-wise ops that a text calls, and those that these call."""
    found: dict[str, str] = {}
    while called := {n for n in FUNCTIONS if n not in found and f"{n}(" in text and re.search(rf"\b{n}\(", text)}:
        found |= {n: FUNCTIONS[n] for n in sorted(called)}
        text = "".join(found.values())
    return "".join(found.values())


def _operands(site: Site) -> dict[str, Operand]:
    offsets = step_offsets(site.values)
    found: dict[str, Operand] = {}
    for i, name in enumerate(site.bound):
        found[name] = Operand(f"a{i}", site.values[name], "write" if name in site.op.outputs else "read")
    for name in site.op.inputs:
        if name in site.aliases:
            made = site.aliases[name]
            if made in found:
                found[name] = found[made]
        elif site.values[name].role == "input":
            found[name] = Operand(f"s{len(found)}", site.values[name], "read", base=offsets[name])
    return found


def _norm(site: Site, operands: dict[str, Operand]):
    """The RMS norm that the kernel applies to x first, if any."""
    if not site.prologue or site.prologue[0].kind != "rms_norm":
        return None
    op = site.prologue[0]
    return SimpleNamespace(weight=operands[op.inputs[1]] if len(op.inputs) > 1 else None, eps=literal(op.attr("eps")))


def _rounding(site: Site, operands: dict[str, Operand]):
    """Where the rounded results go, and the weight that they are multiplied by before."""
    if not site.rounding:
        return None
    integers, scales = (operands[n] for n in site.rounding.outputs)
    weight = operands[site.rounding.inputs[1]] if len(site.rounding.inputs) > 1 else None
    return SimpleNamespace(integers=integers, scales=scales, weight=weight)


class Finish:
    """Called by a template with a result: the statements that run the epilogue on it and store it."""

    def __init__(self, site: Site, operands: dict[str, Operand]):
        self.site, self.operands, self.held = site, operands, dict[str, str]()

    def ahead(self, row: str, col: str) -> str:
        """Statements that ask for what the epilogue reads at (row, col), for a call with the same place to come, so that memory answers
        while the anchor's result is still being made. row and col must be in range."""
        made, lines = {*self._starts(), *(n for p in self.site.epilogue for n in p.outputs)}, list[str]()
        for op in (p for p in self.site.epilogue if p.kind != "unzip"):
            for name in operands_read(op):
                if name not in made and self._key(op, name) not in self.held:
                    self.held[self._key(op, name)] = f"held{len(lines)}"
                    lines.append(f"let held{len(lines)} = {self._load(op, name, row, self._column(col))};")
        return " ".join(lines)

    def __call__(self, acc: str | list[str], row: str, col: str, keep: str = "") -> str:
        """acc: the anchor's result at (row, col), or with `pairs` those at columns 2 col and 2 col + 1. Rows count over all
        leading dimensions of the result, columns over its last. keep: where to leave what is rounded afterwards."""
        start = dict(zip(self._starts(), [acc] if isinstance(acc, str) else acc, strict=True))
        return self._run(start, self.site.epilogue, row, self._column(col), keep)

    def line(self, row: str, part: int) -> str:
        """The row of the weight for result `row` of the anchor, of a pair its first (part 0) or second (1): itself."""
        return row

    def _column(self, col: str) -> str:
        """The column of the whole result, where this op makes a part of the columns."""
        at = int(self.site.anchor.attr("at", 0)) // (2 if self.site.pairs else 1)
        return f"({col} + {at}u)" if at else col

    def _key(self, op: Op, name: str) -> str:
        """What an op reads: an operand, or of its own what it chooses from one."""
        return f"{name} of {op.outputs[0]}" if chooses(op, name) else name

    def _load(self, op: Op, name: str, row: str, col: str) -> str:
        if chooses(op, name):
            return chosen_rows(op, self.site.values, self.operands, row, col)
        return self.operands[name].load(broadcast_index(self.site.values[op.outputs[0]].shape, self.site.values[name].shape, row, col))

    def whole(self, row: str, col: str) -> str:
        """The statements of an op that is element-wise throughout."""
        return self._run({}, self.site.op.parts, row, col)

    def _run(self, text: dict[str, str], ops: tuple[Op, ...], row: str, col: str, keep: str = "") -> str:
        lines: list[str] = []
        for op in ops:
            if op.kind != "unzip":
                read = operands_read(op)
                args = [text.get(n) or self.held.get(self._key(op, n)) or self._load(op, n, row, col) if n in read else "" for n in op.inputs]
                text[op.outputs[0]] = f"e{len(lines)}"
                lines.append(f"let e{len(lines)} = {element(op, args)};")
        rounding = self.site.rounding
        if rounding:
            lines.append(f"{keep} = {text[rounding.inputs[0]]};")
        for name in (n for n in self.site.op.outputs if not rounding or n not in rounding.outputs):
            shape = self.site.values[name].shape
            lines.append(self.operands[name].store(broadcast_index(shape, shape, row, col), text[name]) + ";")
        return "{ " + " ".join(lines) + " }"

    def _starts(self) -> tuple[str, ...]:
        return self.site.epilogue[0].outputs if self.site.pairs else self.site.anchor.outputs


def module_text(shader: Shader, dialect: str) -> str:
    """The module for a front end: naga refuses `enable subgroups;`, Tint requires it."""
    return enables(shader.needs, dialect) + shader.wgsl


def enables(needs, dialect: str) -> str:
    return "".join(line for feature, line in (("shader-f16", "enable f16;\n"), ("subgroups", "enable subgroups;\n"),
                                              (MATRICES, "enable chromium_experimental_subgroup_matrix;\n"))
                   if feature in needs and not (dialect == "naga" and feature == "subgroups"))


__all__ = ["Shader", "enables", "module_text", "render", "step_offsets", "template_environment"]
