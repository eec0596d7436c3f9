"""`tokenizer.json` with byte fallback (a sentencepiece BPE that was exported without its tokenizer.model) → GGUF.

The file lists merges in order of rank; llama.cpp knows only tokens with scores, and merges the pair that makes the
token with the best score. Both do the same if the merges of each token stand together, which makes their place its
score, and if no pair makes a token without being a merge. Both are checked. Between several pairs that make the same
token llama.cpp takes the leftmost, as sentencepiece does.
Sources: `llm_tokenizer_spm_session` in llama.cpp's src/llama-vocab.cpp; models/bpe and pre_tokenizers/metaspace.rs of
the `tokenizers` library.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf import TokenType

from quantize.errors import CheckpointError, UnsupportedTokenizer, shown
from quantize.vocab.sentencepiece import ADDED_SCORE, find_infill
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

_MAX_TOKEN = 256
"""Characters. The longest of known vocabularies have 16 letters, or runs of up to 128 blanks."""
_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
_PREPEND = {"type": "Prepend", "prepend": "▁"}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


def read_byte_fallback(directory: Path, n_vocab: int, tokenizer: Json) -> Vocabulary:
    """Read the tokenizer.json of `directory`, parsed as `tokenizer`."""
    path = directory / "tokenizer.json"
    model = expect(tokenizer, "model", dict, path)
    refuse_settings(model, "dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    vocab = expect(model, "vocab", dict, path)
    if not vocab.keys() >= _BYTES:
        raise UnsupportedTokenizer("tokenizer.json has no token for each byte, so some text would be lost")
    adds_space_prefix = _adds_space_prefix(tokenizer)
    ranks = _rank_tokens(path, vocab, expect(model, "merges", list, path))
    tokens = vocab_tokens(path, vocab, n_vocab, lambda text: _token(path, text, ranks))
    _place_added(path, tokenizer, tokens)
    special = read_special(directory, n_vocab, load_merges=False)
    if "<unk>" in vocab:
        special.special_token_ids.setdefault("unk", vocab["<unk>"])
    if (unknown := special.special_token_ids.get("unk")) is not None:
        tokens[unknown] = replace(tokens[unknown], kind=TokenType.UNKNOWN)
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=tokens,
        special=special,
        add_space_prefix=adds_space_prefix,
        infill=find_infill(tokens, special),
    )


def _adds_space_prefix(tokenizer: Json) -> bool:
    """Whether a text gets a blank before it; raise `UnsupportedTokenizer` if more is done to it than that.

    Metaspace leaves out the blank where a text has one already, and `first` after special tokens; llama.cpp does
    neither, like the sentencepiece library.
    """
    normalizer, splitter = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    steps = normalizer.get("normalizers", [normalizer]) if isinstance(normalizer, dict) else normalizer
    match steps, splitter:
        case ([first, second], None) if [first, second] == [_PREPEND, _REPLACE]:
            return True
        case ([only], None) if only == _REPLACE:
            return False
        case (None | [], {"type": "Metaspace", "replacement": "▁", "split": False, "prepend_scheme": str(scheme)}):
            if scheme in ("always", "first", "never"):
                return scheme != "never"
    raise UnsupportedTokenizer("tokenizer.json treats blanks otherwise than llama.cpp")


def _rank_tokens(path: Path, vocab: Json, merges: list[Any]) -> dict[str, int]:
    """The place of each token that merges make, among all such tokens."""
    ranks: dict[str, int] = {}
    pairs: set[tuple[str, str]] = set()
    last = None
    for left, right in _pairs(path, merges):
        made = left + right
        if not {left, right, made} <= vocab.keys():
            raise CheckpointError(
                path, f"merges {shown(left)} and {shown(right)}, but does not have all of their tokens"
            )
        if not _BYTES.isdisjoint((left, right)):
            raise UnsupportedTokenizer("it merges single bytes")
        if made != last and made in ranks:
            raise UnsupportedTokenizer(f"the merges that make {shown(made)} do not stand together")
        ranks.setdefault(made, len(ranks))
        pairs.add((left, right))
        last = made
    for text in vocab:
        if (missing := next(_unmerged(text, vocab, pairs), None)) is not None:
            problem = f"llama.cpp would merge {shown(missing[0])} and {shown(missing[1])}, which it does not"
            raise UnsupportedTokenizer(problem)
    return ranks


def _pairs(path: Path, merges: list[Any]) -> Iterator[tuple[str, str]]:
    """Merges are written as "a b" or, since tokenizers 0.20, as ["a", "b"]."""
    for merge in merges:
        match merge.split(" ") if isinstance(merge, str) else merge:
            case [str(left), str(right)] if left and right:
                yield left, right
            case _:
                raise CheckpointError(path, f"has the merge {shown(merge)}, which is not a pair")


def _unmerged(text: str, vocab: Json, pairs: set[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Parts that llama.cpp would put together to `text`, tokens or single characters, but no merge does."""
    if len(text) > _MAX_TOKEN:
        raise UnsupportedTokenizer(f"it has the token {shown(text)}, which is too long")
    for i in range(1, len(text)):
        left, right = text[:i], text[i:]
        can_meet = (i == 1 or left in vocab) and (i == len(text) - 1 or right in vocab)
        if can_meet and (left, right) not in pairs:
            yield left, right


def _token(path: Path, text: str, ranks: dict[str, int]) -> Token:
    if text in _BYTES:
        return Token(encode(text, path), TokenType.BYTE)
    return Token(encode(text, path), TokenType.NORMAL, -float(ranks.get(text, len(ranks))))


def _place_added(path: Path, tokenizer: Json, tokens: list[Token]) -> None:
    for entry in added_tokens(tokenizer, path):
        text = expect(entry, "content", str, path)
        kind = added_kind(bool(entry.get("special")), text)
        if kind is TokenType.USER_DEFINED:
            refuse_settings(entry, "lstrip", "rstrip", "single_word")
            if entry.get("normalized") and tokenizer.get("normalizer") is not None:
                raise UnsupportedTokenizer(f"it looks for the added token {shown(text)} in text that it has changed")
            text = text.replace("▁", " ")  # llama.cpp matches these against the text before it is escaped
        place(path, tokens, entry.get("id"), Token(encode(text, path), kind, ADDED_SCORE))
