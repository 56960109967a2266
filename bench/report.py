"""The table of a device: decoding, prompts, batches, loading, correctness; as JSON, as a page, as plots, in bench/results.

usage: python -m tilewright.bench.report [--only decode8b,prefill] [--tune 60] [--limit 240] [--all-layers] [--llama-bench PATH] [--quick]

Parts may be run one by one: results of the same adapter are merged into one file, which is written after every piece. A software
adapter gets a tiny model (--quick), which takes less than a minute.
"""
from __future__ import annotations

import argparse
import json
import platform
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..api import record_of
from ..runtime.adapter import AdapterInfo, pick
from ..runtime.tracing import TracedGpu
from .pages import markdown, plots
from .parts import Bench, Part, parts

RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    if args.page:
        show(json.loads(args.page.read_text(encoding="utf-8")), args.page)
        return
    info = pick(args.device)
    quick = args.quick or info.kind == "CPU"
    path = args.out / f"{re.sub(r'[^a-z0-9]+', '-', info.name.lower()).strip('-')}.json"
    told = json.loads(path.read_text()) if path.exists() else {"parts": {}}
    told |= {"adapter": info.name, "backend": info.backend, "driver": info.driver}
    gpu = TracedGpu(info)
    bench = Bench(gpu, replace(record_of(gpu), tuned={}), args.tune if args.tune >= 0 else 2.0 if quick else 60.0, *((16, 1) if quick else (128, 3)))
    told["record"] = {k: getattr(bench.record, k) for k in ("bandwidth", "launch", "flops", "f16_flops", "packed_ops", "width")}
    for part in chosen(quick, args):
        results: dict[str, Any] = {"run": run_of(info, quick)}
        for name, result in limited(part, bench, args.limit):
            told["parts"][part.name] = results      # what an earlier run found says nothing of this program
            enter(results, name, result)
            save(told, path)
            print(f"{part.name}: {name}: {brief(result)}", flush=True)
    gpu.close()
    save(told, path)
    print(f"wrote {path}")
    show(told, path)


def show(told: dict[str, Any], path: Path) -> None:
    """Write the page and the plots beside the results."""
    for picture in plots(told, path.with_suffix("")):
        print(f"wrote {picture}")
    path.with_suffix(".md").write_text(markdown(told, path.stem), encoding="utf-8")
    print(f"wrote {path.with_suffix('.md')}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names of parts, or how they begin, with commas")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tune", type=float, default=-1.0, help="seconds of tuning a part; 0: only untuned; by default 60 (2 if quick)")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds after which a part begins nothing more")
    parser.add_argument("--all-layers", action="store_true", help="the 48 layers of Scout's shape too (60 GB of weights)")
    parser.add_argument("--llama-bench", type=Path, help="llama.cpp's llama-bench, to run on the same shapes")
    parser.add_argument("--quick", action="store_true", help="a tiny model")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, metavar="JSON", help="measure nothing; write page and plots of results that there are")
    return parser.parse_args(arguments)


def chosen(quick: bool, args: argparse.Namespace) -> list[Part]:
    """Raises SystemExit for a name that no part begins with."""
    known = parts(quick, args.all_layers, args.llama_bench)
    if not args.llama_bench:
        print("llama.cpp is not compared: give --llama-bench PATH")
    names = [n for n in args.only.split(",") if n]
    if wrong := [n for n in names if not any(p.name.startswith(n) for p in known)]:
        raise SystemExit(f"no part begins with '{wrong[0]}'; there are: {', '.join(p.name for p in known)}")
    return [p for p in known if (any(p.name.startswith(n) for n in names) if names else not p.asked)]


def limited(part: Part, bench: Bench, limit: float) -> Iterator[tuple[str, Any]]:
    """The pieces of a part until its time is over; what goes wrong is a piece as well, and ends that part alone."""
    start = time.perf_counter()
    pieces = part.run(bench)
    try:
        for piece in pieces:
            yield piece
            if time.perf_counter() - start > limit:
                yield "stopped", f"after {time.perf_counter() - start:.0f} s"
                return
    except Exception as error:      # a part that fails must not cost the others
        yield "failed", f"{type(error).__name__}: {error}"
    finally:
        pieces.close()      # type: ignore[attr-defined]
    yield "seconds", round(time.perf_counter() - start, 1)


def enter(results: dict[str, Any], name: str, result: Any) -> None:
    """Under a dotted name."""
    *folders, last = name.split(".")
    for folder in folders:
        results = results.setdefault(folder, {})
    results[last] = result


def run_of(info: AdapterInfo, quick: bool) -> dict[str, Any]:
    """When and with what."""
    return {"date": str(date.today()), "driver": info.driver, "quick": quick, "tilewright": version_of("tilewright"), "wgpu": version_of("wgpu"),
            "python": platform.python_version()}


def version_of(package: str) -> str:
    try:
        return version(package)
    except ImportError:
        return "not installed"


def save(told: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def brief(result: Any) -> str:
    if isinstance(result, list):
        return f"{len(result)} kernels"
    shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in result.items() if not isinstance(v, (list, dict))} \
        if isinstance(result, dict) else result
    return json.dumps(shown)


if __name__ == "__main__":
    main()
