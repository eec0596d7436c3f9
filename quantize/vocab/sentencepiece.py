"""`tokenizer.model` (sentencepiece BPE with byte fallback: Llama 1 and 2, Vicuna, Mistral, …) → GGUF.

Source: `_create_vocab_sentencepiece` in llama.cpp's conversion/base.py.
"""

from __future__ import annotations

from pathlib import Path

from gguf import SpecialVocab, TokenType
from sentencepiece import SentencePieceProcessor

from quantize.checkpoint import read_json
from quantize.errors import CheckpointError
from quantize.vocab.vocabulary import (
    Token,
    Vocabulary,
    added_kind,
    expect,
    padding,
    place,
    read_special,
)

_ADDED_SCORE = -1000.0


def read_sentencepiece(directory: Path, n_vocab: int) -> Vocabulary:
    """Read tokenizer.model and the tokens added to it."""
    processor = _load(directory / "tokenizer.model")
    n_pieces = processor.GetPieceSize()
    if n_pieces > n_vocab:
        raise CheckpointError(
            directory / "tokenizer.model", f"has {n_pieces} tokens, but the model has embeddings for {n_vocab}"
        )
    tokens = [_piece(processor, token_id) for token_id in range(n_pieces)]
    tokens += [padding(token_id) for token_id in range(n_pieces, n_vocab)]
    _place_added(directory, tokens)
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=tokens,
        special=_special(directory, processor, n_vocab),
        add_space_prefix=_adds_space_prefix(directory, processor),
    )


def _load(path: Path) -> SentencePieceProcessor:
    try:
        return SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise CheckpointError(path, "is not a sentencepiece model") from error


def _piece(processor: SentencePieceProcessor, token_id: int) -> Token:
    kind = TokenType.NORMAL
    if processor.IsUnknown(token_id):
        kind = TokenType.UNKNOWN
    elif processor.IsControl(token_id):
        kind = TokenType.CONTROL
    elif processor.IsUnused(token_id):
        kind = TokenType.UNUSED
    elif processor.IsByte(token_id):
        kind = TokenType.BYTE
    return Token(processor.IdToPiece(token_id).encode(), kind, processor.GetScore(token_id))


def _place_added(directory: Path, tokens: list[Token]) -> None:
    """Apply added_tokens.json, then tokenizer_config.json, which knows which of them are special."""
    path = directory / "added_tokens.json"
    if path.exists():
        for text, token_id in read_json(path).items():
            place(path, tokens, token_id, Token(text.encode(), TokenType.USER_DEFINED, _ADDED_SCORE))
    path = directory / "tokenizer_config.json"
    if path.exists():
        for key, entry in (read_json(path).get("added_tokens_decoder") or {}).items():
            text = expect(entry, "content", str, path)
            kind = added_kind(bool(entry.get("special")), text)
            if kind is TokenType.USER_DEFINED:
                text = text.replace("▁", " ")  # llama.cpp matches these against the text before it is escaped
            token_id = int(key) if key.isdecimal() else key
            place(path, tokens, token_id, Token(text.encode(), kind, _ADDED_SCORE))


def _special(directory: Path, processor: SentencePieceProcessor, n_vocab: int) -> SpecialVocab:
    special = read_special(directory, n_vocab, load_merges=False)
    for name, token_id in (("bos", processor.bos_id()), ("eos", processor.eos_id()), ("unk", processor.unk_id())):
        if token_id >= 0:
            special.special_token_ids.setdefault(name, token_id)
    return special


def _adds_space_prefix(directory: Path, processor: SentencePieceProcessor) -> bool:
    """What the checkpoint says, else what the model itself does."""
    path = directory / "tokenizer_config.json"
    stated = read_json(path).get("add_prefix_space") if path.exists() else None
    return stated if isinstance(stated, bool) else processor.EncodeAsPieces("a")[0].startswith("▁")
