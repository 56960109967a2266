"""Many sequences at once give what they give one by one."""
from pathlib import Path

import numpy as np
import pytest
import tilewright

DEMO = Path(tilewright.__file__).parent / "frontends" / "demo" / "tales-llama4"
PROMPTS = ["The old man looked at the sea and", "It was", "\"No,\" said the girl,", "In the morning they went down to the river, where", "She"]


@pytest.fixture(scope="module")
def model(gpu):
    loaded = tilewright.load(DEMO, context=128, batch=3)
    yield loaded
    loaded.close()


def collect(model, prompts, **options) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in prompts]
    for index, token, _ in model.stream_many(prompts, **options):
        found[index].append(token)
    return found


def hold_to_single_runs(model, prompts: list[str], count: int) -> None:
    """As far as the margin of every choice is clear."""
    together = collect(model, prompts, max_tokens=count)
    for prompt, tokens in zip(prompts, together, strict=True):
        alone = [t for t, _ in model.stream(prompt, max_tokens=count)]
        ids = model.tokenizer.encode(prompt)
        logits = np.sort(model.logits(ids + alone)[len(ids) - 1:-1], -1)
        unsure = np.flatnonzero(logits[:, -1] - logits[:, -2] <= 1e-2)
        clear = unsure[0] if len(unsure) else count
        assert tokens[:clear] == alone[:clear]


def test_batches_equal_single_runs_where_the_margin_is_clear(model):
    hold_to_single_runs(model, PROMPTS, 20)
    assert set(model.finish_reasons.values()) == {"length"} and len(model.finish_reasons) == len(PROMPTS)


def test_batches_of_integers_do_too(gpu):
    model = tilewright.load(DEMO, context=64, batch=4, quantize="q4_0", activations="q8")
    assert any(s["kernel"].startswith("stationary_q8") for s in model.package.manifest["shaders"])
    hold_to_single_runs(model, PROMPTS[:4], 12)
    model.close()


def test_seeded_sampling_does_not_depend_on_company(model):
    options = {"max_tokens": 12, "temperature": 0.8, "top_k": 40, "repeat_penalty": 1.1, "seed": 5}
    together = collect(model, PROMPTS[:3], **options)
    assert together == [collect(model, [p], **options)[0] for p in PROMPTS[:3]]


def test_sequences_of_different_lengths_join_and_leave(model):
    long = (model.tokenizer.encode(PROMPTS[0]) * 30)[:125]
    found = collect(model, [long, PROMPTS[1], long[:60], PROMPTS[2], PROMPTS[3]], max_tokens=10)
    assert [len(t) for t in found] == [3, 10, 10, 10, 10]
    assert model.finish_reasons[0] == "context" and model.finish_reasons[4] == "length"


def test_a_batch_left_early_frees_the_model(model):
    stream = model.stream_many(PROMPTS, max_tokens=50)
    next(stream)
    stream.close()
    assert len(collect(model, PROMPTS[:2], max_tokens=3)) == 2


def test_numpy_plays_batches_too():
    reference = tilewright.load(DEMO, device="reference", context=64, batch=2)
    assert [len(t) for t in collect(reference, PROMPTS[:3], max_tokens=2)] == [2, 2, 2]


def test_a_batch_of_nothing():
    with pytest.raises(tilewright.CheckpointError, match="a batch of 0 sequences is not possible"):
        tilewright.load(DEMO, device="reference", batch=0)
