"""Every pass leaves graphs that verify and mean what they meant before."""
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tilewright import testing
from tilewright.api import plan_for
from tilewright.compiler.builder import Builder
from tilewright.compiler.device import shipped_devices
from tilewright.compiler.ir import Graph, GraphError, Op
from tilewright.compiler.kernel import Site
from tilewright.compiler.liveness import drop_dead
from tilewright.compiler.ops import OPS, evaluate, evaluate_op, step
from tilewright.compiler.passes.cut import cut_caches, cut_weights
from tilewright.compiler.passes.fusion import fuse
from tilewright.compiler.passes.memory import Memory, Place, check, place
from tilewright.compiler.passes.simplify import simplify
from tilewright.compiler.passes.tiling import candidates, tile
from tilewright.compiler.pipeline import compile_graphs, run_stages
from tilewright.compiler.sources import assemble
from tilewright.compiler.text import read, show
from tilewright.compiler.verify import verify
from tilewright.frontends.checkpoint import open_checkpoint
from tilewright.frontends.lower import lower
from tilewright.templates import KERNELS

TRUTH = Path(__file__).parent / "data" / "truth"
DEVICES = {d.name: d for d in shipped_devices()}
SMALL = replace(DEVICES["llvmpipe"], name="small", limits={**DEVICES["llvmpipe"].limits, "max_storage_buffer_binding_size": 16384})


def lowered(model: str, dtype: str = "f32"):
    checkpoint = open_checkpoint(TRUTH / model)
    return lower(checkpoint, replace(plan_for(checkpoint, DEVICES["llvmpipe"], 160, dtype, dtype), prefill=(8, 16)))


def everything(graph: Graph, low, states: dict) -> dict:
    """All states after one run, by the name of their buffer; caches that were cut by heads are put together again."""
    rng = np.random.default_rng(0)
    rows = graph.values["token"].shape[0] if "token" in graph.values else 0
    feeds = {n: assemble(n, graph.values, low.leaf).astype(np.float32) for n in graph.role("weight") if not graph.values[n].source}
    feeds |= {n: assemble(n, graph.values, low.leaf).astype(np.float32) for n, v in graph.role("weight").items() if v.source}
    if rows:
        count = max(1, rows - 3)
        position = np.where(np.arange(rows) < count, np.arange(rows) + 20, -1).astype(np.int32)
        feeds |= {"token": rng.integers(0, 256, rows).astype(np.int32), "position": position, "slot": np.zeros(rows, np.int32)}
    mine = {}
    for name, value in graph.role("state").items():
        whole, _, part = name.rpartition(".") if name not in states else (name, "", "")
        source = states[whole]
        mine[name] = (np.split(source, source.shape[1] // value.shape[1], axis=1)[int(part)] if part else source).copy()
    step(graph, mine, feeds)
    parts = {n: a for n, a in mine.items() if n in states}
    for name in states.keys() - parts.keys():
        found = [mine[f"{name}.{g}"] for g in range(len(mine)) if f"{name}.{g}" in mine]
        if found:
            parts[name] = np.concatenate(found, axis=1)
    return parts


@pytest.mark.parametrize("device", [DEVICES["llvmpipe"], DEVICES["NVIDIA H200"], SMALL], ids=lambda d: d.name)
@pytest.mark.parametrize("model", ["llama", "llama4", "llama4-top2-dense-mix", "mixtral", "qwen2", "qwen3", "olmo2", "gemma2", "gpt_oss", "phi3"])
def test_every_stage_means_what_the_frontend_said(model, device):
    low = lowered(model)
    graphs = {n: low.graphs[n] for n in ("prefill_8", "decode_1")}
    rng = np.random.default_rng(1)
    states = {n: (rng.standard_normal(v.shape) if v.dtype == "f32" else np.zeros(v.shape)).astype(np.float32 if v.dtype == "f32" else np.int32)
              for g in graphs.values() for n, v in g.role("state").items()}
    wanted: dict[str, dict] = {}
    for stage, now, _ in run_stages(graphs, device, KERNELS):
        for program, graph in now.items():
            got = everything(graph, low, states)
            want = wanted.setdefault(program, got)
            for name, array in want.items():
                np.testing.assert_allclose(got[name], array, rtol=2e-4, atol=2e-4, err_msg=f"{program} after {stage}: {name}")
            assert read(show(graph)) == graph, f"{program} after {stage} does not read back"


def test_small_bindings_cut_weights_and_caches():
    graphs = dict(run_last(lowered("llama4").graphs, SMALL))
    kinds = {k for op in graphs["decode_1"].ops for k in op.kinds}
    assert {"store", "concat"} <= kinds and any(".rows" in n for n in graphs["decode_1"].values)
    tiny = replace(SMALL, limits={**SMALL.limits, "max_storage_buffer_binding_size": 64})
    with pytest.raises(GraphError, match=r"one head of .* binds at most 64|one row of .* binds at most 64"):
        run_last(lowered("llama4").graphs, tiny)


def run_last(graphs, device):
    return list(run_stages(graphs, device, KERNELS))[-1][1]


@pytest.mark.parametrize("model", ["llama", "llama4", "mistral-sliding", "qwen2", "qwen3", "smollm3"])
def test_projections_join_and_dense_layers_take_six_dispatches(model):
    """Seven where queries and keys are normed between their projection and RoPE."""
    low = lowered(model)
    compiled = compile_graphs({"decode_1": low.graphs["decode_1"]}, DEVICES["NVIDIA H200"], KERNELS)
    graph = compiled.graphs["decode_1"]
    if model != "llama4":
        assert len(graph.ops) == 4 * (7 if model == "qwen3" else 6) + 2
    assert sum("unzip" in op.kinds for op in graph.ops) == (8 if model == "llama4" else 4)
    assert len(compiled.shaders) < len(graph.ops) / 2, "equal layers share shaders"


def test_memory_shares_and_keeps_reads_and_writes_apart():
    graph = run_last(lowered("llama4").graphs, DEVICES["llvmpipe"])["prefill_16"]
    memory = place(graph)
    assert sum(memory.arenas) < 0.6 * memory.unshared
    check(graph, memory)
    first, second = list(memory.places)[:2]
    clash = Memory({**memory.places, first: Place(0, 0, 1 << 20), second: Place(0, 0, 1 << 20)}, memory.arenas, memory.unshared)
    together = Memory({n: Place(0, p.offset, p.size) for n, p in memory.places.items()}, memory.arenas, memory.unshared)
    for broken in (clash, together):
        with pytest.raises(GraphError, match="in one arena|still to be read"):
            check(graph, broken)


def chain() -> Graph:
    g = Builder()
    x, w, norm = g.state("x", (1, 32)), g.weight("w", (16, 32)), g.weight("n", (32,))
    return g.graph(g.add(g.matmul(g.rms_norm(x, norm, eps=1e-5), w), g.state("r", (1, 16))))


def test_fusion_takes_prologue_and_epilogue_in():
    fused = fuse(chain(), DEVICES["llvmpipe"], KERNELS)
    assert [op.kinds for op in fused.ops] == [("rms_norm", "matmul", "add")]
    verify(fused, "fusion")


def test_fusion_moves_no_read_behind_a_write():
    g = Builder()
    kept = g.state("kept", (1, 8))
    before = g.scale(kept, by=2.0)
    written = g.store(kept, g.state("x", (1, 8)))
    graph = g.graph(written, g.add(before, g.state("y", (1, 8))))
    fused = fuse(graph, DEVICES["llvmpipe"], KERNELS)
    verify(fused, "fusion")
    feeds = testing.random_feeds(graph)
    for name, array in evaluate(graph, feeds).items():
        np.testing.assert_array_equal(evaluate(fused, feeds)[name], array)


@pytest.mark.parametrize("outputs", [("silu", "scale"), ("matmul", "silu")], ids=" ".join)
def test_fusion_keeps_results_that_others_read(outputs):
    g = Builder()
    y = g.matmul(g.state("x", (1, 32)), g.weight("w", (16, 32)))
    made = {"matmul": y, "silu": g.silu(y), "scale": g.scale(y, by=2.0)}
    graph = drop_dead(g.graph(*(made[n] for n in outputs)))
    fused = fuse(graph, DEVICES["llvmpipe"], KERNELS)
    verify(fused, "fusion")
    assert len(fused.ops) < len(graph.ops)
    feeds = testing.random_feeds(graph)
    for name, array in evaluate(graph, feeds).items():
        np.testing.assert_array_equal(evaluate(fused, feeds)[name], array)


def test_fusion_keeps_to_the_binding_count():
    few = replace(DEVICES["llvmpipe"], limits={**DEVICES["llvmpipe"].limits, "max_storage_buffers_per_shader_stage": 4})
    for op in fuse(chain(), few, KERNELS).ops:
        assert Site(chain(), op, few).bindings <= 4


def test_dead_ops_go():
    g = Builder()
    x = g.state("x", (1, 32))
    g.silu(x)
    assert [op.kind for op in drop_dead(g.graph(g.scale(x, by=2.0))).ops] == ["scale"]


def test_tuned_choices_win():
    graph = simplify(chain())
    site = Site(graph, graph.ops[1], DEVICES["llvmpipe"])
    slowest = candidates(site, KERNELS)[-1][1]
    tuned = replace(DEVICES["llvmpipe"], tuned={site.signature: slowest})
    assert tile(graph, tuned, KERNELS).ops[1].choice == slowest != tile(graph, DEVICES["llvmpipe"], KERNELS).ops[1].choice


def test_devices_get_different_tiles():
    low = lowered("llama")
    choices = {name: [op.choice for op in run_last({"p": low.graphs["prefill_16"]}, DEVICES[name])["p"].ops] for name in ("llvmpipe", "NVIDIA H200")}
    assert choices["llvmpipe"] != choices["NVIDIA H200"]


def test_no_kernel_is_a_sentence():
    weak = replace(DEVICES["llvmpipe"], limits={**DEVICES["llvmpipe"].limits, "max_compute_invocations_per_workgroup": 1})
    with pytest.raises(GraphError, match=r"no kernel runs .*rms_norm.* on llvmpipe: .* invocations, the device allows 1"):
        tile(simplify(chain()), weak, KERNELS)


BROKEN = {
    "reads %later before it is written": lambda g: g.with_ops([replace(g.ops[0], inputs=("later",)), *g.ops[1:]]),
    "is no op; known: ": lambda g: g.with_ops([replace(g.ops[0], kind="conjure"), *g.ops[1:]]),
    "a second time": lambda g: g.with_ops([g.ops[0], g.ops[0]]),
    "does not type: the weight": lambda g: g.with_values({**g.values, "n": replace(g.values["n"], shape=(31,))}),
    "but its operands give": lambda g: g.with_values({**g.values, "matmul1": replace(g.values["matmul1"], shape=(1, 17))}),
    "has the unknown layout": lambda g: g.with_values({**g.values, "w": replace(g.values["w"], layout="q99")}),
    "dimensions are whole numbers above 0": lambda g: g.with_values({**g.values, "w": replace(g.values["w"], shape=(0, 32))}),
    "is fused but has no body": lambda g: g.with_ops([Op("fused", ("x",), ("rms_norm0",)), *g.ops[1:]]),
    "never written": lambda g: replace(g, outputs=("nothing",)),
    "more than one anchor": lambda g: g.with_ops([g.ops[0], Op("fused", ("rms_norm0", "w", "r"), ("matmul1", "add2"), body=(
        g.ops[1], replace(g.ops[1], outputs=("again",)), g.ops[2]))], {**g.values, "again": g.values["matmul1"]}),
}


@pytest.mark.parametrize("sentence", BROKEN)
def test_verify_refuses_with_the_stage_and_the_reason(sentence):
    graph = chain()
    for before in (None, graph):        # also where most of it was verified already
        with pytest.raises(GraphError, match=sentence.replace("%", ".")) as error:
            verify(BROKEN[sentence](graph), "simplify", before)
        assert str(error.value).startswith("after simplify: ")


def test_a_pass_that_changes_nothing_gives_the_graph_itself():
    graph = chain()
    assert graph.with_ops(list(graph.ops), dict(graph.values)) is graph
    assert cut_weights(graph, DEVICES["llvmpipe"]) is graph
    with pytest.raises(GraphError, match="has no kernel"):
        verify(graph, "tiling", graph)


def test_verify_refuses_a_read_of_renamed_state():
    g = Builder()
    cache, x = g.state("k", (1, 2, 8, 4)), g.state("x", (3, 2, 4))
    position, slot = g.input("position", (3,)), g.input("slot", (3,))
    new = g.cache_write(cache, x, position, slot)
    y = g.attention(g.state("q", (3, 2, 4)), cache, new, position, slot, scale=1.0)
    with pytest.raises(GraphError, match=r"reads %k, whose buffer is called %cache_write0 by now"):
        verify(g.graph(y, new), "frontend")


def test_builder_refuses_what_does_not_type():
    g = Builder()
    with pytest.raises(GraphError, match="x has 4 columns but w takes 5"):
        g.matmul(g.state("x", (1, 4)), g.weight("w", (3, 5)))
    with pytest.raises(AttributeError, match="levitate is no op; known: .*matmul"):
        g.levitate("x")


def test_text_reads_back_and_refuses_nonsense():
    graph = fuse(simplify(chain()), DEVICES["llvmpipe"], KERNELS)
    assert read(show(graph)) == graph
    with pytest.raises(GraphError, match="not a line of a graph: hello"):
        read("hello")


def test_fused_ops_keep_what_they_stand_for():
    graph, rng = chain(), np.random.default_rng(0)
    feeds = {n: rng.standard_normal(v.shape).astype(np.float32) for n, v in graph.values.items() if v.role != "temp"}
    env = dict(feeds)
    for op in graph.ops:
        evaluate_op(op, graph.values, env)
    fused_env = dict(feeds)
    for op in fuse(graph, DEVICES["llvmpipe"], KERNELS).ops:
        evaluate_op(op, graph.values, fused_env)
    np.testing.assert_array_equal(env["add2"], fused_env["add2"])


def test_cutting_keeps_the_meaning_of_one_projection():
    graph = fuse(chain(), DEVICES["llvmpipe"], KERNELS)
    cut = cut_weights(graph, replace(SMALL, limits={**SMALL.limits, "max_storage_buffer_binding_size": 1100}))
    assert len(cut.ops) == 2 and cut.outputs == graph.outputs
    verify(cut, "cut")


def pieces_of(what: str) -> tuple[Graph, dict]:
    """An op whose weight is above a limit of 1,100 bytes, and the feeds that are not random."""
    g = Builder()
    if what == "gather":
        rows = g.gather(g.weight("w", (40, 16)), g.input("token", (6,)))
        return g.graph(g.scale(rows, by=2.5)), {"token": np.array([39, 0, 15, 16, 17, 32], np.int32)}
    if what == "experts":
        expert = g.state("expert", (5, 2), "i32")
        chosen = np.arange(10, dtype=np.int32).reshape(5, 2) % 3
        y = g.expert_matmul(g.state("x", (5, 8)), g.weight("w", (3, 28, 8)), expert)
        return g.graph(g.expert_bias(y, g.weight("bias", (3, 28)), expert)), {"expert": chosen}
    x = g.rms_norm(g.state("x", (1, 32)), g.weight("n", (32,)), eps=1e-5) if what == "norm" else g.state("x", (9, 32))
    y = g.matmul(x, g.weight("w", (36, 32)))
    if what == "gated":
        a, b = g.unzip(y)
        y = g.mul(g.silu(a), b)
    return g.graph(g.add(y, g.state("r", g.shape(y)))), {}


@pytest.mark.parametrize("which", [0, 0.5], ids=["cheapest", "middle"])
@pytest.mark.parametrize("what", ["gather", "experts", "norm", "gated", "tiles"])
def test_pieces_add_up_on_a_gpu(gpu, device, what, which):
    """Piece after piece, each on what the ones before it wrote; buffers start as NaN."""
    graph, given = pieces_of(what)
    fused = fuse(graph, device, KERNELS)
    cut = cut_weights(fused, replace(device, limits={**device.limits, "max_storage_buffer_binding_size": 1100}))
    assert len(cut.ops) > len(fused.ops)
    env = testing.random_feeds(graph) | given
    want = evaluate(graph, env)
    env |= {n: assemble(n, cut.values, env.__getitem__) for n in cut.role("weight") if n not in env}
    for op in cut.ops:
        found = candidates(Site(cut, op, device), KERNELS)
        choice = found[int(which * len(found))][1]
        env |= testing.run(gpu, replace(cut, ops=(op,), outputs=op.outputs), KERNELS[choice.kernel], dict(choice.schedule), device, env)
    for name, array in want.items():
        np.testing.assert_allclose(env[name], array, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape, axis", [((3, 6, 5), 1), ((4, 70), 1), ((5, 6), 0)])
def test_slices_and_concats_run_on_a_gpu(gpu, device, shape, axis):
    """What cutting a cache by heads leaves around attention."""
    g, h = Builder(), Builder()
    part = g.slice(g.state("x", shape), axis=axis, start=1, stop=shape[axis] - 1)
    both = h.concat(h.state("x", shape), h.state("y", (*shape[:axis], 2, *shape[axis + 1:])), axis=axis)
    for graph in (g.graph(part), h.graph(both)):
        assert testing.check(gpu, graph, KERNELS["map"], device)


@pytest.mark.parametrize("operand", [(5,), (1,), (4, 1), (3, 1, 5), (2, 1, 4, 5), (2, 1, 4, 1), (2, 3, 1, 1)], ids=str)
def test_broadcasts_run_on_a_gpu(gpu, device, operand):
    g = Builder()
    graph = g.graph(g.add(g.state("x", (2, 3, 4, 5)), g.state("y", operand)))
    assert testing.check(gpu, graph, KERNELS["map"], device, limit=1)


@pytest.mark.parametrize("sinks", [False, True], ids=["no sinks", "sinks"])
@pytest.mark.parametrize("attrs", [{}, {"mask": "sliding", "window": 6, "cap": 2.0}, {"mask": "chunked", "window": 8}], ids=str)
def test_a_cache_cut_by_heads_keeps_the_attention(attrs, sinks):
    g = Builder()
    position, slot = g.input("position", (3,)), g.input("slot", (3,))
    caches = [g.cache_write(g.state(n, (1, 4, 24, 8)), g.state(n[0], (3, 4, 8)), position, slot) for n in ("keys", "values")]
    more = [g.weight("sinks", (8,))] if sinks else []
    graph = g.graph(g.attention(g.state("q", (3, 8, 8)), *caches, position, slot, *more, scale=0.3, **attrs))
    cut = cut_caches(graph, replace(SMALL, limits={**SMALL.limits, "max_storage_buffer_binding_size": 1600}))
    verify(cut, "cut caches")
    feeds = testing.random_feeds(graph) | {"position": np.array([17, 18, 19], np.int32)}
    feeds |= {f"{n}.{h}": feeds[n][:, 2 * h:2 * h + 2] for n in ("keys", "values") for h in (0, 1)}
    for name, array in evaluate(graph, feeds).items():
        np.testing.assert_allclose(evaluate(cut, feeds)[name], array, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("separate", [False, True], ids=["halves of a matrix", "two matrices"])
def test_projections_that_meet_in_any_op_join(separate):
    """As rows in turn: parts of one matrix too, and with a bias in between."""
    g = Builder()
    x, expert = g.state("x", (2, 8)), g.state("expert", (2, 1), "i32")
    if separate:
        parts = [g.expert_bias(g.expert_matmul(x, g.weight(f"w{i}", (3, 6, 8)), expert), g.weight(f"b{i}", (3, 6)), expert) for i in (0, 1)]
        graph = g.graph(g.clamped_swiglu(*parts, alpha=1.7, limit=1.0))
    else:
        g.weight("w", (12, 8))
        for i in (0, 1):
            g.values[f"w{i}"] = replace(g.values["w"], shape=(6, 8), source=("rows", "w", 6 * i, 6 * i + 6))
        graph = g.graph(g.mul(*(g.matmul(x, f"w{i}") for i in (0, 1))))
    joined = simplify(graph)
    verify(joined, "simplify")
    assert sum("matmul" in op.kind for op in joined.ops) == 1
    feeds = testing.random_feeds(graph)
    for name, array in evaluate(graph, feeds).items():
        np.testing.assert_allclose(evaluate(joined, feeds)[name], array, rtol=1e-6)


def test_a_projection_joins_once():
    g = Builder()
    x = g.state("x", (2, 8))
    a, b, c = (g.matmul(x, g.weight(n, (6, 8))) for n in "abc")
    graph = g.graph(g.add(c, g.mul(a, b)))
    joined = simplify(graph)
    verify(joined, "simplify")
    feeds = testing.random_feeds(graph)
    for name, array in evaluate(graph, feeds).items():
        np.testing.assert_allclose(evaluate(joined, feeds)[name], array, rtol=1e-6)


def test_every_op_has_operands_that_its_rule_takes():
    for kind, definition in OPS.items():
        optional = [o.endswith("?") for o in definition.operands]
        assert optional == sorted(optional), f"{kind}: optional operands come last"
