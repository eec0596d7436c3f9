"""What a GGUF header says about the tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, SpecialVocab, TokenType

from quantize.checkpoint import read_bytes, read_json
from quantize.errors import CheckpointError, UnsupportedTokenizer, shown

Json = dict[str, Any]

logging.getLogger("gguf").addHandler(logging.NullHandler())  # else its warnings go to the user's terminal


@dataclass(frozen=True)
class Token:
    """One entry: its bytes, its merge score (sentencepiece only), and its kind."""

    text: bytes
    kind: TokenType
    score: float = 0.0


@dataclass(frozen=True)
class Vocabulary:
    """All tokens in id order, with llama.cpp's names for the tokenizer model and the pre-tokenizer."""

    model: str
    pre: str
    tokens: list[Token]
    special: SpecialVocab
    add_space_prefix: bool | None = None
    infill: Mapping[str, int] = field(default_factory=dict)
    """Ids of the tokens that mark the parts of an infilling prompt, by GGUF key; gguf has no writers for them."""

    def write_to(self, writer: GGUFWriter) -> None:
        """Add the `tokenizer.*` keys to the header."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list([token.text for token in self.tokens])
        if self.model == "llama":
            writer.add_token_scores([token.score for token in self.tokens])
        writer.add_token_types([token.kind for token in self.tokens])
        if self.add_space_prefix is not None:
            writer.add_add_space_prefix(self.add_space_prefix)
        self.special.add_to_gguf(writer, quiet=True)
        for key, token_id in self.infill.items():
            writer.add_uint32(key, token_id)


def encode(text: str, path: Path) -> bytes:
    """UTF-8 of a token's text; JSON can also spell text that has none."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(path, f"has the token {shown(text)}, which is not Unicode") from error


def padding(token_id: int) -> Token:
    """The filler for rows of the embedding matrix that the tokenizer has no token for."""
    return Token(f"[PAD{token_id}]".encode(), TokenType.UNUSED, -10000.0)


def vocab_tokens(path: Path, vocab: Json, n_vocab: int, make: Callable[[str], Token]) -> list[Token]:
    """The `vocab` of a tokenizer.json (text → id) in id order, each made by `make`, padded to `n_vocab`."""
    tokens = [padding(token_id) for token_id in range(n_vocab)]
    for text, token_id in vocab.items():
        if type(token_id) is not int or not 0 <= token_id < n_vocab:
            problem = f"token {shown(text)} has the id {shown(token_id)}, outside 0…{n_vocab - 1}"
            raise CheckpointError(path, problem)
        if tokens[token_id].kind is not TokenType.UNUSED:
            raise CheckpointError(path, f"gives the id {token_id} twice")
        tokens[token_id] = make(text)
    return tokens


def added_tokens(tokenizer: Json, path: Path) -> list[Any]:
    """The entries of a tokenizer.json's `added_tokens`, which may be absent."""
    return [] if tokenizer.get("added_tokens") is None else list(expect(tokenizer, "added_tokens", list, path))


def refuse_settings(section: Json, *names: str) -> None:
    """Raise `UnsupportedTokenizer` if one of these settings, which llama.cpp does not know, is on."""
    for name in names:
        if section.get(name):
            raise UnsupportedTokenizer(f"it has a {name}")


def place(path: Path, tokens: list[Token], token_id: object, token: Token) -> None:
    """Put an added token at its id; ids past the embedding matrix cannot occur and are left out."""
    if type(token_id) is not int or token_id < 0:
        raise CheckpointError(path, f"gives the added token {shown(token.text)} the id {shown(token_id)}")
    if token_id < len(tokens):
        tokens[token_id] = token


def added_kind(special: bool, text: str) -> TokenType:
    """Tokens marked special, or that look it, are CONTROL: they never come out of a user's text.

    Source: `does_token_look_special` in llama.cpp's conversion/base.py.
    """
    looks_special = text in ("<pad>", "<mask>") or (text.startswith("<|") and text.endswith("|>"))
    return TokenType.CONTROL if special or looks_special else TokenType.USER_DEFINED


class _SpecialVocab(SpecialVocab):
    """Takes an id of -1 for none, as it stands in the config.json of many older checkpoints."""

    def _set_special_token(self, typ: str, tid: Any) -> None:
        if tid != -1:
            super()._set_special_token(typ, tid)


def read_special(directory: Path, n_vocab: int, *, load_merges: bool) -> SpecialVocab:
    """Special token ids, BOS/EOS flags and chat template, as llama.cpp's converter finds them."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.json"):
        if (directory / name).exists():
            read_json(directory / name)  # is it there, JSON, and of a sane size?
    if (directory / "chat_template.jinja").exists():
        read_bytes(directory / "chat_template.jinja")
    try:
        special = _SpecialVocab(directory, load_merges=load_merges, n_vocab=n_vocab)
        if special.chat_template is None and (directory / "chat_template.jinja").exists():
            # The library looks for it only next to a tokenizer_config.json.
            special.chat_template = (directory / "chat_template.jinja").read_text(encoding="utf-8")
        special.add_to_gguf(GGUFWriter(None, ""), quiet=True)
        for text in (*special.merges, *_chat_templates(special)):
            text.encode()
    except (ValueError, TypeError, LookupError, AttributeError, OSError, RecursionError) as error:
        raise UnsupportedTokenizer("its configuration is malformed") from error  # the library trusts the JSON
    return special


def _chat_templates(special: SpecialVocab) -> list[str]:
    if special.chat_template is None or isinstance(special.chat_template, str):
        return [special.chat_template or ""]
    return [choice.get("template") or "" for choice in special.chat_template]


def expect(mapping: Any, key: str, kind: type, path: Path) -> Any:
    """Return `mapping[key]` if it is a `kind`, else raise `CheckpointError`."""
    value = mapping.get(key) if isinstance(mapping, dict) else None
    if not isinstance(value, kind):
        raise CheckpointError(path, f"has no usable {key!r}")
    return value
