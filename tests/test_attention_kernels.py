"""Attention and what comes before it, on a GPU against numpy: every schedule once, then hypothesis over shapes, masks and positions."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tilewright import testing
from tilewright.compiler.builder import Builder
from tilewright.compiler.device import Device
from tilewright.compiler.ir import Graph
from tilewright.compiler.kernel import Site
from tilewright.compiler.passes.tiling import candidates
from tilewright.frontends.lower import CACHES
from tilewright.templates import KERNELS

FEW = settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
Case = tuple[Graph, dict[str, np.ndarray]]


def attention(op: str, position: list[int], slot: list[int], heads: int = 4, group: int = 2, dim: int = 16, rows: int = 64, slots: int = 3,
              cache: str = "f32", q_dtype: str = "f32", sinks: bool = False, **attrs) -> Case:
    """A graph of one attention op and what it is fed."""
    b, tokens = Builder(), len(position)
    q = b.state("q", (tokens, heads, dim), q_dtype)
    k, v = (b.state(name, (slots, heads // group, rows, dim), *CACHES[cache]) for name in "kv")
    extra = [b.weight("sinks", (heads,))] if sinks else []
    y = b.op(op, q, k, v, b.input("position", (tokens,)), b.input("slot", (tokens,)), *extra, scale=dim ** -0.5, **attrs)
    return feed(b.graph(*y), position, slot)


def feed(graph: Graph, position: list[int], slot: list[int], seed: int = 0) -> Case:
    feeds = testing.random_feeds(graph, seed)
    for name, numbers in (("position", position), ("slot", slot)):
        if name in feeds:
            feeds[name] = np.array(numbers, np.int32)
    return graph, feeds


def heads(position: list[int], slot: list[int], dim: int = 16, q_heads: int = 4, kv_heads: int = 2, rotary: int = 16,
          interleaved: bool = False, norm: str = "", scaled: bool = False, bias: bool = False, cache: str = "f32", rows: int = 12,
          split: bool = True) -> Case:
    """Split, norm, RoPE, scale and cache writes of a layer. norm: none, before or after the RoPE."""
    b, tokens = Builder(), len(position)
    p, s = b.input("position", (tokens,)), b.input("slot", (tokens,))
    table = b.weight("table", (100, rotary // 2, 2))
    if split:
        columns = [n * dim for n in (q_heads, kv_heads, kv_heads)]
        q, k, v = b.split(b.state("x", (tokens, sum(columns))), sizes=tuple(columns), head_dim=dim)
    else:
        q, k, v = (b.state(n, (tokens, h, dim)) for n, h in (("q", q_heads), ("k", kv_heads), ("v", kv_heads)))
    if bias:
        v = b.add(v, b.weight("bias", (kv_heads, dim)))
    if norm == "before":
        q, k = b.rms_norm(q, b.weight("qn", (dim,)), eps=1e-5), b.rms_norm(k, b.weight("kn", (dim,)), eps=1e-5)
    q, k = (b.rope(x, table, p, interleaved=interleaved) for x in (q, k))
    if norm == "after":
        q, k = b.rms_norm(q, eps=1e-5), b.rms_norm(k, eps=1e-5)
    if scaled:
        q = b.position_scale(q, b.weight("factors", (100,)), p)
    states = [b.state(n, (3, kv_heads, rows, dim), *CACHES[cache]) for n in ("k_cache", "v_cache")]
    caches = [b.cache_write(state, x, p, s, rounding=CACHES[cache][1]) for state, x in zip(states, (k, v), strict=True)]
    return feed(b.graph(q, *caches), position, slot)


def merge(dim: int = 16, splits: int = 5, sinks: bool = False, dtype: str = "f32") -> Case:
    """Parts of three rows: some of them empty, and one row that is padding."""
    b = Builder()
    parts = b.state("parts", (3, 4, splits, dim + 4))
    graph = b.graph(b.attention_merge(parts, *([b.weight("sinks", (4,))] if sinks else []), dtype=dtype))
    feeds = testing.random_feeds(graph)
    feeds["parts"][..., -3] = np.abs(feeds["parts"][..., -3]) + 0.1
    feeds["parts"][0, :, splits // 2 + 1:] = feeds["parts"][2] = [*[0.0] * dim, -1e30, 0.0, 0.0, 0.0]
    return graph, feeds


PROMPT = [*range(50, 67), -1, -1]       # a sequence with two rows of padding
RAGGED, SLOTS = [70, -1, 3, 0], [1, 0, 2, 0]
EVERY = {
    "attention_split": attention("attention_split", RAGGED, SLOTS, cache="f16", splits=3, mask="sliding", window=40, cap=4.0),
    "attention": attention("attention", PROMPT, [1] * 19, 2, 1, 64, sinks=True, sequence=True, mask="chunked", window=48),
    "attention_merge": merge(sinks=True),
    "heads": heads([-1, *range(90, 100), -1, *range(4, 11)], [0] * 11 + [1] * 8, norm="after", scaled=True, rotary=8, interleaved=True),
}


EVERY |= {
    "attention_split, q8_0": attention("attention_split", RAGGED, SLOTS, dim=64, cache="q8_0", splits=3, mask="sliding", window=40),
    "attention, q8_0": attention("attention", PROMPT, [1] * 19, 2, 1, 32, cache="q8_0", sequence=True, mask="chunked", window=48),
    "heads, q8_0": heads([-1, *range(90, 100), -1, *range(4, 11)], [0] * 11 + [1] * 8, 96, norm="after", scaled=True, rotary=96, cache="q8_0"),
}


@pytest.mark.parametrize("subgroups", [True, False])
@pytest.mark.parametrize("name", EVERY)
def test_every_schedule(gpu, device, name, subgroups):
    if subgroups and not device.subgroups:
        pytest.skip("the adapter has no subgroups")
    graph, feeds = EVERY[name]
    if too_much(device, graph):
        pytest.skip("the adapter has no f16, or too few bindings")
    assert testing.check(gpu, graph, KERNELS[name.split(",")[0]], device if subgroups else device.without("subgroups"), feeds)


def too_much(device: Device, graph: Graph) -> bool:
    """Whether a graph needs f16 or more bindings than the device has: such ops never reach it."""
    fused = testing.fuse_all(graph)
    half = any(v.dtype == "f16" for v in graph.values.values()) and "shader-f16" not in device.features
    return half or Site(fused, fused.ops[0], device).bindings > device.limit("max_storage_buffers_per_shader_stage")


def check(gpu, device, name: str, case: Case, subgroups: bool) -> None:
    """Two schedules of a kernel: what tiling would choose, and one from the middle of its list."""
    device = device if subgroups else device.without("subgroups")
    graph, feeds = case
    if too_much(device, graph):
        return
    for which in (0, 1):
        assert testing.check(gpu, graph, Only(name, device, graph, which), device, feeds) == 1


class Only:
    """A kernel that offers one schedule: the cheapest, or one from the middle of the list."""

    def __init__(self, name: str, device: Device, graph: Graph, which: int):
        fused = testing.fuse_all(graph)
        found = [choice for _, choice in candidates(Site(fused, fused.ops[0], device), {name: KERNELS[name]})]
        assert found, f"{name} has no schedule for {fused.ops[0].kinds} on {device.name}"
        self.kernel, self.one = KERNELS[name], dict(found[which * (len(found) // 2)].schedule)

    def __getattr__(self, name: str):
        return getattr(self.kernel, name)

    def schedules(self, site: Site):
        yield self.one


DIMS = st.sampled_from([4, 8, 20, 64, 128])
BLOCK_DIMS = st.sampled_from([32, 64, 96, 128])     # that a q8_0 cache takes
MASKS = st.sampled_from([{}, {"mask": "chunked", "window": 8}, {"mask": "sliding", "window": 11},
                         {"mask": "sliding", "window": 30, "cap": 3.0}])
DTYPES = st.sampled_from(["f32", "f16"])


@st.composite
def attention_cases(draw, op: str, dims=DIMS, caches=DTYPES, **attrs) -> Case:
    group, mask = draw(st.sampled_from([1, 2, 3, 4, 8])), draw(MASKS)
    rows = 48 if mask else 64               # with a window the cache is a ring that wraps
    last = 200 if mask else rows - 1
    if attrs.get("sequence"):
        length, start = draw(st.integers(1, 17)), draw(st.integers(0, last - 17))
        padding = draw(st.integers(0, 3))
        position, slot = [*range(start, start + length), *[-1] * padding], [draw(st.integers(0, 2))] * (length + padding)
    else:
        position = draw(st.lists(st.integers(-1, last), min_size=1, max_size=4))
        slot = draw(st.lists(st.integers(0, 2), min_size=len(position), max_size=len(position)))
    if op == "attention":
        attrs["sinks"] = draw(st.booleans())
    else:
        attrs |= {"splits": draw(st.integers(1, 6)), "least": draw(st.sampled_from([1, 8, 32]))}
    return attention(op, position, slot, group * draw(st.sampled_from([1, 2])), group, draw(dims), rows, cache=draw(caches), **mask, **attrs)


@FEW
@given(case=attention_cases("attention_split"), subgroups=st.booleans())
def test_split(gpu, device, case, subgroups):
    check(gpu, device, "attention_split", case, subgroups)


@FEW
@given(case=attention_cases("attention"), subgroups=st.booleans())
def test_rows(gpu, device, case, subgroups):
    check(gpu, device, "attention", case, subgroups)


@FEW
@given(case=attention_cases("attention", sequence=True), subgroups=st.booleans())
def test_sequence(gpu, device, case, subgroups):
    check(gpu, device, "attention", case, subgroups)


@FEW
@given(case=attention_cases("attention_split", BLOCK_DIMS, st.just("q8_0")), subgroups=st.booleans())
def test_split_over_a_rounded_cache(gpu, device, case, subgroups):
    check(gpu, device, "attention_split", case, subgroups)


@FEW
@given(case=attention_cases("attention", BLOCK_DIMS, st.just("q8_0"), sequence=True), subgroups=st.booleans())
def test_sequence_over_a_rounded_cache(gpu, device, case, subgroups):
    check(gpu, device, "attention", case, subgroups)


@FEW
@given(case=st.builds(merge, dim=st.sampled_from([4, 34, 128]), splits=st.integers(1, 17), sinks=st.booleans(), dtype=DTYPES),
       subgroups=st.booleans())
def test_merge(gpu, device, case, subgroups):
    check(gpu, device, "attention_merge", case, subgroups)


@FEW
@given(data=st.data(), subgroups=st.booleans())
def test_heads(gpu, device, data, subgroups):
    draw, flags = data.draw, st.booleans()
    position = draw(st.lists(st.integers(-1, 99), min_size=1, max_size=6, unique=True))     # no two rows write the same place
    slot = [i % 3 for i in range(len(position))]
    cache = draw(st.sampled_from([*CACHES, "q8_0", "q8_0"]))
    dim = draw(BLOCK_DIMS if cache == "q8_0" else st.sampled_from([4, 20, 64, 128]))
    case = heads(position, slot, dim, draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.sampled_from([dim, dim // 2])),
                 draw(flags), draw(st.sampled_from(["", "before", "after"])), draw(flags), draw(flags), cache, rows=100,
                 split=draw(flags))
    check(gpu, device, "heads", case, subgroups)


@pytest.mark.parametrize("norm", ["before", "after"])
def test_the_epsilon_of_a_norm(gpu, device, norm):
    """Vectors so small that it counts."""
    graph, feeds = heads([3, 8], [0, 1], norm=norm)
    check(gpu, device, "heads", (graph, feeds | {"x": feeds["x"] * np.float32(2e-3)}), True)


@pytest.mark.parametrize("name, case", [
    ("attention_split", attention("attention_split", [60], [2], heads=16, group=16, dim=256, splits=4, cache="f16")),
    ("attention", attention("attention", [*range(20, 29)], [0] * 9, heads=8, group=8, dim=256, sequence=True)),
    ("attention", attention("attention", [-1] * 5, [0] * 5, sinks=True, sequence=True)),
    ("attention", attention("attention", [0], [0], sequence=True)),
    ("attention", attention("attention", [63, 60], [1, 2], dim=10)),
    ("attention", attention("attention", [*range(9)], [1] * 9, q_dtype="f16", cache="f16", sequence=True)),
    ("attention", attention("attention", [90, 91, 92, -1], [1] * 4, rows=24, mask="sliding", window=16, sequence=True)),
    ("attention_split", attention("attention_split", [-1, 0], [0, 1], splits=7)),
], ids=lambda value: value if isinstance(value, str) else "-".join(str(value[0].values["q"])[4:-1].split(",")))
@pytest.mark.parametrize("subgroups", [True, False])
def test_awkward(gpu, device, name, case, subgroups):
    check(gpu, device, name, case, subgroups)


def test_largest_shapes_fit_the_least_device():
    """256 columns and 16 query heads a key head, with WebGPU's guaranteed limits and no features."""
    web = Device("web-default")
    for name, case in (("attention_split", attention("attention_split", [60], [2], heads=16, group=16, dim=256, splits=4)),
                       ("attention", attention("attention", [60, 61], [2, 2], heads=16, group=16, dim=256, sequence=True)),
                       ("attention", attention("attention", [60, 61], [2, 2], heads=16, group=16, dim=256))):
        assert list(testing.schedules(case[0], KERNELS[name], web))


def heads_prefixes() -> list[tuple[int, Graph]]:
    """A layer's ops cut off after 1, 2, …, where what is made and not read inside is an output."""
    graph, _ = heads([5, 7], [0, 1], norm="after", scaled=True, bias=True)
    found = []
    for n in range(1, len(graph.ops) + 1):
        ops = graph.ops[:n]
        read = {name for op in ops for name in op.inputs}
        found.append((n, replace(graph, ops=ops, outputs=tuple(name for op in ops for name in op.outputs if name not in read))))
    return found


@pytest.mark.parametrize("n, graph", heads_prefixes())
def test_heads_takes_every_prefix(gpu, device, n, graph):
    fused = testing.fuse_all(graph)
    accepted = KERNELS["heads"].accepts(Site(fused, fused.ops[0], device))
    assert accepted == (n > 1), fused.ops[0].kinds        # a lone split is a rearrangement
    if accepted:
        check(gpu, device, "heads", feed(graph, [5, 7], [0, 1]), True)


def accepts_heads(build) -> bool:
    b = Builder()
    p, s, x = b.input("position", (2,)), b.input("slot", (2,)), b.state("x", (2, 3, 8))
    graph = testing.fuse_all(b.graph(*build(b, p, s, x)))
    return KERNELS["heads"].accepts(Site(graph, graph.ops[0], Device("any")))


def test_heads_accepts_what_is_its_own():
    def table(b):
        return b.weight("table", (10, 4, 2))
    assert accepts_heads(lambda b, p, s, x: [b.rope(x, table(b), p, interleaved=True)])
    assert accepts_heads(lambda b, p, s, x: [b.cache_write(b.state("c", (2, 3, 4, 8)), x, p, s)])
    assert accepts_heads(lambda b, p, s, x: [b.position_scale(x, b.weight("f", (10,)), p)])
    assert accepts_heads(lambda b, p, s, x: [b.rope(b.rms_norm(x, eps=1e-5), table(b), p, interleaved=True)])
    assert not accepts_heads(lambda b, p, s, x: [b.rms_norm(x, eps=1e-5)])
    assert not accepts_heads(lambda b, p, s, x: [b.silu(x)])
    assert not accepts_heads(lambda b, p, s, x: [b.mul(b.rope(x, table(b), p, interleaved=True), b.silu(x))])
    assert not accepts_heads(lambda b, p, s, x: [b.rope(b.rope(x, table(b), p, interleaved=True), table(b), p, interleaved=False)])


def test_a_written_value_is_also_an_output(gpu, device):
    b = Builder()
    p, s = b.input("position", (3,)), b.input("slot", (3,))
    turned = b.rope(b.state("x", (3, 2, 8)), b.weight("table", (10, 4, 2)), p, interleaved=False)
    cache = b.cache_write(b.state("c", (2, 2, 4, 8)), turned, p, s)
    normed = b.rms_norm(turned, eps=1e-5)
    check(gpu, device, "heads", feed(b.graph(turned, cache, normed), [9, -1, 2], [0, 0, 1]), True)
