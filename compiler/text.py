"""The graph as text, and back: what dumps, golden tests and error messages show. `read(show(g)) == g`."""
from __future__ import annotations

import re
from dataclasses import replace

from .ir import Attr, Choice, Graph, GraphError, Op, Value


def show(graph: Graph) -> str:
    """One line a value that the outside gives, one line an op (its body indented), and the outputs."""
    return "\n".join([*(_head(n, v) for n, v in graph.values.items() if v.role != "temp" or v.source),
                      *(line for op in graph.ops for line in show_op(graph, op)),
                      "return " + ", ".join(f"%{n}" for n in graph.outputs)])


def _head(name: str, value: Value) -> str:
    how = f" = {value.source[0]}({', '.join(f'%{p}' if isinstance(p, str) else str(p) for p in value.source[1:])})" if value.source else ""
    return f"{value.role} %{name}: {value}{how}"


def show_op(graph: Graph, op: Op, indent: str = "") -> list[str]:
    """The lines of one op."""
    args = ", ".join([f"%{n}" for n in op.inputs] + [f"{k}={_attr(v)}" for k, v in op.attrs])
    line = f"{indent}{', '.join(f'%{n}: {graph.values[n]}' for n in op.outputs)} = {op.kind}({args})" + (f" by {op.choice}" if op.choice else "")
    return [line, *(inner for part in op.body for inner in show_op(graph, part, indent + "    "))]


def _attr(value: Attr) -> str:
    if isinstance(value, tuple):
        return f"[{' '.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


_TYPE = re.compile(r"(\w+)\[([\d,]*)\](?:@(\w+))?")
_HEAD = re.compile(r"(input|weight|state|temp) %([\w.]+): (\S+)(?: = (\w+)\((.*)\))?")
_OP = re.compile(r"( *)(%.*?) = (\w+)\((.*?)\)(?: by (\w+)\((.*)\))?")


def read(text: str) -> Graph:
    """Parse what `show` prints. Raises GraphError naming the line that is none."""
    values: dict[str, Value] = {}
    ops: list[Op] = []
    outputs: tuple[str, ...] = ()
    for line in text.strip().splitlines():
        if m := _HEAD.fullmatch(line):
            values[m[2]] = replace(_value(m[3], line), role=m[1], source=_source(m[4], m[5]))
        elif m := _OP.fullmatch(line):
            op = _op(m, values, line)
            if m[1]:
                ops[-1] = replace(ops[-1], body=(*ops[-1].body, op))
            else:
                ops.append(op)
        elif line.startswith("return"):
            outputs = tuple(n.strip()[1:] for n in line[7:].split(",") if n.strip())
        else:
            raise GraphError(f"not a line of a graph: {line}")
    return Graph(values, tuple(ops), outputs)


def _op(m: re.Match, values: dict[str, Value], line: str) -> Op:
    outputs = re.findall(r"%([\w.]+): (\w+\[[\d,]*\](?:@\w+)?)", m[2])
    for name, kind in outputs:
        values[name] = _value(kind, line)
    args = [a for a in m[4].split(", ") if a]
    schedule = tuple((k, int(v)) for k, v in (p.split("=") for p in m[6].split(", ") if p)) if m[5] else ()
    return Op(m[3], tuple(a[1:] for a in args if a[0] == "%"), tuple(n for n, _ in outputs),
              tuple((k, _read_attr(v)) for k, v in (a.split("=") for a in args if a[0] != "%")),
              choice=Choice(m[5], schedule) if m[5] else None)


def _value(text: str, line: str) -> Value:
    if not (m := _TYPE.fullmatch(text)):
        raise GraphError(f"not a type: {text} in: {line}")
    return Value(tuple(int(d) for d in m[2].split(",") if d), m[1], layout=m[3] or "row")


def _source(how: str | None, args: str | None) -> tuple[str | int, ...]:
    return (how, *(a[1:] if a[0] == "%" else int(a) for a in (args or "").split(", "))) if how else ()


def _read_attr(text: str) -> Attr:
    if text[0] == "[":
        return tuple(int(x) for x in text[1:-1].split())
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
