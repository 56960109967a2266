"""Measure a GPU with small kernels, for the record that the compiler's cost model works with."""
from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..compiler.device import DEFAULT_LIMITS, Device
from ..runtime.gpu import Buffer, Dispatch, Gpu, ShaderError
from ..runtime.timing import Warmth, passes

POOL = 1 << 30          # bytes to read, more than any cache holds; less where a binding must be smaller
GROUP = 256             # invocations of a workgroup
RUNS = 7
ENOUGH = 2e-3           # s that arithmetic is timed for
CHAINS, REPEATS = 8, 8  # of products that depend on each other, in an invocation; how often each goes on in a turn
DEEP, STEPS = 1 << 16, 1024     # elements and steps of the walk that `width` takes
PAYS = 1.3              # times as fast that packed products must be, for rounding activations costs accuracy and a dispatch

READ = """
@group(0) @binding(0) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;
@compute @workgroup_size(GROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    var at = (group.x + group.y * ACROSSu) * GROUPu * LOADSu + index + FIRSTu;
    var sum = vec4<u32>(0u);
    for (var i = 0u; i < LOADSu; i++) { sum += x[at]; at += GROUPu; }
    if (sum.x + sum.y + sum.z + sum.w == 0xfffffff1u) { out[0] = sum.x; }
}
"""

TINY = """
@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;
@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) index: u32) { out[index] = x[index] + 1u; }
"""

# an invocation's chains do not wait for each other, and a turn is long against the loop's own steps; numbers come from memory and the
# result goes there, so that nothing is folded or dropped
ARITHMETIC = """
@group(0) @binding(0) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;
@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let w = x[id.x & 15u];
    BEGIN
    for (var i = 0u; i < TURNSu; i++) { BODY }
    out[id.x] = bitcast<u32>(END);
}
"""

# every invocation of a workgroup waits for memory again and again, so that time stays the same until no more workgroups fit
WALK = """
@group(0) @binding(0) var<storage, read> next: array<u32>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;
@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>) {
    var at = (group.x * 977u) & MASKu;
    for (var i = 0u; i < STEPSu; i++) { at = next[at]; }
    if (at == 0xffffffffu) { out[0] = at; }
}
"""


@dataclass(frozen=True)
class Arithmetic:
    """A kind of products: what an invocation begins with, does in a turn, and ends with, an f32 or i32; operations of a turn."""

    begin: str
    turn: str
    end: str
    operations: int
    enable: str = ""


def floats(kind: str, enable: str = "") -> Arithmetic:
    """Multiplications with an addition, of four lanes; two operations each."""
    vector, each = f"vec4<{kind}>", range(CHAINS)
    begin = [f"let a = {vector}(unpack4x8unorm(w.x)); let b = {vector}(unpack4x8unorm(w.y));", *(f"var s{i} = {vector}({i});" for i in each)]
    return Arithmetic(" ".join(begin), " ".join(f"s{i} = fma(s{i}, a, b);" for _ in range(REPEATS) for i in each),
                      " + ".join(f"dot(vec4<f32>(s{i}), vec4<f32>(1.0))" for i in each), 8 * CHAINS * REPEATS, enable)


def eight_bits(product: str, other: str, kind: str) -> Arithmetic:
    """The products of four 8-bit integers with four others; the sums are operands too, so that no product is that of the turn before."""
    each = range(CHAINS)
    begin = [*(f"let v{i} = {other.format(f'w[{i}]')};" for i in range(4)), *(f"var s{i} = {kind}({i + 1});" for i in each)]
    turn = [f"s{i} += {product.format(f'bitcast<u32>(s{i})', f'v{i % 4}')};" for _ in range(REPEATS) for i in each]
    return Arithmetic(" ".join(begin), " ".join(turn), " + ".join(f"s{i}" for i in each), 8 * CHAINS * REPEATS)


F32, F16 = floats("f32"), floats("f16", enable="enable f16;")
PACKED = eight_bits("dot4I8Packed({}, {})", "{}", "i32")
UNPACKED = eight_bits("dot(vec4<f32>(unpack4xI8({})), {})", "vec4<f32>(unpack4xI8({}))", "f32")      # what kernels do without packed products


@dataclass(frozen=True)
class Probed:
    """What was measured beside the record's own numbers. Rates in operations/s, times in seconds."""

    device: Device
    tiny: float             # a tiny dispatch that depends on nothing
    dependent: float        # a tiny dispatch that depends on the one before
    unpacked_ops: float     # products of 8-bit integers that are made floats first


def probe(gpu: Gpu, known: Device, progress: Callable[[str, int, int], None] = lambda what, done, total: None) -> Probed:
    """Measure a GPU. known: its record so far, whose tuned choices are kept. Raises DeviceError without timestamp queries."""
    rig, names = Rig(gpu), ("bandwidth", "dispatches", "f32", "f16", "packed products", "products of floats", "width")
    done = iter(range(len(names)))

    def step(name: str) -> None:
        progress(f"measuring {name}", next(done), len(names))
        rig.warmth.keep()
    try:
        step("bandwidth")
        bandwidth = rig.bandwidth()
        step("dispatches")
        tiny, dependent = rig.tiny_dispatches()
        launch = rig.launch(bandwidth, dependent)
        rates = []
        for name, kind in zip(names[2:6], (F32, F16, PACKED, UNPACKED), strict=True):
            step(name)
            rates.append(rig.rate(kind))
        step("width")
        width = rig.width()
    finally:
        rig.close()
    flops, f16_flops, packed_ops, unpacked_ops = rates
    features = gpu.features & {"shader-f16", "subgroups"} if f16_flops else gpu.features & {"subgroups"}
    record = replace(known, name=gpu.info.name, match=f"^{re.escape(gpu.info.name)}$", features=frozenset(features),
                     limits={k: gpu.limits.get(k, v) for k, v in DEFAULT_LIMITS.items()}, subgroup_size=gpu.subgroup_size,
                     bandwidth=_digits(bandwidth), launch=_digits(launch), flops=_digits(flops), width=width, f16_flops=_digits(f16_flops),
                     packed_ops=_digits(packed_ops), packed_dot=packed_ops > PAYS * unpacked_ops)
    return Probed(record, tiny, dependent, unpacked_ops)


def rows(found: Probed) -> list[tuple[str, str]]:
    """A line for each thing that was measured."""
    d = found.device
    packed = f"{d.packed_ops / 1e12:.3g} T operations/s, {d.packed_ops / max(found.unpacked_ops, 1):.2f} x those made floats first"
    half = f"{d.f16_flops / 1e12:.3g} TFLOP/s, {d.f16_flops / d.flops:.2f} x f32" if d.f16_flops else "none"
    return [("bandwidth", f"{d.bandwidth / 1e9:,.1f} GB/s"), ("tiny dispatch", f"{found.tiny * 1e6:.2f} us"),
            ("tiny dispatch that depends on the one before", f"{found.dependent * 1e6:.2f} us"),
            ("big dispatch that depends on the one before", f"{d.launch * 1e6:.2f} us on top of its own time"),
            ("f32", f"{d.flops / 1e12:.3g} TFLOP/s"), ("f16", half), ("packed 8-bit products", packed),
            ("activations", "rounded to 8-bit integers where weights are quantized" if d.packed_dot else "floats: packed products do not pay"),
            ("subgroup size", str(d.subgroup_size or "none")), ("invocations at once", f"{d.width:,}"),
            *((k.removeprefix("max_").replace("_", " "), f"{v:,}") for k, v in d.limits.items())]


def _digits(number: float) -> float:
    return float(f"{number:.3g}")       # more are noise


class Rig:
    """Buffers and kernels to measure with."""

    def __init__(self, gpu: Gpu):
        self.gpu, self.warmth = gpu, Warmth(gpu)
        slow = gpu.info.kind == "CPU"
        self.size = min(POOL >> 3 if slow else POOL, gpu.limits["max_storage_buffer_binding_size"], gpu.limits["max_buffer_size"]) >> 24 << 24
        self.groups = 64 if slow else 16384     # of arithmetic: so many times what runs at once that the last of them weigh little
        self.pool, self.out = gpu.buffer(self.size, "probe"), gpu.buffer(4 * GROUP * self.groups, "probe")
        gpu.write(self.pool, 0, np.random.default_rng(0).integers(0, 1 << 32, 1 << 20, np.uint32))

    def close(self) -> None:
        for buffer in (self.pool, self.out):
            buffer.destroy()

    def dispatch(self, wgsl: str, buffers: Sequence[Buffer], grid: tuple[int, int, int], **numbers: object) -> Dispatch:
        for name, number in {"GROUP": GROUP, **numbers}.items():
            wgsl = re.sub(rf"\b{name}(?=u?\b)", str(number), wgsl)
        pipeline = self.gpu.pipeline(wgsl, ("read", "write"), "probe", trusted=True)
        return pipeline, self.gpu.bind(pipeline, [(b, 0, b.size) for b in buffers]), grid

    def seconds(self, dispatches: Sequence[Dispatch], runs: int = RUNS) -> float:
        """Median of a pass."""
        spans = passes(self.gpu, [dispatches] * runs)
        return statistics.median((spans[:, 1] - spans[:, 0])[1 if runs > 2 else 0:])

    def reading(self, first: int, size: int, loads: int) -> Dispatch:
        """A dispatch that reads `size` bytes from byte `first` on; multiples of 16 * GROUP * loads."""
        groups = size // (16 * GROUP * loads)
        down = -(-groups // 65535)
        while groups % down:
            down += 1
        return self.dispatch(READ, (self.pool, self.out), (groups // down, down, 1), ACROSS=groups // down, LOADS=loads, FIRST=first // 16)

    def bandwidth(self) -> float:
        """Bytes/s of the best of a few ways to read the pool."""
        return max(self.size / self.seconds([self.reading(0, self.size, loads)], 5) for loads in (4, 8, 16, 32))

    def tiny_dispatches(self) -> tuple[float, float]:
        """Seconds of a tiny dispatch that is independent, and of one that depends on the one before."""
        buffers = [self.gpu.buffer(256) for _ in range(65)]
        apart = [self.dispatch(TINY, (buffers[-1], b), (1, 1, 1)) for b in buffers[:-1]]
        chain = [self.dispatch(TINY, (buffers[i % 2], buffers[1 - i % 2]), (1, 1, 1)) for i in range(64)]
        found = self.seconds(apart) / 64, self.seconds(chain) / 64
        for buffer in buffers:
            buffer.destroy()
        return found

    def launch(self, bandwidth: float, dependent: float) -> float:
        """Seconds that a big dependent dispatch costs on top of its reading: from the times of a chain of small and of twice as big ones."""
        unit = 16 * GROUP * 8
        small = max(unit, min(int(bandwidth * dependent * 4), self.size // 32) // unit * unit)
        seconds = []
        for size in (small, 2 * small):
            firsts = range(0, self.size - size + 1, size)[:16]
            seconds.append(self.seconds([self.reading(first, size, 8) for first in firsts]) / len(firsts))
        return min(max(2 * seconds[0] - seconds[1], dependent), 10 * dependent)

    def products(self, kind: Arithmetic, turns: int) -> Dispatch:
        """Turns of products by all invocations, each of which leaves its result in `out`. Raises ShaderError where the adapter refuses."""
        text = f"{kind.enable}\n{ARITHMETIC}".replace("BEGIN", kind.begin).replace("BODY", kind.turn).replace("END", kind.end)
        return self.dispatch(text, (self.pool, self.out), (self.groups, 1, 1), TURNS=turns)

    def rate(self, kind: Arithmetic) -> float:
        """Operations/s; 0 where the adapter does not take the kernel."""
        if kind.enable and "shader-f16" not in self.gpu.features:
            return 0.0
        turns, best = 8, 0.0
        while turns <= 1 << 17:
            try:
                dispatch = self.products(kind, turns)
            except ShaderError:
                return 0.0
            self.warmth.keep()      # compiling took a while
            seconds = self.seconds([dispatch], 5)
            best = max(best, self.groups * GROUP * turns * kind.operations / seconds)
            if seconds > ENOUGH:
                break
            turns *= 4
        return best

    def width(self) -> int:
        """Invocations that run at once: those of most workgroups, a subgroup each, that take no longer than one does."""
        lanes = self.gpu.subgroup_size or 32
        walk = self.gpu.buffer(4 * DEEP, "probe")
        self.gpu.write(walk, 0, ((np.arange(DEEP) * 5 + 12345) & (DEEP - 1)).astype(np.uint32))

        def seconds(groups: int) -> float:
            dispatch = self.dispatch(WALK, (walk, self.out), (groups, 1, 1), LANES=lanes, MASK=DEEP - 1, STEPS=STEPS)
            spans = passes(self.gpu, [[dispatch]] * RUNS)
            return float((spans[:, 1] - spans[:, 0]).min())
        alone, fit = seconds(1), 1
        while seconds(2 * fit) < 1.5 * alone and fit < 1 << 15:
            fit *= 2
        low, high = fit, 2 * fit
        while high - low > max(1, low // 32):
            middle = (low + high) // 2
            low, high = (middle, high) if seconds(middle) < 1.5 * alone else (low, middle)
        walk.destroy()
        # the walk holds a few registers, where kernels hold a hundred: of theirs, a GPU fits half as many
        return max(1, low // (1 if self.gpu.info.kind == "CPU" else 2)) * lanes
