"""`tokenizer.json` (byte-level BPE: Llama 3, SmolLM2, …) → GGUF.

llama.cpp has the pre-tokenizers built in under names, so the one in tokenizer.json must be recognized exactly:
`_PRE_TOKENIZERS` maps its definition to llama.cpp's name. A definition that is not there is refused, because a
nearly right one gives nearly right ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf import TokenType

from quantize.checkpoint import read_json
from quantize.errors import CheckpointError, UnsupportedTokenizer, shown
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

_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2 = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")

_PRE_TOKENIZERS: dict[tuple[str, ...], str] = {
    (f"Split {_LLAMA_3}", "ByteLevel"): "llama-bpe",
    (f"Split {_QWEN_2}", "ByteLevel"): "qwen2",
    ("Digits", "ByteLevel with GPT-2's regex"): "smollm",
    ("ByteLevel with GPT-2's regex",): "gpt-2",
}


def read_bpe(directory: Path, n_vocab: int) -> Vocabulary:
    """Read a byte-level BPE tokenizer.json."""
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
    pre = _find_pre_tokenizer(tokenizer)
    tokens = _tokens(path, expect(model, "vocab", dict, path), _added_tokens(tokenizer, path), n_vocab)
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


def _find_pre_tokenizer(tokenizer: dict[str, Any]) -> str:
    normalizer = tokenizer.get("normalizer")
    if normalizer is not None and normalizer != {"type": "NFC"}:
        raise UnsupportedTokenizer("its normalizer is not one llama.cpp has")
    definition = tokenizer.get("pre_tokenizer")
    steps = definition.get("pretokenizers", [definition]) if isinstance(definition, dict) else []
    described = tuple(map(_describe, steps)) if isinstance(steps, list) else ()
    if described not in _PRE_TOKENIZERS:
        raise UnsupportedTokenizer(f"its pre-tokenizer is unknown: {shown(' + '.join(described))}")
    return _PRE_TOKENIZERS[described]


def _describe(step: Any) -> str:
    """One step of a pre-tokenizer as a short text that says everything that matters about it."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return "ByteLevel with GPT-2's regex" if step.get("use_regex", True) else "ByteLevel"
        case {"type": "Digits", "individual_digits": True}:
            return "Digits"
        case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated"} if not step.get("invert"):
            return f"Split {regex}"
    return shown(step)
