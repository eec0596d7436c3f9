"""`tokenizer.json` (byte-level BPE: Llama 3, SmolLM2, …) → GGUF.

llama.cpp has the pre-tokenizers built in under names; `probe` finds the one that does what tokenizer.json says. If
there is none, the tokenizer is refused, because a nearly right one gives nearly right ids, unless the user names it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf import TokenType

from quantize.checkpoint import read_json
from quantize.errors import CheckpointError, UnsupportedTokenizer, shown
from quantize.vocab.probe import find_pre_tokenizer
from quantize.vocab.vocabulary import (
    Token,
    Vocabulary,
    added_kind,
    encode,
    expect,
    padding,
    place,
    read_special,
)

_NORMALIZERS = (None, {"type": "NFC"}, {"type": "Sequence", "normalizers": []})


def read_bpe(directory: Path, n_vocab: int, pre_tokenizer: str | None = None) -> Vocabulary:
    """Read a byte-level BPE tokenizer.json; `pre_tokenizer` is llama.cpp's name for it, if that is not to be found."""
    path = directory / "tokenizer.json"
    tokenizer = read_json(path)
    model = expect(tokenizer, "model", dict, path)
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback"):
        raise UnsupportedTokenizer("tokenizer.json is not byte-level BPE, and there is no tokenizer.model")
    for setting in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(setting):
            raise UnsupportedTokenizer(f"it has a {setting}")
    if not expect(model, "merges", list, path):
        raise CheckpointError(path, "has no merges")
    normalizer = tokenizer.get("normalizer")
    if normalizer not in _NORMALIZERS:
        raise UnsupportedTokenizer("its normalizer is not one llama.cpp has")
    vocab = expect(model, "vocab", dict, path)
    tokens = _tokens(path, vocab, _added_tokens(tokenizer, path), n_vocab)
    pre = pre_tokenizer or find_pre_tokenizer(tokenizer.get("pre_tokenizer"), model.get("ignore_merges") is True, vocab)
    return Vocabulary("gpt2", pre, tokens, read_special(directory, n_vocab, load_merges=True))


def _added_tokens(tokenizer: dict[str, Any], path: Path) -> list[Any]:
    return [] if tokenizer.get("added_tokens") is None else list(expect(tokenizer, "added_tokens", list, path))


def _tokens(path: Path, vocab: dict[str, Any], added: list[Any], n_vocab: int) -> list[Token]:
    tokens = [padding(token_id) for token_id in range(n_vocab)]
    for text, token_id in vocab.items():
        if type(token_id) is not int or not 0 <= token_id < n_vocab:
            problem = f"token {shown(text)} has the id {shown(token_id)}, outside 0…{n_vocab - 1}"
            raise CheckpointError(path, problem)
        if tokens[token_id].kind is not TokenType.UNUSED:
            raise CheckpointError(path, f"gives the id {token_id} twice")
        tokens[token_id] = Token(encode(text, path), TokenType.NORMAL)
    for entry in added:
        text = expect(entry, "content", str, path)
        token = Token(encode(text, path), added_kind(bool(entry.get("special")), text))
        place(path, tokens, entry.get("id"), token)
    return tokens
