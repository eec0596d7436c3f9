"""The tokenizer of a checkpoint as a GGUF vocabulary.

Which kind it is follows from the files: `tokenizer.model` is sentencepiece, `tokenizer.json` alone is byte-level
BPE. Special token ids, BOS/EOS flags and the chat template are read the way llama.cpp's converter reads them
(`gguf.SpecialVocab`).
"""

from __future__ import annotations

from pathlib import Path

from quantize.errors import UnsupportedTokenizer
from quantize.vocab.bpe import read_bpe
from quantize.vocab.sentencepiece import read_sentencepiece
from quantize.vocab.vocabulary import Vocabulary

__all__ = ["TOKENIZER_FILES", "Vocabulary", "read_vocabulary"]

TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""Every file of a checkpoint that may be read here."""


def read_vocabulary(directory: Path, n_vocab: int) -> Vocabulary:
    """Read the tokenizer in `directory`, padded to the `n_vocab` rows of the embedding matrix.

    Raises `UnsupportedTokenizer` where llama.cpp would not produce the same ids, `CheckpointError` for damage.
    """
    if (directory / "tokenizer.model").exists():
        return read_sentencepiece(directory, n_vocab)
    if (directory / "tokenizer.json").exists():
        return read_bpe(directory, n_vocab)
    raise UnsupportedTokenizer("neither tokenizer.model nor tokenizer.json is there")
