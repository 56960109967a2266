"""A report's results as a Markdown page and as plots."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

Results = dict[str, Any]
LABELS = ("untuned", "tuned")
DECODING = ("model", "context", "untuned", "tuned", "of ceiling", "GPU idle", "host, us a step", "llama.cpp")
LOADING = ("model", "file", "GB", "import, s", "load, s", "first token, s", "host memory, MB", "GPU, GB")
FILES = {"gguf": "GGUF", "cold": "package, cold", "warm": "package, warm"}


def markdown(told: Results, stem: str) -> str:
    """The page; a table a kind of part that there are results of."""
    parts: Results = told["parts"]
    record = told["record"]
    gb_s, tflops = f"{record['bandwidth'] / 1e9:,.0f} GB/s", f"{record['flops'] / 1e12:,.3g} TFLOP/s"
    lines = [f"# {told['adapter']}", "", f"{told['backend']}, driver {told['driver']}. Made-up weights of the shapes; f16 activations and caches; "
             f"tokens a second of whole streams, the median of a few (least to most). The record says {gb_s}, {tflops} in f32. "
             "Ceiling: reading all weights once a token at that bandwidth.", ""]
    tables: list[tuple[str, tuple[str, ...], Callable[[Results], Iterator[tuple]]]] = [
        ("Decoding", DECODING, partial(_decode, record=record)), ("Prompts", ("model", "tokens", "untuned", "tuned", "llama.cpp"), _prefill),
        ("Batches, tokens a second in sum", ("model", "sequences", "untuned", "tuned"), _batch),
        ("From a file to the first token", LOADING, _load), ("Correctness", ("what", "found", "passed"), _correct),
        ("Stopped or failed", ("part", "why"), _stopped), ("Runs", ("part", "date", "versions", "s"), _runs)]
    for title, head, rows in tables:
        if found := list(rows(parts)):
            lines += [f"## {title}", "", f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(map(str, r))} |" for r in found), ""]
    pictures = [f"![{name.replace('-', ' ')}]({stem}-{name}.svg)" for name in ("roofline", "context", "batch") if drawn(told, name)]
    return "\n".join([*lines, *pictures]) + "\n"


def named(parts: Results, kind: str) -> Iterator[tuple[str, Results]]:
    """Parts of a kind, by model: decode8b-q4_0 is that of 8b-q4_0."""
    yield from ((name.removeprefix(kind).lstrip("-"), results) for name, results in parts.items() if name.startswith(kind))


def _decode(parts: Results, record: Results) -> Iterator[tuple]:
    for model, results in named(parts, "decode"):
        for context in results.get("untuned", {}).get("at", {}):
            at = {label: results.get(label, {}).get("at", {}).get(context) for label in LABELS}
            best = at["tuned"] or at["untuned"]
            weights = results["untuned"].get("weights", 0)
            ceiling = f"{best['tok_s'] * weights / record['bandwidth']:.0%}" if weights else ""
            other = _other(parts, model, "at", context)
            yield (model, f"{int(context):,}", _speed(at["untuned"]), _speed(at["tuned"]), ceiling, f"{best['gpu_idle']:.1%}",
                   f"{best['cpu_us']:.0f}", other)


def _prefill(parts: Results) -> Iterator[tuple]:
    for model, results in named(parts, "prefill"):
        for count in results.get("untuned", {}).get("tokens", {}):
            speeds = [_speed(results.get(label, {}).get("tokens", {}).get(count)) for label in LABELS]
            yield model, f"{int(count):,}", *speeds, _other(parts, model, "tokens", count)


def _batch(parts: Results) -> Iterator[tuple]:
    for model, results in named(parts, "batch"):
        for size in results.get("untuned", {}).get("batch", {}):
            yield model, size, *(_speed(results.get(label, {}).get("batch", {}).get(size)) for label in LABELS)


def _load(parts: Results) -> Iterator[tuple]:
    for model, results in named(parts, "load"):
        for name, file in FILES.items():
            if "load_s" in (r := results.get(name, {})):
                memory = (f"{r['host_bytes'] / 1e6:,.0f}", f"{r['gpu_bytes'] / 1e9:.3g}") if "host_bytes" in r else ("", "")
                yield model, file, f"{r['bytes'] / 1e9:.3g}", f"{r['import_s']:.2f}", f"{r['load_s']:.2f}", f"{r['first_token_s']:.3f}", *memory


def _correct(parts: Results) -> Iterator[tuple]:
    for name, r in parts.get("correct", {}).items():
        if isinstance(r, dict) and "passed" in r:
            what = f"a layer of {r['shape']} against numpy ({name[6:]})" if "nmse" in r else "tokens of the demo model against numpy's"
            yield what, f"NMSE {r['nmse']:.1e}, {r['bound']:.0e} allowed" if "nmse" in r else f"{r['same']} of {r['tokens']} the same", r["passed"]


def _stopped(parts: Results) -> Iterator[tuple]:
    """Parts, and pieces of them, such as one of the models that llama.cpp is given."""
    for part, results in parts.items():
        pieces = [(part, results), *((f"{part}: {name}", piece) for name, piece in results.items() if isinstance(piece, dict))]
        yield from ((what, f"{how} {piece[how]}") for what, piece in pieces for how in ("stopped", "failed") if how in piece)


def _runs(parts: Results) -> Iterator[tuple]:
    for part, r in parts.items():
        run = r["run"]
        own = f"tilewright {run['tilewright']}, wgpu {run['wgpu']}, Python {run['python']}"
        others = sorted({piece["program"] for piece in r.values() if isinstance(piece, dict) and "program" in piece})
        yield part, run["date"], ", ".join(others) or own, r.get("seconds", "")


def _speed(r: Results | None) -> str:
    return "" if not r else f"{r['tok_s']:,.0f}" + (f" ({r['least']:,.0f} to {r['most']:,.0f})" if "least" in r else "")


def _other(parts: Results, model: str, what: str, count: str) -> str:
    return _speed(parts.get("llama.cpp", {}).get(model, {}).get(what, {}).get(count))


# ---- plots

def drawn(told: Results, name: str) -> bool:
    """Whether there is something to draw."""
    kinds = {"roofline": "decode", "context": "decode", "batch": "batch"}
    return any("untuned" in r for _, r in named(told["parts"], kinds[name]))


def plots(told: Results, stem: Path) -> list[Path]:
    """Writes STEM-roofline.svg, STEM-context.svg and STEM-batch.svg, as far as there are results; none without matplotlib, and says so."""
    try:
        import matplotlib
    except ImportError:
        print("no plots, for matplotlib is missing: pip install matplotlib")
        return []
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "tilewright"      # the same results give the same file
    from matplotlib import pyplot
    found = []
    for name, draw in (("roofline", _roofline), ("context", _contexts), ("batch", _batches)):
        if drawn(told, name):
            figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
            draw(axes, told)
            axes.legend(fontsize=7)
            axes.grid(True, which="major", alpha=0.3)
            found.append(stem.with_name(f"{stem.name}-{name}.svg"))
            figure.savefig(found[-1], metadata={"Date": None})
            pyplot.close(figure)
    return found


def _roofline(axes: Any, told: Results) -> None:
    """A point a kernel and op of a step, at the arithmetic that it does for a byte."""
    record, least, most = told["record"], 0.05, 100.0
    for model, results in named(told["parts"], "decode"):
        dispatches = (results.get("tuned") or results.get("untuned") or {}).get("dispatches")
        if dispatches:
            rows = [r for r in next(iter(dispatches.values())) if r["bytes"] and r["operations"]]
            axes.scatter([r["operations"] / r["bytes"] for r in rows], [r["operations"] / r["us"] * 1e6 for r in rows],
                         s=[10 + 200 * r["share"] for r in rows], alpha=0.6, label=model)
            most = max([most, *(2 * r["operations"] / r["bytes"] for r in rows)])
    for name, rate in (("f32", record["flops"]), ("packed 8-bit", record["packed_ops"])):
        if rate:
            knee = rate / record["bandwidth"]
            axes.plot([least, knee, max(most, 4 * knee)], [least * record["bandwidth"], rate, rate], lw=1, label=f"ceiling, {name}")
    axes.set(xscale="log", yscale="log", xlim=(least, None), xlabel="operations a byte", ylabel="operations a second",
             title=f"A decode step on {told['adapter']}")


def _contexts(axes: Any, told: Results) -> None:
    for model, results in named(told["parts"], "decode"):
        for label, style in zip(LABELS, ("--o", "-o"), strict=True):
            if at := results.get(label, {}).get("at"):
                axes.plot([int(c) for c in at], [r["tok_s"] for r in at.values()], style, label=f"{model} {label}")
    contexts = sorted({int(c) for _, results in named(told["parts"], "decode") for c in results.get("untuned", {}).get("at", {})})
    axes.set(xscale="log", ylim=(0, None), xlabel="context", ylabel="tokens a second",
             title=f"Decoding on {told['adapter']}")
    axes.set_xticks(contexts, [f"{c:,}" for c in contexts])
    axes.minorticks_off()


def _batches(axes: Any, told: Results) -> None:
    for model, results in named(told["parts"], "batch"):
        for label, style in zip(LABELS, ("--o", "-o"), strict=True):
            if sizes := results.get(label, {}).get("batch"):
                alone = told["parts"].get(f"decode{model}", told["parts"].get(f"decode-{model}", {})).get(label, {}).get("at", {})
                points = {1: next(iter(alone.values()))["tok_s"]} if alone else {}
                points |= {int(n): r["tok_s"] for n, r in sizes.items()}
                axes.plot(list(points), list(points.values()), style, label=f"{model} {label}")
    axes.set(ylim=(0, None), xlabel="sequences at once", ylabel="tokens a second in sum", title=f"Batches on {told['adapter']}")
    axes.locator_params(axis="x", integer=True)
