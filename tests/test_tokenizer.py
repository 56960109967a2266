"""Tokenizers: public vectors, what goes in comes out, token by token as well as at once, and chats become prompts."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from functools import cache
from itertools import pairwise
from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tilewright.frontends.checkpoint import CheckpointError, read_tokenizer
from tilewright.frontends.gguf_tokenizer import WORD_PATTERNS, build_tokenizer
from tilewright.runtime.tokenizer import Tokenizer, TokenizerError
from tokenizers import Tokenizer as LibraryTokenizer

DATA = Path(__file__).parent / "data"
# llama.cpp's public vocabularies and vectors (MIT), each reduced to the tokens and merges that its test strings can reach
REDUCED = sorted((DATA / "vocab").glob("*.json"))
WHOLE = Path(os.environ.get("TILEWRIGHT_VOCAB", "vocab"))
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@cache
def tales() -> Tokenizer:
    return Tokenizer(**asdict(read_tokenizer(DATA / "tales-tokenizer.json")))


@cache
def reduced(name: str) -> tuple[Tokenizer, dict]:
    """Build a reduced vocabulary; its texts and ids come along."""
    data = json.loads((DATA / "vocab" / f"{name}.json").read_text(encoding="utf-8"))
    metadata = {f"tokenizer.ggml.{key}": value for key, value in data.items() if key not in ("texts", "ids", "chat_template")}
    return Tokenizer(**asdict(build_tokenizer(metadata | {"tokenizer.chat_template": data.get("chat_template")}))), data


@pytest.mark.parametrize("name", [path.stem for path in REDUCED])
def test_vectors(name: str) -> None:
    tokenizer, data = reduced(name)
    assert len(data["texts"]) == len(data["ids"]) >= 47
    for text, ids in zip(data["texts"], data["ids"], strict=True):
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", ["llama-bpe", "llama-spm", "qwen2"])
def test_vectors_of_a_whole_vocabulary(name: str) -> None:
    path = WHOLE / f"ggml-vocab-{name}.gguf"
    if not path.exists():
        pytest.skip(f"no {path}; set TILEWRIGHT_VOCAB to a folder with llama.cpp's ggml-vocab files")
    tokenizer = Tokenizer(**asdict(read_tokenizer(path)))
    texts = path.with_name(path.name + ".inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = path.with_name(path.name + ".out").read_text().split("\n")
    assert len(texts) == 47
    for text, line in zip(texts, lines, strict=False):
        assert tokenizer.encode(text, add_special_tokens=False) == [int(i) for i in line.split()]


def test_reduced_vocabulary_through_a_file(tmp_path: Path) -> None:
    _, data = reduced("llama-bpe")
    writer = gguf.GGUFWriter(tmp_path / "vocab.gguf", "llama")
    writer.add_tokenizer_model(data["model"])
    writer.add_tokenizer_pre(data["pre"])
    writer.add_token_list(data["tokens"])
    writer.add_token_types(data["token_type"])
    writer.add_token_merges(data["merges"])
    writer.add_bos_token_id(data["bos_token_id"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    tokenizer = Tokenizer(**asdict(read_tokenizer(tmp_path / "vocab.gguf")))
    assert tokenizer.bos == data["bos_token_id"] and tokenizer.bos_token == "<|begin_of_text|>"
    for text, ids in zip(data["texts"], data["ids"], strict=True):
        assert tokenizer.encode(text) == [tokenizer.bos, *ids]


def greedy_pieces(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece in its own words: merge the adjacent pair whose piece has the highest score, the leftmost of equals."""
    pieces = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        pairs = [(-scores[a + b], i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in scores]
        if not pairs:
            return pieces
        i = min(pairs)[1]
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


PARTS = st.sampled_from(["   ", "a", "!", "3", "Hello", "=", "\n", "é", "🦙", "'"])


@settings(max_examples=300, deadline=None)
@given(parts=st.lists(st.tuples(PARTS, st.integers(1, 7)), max_size=8))
def test_sentencepiece_merges_like_the_greedy_definition(parts: list[tuple[str, int]]) -> None:
    tokenizer, data = reduced("llama-spm")
    text = "".join(part * count for part, count in parts)
    entries = zip(data["tokens"], data["token_type"], data["scores"], strict=True)
    pieces = greedy_pieces(text, {token: score for token, kind, score in entries if kind == 1})
    ids = {token: i for i, token in enumerate(data["tokens"])}
    expected = [i for piece in pieces for i in ([ids[piece]] if piece in ids else [ids[f"<0x{b:02X}>"] for b in piece.encode()])]
    assert tokenizer.encode(text, add_special_tokens=False) == expected


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_round_trip(text: str) -> None:
    for tokenizer in (tales(), reduced("llama-spm")[0], reduced("qwen2")[0]):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text     # a text may spell a special token


def push_all(tokenizer: Tokenizer, ids: list[int], skip: bool) -> tuple[list[str], str]:
    decoder = tokenizer.decoder(skip)
    return [decoder.push(i) for i in ids], decoder.flush()


@settings(max_examples=200, deadline=None)
@given(text=TEXTS.filter(lambda text: "\ufffd" not in text))
def test_no_piece_of_a_text_shows_a_replacement_character(text: str) -> None:
    for tokenizer in (tales(), reduced("llama-spm")[0]):
        pieces, rest = push_all(tokenizer, tokenizer.encode(text), skip=True)
        assert "\ufffd" not in "".join(pieces) and rest == "" and "".join(pieces) == text


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 2100), max_size=30), skip=st.booleans())
def test_pieces_of_any_ids_make_up_the_library_s_text(ids: list[int], skip: bool) -> None:
    tokenizer = tales()
    library = LibraryTokenizer.from_file(str(DATA / "tales-tokenizer.json"))
    pieces, rest = push_all(tokenizer, ids, skip)
    assert "".join(pieces) + rest == tokenizer.decode(ids, skip) == library.decode(ids, skip_special_tokens=skip)


def test_incomplete_character_waits_for_its_bytes() -> None:
    tokenizer, _ = reduced("llama-spm")
    ids = tokenizer.encode("𓀀", add_special_tokens=False)
    decoder = tokenizer.decoder()
    assert [decoder.push(i) for i in ids][-4:] == ["", "", "", "𓀀"]
    assert decoder.push(ids[-4]) == "" and decoder.flush() == "\ufffd"


def test_special_tokens_between_words_keep_the_space() -> None:
    tokenizer, _ = reduced("llama-spm")
    first, second = tokenizer.encode("Hello", False), tokenizer.encode("Hello", False)
    assert tokenizer.bos is not None
    assert tokenizer.decode([tokenizer.bos, *first, tokenizer.bos, *second]) == "Hello Hello"


def test_bos() -> None:
    tokenizer = tales()
    assert tokenizer.vocab_size == 2048 and tokenizer.bos == 0
    assert tokenizer.encode("") == [0] and tokenizer.encode("", add_special_tokens=False) == []
    assert tokenizer.encode("<|end_of_text|>", add_special_tokens=False) == [1]
    assert tokenizer.decode([0, 1]) == "" and tokenizer.decode([0, 1], skip_special_tokens=False) == "<|begin_of_text|><|end_of_text|>"
    stripped = json.dumps(json.loads((DATA / "tales-tokenizer.json").read_text()) | {"post_processor": None}).encode()
    assert Tokenizer(stripped, bos=0).encode("") == []
    assert Tokenizer(stripped, bos=0, add_bos=True).encode("") == [0]


def test_settings_of_a_training_are_dropped() -> None:
    trained = LibraryTokenizer.from_file(str(DATA / "tales-tokenizer.json"))
    trained.enable_truncation(2)
    trained.enable_padding(length=20)
    assert Tokenizer(trained.to_str().encode()).encode("one two three four") == tales().encode("one two three four")


def test_errors() -> None:
    with pytest.raises(TokenizerError, match="cannot be used"):
        Tokenizer(b"{}")
    with pytest.raises(TokenizerError, match="cannot be encoded"):
        tales().encode("\ud800")


def with_template(template: str | None) -> Tokenizer:
    return Tokenizer((DATA / "tales-tokenizer.json").read_bytes(), bos=0, chat_template=template, bos_token="<s>", eos_token="</s>")


def test_chat() -> None:
    template = """{{ bos_token }}{% for message in messages %}
    {% if message.role == 'note' %}{% continue %}{% endif %}
[{{ message['role'] }}] {% generation %}{{ message.content | tojson }}{% endgeneration %}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}[assistant]{% endif %}"""
    messages = [{"role": "user", "content": "<é>"}, {"role": "note", "content": "x"}]
    assert with_template(template).chat(messages) == '<s>[user] "<é>"</s>\n[assistant]'
    assert len(with_template("{{ strftime_now('%Y') }}").chat([])) == 4


def test_chat_of_a_real_template() -> None:
    tokenizer, _ = reduced("qwen2")
    prompt = tokenizer.chat([{"role": "user", "content": "Hi"}])
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "no chat template"),
        ("{% if %}", "is broken"),
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate"),
        ("{{ ''.__class__.__mro__ }}", "refuses these messages"),
        ("{{ messages.append(1) }}", "refuses these messages"),
        ("{{ messages[5].role.x }}", "refuses these messages"),
    ],
)
def test_chat_refusals(template: str | None, reason: str) -> None:
    with pytest.raises(TokenizerError, match=reason):
        with_template(template).chat([{"role": "user", "content": "Hi"}])


SMALL = {"model": "gpt2", "pre": "gpt-2", "merges": ["a b"], "bos_token_id": 3}
SMALL |= {"tokens": ["a", "b", "ab", "<s>"], "token_type": [1, 1, 1, 3]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": "bert"}, "tokenizer model is 'bert'"),
        ({"pre": "novel"}, "pre is 'novel', which is not one of default, "),
        ({"tokens": []}, "no tokens"),
        ({"tokens": ["a", "a"], "token_type": []}, "one twice"),
        ({"tokens": [1]}, "tokens is not a list of str"),
        ({"token_type": [1]}, "4 tokens but 1 token types"),
        ({"merges": ["a c"]}, "do not fit together"),
        ({"merges": ["ab"]}, "do not fit together"),
        ({"model": "llama", "scores": [1.0]}, "4 tokens but 1 scores"),
    ],
)
def test_broken_vocabularies(change: dict[str, object], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        build_tokenizer({f"tokenizer.ggml.{key}": value for key, value in (SMALL | change).items()})


def test_bos_of_a_vocabulary() -> None:
    def add_bos(**change: object) -> bool:
        return build_tokenizer({f"tokenizer.ggml.{key}": value for key, value in (SMALL | change).items()}).add_bos

    assert not add_bos() and add_bos(pre="llama-bpe") and add_bos(model="llama", scores=[0.0] * 4)
    assert add_bos(add_bos_token=True) and not add_bos(pre="llama-bpe", add_bos_token=False)
    assert not add_bos(pre="llama-bpe", bos_token_id=99), "an id outside the vocabulary is no id"


@settings(max_examples=40, deadline=None)
@given(text=TEXTS, pre=st.sampled_from(sorted(WORD_PATTERNS)))
def test_every_word_pattern_keeps_every_character(text: str, pre: str) -> None:
    _, data = reduced("gpt-2")
    metadata = {f"tokenizer.ggml.{key}": data[key] for key in ("model", "tokens", "token_type", "merges")}
    tokenizer = Tokenizer(**asdict(build_tokenizer(metadata | {"tokenizer.ggml.pre": pre})))
    assert tokenizer.decode(tokenizer.encode(text)) == text
