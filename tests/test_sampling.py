"""Sampling draws the tokens that its numpy meaning draws, on every adapter, and that meaning is what the words top-k, top-p say."""
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tilewright import Builder, testing
from tilewright.compiler import sampling
from tilewright.compiler.codegen import template_environment
from tilewright.compiler.sampling import Field
from tilewright.runtime.sampling import idle_params, pack_params, random_bits
from tilewright.templates import KERNELS

PLAIN = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0, "seed": 1, "step": 0, "stamp": 7}

MASS_CHECK = """
@group(0) @binding(0) var<storage, read> x: array<u32, 5>;
@group(0) @binding(1) var<storage, read_write> y: array<vec2<u32>, 6>;
@compute @workgroup_size(1)
fn main() {
    let a = vec2<u32>(x[0], x[1]);
    let b = vec2<u32>(x[2], x[3]);
    let octave = x[4] % 32u;
    y[0] = plus(a, b);
    y[1] = minus(a, b);
    y[2] = portion(a, x[4]);
    y[3] = widen(x[0], octave);
    y[4] = vec2<u32>(narrow(widen(x[0], octave), octave), 0u);
    y[5] = vec2<u32>(select(0u, 1u, less(a, b)), 0u);
}
"""


def run(gpu, device, kind: str, feeds: dict, block: int, schedule: dict) -> list[np.ndarray]:
    """One dispatch of one op on the GPU: its outputs."""
    g = Builder()
    for name, array in feeds.items():
        (g.input if name == "params" else g.state)(name, array.shape, {"f": "f32", "i": "i32", "u": "u32"}[array.dtype.kind])
    graph = g.graph(*g.op(kind, *feeds, block=block))
    kernel = KERNELS[kind]
    wanted = {"lanes": schedule["lanes"], "subgroup": device.subgroup_size * schedule["subgroups"]}
    wanted |= {"few": schedule["few"]} if kind == "sample" else {}
    made = testing.run(gpu, graph, kernel, wanted, device, feeds)
    return [made[n] for n in graph.outputs]


def play(gpu, device, kind: str, logits: np.ndarray, seen: np.ndarray, params: np.ndarray, **schedule):
    """Token, last and seen after both dispatches of `argmax` or `sample`."""
    block = schedule["block"]
    blocks = run(gpu, device, f"{kind}_blocks", {"logits": logits, "seen": seen, "params": params}, block, schedule)
    if kind == "argmax":
        between = {"summary": blocks[0]}
    else:
        between = {"keys": blocks[0], "summary": blocks[1]}
    feeds = {"params": params, **between, "token": np.zeros(len(params), "i4"), "last": np.full(len(seen), -5, "i4"), "seen": seen}
    return run(gpu, device, kind, feeds, block, schedule)


@st.composite
def batches(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, vocab = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 31, 257, 2048, 5000]))
    logits = (rng.standard_normal((rows, vocab)) * draw(st.sampled_from([0.0, 1e-38, 0.1, 1, 4, 30, 1e30]))).astype("f4")
    if draw(st.booleans()):
        logits = np.round(logits)  # ties
    if draw(st.booleans()):
        strange = rng.random((rows, vocab)) < 0.2
        values = np.array([-np.inf, np.inf, np.nan, -3e38, 3e38, 1e-42, -0.0], "f4")[draw(st.integers(0, 6)):]
        logits[strange] = rng.choice(values, strange.sum())
    params = []
    for slot in rng.permutation(4)[:rows]:
        idle = draw(st.integers(0, 9)) == 0
        params.append(idle_params() if idle else pack_params(
            temperature=draw(st.sampled_from([0, 1e-3, 0.6, 1, 2, 100])), top_k=draw(st.sampled_from([0, 1, 2, 10, 40, 300, 10**6])),
            top_p=draw(st.sampled_from([1, 0.999, 0.9, 0.5, 1e-6])), min_p=draw(st.sampled_from([0, 1e-4, 0.05, 0.5, 1])),
            repeat_penalty=draw(st.sampled_from([1, 1.1, 0.8, 5])), seed=draw(st.integers(0, 2**64)), step=draw(st.integers(0, 9)),
            stamp=draw(st.sampled_from([1, 2**32 - 1])), slot=int(slot)))
    return logits, rng.choice(np.array([0, 1, 2**32 - 1], "u4"), (4, vocab)), np.stack(params)


SCHEDULES = [{"lanes": 64, "block": 64, "few": 8, "subgroups": False}, {"lanes": 128, "block": 1024, "few": 256, "subgroups": True}]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: "subgroups" if s["subgroups"] else "atomics")
@pytest.mark.parametrize("kind", ["argmax", "sample"])
@given(batch=batches())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_gpu_draws_the_token_that_numpy_draws(gpu, device, kind, schedule, batch):
    logits, seen, params = batch
    want = getattr(sampling, kind)(logits, seen, params)
    last, history = sampling.feed(want, params, np.full(4, -5, "i4"), seen)
    for got, expected in zip(play(gpu, device, kind, logits, seen, params, **schedule), (want, last, history), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_masses_of_blocks_are_exact(gpu, device):
    """To the last bit, on every adapter: that is what makes draws alike."""
    logits = (3 * np.random.default_rng(0).standard_normal((2, 500))).astype("f4")
    seen, params = np.zeros((2, 500), "u4"), np.stack([pack_params(**PLAIN | {"temperature": t}, slot=s) for s, t in enumerate((0.7, 1))])
    feeds = {"logits": logits, "seen": seen, "params": params}
    keys, summary = run(gpu, device, "sample_blocks", feeds, 64, SCHEDULES[0])
    np.testing.assert_array_equal(keys, sampling.keys_of(logits, seen, params))
    np.testing.assert_array_equal(summary, sampling.summarise(keys, params, 64, octaves=True))


@pytest.mark.parametrize("kind", ["argmax", "sample"])
def test_gpu_finds_the_best_token_at_the_edges_of_blocks(gpu, device, kind):
    at = [0, 63, 64, 127, 128, 129]
    logits, seen = np.zeros((len(at), 130), "f4"), np.zeros((len(at), 130), "u4")
    logits[np.arange(len(at)), at] = 40
    params = np.stack([pack_params(**PLAIN | {"temperature": 0 if kind == "argmax" else 1}, slot=row) for row in range(len(at))])
    assert play(gpu, device, kind, logits, seen, params, **SCHEDULES[0])[0].tolist() == at


@pytest.mark.parametrize("kind", ["flat", "two levels", "slope"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: "subgroups" if s["subgroups"] else "atomics")
def test_gpu_draws_deep_in_a_large_vocabulary(gpu, device, kind, schedule):
    at = np.arange(32003)
    logits = {"flat": at * 0, "two levels": at % 2 * 0.5, "slope": at * 1e-4}[kind].astype("f4")[None].repeat(3, 0)
    seen = np.zeros((1, 32003), "u4")
    for step in range(4):
        options = PLAIN | {"temperature": 1, "step": step}
        params = np.stack([pack_params(**options), pack_params(**options | {"top_k": 20000}),
                           pack_params(**options | {"top_p": 0.7, "min_p": 0.3})])
        np.testing.assert_array_equal(play(gpu, device, "sample", logits, seen, params, **schedule)[0], sampling.sample(logits, seen, params))


@given(words=st.lists(st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 2**32 - 1]), min_size=5, max_size=5))
@settings(max_examples=60, deadline=None)
def test_masses_add_and_multiply_like_whole_numbers(gpu, words):
    a, b, f = words[0] | words[1] << 32, words[2] | words[3] << 32, words[4]
    got = play_mass(gpu, words)
    octave = f % 32
    want = [a + b, a - b, a * f >> 32, words[0] << 31 - octave, words[0], a < b]
    assert [int(w) for w in got] == [w % 2**64 for w in want]


def play_mass(gpu, words: list[int]) -> np.ndarray:
    inputs, output = gpu.buffer(20), gpu.buffer(48)
    gpu.write(inputs, 0, np.array(words, "u4"))
    text = template_environment().get_template("_sampling_mass.wgsl").render() + MASS_CHECK
    made = gpu.pipeline(text, ("read", "write"), "masses")
    gpu.submit([gpu.replay([(made, gpu.bind(made, [(inputs, 0, 20), (output, 0, 48)]), (1, 1, 1))])])
    return gpu.read(output).view("u8")


def draws(logits: np.ndarray, count: int, **options) -> np.ndarray:
    """How often each token comes in `count` steps."""
    logits = np.asarray(logits, "f4")[None]
    seen = np.zeros(logits.shape, "u4")
    params = pack_params(**PLAIN | options)[None]
    tokens = np.empty(count, int)
    for step in range(count):
        params.view(np.uint32)[0, Field.RANDOM] = random_bits(11, step)
        tokens[step] = sampling.sample(logits, seen, params)[0]
    return np.bincount(tokens, minlength=logits.shape[1])


def expected(logits: np.ndarray, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> np.ndarray:
    """Probabilities, straight from the definitions."""
    p = np.exp((logits - logits.max()) / temperature)
    order = np.argsort(-p, kind="stable")
    p = p[order]
    best = p[0]
    if top_k:
        p[top_k:] = 0
    if top_p < 1:
        p[1:][np.cumsum(p)[:-1] / p.sum() >= top_p] = 0
    p[p < best * min_p] = 0
    return (p / p.sum())[np.argsort(order)]


@pytest.mark.parametrize("options", [
    {}, {"temperature": 0.5}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"temperature": 2.0, "top_k": 12, "top_p": 0.9, "min_p": 0.02}],
    ids=str)
def test_frequencies_are_the_softmax(options):
    logits = np.random.default_rng(3).standard_normal(24) * 1.5
    count = 8000
    p, got = expected(logits, **options), draws(logits, count, **{"temperature": 1.0} | options)
    assert not got[p == 0].any()
    kept = p > 0
    chi_square = ((got - count * p)[kept] ** 2 / (count * p[kept])).sum()
    freedom = kept.sum() - 1
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)


@given(seed=st.integers(0, 2**32), top_k=st.integers(0, 60), top_p=st.floats(0.01, 1), min_p=st.floats(0, 0.99))
@settings(max_examples=150, deadline=None)
def test_filters_keep_what_their_definitions_keep(seed, top_k, top_p, min_p):
    logits = np.random.default_rng(seed).standard_normal(50).astype("f4") * 3
    kept = np.flatnonzero(expected(logits.astype("f8"), 1.0, top_k, top_p, min_p))
    margin = [np.flatnonzero(expected(logits.astype("f8"), 1.0, top_k, min(top_p * (1 + e), 1), min_p * (1 - e))) for e in (-2e-3, 2e-3)]
    if len(margin[0]) != len(margin[1]):
        return  # a token stands on the edge
    params = pack_params(**PLAIN | {"temperature": 1, "top_k": top_k, "top_p": top_p, "min_p": min_p})[None]
    for random, want in ((0, kept[np.argmax(logits[kept])]), (2**32 - 1, kept[np.argmin(logits[kept])])):
        params.view(np.uint32)[0, Field.RANDOM] = random
        assert sampling.sample(logits[None], np.zeros((1, 50), "u4"), params)[0] == want


def test_weights_follow_powers_of_two():
    got = sampling.weight(np.arange(65536, dtype=np.int32))
    np.testing.assert_allclose(got / 4096, 2 ** (np.arange(65536) / 65536), rtol=2e-4)
    assert int(got.max()) * sampling.MAX_VOCAB < 2**32


def test_greedy_takes_the_greatest_penalised_logit_and_the_lowest_index():
    logits = np.array([[1, 4, 4, 3.9], [-1, -2, -3, np.nan]], "f4")
    seen = np.array([[9, 7, 0, 0], [7, 0, 0, 0]], "u4")
    for penalty, want in ((1.0, [1, 0]), (1.01, [2, 0]), (2.5, [2, 1])):
        params = np.stack([pack_params(**PLAIN | {"temperature": 0, "repeat_penalty": penalty, "slot": s}) for s in (0, 1)])
        assert sampling.sample(logits, seen, params).tolist() == sampling.argmax(logits, seen, params).tolist() == want
    one = np.stack([pack_params(**PLAIN | {"temperature": 0.7, "top_k": 1, "slot": s}) for s in (0, 1)])
    assert sampling.sample(logits, seen, one).tolist() == [1, 0]


def test_random_bits_do_not_depend_on_the_platform():
    assert [random_bits(0, 0), random_bits(1, 2), random_bits(2**40 + 3, 4)] == [354805152, 403953885, 160194811]
    bits = np.array([random_bits(5, step) for step in range(4096)])
    assert abs(np.corrcoef(bits[1:], bits[:-1])[0, 1]) < 0.06 and abs(bits.mean() / 2**32 - 0.5) < 0.02


@pytest.mark.parametrize("wrong, sentence", [
    ({"temperature": -1}, "temperature is -1"), ({"temperature": float("nan")}, "temperature is nan"), ({"top_k": -1}, "top_k is -1"),
    ({"top_p": 0}, "top_p is 0"), ({"top_p": 1.5}, "top_p is 1.5"), ({"min_p": 2}, "min_p is 2"),
    ({"repeat_penalty": 0}, "repeat_penalty is 0"), ({"stamp": 0}, "stamp is 0"), ({"step": -1}, "step is -1"),
    ({"slot": -1}, "slot is -1")])
def test_wrong_parameters_are_refused_with_a_sentence(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        pack_params(**PLAIN | {"temperature": 1} | wrong)


def test_too_large_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="at most 524288"):
        sampling.argmax(np.zeros((1, 2**19 + 1), "f4"), np.zeros((1, 2**19 + 1), "u4"), pack_params(**PLAIN, temperature=0)[None])
