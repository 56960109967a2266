"""Generation: samplers, stops, contexts, streams that are left early; and what is refused."""
from pathlib import Path

import numpy as np
import pytest
import tilewright
from tilewright.runtime.player import STEPS

DEMO = Path(tilewright.__file__).parent / "frontends" / "demo" / "tales-llama4"
TRUTH = Path(__file__).parent / "data" / "truth"


@pytest.fixture(scope="module")
def model(gpu):
    loaded = tilewright.load(DEMO, context=320)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def reference():
    return tilewright.load(DEMO, device="reference", context=320)


PROMPT = "The old man looked at the sea and"


def test_seeded_sampling_is_the_same_everywhere(model, reference):
    options = {"max_tokens": 24, "temperature": 0.9, "top_k": 50, "top_p": 0.95, "min_p": 0.01, "repeat_penalty": 1.1, "seed": 7}
    assert model.generate(PROMPT, **options) == reference.generate(PROMPT, **options) == model.generate(PROMPT, **options)
    assert model.generate(PROMPT, **options) != model.generate(PROMPT, **{**options, "seed": 8})


def test_unseeded_sampling_varies(model):
    assert len({model.generate(PROMPT, max_tokens=16, temperature=1.5) for _ in range(4)}) > 1


def test_repeat_penalty_counts_the_prompt_and_what_was_generated(model):
    ids = model.tokenizer.encode(PROMPT)
    assert next(model.stream(ids, max_tokens=1, repeat_penalty=0.01))[0] in ids
    shunned = [token for token, _ in model.stream(ids, max_tokens=24, repeat_penalty=50.0)]
    assert len(set(shunned) | set(ids)) == len(shunned) + len(set(ids))


def test_pieces_join_to_the_text(model):
    stream = model.stream(PROMPT, max_tokens=40)
    ids, pieces = zip(*stream, strict=True)
    assert "".join(pieces) == model.tokenizer.decode(ids) == model.generate(PROMPT, max_tokens=40)
    assert stream.finish_reason == "length"


def test_stop_strings_cut_the_text(model):
    whole = model.generate(PROMPT, max_tokens=40)
    stop = whole[10:15]
    stream = model.stream(PROMPT, max_tokens=40, stop=stop)
    assert "".join(piece for _, piece in stream) == whole[:whole.index(stop)]
    assert stream.finish_reason == "stop"
    assert model.generate(PROMPT, max_tokens=40, stop=("no such words", "neither these")) == whole


def test_the_end_of_text_token_stops(model):
    ends = model.tokenizer.eos
    model.tokenizer.eos = (next(t for t, _ in model.stream(PROMPT, max_tokens=1)),)
    try:
        stream = model.stream(PROMPT, max_tokens=10)
        assert list(stream) == [] and stream.finish_reason == "stop"
    finally:
        model.tokenizer.eos = ends


def test_a_generation_that_reaches_the_context_ends_with_context(model):
    ids = (model.tokenizer.encode(PROMPT) * 40)[:310]
    stream = model.stream(ids, max_tokens=64)
    assert len(list(stream)) == 10 and stream.finish_reason == "context"
    full = model.stream((ids * 2)[:320], max_tokens=64)
    assert list(full) == [] and full.finish_reason == "context"


def test_every_prompt_length_works(model, reference):
    ids = (model.tokenizer.encode(PROMPT) * 40)
    for length in (1, 15, 16, 17, 129, 150, 300):
        np.testing.assert_allclose(model.logits(ids[:length])[-1], reference.logits(ids[:length])[-1], atol=1e-3)


def test_a_stream_left_early_frees_the_model(model):
    want = model.generate(PROMPT, max_tokens=8)
    stream = model.stream(PROMPT, max_tokens=64)
    next(stream)
    stream.close()
    assert model.generate(PROMPT, max_tokens=8) == want
    abandoned = model.stream(PROMPT, max_tokens=64)
    next(abandoned)
    assert model.generate(PROMPT, max_tokens=8) == want
    with pytest.raises(RuntimeError, match="put to other work"):
        list(abandoned)


def test_a_stream_may_outlive_its_model(gpu):
    model = tilewright.load(DEMO, context=64)
    stream = model.stream([1, 2, 3], max_tokens=8)
    next(stream)
    model.close()
    stream.close()


def test_no_tokens_asked_none_given(model):
    stream = model.stream(PROMPT, max_tokens=0)
    assert list(stream) == [] and stream.finish_reason == "length"


REFUSED = {
    "the prompt is empty": {"prompt": []},
    "token id 2048 is out of range: the vocabulary has ids 0 to 2047": {"prompt": [1, 2048]},
    "token id -1 is out of range": {"prompt": [-1]},
    "the prompt has 400 tokens but the context is 320": {"prompt": [5] * 400},
    "temperature is -1": {"temperature": -1},
    "top_p is 0": {"top_p": 0},
    "min_p is 2": {"min_p": 2},
    "top_k is -3": {"top_k": -3},
    "repeat_penalty is 0": {"repeat_penalty": 0},
    "max_tokens must not be negative": {"max_tokens": -1},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_refused(reference, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        reference.stream(**{"prompt": [1], **REFUSED[sentence]})
    assert "\n" not in str(error.value)


def test_a_model_without_tokenizer_takes_ids_only():
    model = tilewright.load(TRUTH / "llama", device="reference", context=64)
    with pytest.raises(tilewright.TokenizerError, match="no tokenizer: pass token ids"):
        model.generate("hello")
    assert len(list(model.stream([1, 2, 3], max_tokens=3))) == 3


def test_frames_of_several_steps_give_the_same_tokens(model, monkeypatch):
    """Whatever frames hold: their sizes follow the clock, tokens, stops and sampling do not."""
    options = {"max_tokens": 40, "temperature": 0.9, "repeat_penalty": 1.1, "seed": 3}
    frames = []
    play = model.player.play_frame
    monkeypatch.setattr(model.player, "play_frame", lambda frame, steps: (frames.append(len(steps)), play(frame, steps))[1])
    pieces = {}
    for seconds in (0.0, 1e9):
        monkeypatch.setattr("tilewright.runtime.generate.FRAME_SECONDS", seconds)
        frames.clear()
        stream = model.stream(PROMPT, **options)
        pieces[seconds] = list(stream), stream.finish_reason, model.generate(PROMPT, max_tokens=20)
        assert sum(frames) == 60 and max(frames) == (STEPS if seconds else 1)
    assert pieces[0.0] == pieces[1e9]
    stream = model.stream(PROMPT, **options)
    assert [next(stream) for _ in range(11)] == pieces[0.0][0][:11]     # within a frame
    assert model.generate(PROMPT, max_tokens=20) == pieces[0.0][2]
    with pytest.raises(RuntimeError, match="put to other work"):
        next(stream)


def test_a_clock_that_stands_still_ends_no_stream(reference, monkeypatch):
    monkeypatch.setattr("tilewright.runtime.generate.time.perf_counter", lambda: 1.0)
    assert len(list(reference.stream([1, 2, 3], max_tokens=6))) == 6
