"""The op graph of a program as one HTML page: an SVG drawing, layered from top to bottom, and the text of the op under the pointer."""
from __future__ import annotations

from collections import Counter
from html import escape

import networkx

from .ir import Graph, Op
from .report import main_kind
from .text import show_op

ROW, BOX, GAP, LETTER = 78, 40, 28, 7.4     # px: a layer's height, a box's height, space between boxes, width of a letter

Point = tuple[float, float]

FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ margin: 0; font: 12px ui-monospace, monospace; color: #222; background: #fff; }}
header {{ position: sticky; top: 0; background: #fffd; padding: 8px 16px; border-bottom: 1px solid #ccc; }}
h1 {{ font-size: 14px; margin: 0 0 4px; }} header span {{ padding: 1px 6px; margin-right: 6px; border-radius: 4px; display: inline-block; }}
#text {{ position: fixed; right: 0; bottom: 0; max-width: 60vw; max-height: 45vh; overflow: auto; margin: 0;
         padding: 10px; background: #222e; color: #eee; white-space: pre-wrap; overflow-wrap: anywhere; pointer-events: none; }}
svg {{ display: block; margin: 12px auto; }} text {{ font: 12px ui-monospace, monospace; text-anchor: middle; }}
text.type {{ font-size: 10px; fill: #555; }}
rect {{ stroke: #888; }} path {{ fill: none; stroke: #aaa; }} path:hover, g:hover rect {{ stroke: #000; stroke-width: 2; }}
g:hover path {{ stroke: #d40; stroke-width: 2; }}
</style></head><body><header><h1>{title}</h1>{legend}</header>
{drawing}
<pre id="text">point at an op to read it; its red lines come from the ops that it reads</pre>
<script>
const panel = document.getElementById("text");
for (const op of document.querySelectorAll("g")) op.onmouseenter = () => panel.textContent = op.querySelector("title").textContent;
</script></body></html>
"""


def page(graph: Graph, title: str) -> str:
    """A self-contained HTML page."""
    kinds = Counter(main_kind(op) for op in graph.ops)
    colours = {kind: f"hsl({360 * i // len(kinds)} 70% 88%)" for i, kind in enumerate(kinds)}
    legend = "".join(f'<span style="background:{colours[k]}">{escape(k)} {n}</span>' for k, n in kinds.items())
    return FRAME.format(title=escape(title), legend=legend, drawing=_draw(graph, colours))


def network(graph: Graph) -> networkx.DiGraph:
    """Ops by index, with an edge from the op that makes a value to each that reads it."""
    made, found = graph.producers(), networkx.DiGraph()
    found.add_nodes_from(range(len(graph.ops)))
    found.add_edges_from((made[n], i) for i, op in enumerate(graph.ops) for n in op.inputs if n in made)
    return found


def _labels(graph: Graph, op: Op) -> tuple[str, str]:
    return "+".join(op.kinds), str(op.choice or f"%{op.outputs[0]}: {graph.values[op.outputs[0]]}")


def _draw(graph: Graph, colours: dict[str, str]) -> str:
    edges = network(graph)
    layers = [sorted(layer) for layer in networkx.topological_generations(edges)]
    widths = {i: LETTER * max(len(_labels(graph, op)[0]), 0.85 * len(_labels(graph, op)[1])) + 20 for i, op in enumerate(graph.ops)}
    at, reach = _place(edges, layers, widths)
    level = {i: number for number, layer in enumerate(layers) for i in layer}
    shapes = []
    for i, op in enumerate(graph.ops):
        lines = "".join(_line(at[p], at[i], max(reach[level[p] + 1:level[i]], default=None)) for p in edges.predecessors(i))
        text = "\n".join([f"op {i}", *show_op(graph, op)])
        shapes.append(f"<g><title>{escape(text)}</title>{lines}{_box(at[i], widths[i], colours[main_kind(op)], *_labels(graph, op))}</g>")
    half, height = max(reach, default=0) + 160, ROW * len(layers)
    return (f'<svg viewBox="{-half:.0f} 0 {2 * half:.0f} {height}" width="{2 * half:.0f}" height="{height}">\n'
            + "\n".join(shapes) + "\n</svg>")


def _box(at: Point, width: float, colour: str, kinds: str, under: str) -> str:
    x, y = at
    return (f'<rect x="{x - width / 2:.0f}" y="{y:.0f}" width="{width:.0f}" height="{BOX}" rx="6" fill="{colour}"/>'
            f'<text x="{x:.0f}" y="{y + 17:.0f}">{escape(kinds)}</text>'
            f'<text class="type" x="{x:.0f}" y="{y + 32:.0f}">{escape(under)}</text>')


def _place(edges: networkx.DiGraph, layers: list[list[int]], widths: dict[int, float]) -> tuple[dict[int, Point], list[float]]:
    """The middle of every box's upper side, below what it reads where there is room; and how far right each layer reaches."""
    at: dict[int, Point] = {}
    reach = []
    for number, layer in enumerate(layers):
        def above(i: int) -> float:
            sources = [at[p][0] for p in edges.predecessors(i)]
            return sum(sources) / len(sources) if sources else 0
        left = -(sum(widths[i] for i in layer) + GAP * (len(layer) - 1)) / 2
        for i in sorted(layer, key=above):
            at[i] = left + widths[i] / 2, number * ROW + (ROW - BOX) / 2
            left += widths[i] + GAP
        reach.append(left - GAP)
    return at, reach


def _line(start: Point, end: Point, passing: float | None) -> str:
    """From one box down to another; around the layers between them, which reach `passing`, if there are any."""
    (x1, y1), (x2, y2) = (start[0], start[1] + BOX), end
    if passing is None:
        middle = (y1 + y2) / 2
        return f'<path d="M{x1:.0f} {y1:.0f} C{x1:.0f} {middle:.0f} {x2:.0f} {middle:.0f} {x2:.0f} {y2:.0f}"/>'
    side = passing + 16 + 4 * min((y2 - y1) / ROW, 20)
    return (f'<path d="M{x1:.0f} {y1:.0f} C{x1:.0f} {y1 + 30:.0f} {side:.0f} {y1:.0f} {side:.0f} {y1 + 40:.0f} L{side:.0f} {y2 - 40:.0f} '
            f'C{side:.0f} {y2:.0f} {x2:.0f} {y2 - 30:.0f} {x2:.0f} {y2:.0f}"/>')
