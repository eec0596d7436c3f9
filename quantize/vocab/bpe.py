"""`tokenizer.json` (byte-level BPE: Llama 3, SmolLM2, …) → GGUF.

llama.cpp has the pre-tokenizers built in under names; `probe` finds the one that does what tokenizer.json says. If
there is none, the tokenizer is refused, because a nearly right one gives nearly right ids, unless the user names it.
"""

from __future__ import annotations

from pathlib import Path

from gguf import TokenType

from quantize.errors import CheckpointError, UnsupportedTokenizer
from quantize.vocab.probe import find_pre_tokenizer
from quantize.vocab.vocabulary import (
    Json,
    Token,
    Vocabulary,
    added_kind,
    added_tokens,
    encode,
    expect,
    place,
    read_special,
    refuse_settings,
    vocab_tokens,
)

_NORMALIZERS = (None, {"type": "NFC"}, {"type": "Sequence", "normalizers": []})


def read_bpe(directory: Path, n_vocab: int, tokenizer: Json, pre_tokenizer: str | None = None) -> Vocabulary:
    """Read the tokenizer.json of `directory`, parsed as `tokenizer`; `pre_tokenizer` is llama.cpp's name if given."""
    path = directory / "tokenizer.json"
    model = expect(tokenizer, "model", dict, path)
    refuse_settings(model, "dropout", "continuing_subword_prefix", "end_of_word_suffix")
    if not expect(model, "merges", list, path):
        raise CheckpointError(path, "has no merges")
    normalizer = tokenizer.get("normalizer")
    if normalizer not in _NORMALIZERS:
        raise UnsupportedTokenizer("its normalizer is not one llama.cpp has")
    vocab = expect(model, "vocab", dict, path)
    tokens = vocab_tokens(path, vocab, n_vocab, lambda text: Token(encode(text, path), TokenType.NORMAL))
    for entry in added_tokens(tokenizer, path):
        text = expect(entry, "content", str, path)
        token = Token(encode(text, path), added_kind(bool(entry.get("special")), text))
        place(path, tokens, entry.get("id"), token)
    pre = pre_tokenizer or find_pre_tokenizer(tokenizer.get("pre_tokenizer"), model.get("ignore_merges") is True, vocab)
    return Vocabulary("gpt2", pre, tokens, read_special(directory, n_vocab, load_merges=True))
