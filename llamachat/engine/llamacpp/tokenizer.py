"""`Tokenizer` over llama.cpp's vocabularies."""

from __future__ import annotations

import ctypes
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import llama_cpp

from llamachat.engine.llamacpp.loading import load_model, metadata
from llamachat.errors import EngineFailed

_SPM = 1  # LLAMA_VOCAB_TYPE_SPM

_MARKER = re.compile(rb"<\|[^|>]+\|>|<step>")
"""Tokens that steer a model although some vocabularies have them as words that may be typed."""


class LlamaTokenizer:
    """`Tokenizer` over a llama.cpp vocabulary. `model` must outlive it."""

    def __init__(self, model: int) -> None:
        self.model = model
        self.vocab = llama_cpp.llama_model_get_vocab(model)
        self._pieces: dict[int, bytes] = {}

    @cached_property
    def n_vocab(self) -> int:
        """See `Tokenizer`."""
        return int(llama_cpp.llama_vocab_n_tokens(self.vocab))

    @cached_property
    def bos_id(self) -> int | None:
        """See `Tokenizer`."""
        return _token_or_none(llama_cpp.llama_vocab_bos(self.vocab))

    @cached_property
    def eos_id(self) -> int | None:
        """See `Tokenizer`."""
        return _token_or_none(llama_cpp.llama_vocab_eos(self.vocab))

    @cached_property
    def adds_bos(self) -> bool:
        """See `Tokenizer`."""
        return bool(llama_cpp.llama_vocab_get_add_bos(self.vocab))

    @cached_property
    def adds_space_prefix(self) -> bool:
        """See `Tokenizer`."""
        if llama_cpp.llama_vocab_type(self.vocab) != _SPM:
            return False
        return self.piece(self.tokenize("a")[0]).startswith(b" ")

    @cached_property
    def infill_ids(self) -> tuple[int, int, int] | None:
        """See `Tokenizer`."""
        ask = (llama_cpp.llama_vocab_fim_pre, llama_cpp.llama_vocab_fim_suf, llama_cpp.llama_vocab_fim_mid)
        before, after, between = (_token_or_none(find(self.vocab)) for find in ask)
        return None if before is None or after is None or between is None else (before, after, between)

    @cached_property
    def control_tokens(self) -> Mapping[str, int]:
        """See `Tokenizer`."""
        attributes, text_of = llama_cpp.llama_vocab_get_attr, llama_cpp.llama_vocab_get_text
        suspect = llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED
        if llama_cpp.llama_vocab_type(self.vocab) == _SPM:
            suspect |= llama_cpp.LLAMA_TOKEN_ATTR_NORMAL  # what "user defined" tokens of sentencepiece are in GGUF
        control = {}
        for token_id in range(self.n_vocab):
            kind = attributes(self.vocab, token_id)
            if not kind & (llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | suspect):
                continue
            text: bytes = text_of(self.vocab, token_id)
            if kind & llama_cpp.LLAMA_TOKEN_ATTR_CONTROL or _MARKER.fullmatch(text):
                control[text.decode("utf-8", "replace")] = token_id
        return control

    @cached_property
    def _wants_nfc(self) -> bool:
        """Qwen2's tokenizer composes its text first; llama.cpp leaves that to its caller."""
        return metadata(self.model).get("tokenizer.ggml.pre") == "qwen2"

    @cached_property
    def _control_texts(self) -> Mapping[int, str]:
        return {token_id: text for text, token_id in self.control_tokens.items()}

    @cached_property
    def _byte_ids(self) -> Mapping[bytes, int]:
        """The tokens that stand for one byte each; only sentencepiece vocabularies have them."""
        attributes = llama_cpp.llama_vocab_get_attr
        return {
            self.piece(token_id): token_id
            for token_id in range(self.n_vocab)
            if attributes(self.vocab, token_id) & llama_cpp.LLAMA_TOKEN_ATTR_BYTE
        }

    def tokenize(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        ids = self._tokenize(unicodedata.normalize("NFC", text) if self._wants_nfc else text)
        if self._control_texts.keys().isdisjoint(ids):
            return ids
        return [plain for token_id in ids for plain in self._spell_out(token_id)]

    def _spell_out(self, token_id: int) -> list[int]:
        """The smallest pieces of a control token's text: llama.cpp does merge text into one if all steps exist."""
        text = self._control_texts.get(token_id)
        if text is None:
            return [token_id]
        if self._byte_ids:
            return [self._byte_ids[bytes([byte])] for byte in text.encode()]
        return [plain for character in text for plain in self._tokenize(character)]

    def _tokenize(self, text: str) -> list[int]:
        data = text.encode("utf-8", "replace")
        capacity = len(data) + 2
        ids = (llama_cpp.llama_token * capacity)()
        n_ids = llama_cpp.llama_tokenize(self.vocab, data, len(data), ids, capacity, False, False)
        if n_ids < 0:
            raise EngineFailed("the text could not be tokenized")
        return ids[:n_ids]

    def piece(self, token_id: int) -> bytes:
        """See `Tokenizer`."""
        known = self._pieces.get(token_id)
        if known is not None:
            return known
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            n_bytes = llama_cpp.llama_token_to_piece(self.vocab, token_id, buffer, size, 0, False)
            if n_bytes >= 0:
                self._pieces[token_id] = buffer.raw[:n_bytes]
                return self._pieces[token_id]
            size = -n_bytes

    @cached_property
    def unwritten_ids(self) -> Sequence[int]:
        """Control tokens that do not end a generation: they have a name, but add nothing to an answer."""
        return [token_id for token_id in self._control_texts if not self.is_eog(token_id)]

    def is_eog(self, token_id: int) -> bool:
        """Whether the token ends a generation."""
        return bool(llama_cpp.llama_vocab_is_eog(self.vocab, token_id))


@contextmanager
def open_tokenizer(path: Path) -> Iterator[tuple[LlamaTokenizer, Mapping[str, str]]]:
    """The vocabulary and the header of a GGUF file, without its weights."""
    model = load_model(path, 0, vocab_only=True)
    try:
        yield LlamaTokenizer(model), metadata(model)
    finally:
        llama_cpp.llama_model_free(model)


def _token_or_none(token_id: int) -> int | None:
    return None if token_id < 0 else token_id
