"""`tokenizer.model` (sentencepiece BPE with byte fallback: Llama 1 and 2, Vicuna, Mistral, …) → GGUF.

Source: `_create_vocab_sentencepiece` in llama.cpp's conversion/base.py.
"""

from __future__ import annotations

import math
from pathlib import Path

from gguf import Keys, SpecialVocab, TokenType
from sentencepiece import SentencePieceProcessor

from quantize.checkpoint import read_bytes, read_json
from quantize.errors import CheckpointError, UnsupportedTokenizer, shown
from quantize.vocab.settings import Settings, read_settings
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

ADDED_SCORE = -1000.0

_NEVER_IN_TEXT = (TokenType.CONTROL, TokenType.UNKNOWN)

_EOT = "▁<EOT>"
_INFILL_KEYS = {
    "▁<PRE>": Keys.Tokenizer.FIM_PRE_ID,
    "▁<SUF>": Keys.Tokenizer.FIM_SUF_ID,
    "▁<MID>": Keys.Tokenizer.FIM_MID_ID,
}
"""Code Llama's tokens 32007 to 32010, by their text: before, after and between what is there, and the end."""


def read_sentencepiece(directory: Path, n_vocab: int) -> Vocabulary:
    """Read tokenizer.model and the tokens added to it."""
    path = directory / "tokenizer.model"
    proto = read_bytes(path)
    processor = _load(path, proto)
    settings = read_settings(path, proto)
    n_pieces = processor.GetPieceSize()
    if n_pieces > n_vocab:
        raise CheckpointError(path, f"has {n_pieces} tokens, but the model has embeddings for {n_vocab}")
    tokens = [_piece(path, processor, token_id) for token_id in range(n_pieces)]
    tokens += [padding(token_id) for token_id in range(n_pieces, n_vocab)]
    _place_added(directory, tokens)
    _check_exact(tokens, settings)
    special = _special(directory, processor, n_vocab)
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=tokens,
        special=special,
        add_space_prefix=_adds_space_prefix(directory, settings),
        infill=find_infill(tokens, special),
    )


def count_pieces(directory: Path) -> int:
    """Return how many tokens tokenizer.model itself has."""
    path = directory / "tokenizer.model"
    return int(_load(path, read_bytes(path)).GetPieceSize())


def find_infill(tokens: list[Token], special: SpecialVocab) -> dict[str, int]:
    """Return the ids of Code Llama's infill tokens by GGUF key, if all are there, and note the end in `special`."""
    ids = {token.text.decode(): i for i, token in enumerate(tokens)}
    if not ids.keys() >= {*_INFILL_KEYS, _EOT}:
        return {}
    special.special_token_ids.setdefault("eot", ids[_EOT])
    return {key: ids[text] for text, key in _INFILL_KEYS.items()}


def _load(path: Path, proto: bytes) -> SentencePieceProcessor:
    if not proto:  # for the library no model at all, and no error
        raise CheckpointError(path, "is empty")
    try:
        return SentencePieceProcessor(model_proto=proto)
    except (RuntimeError, UnicodeDecodeError) as error:  # the second for its message, which quotes the model
        raise CheckpointError(path, "is not a sentencepiece model") from error


def _check_exact(tokens: list[Token], settings: Settings) -> None:
    """Refuse what llama.cpp does differently: it only merges pairs by score, and takes the text as it is."""
    if not settings.is_bpe:
        raise UnsupportedTokenizer("tokenizer.model is not of the BPE kind")
    if settings.normalizes:
        raise UnsupportedTokenizer("tokenizer.model changes the text before it is split")
    if not {f"<0x{byte:02X}>".encode() for byte in range(256)} <= {token.text for token in tokens}:
        raise UnsupportedTokenizer("tokenizer.model has no token for each byte, so some text would be lost")


def _piece(path: Path, processor: SentencePieceProcessor, token_id: int) -> Token:
    kind = TokenType.NORMAL
    if processor.IsUnknown(token_id):
        kind = TokenType.UNKNOWN
    elif processor.IsControl(token_id):
        kind = TokenType.CONTROL
    elif processor.IsUnused(token_id):
        kind = TokenType.UNUSED
    elif processor.IsByte(token_id):
        kind = TokenType.BYTE
    score = processor.GetScore(token_id)
    try:
        text = processor.IdToPiece(token_id)
    except UnicodeDecodeError as error:
        raise CheckpointError(path, f"token {token_id} is not Unicode") from error
    if not math.isfinite(score):
        raise CheckpointError(path, f"token {shown(text)} has the score {score}")
    return Token(encode(text, path), kind, score)


def _place_added(directory: Path, tokens: list[Token]) -> None:
    """Apply added_tokens.json, then tokenizer_config.json, which knows which of them are special."""
    path = directory / "added_tokens.json"
    if path.exists():
        repeated = {token.text.decode(): i for i, token in enumerate(tokens) if token.kind in _NEVER_IN_TEXT}
        for text, token_id in read_json(path).items():
            if text in repeated and repeated[text] == token_id:
                continue  # many fine-tunes list <s>, </s> and <unk> again; users must not be able to type them
            place(path, tokens, token_id, Token(encode(text, path), TokenType.USER_DEFINED, ADDED_SCORE))
    path = directory / "tokenizer_config.json"
    if path.exists():
        config = read_json(path)
        decoder = (
            {} if config.get("added_tokens_decoder") is None else expect(config, "added_tokens_decoder", dict, path)
        )
        for key, entry in decoder.items():
            text = expect(entry, "content", str, path)
            kind = added_kind(bool(entry.get("special")), text)
            if kind is TokenType.USER_DEFINED:
                text = text.replace("▁", " ")  # llama.cpp matches these against the text before it is escaped
            token_id = int(key) if key.isdecimal() and len(key) < 10 else key
            place(path, tokens, token_id, Token(encode(text, path), kind, ADDED_SCORE))


def _special(directory: Path, processor: SentencePieceProcessor, n_vocab: int) -> SpecialVocab:
    special = read_special(directory, n_vocab, load_merges=False)
    for name, token_id in (("bos", processor.bos_id()), ("eos", processor.eos_id()), ("unk", processor.unk_id())):
        if token_id >= 0:
            special.special_token_ids.setdefault(name, token_id)
    return special


def _adds_space_prefix(directory: Path, settings: Settings) -> bool:
    """What the checkpoint says, else what the model itself does."""
    path = directory / "tokenizer_config.json"
    stated = read_json(path).get("add_prefix_space") if path.exists() else None
    return stated if isinstance(stated, bool) else settings.adds_space_prefix
