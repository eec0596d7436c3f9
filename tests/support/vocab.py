"""Vocabularies as llama.cpp and the `tokenizers` library use them, to be compared id by id."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp
import tokenizers

from quantize import FILE_TYPES, convert
from support.checkpoints import LlamaShape, write_random_checkpoint

Tokenize = Callable[[str], list[int]]


def bpe_reference(directory: Path) -> Tokenize:
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def convert_vocab(directory: Path, n_vocab: int, pre_tokenizer: str | None = None) -> Path:
    """The GGUF of a checkpoint with the tokenizer in `directory` and next to no weights."""
    shape = LlamaShape(n_vocab=n_vocab, n_embd=2, n_ff=2, n_layer=1, n_head=1, n_head_kv=1)
    write_random_checkpoint(directory, shape, tokenizer=None)
    return convert(
        directory, directory / "vocab.gguf", FILE_TYPES["f16"], n_threads=1, pre_tokenizer=pre_tokenizer
    ).path


@llama_cpp.llama_log_callback
def _no_log(_level: int, _text: bytes, _data: ctypes.c_void_p) -> None:
    pass


@contextmanager
def open_vocab(path: Path) -> Iterator[Any]:
    """The vocabulary of a GGUF file, loaded by llama.cpp."""
    llama_cpp.llama_log_set(_no_log, None)
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(bytes(path), params)
    assert model, "llama.cpp refuses the file"
    try:
        yield llama_cpp.llama_model_get_vocab(model)
    finally:
        llama_cpp.llama_model_free(model)


def tokenize(vocab: Any, text: str | bytes, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
    data = text.encode() if isinstance(text, str) else text
    ids = (llama_cpp.llama_token * (3 * len(data) + 4))()  # a byte that is no character becomes three
    n_ids = llama_cpp.llama_tokenize(vocab, data, len(data), ids, len(ids), add_special, parse_special)
    assert n_ids >= 0
    return ids[:n_ids]


def detokenize(vocab: Any, token_id: int) -> bytes:
    """The bytes of one token."""
    piece = ctypes.create_string_buffer(256)
    n_bytes = llama_cpp.llama_token_to_piece(vocab, token_id, piece, len(piece), 0, False)
    assert n_bytes >= 0
    return piece.raw[:n_bytes]
