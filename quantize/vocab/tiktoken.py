"""tiktoken's `tokenizer.model` (Llama 3 as Meta releases it) → GGUF.

A line a token: its bytes in base64, and its rank, which is its id. The file has neither merges nor special tokens nor
the pre-tokenizer. The merges follow from the ranks; the rest is in Meta's programs, and given here as the Hugging Face
form of the same models has it.
Sources: `Tokenizer` in meta-llama/llama3 and meta-llama/llama-models, tokenizer.py; `TikTokenConverter` and
convert_llama_weights_to_hf.py in transformers.
"""

from __future__ import annotations

import base64
import re
from itertools import chain
from pathlib import Path

from gguf import TokenType

from quantize.checkpoint import read_bytes, read_config
from quantize.errors import CheckpointError
from quantize.vocab.alphabet import LETTERS
from quantize.vocab.vocabulary import Token, Vocabulary, padding, read_special

_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) (\d{1,7})")
_MAX_LINE_BYTES = 400
"""The longest token of Llama 3 has 128 bytes."""

_MAX_MERGES = 2_000_000
"""Llama 3 has 280147."""

_N_SPECIAL = 256

_BEFORE_3_1 = ("begin_of_text", "end_of_text", 0, 1, 2, 3, "start_header_id", "end_header_id", 4, "eot_id")
_SINCE_3_1 = (
    "begin_of_text", "end_of_text", 0, 1, "finetune_right_pad_id", 2, "start_header_id", "end_header_id", "eom_id",
    "eot_id", "python_tag",
)  # fmt: skip
"""The special tokens, which come after all others; a number is that of a reserved one. More of those fill them up."""


def is_tiktoken(path: Path) -> bool:
    """Whether the tokenizer.model `path` is one of tiktoken's."""
    start = read_bytes(path)[:_MAX_LINE_BYTES].splitlines()
    return bool(start) and _LINE.fullmatch(start[0]) is not None


def count_tiktoken(directory: Path) -> int:
    """Return how many tokens there are, special ones included."""
    return len(_read_ranks(directory / "tokenizer.model")) + _N_SPECIAL


def read_tiktoken(directory: Path, n_vocab: int) -> Vocabulary:
    """Read tokenizer.model, and add the special tokens of Llama 3 or, where params.json scales RoPE, of 3.1."""
    path = directory / "tokenizer.model"
    ranks = _read_ranks(path)
    n_tokens = len(ranks) + _N_SPECIAL
    if n_tokens > n_vocab:
        raise CheckpointError(path, f"makes {n_tokens} tokens, but the model has embeddings for {n_vocab}")
    names = _special_names(_SINCE_3_1 if read_config(directory)[0].get("use_scaled_rope") is True else _BEFORE_3_1)
    tokens = [Token(_in_letters(token).encode(), TokenType.NORMAL) for token in ranks]
    tokens += [Token(name.encode(), TokenType.CONTROL) for name in names]
    tokens += [padding(token_id) for token_id in range(n_tokens, n_vocab)]
    special = read_special(directory, n_vocab, load_merges=False)
    special.merges = _merges(path, ranks)
    special.special_token_ids = {"bos": len(ranks), "eos": len(ranks) + 1}
    return Vocabulary("gpt2", "llama-bpe", tokens, special)


def _read_ranks(path: Path) -> dict[bytes, int]:
    """The tokens in the order of their ranks, which are 0, 1, 2, …; every byte is one."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_bytes(path).splitlines()):
        match = _LINE.fullmatch(line) if len(line) <= _MAX_LINE_BYTES else None
        try:
            token = base64.b64decode(match[1], validate=True) if match else b""
        except ValueError:
            token = b""
        if not match or not token:
            raise CheckpointError(path, f"line {number + 1} is not a token of tiktoken's")
        if int(match[2]) != number or token in ranks:
            raise CheckpointError(path, f"line {number + 1} has a token twice, or a rank out of order")
        ranks[token] = number
    if not all(bytes([byte]) in ranks for byte in range(256)):
        raise CheckpointError(path, "has no token for each byte, so some text would be lost")
    return ranks


def _special_names(first: tuple[str | int, ...]) -> list[str]:
    n_named = sum(isinstance(name, str) for name in first)
    further = range(len(first) - n_named, _N_SPECIAL - n_named)
    return [
        f"<|{name if isinstance(name, str) else f'reserved_special_token_{name}'}|>" for name in chain(first, further)
    ]


def _merges(path: Path, ranks: dict[bytes, int]) -> list[str]:
    """All pairs of tokens that make a token, by the rank of what they make, then of the first of the pair."""
    merges: list[str] = []
    for token in ranks:
        pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        found = [(ranks[left], left, right) for left, right in pairs if left in ranks and right in ranks]
        merges += (f"{_in_letters(left)} {_in_letters(right)}" for _, left, right in sorted(found))
        if len(merges) > _MAX_MERGES:
            raise CheckpointError(path, "has more merges than is believable")
    return merges


def _in_letters(token: bytes) -> str:
    return "".join(LETTERS[byte] for byte in token)
