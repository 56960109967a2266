"""The tokenizer of a package: text to ids, ids to text all at once or token by token, and chats to prompts."""

from __future__ import annotations

import codecs
import json as json_module
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox
import tokenizers

BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


class TokenizerError(Exception):
    """One sentence that says why a text or a chat cannot become a prompt."""


class Tokenizer:
    """A Hugging Face tokenizer.json together with the ids and the template that belong to its model."""

    def __init__(
        self,
        json: bytes,
        bos: int | None = None,
        eos: Iterable[int] = (),
        add_bos: bool = False,
        chat_template: str | None = None,
        bos_token: str | None = None,
        eos_token: str | None = None,
        parsed: tokenizers.Tokenizer | None = None,
    ) -> None:
        """parsed: the json as a tokenizer, if somebody has it already."""
        try:
            self._tokenizer = parsed or tokenizers.Tokenizer.from_buffer(json)
        except Exception as error:  # the library has no narrower class
            raise TokenizerError(f"the tokenizer cannot be used: {error}") from None
        self._tokenizer.no_truncation()  # a file may carry the settings of its training
        self._tokenizer.no_padding()
        self.bos = bos
        self.eos = tuple(eos)
        self.chat_template = chat_template
        self.bos_token = bos_token
        self.eos_token = eos_token
        prefix = self._tokenizer.encode("", add_special_tokens=True).ids
        self._prefix = [bos] if add_bos and bos is not None and not prefix else []  # else the tokenizer.json adds it by itself
        self._special = frozenset(i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special)
        self._anchor = self._tokenizer.encode("a", add_special_tokens=False).ids[-1:]
        self._anchor_length = len(self._tokenizer.decode(self._anchor, skip_special_tokens=False))
        self._pieces: dict[int, bytes] = {}

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Turn text into ids; `add_special_tokens` adds what the model wants around a text, such as bos."""
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        except (TypeError, UnicodeEncodeError) as error:  # half of a surrogate pair is not text
            raise TokenizerError(f"the text cannot be encoded: {error}") from None
        return self._prefix + ids if add_special_tokens else ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        decoder = self.decoder(skip_special_tokens)
        return "".join([*map(decoder.push, ids), decoder.flush()])

    def decoder(self, skip_special_tokens: bool = True) -> Decoder:
        """Start decoding token by token."""
        return Decoder(self, skip_special_tokens)

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Write messages as the prompt for the assistant's next turn; it holds bos already, so encode it without special tokens."""
        try:
            return self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                bos_token=self.bos_token or "",
                eos_token=self.eos_token or "",
            )
        except TokenizerError:
            raise
        except Exception as error:  # a template is the checkpoint's own program and may fail in any way
            raise TokenizerError(f"the chat template refuses these messages: {error}") from None

    @cached_property
    def _template(self) -> jinja2.Template:
        if self.chat_template is None:
            raise TokenizerError("the model has no chat template: give it a plain prompt (tilewright generate) instead of messages")
        try:
            return _template_environment().from_string(self.chat_template)
        except jinja2.TemplateError as error:
            raise TokenizerError(f"the chat template of the model is broken: {error}") from None

    def is_special(self, token: int) -> bool:
        return token in self._special

    def piece(self, token: int, first: bool) -> bytes:
        """Return the bytes that a token adds to a text; the first of a text may lose the space before its word."""
        if first:
            return self._decoded_bytes(token, [], 0)
        if token not in self._pieces:
            self._pieces[token] = self._decoded_bytes(token, self._anchor, self._anchor_length)
        return self._pieces[token]

    def _decoded_bytes(self, token: int, before: list[int], skip: int) -> bytes:
        """Decode a token behind others, so that it is not the first, and cut their text off."""
        text = self._tokenizer.decode([*before, token], skip_special_tokens=False)[skip:]
        name = self._tokenizer.id_to_token(token)
        return text.encode() if name is None or "\ufffd" not in text else _raw_bytes(name, text)


class Decoder:
    """Turns ids into text one by one and holds back the bytes of a character until it is complete."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._first = True
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        if self._skip and self._tokenizer.is_special(token):
            return ""
        piece = self._tokenizer.piece(token, self._first)
        self._first = False
        return self._utf8.decode(piece)

    def flush(self) -> str:
        """End the text: a character that was never completed becomes a replacement character."""
        return self._utf8.decode(b"", final=True)


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's letters for bytes: printable Latin-1 stands for itself, the rest for letters from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + i): byte for i, byte in enumerate(rest)}


BYTE_ALPHABET = _byte_alphabet()


def _raw_bytes(token: str, text: str) -> bytes:
    """Return the bytes of a token that is not whole characters: <0x..>, or letters of the byte alphabet; else those of its text."""
    match = BYTE_TOKEN.fullmatch(token)
    if match:
        return bytes([int(match[1], 16)])
    if all(letter in BYTE_ALPHABET for letter in token):
        return bytes(BYTE_ALPHABET[letter] for letter in token)
    return text.encode()


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}` marks an assistant's words for training; a prompt is the same with and without it."""

    tags = {"generation"}  # noqa: RUF012 (the base class's own declaration)

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _template_environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationBlock]
    )
    environment.filters["tojson"] = _to_json  # Jinja's own escapes HTML
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    return json_module.dumps(value, ensure_ascii=False, indent=indent, **options)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
