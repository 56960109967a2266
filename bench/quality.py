"""What quantizing a model costs: perplexity, and distance from the model as it is, for every kind of format.

usage: python -m tilewright.bench.quality MODEL TEXT [--windows 40] [--samples 32] [--method gptq] [--device auto] >> bench/quality.md

Perplexity is of windows of the first half of the text; gptq is calibrated on the second half.
"""
from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..api import compile_for, load, open_package
from ..compiler.device import REFERENCE
from ..compiler.package import Package
from ..frontends.checkpoint import open_checkpoint
from ..quantization import quantize
from ..runtime.generate import Model
from ..runtime.perplexity import Perplexity, measure, read_text

GROUPED = tuple(f"i4{zero}_g{group}" for zero in ("", "z") for group in (32, 64, 128))
CASES = [*((form, "rtn") for form in ("q8_0", "q6_k", "q5_0", "q4_k", "q4_0", "mxfp4")), *((form, m) for form in GROUPED for m in ("rtn", "gptq"))]
TABLES = ("rope", "temperature")    # what the model computes, not weights


class Remembered(Model):
    """A model that remembers the logits of every window."""

    def __init__(self, model: Model):
        super().__init__(model.package, model.player, model.tokenizer)
        self.known: dict[tuple[int, ...], np.ndarray] = {}

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        if (key := tuple(token_ids)) not in self.known:
            self.known[key] = super().logits(token_ids)
        return self.known[key]


def bits(package: Package) -> float:
    """A weight's, over all weights: norms and routers, which stay f32, too."""
    weights = [w for n, w in package.manifest["weights"].items() if n not in TABLES]
    return 8 * sum(size for w in weights for _, _, size in w["planes"]) / sum(int(np.prod(w["shape"])) for w in weights)


def row(name: str, method: str, package: Package, found: Perplexity) -> str:
    cells = [name, method, f"{bits(package):.2f}", f"{found.perplexity:.3f}"]
    if base := found.against:
        cells += [f"{found.perplexity / base.perplexity - 1:+.2%}", f"{base.kl_divergence:.5f}", f"{base.same_top:.2%}"]
    return f"| {' | '.join([*cells, *[''] * (7 - len(cells))])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--method", choices=("rtn", "gptq"), help="only this one")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    text = read_text(args.text)
    measured, calibration = text[:len(text) // 2], text[len(text) // 2:]
    base = Remembered(load(args.model, args.device, context=512))
    found = measure(base, measured, windows=args.windows)
    print(f"\n## {args.model.name}\n\nOn {found.windows} windows of 512 tokens ({found.tokens:,} predictions); "
          f"gptq calibrated on at most {args.samples} windows of 512 tokens.\n\n"
          "| format | method | bits a weight | perplexity | against the base | KL, nats | same top-1 |\n|---|---|---|---|---|---|---|\n"
          + row("as it is", "", compile_for(open_checkpoint(args.model), REFERENCE), found), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for form, method in (c for c in CASES if args.method in (None, c[1])):
            file = Path(folder) / f"{form}-{method}.wgpu-llama"
            quantize(args.model, form, calibration, method, samples=args.samples, context=512).save(file)
            model = load(file, args.device)
            print(row(form, method, open_package(file), measure(model, measured, base, args.windows)), flush=True)
            model.close()


if __name__ == "__main__":
    main()
