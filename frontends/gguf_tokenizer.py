"""The tokenizer inside a GGUF file, rewritten as a Hugging Face tokenizer.json."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from .checkpoint import CheckpointError, TokenizerData

# tokenizer.ggml.token_type
UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6

MAX_PIECE = 512  # SentencePiece writes far shorter ones; the time to find a piece's merges grows with its length squared

# The patterns that cut a text into words, each applied to what the one before it left; from the models' own tokenizers.
CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACES
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + SPACES
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
WORD_START = r"[^\r\n\p{L}\p{N}]?"
O200K = (
    rf"{WORD_START}{UPPER}*{LOWER}+{CONTRACTION}?|{WORD_START}{UPPER}+{LOWER}*{CONTRACTION}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + SPACES
)
TEKKEN = rf"{WORD_START}{UPPER}*{LOWER}+|{WORD_START}{UPPER}+{LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|" + SPACES
DEEPSEEK_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ"
    "-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
    ""
)
DEEPSEEK3 = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|""" + SPACES
PATTERNS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("default", ""): (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "dbrx", "smaug-bpe", "glm4"): (LLAMA3,),
    ("chatglm-bpe",): (LLAMA3,),
    ("llama4", "gpt-4o", "kanana2", "minimax-m2"): (O200K,),
    ("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"): (QWEN2,),
    ("qwen35",): (QWEN35,),
    ("gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4", "gigachat", "a.x-4.0", "mellum", "trillion", "granite-docling"): (GPT2,),
    ("starcoder", "smollm", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"): (r"\p{N}", GPT2),
    ("tekken",): (TEKKEN,),
    ("falcon",): (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"),
    ("deepseek-llm",): (
        "[\r\n]",
        rf"\s?[{DEEPSEEK_LETTERS}]+",
        r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
        r"\s+$",
        "[一-龥ࠀ-一가-퟿]+",
        r"\p{N}+",
    ),
    ("deepseek-coder",): ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"),
    ("deepseek-v3", "hunyuan-dense", "joyai-llm"): (r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3),
}
WORD_PATTERNS = {name: patterns for names, patterns in PATTERNS.items() for name in names}

# Families whose vocabulary outranks its merges, and which begin a prompt with bos unless the file says otherwise.
WHOLE_WORDS_FIRST = {"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"}

# Control tokens that end a turn, for files that name only one end-of-sequence id.
END_TOKENS = {"<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|eom|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>"}
END_TOKENS |= {"<|endoftext|>", "<|end_of_text|>", "<EOT>", "</s>"}


def has_tokenizer(metadata: dict[str, Any]) -> bool:
    return metadata.get("tokenizer.ggml.model", "none") not in ("none", "no_vocab")


def build_tokenizer(metadata: dict[str, Any]) -> TokenizerData:
    """Build the tokenizer that the `tokenizer.*` entries describe."""
    model, pre = _text(metadata, "model"), _text(metadata, "pre")
    tokens = _tokens(metadata)
    types = _list(metadata, "token_type", int) or [1] * len(tokens)
    if len(types) != len(tokens):
        raise CheckpointError(f"the GGUF file has {len(tokens)} tokens but {len(types)} token types; convert the model again")
    if model == "gpt2":
        tokenizer, add_bos = _byte_level(tokens, _list(metadata, "merges", str), pre), pre in WHOLE_WORDS_FIRST
    elif model == "llama":
        space = metadata.get("tokenizer.ggml.add_space_prefix", True) is not False
        tokenizer, add_bos = _sentencepiece(tokens, types, _list(metadata, "scores", float), space), True
    else:
        raise CheckpointError(f"the GGUF file's tokenizer model is {model!r}, not gpt2 or llama; give a tokenizer.json instead")
    _add_special_tokens(tokenizer, tokens, types)
    bos, eos, eot, eom = (_id(metadata, f"{name}_token_id", len(tokens)) for name in ("bos", "eos", "eot", "eom"))
    named_ends = [i for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind == CONTROL and token in END_TOKENS]
    template = metadata.get("tokenizer.chat_template")
    return TokenizerData(
        json=tokenizer.to_str().encode(),
        bos=bos,
        eos=tuple(dict.fromkeys(i for i in (eos, eot, eom, *named_ends) if i is not None)),
        add_bos=bos is not None and metadata.get("tokenizer.ggml.add_bos_token", add_bos) is True,
        chat_template=template if isinstance(template, str) else None,
        bos_token=None if bos is None else tokens[bos],
        eos_token=None if eos is None else tokens[eos],
        parsed=tokenizer,
    )


def _byte_level(tokens: list[str], merges: list[str], pre: str) -> Tokenizer:
    if pre not in WORD_PATTERNS:
        known = ", ".join(name for name in WORD_PATTERNS if name)
        raise CheckpointError(f"the GGUF file's tokenizer.ggml.pre is {pre!r}, which is not one of {known}; give a tokenizer.json instead")
    pairs = [merge.partition(" ")[::2] for merge in merges]
    tokenizer = Tokenizer(_bpe(tokens, pairs, ignore_merges=pre in WHOLE_WORDS_FIRST))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in WORD_PATTERNS[pre]]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(tokens: list[str], types: list[int], scores: list[float], space_prefix: bool) -> Tokenizer:
    if len(scores) != len(tokens):
        raise CheckpointError(f"the GGUF file has {len(tokens)} tokens but {len(scores)} scores; convert the model again")
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    pairs = _score_merges(tokens, types, scores)
    tokenizer = Tokenizer(_bpe(tokens, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = [normalizers.Prepend("▁")] if space_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if space_prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return tokenizer


def _score_merges(tokens: list[str], types: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """Order the merges as SentencePiece chooses them: the pair that makes the highest-scored piece first.

    Of equal scores SentencePiece takes the leftmost pair, so that in a run of equal letters the first piece grows letter by letter:
    the longest left half comes first.
    """
    rank = {token: -score for token, kind, score in zip(tokens, types, scores, strict=True) if kind not in (UNKNOWN, CONTROL, BYTE)}
    splits = (
        (rank[token], -cut, index, token[:cut], token[cut:])
        for index, token in enumerate(tokens)
        if token in rank and len(token) <= MAX_PIECE
        for cut in range(1, len(token))
        if token[:cut] in rank and token[cut:] in rank
    )
    return [(left, right) for *_, left, right in sorted(splits)]


def _bpe(tokens: list[str], merges: list[tuple[str, str]], **options: Any) -> models.BPE:
    try:
        return models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, **options)
    except Exception as error:  # the library has no narrower class
        raise CheckpointError(f"the GGUF file's vocabulary and merges do not fit together ({error}); convert the model again") from None


def _add_special_tokens(tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Make control and user-defined tokens match in a text before it is cut into words."""
    added = [
        AddedToken(token, special=kind != USER_DEFINED, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    tokenizer.add_tokens(added)


def _tokens(metadata: dict[str, Any]) -> list[str]:
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(_list(metadata, "tokens", str))]
    if not tokens or len(set(tokens)) != len(tokens):
        raise CheckpointError("the GGUF file's tokenizer has no tokens or has one twice; convert the model again")
    return tokens


def _list(metadata: dict[str, Any], name: str, kind: type) -> list[Any]:
    values = metadata.get(f"tokenizer.ggml.{name}", [])
    if not isinstance(values, list) or not {kind}.issuperset(map(type, values)):
        raise CheckpointError(f"the GGUF file's tokenizer.ggml.{name} is not a list of {kind.__name__}; convert the model again")
    return values


def _text(metadata: dict[str, Any], name: str) -> str:
    return str(metadata.get(f"tokenizer.ggml.{name}", ""))


def _id(metadata: dict[str, Any], name: str, count: int) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}")
    return value if type(value) is int and 0 <= value < count else None
