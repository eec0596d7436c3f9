"""The tokenizer of a checkpoint as a GGUF vocabulary.

Which kind it is follows from the files: `tokenizer.model` is sentencepiece; `tokenizer.json` alone is byte-level BPE,
or, with byte fallback, a sentencepiece model in another form. In a release of Meta's, `tokenizer.model` is all there
is, and may be tiktoken's as well. Special token ids, BOS/EOS flags and the chat template are read the way llama.cpp's
converter reads them (`gguf.SpecialVocab`).
"""

from __future__ import annotations

from pathlib import Path

from quantize.checkpoint import is_meta_release, read_json
from quantize.errors import BadPreTokenizer, CheckpointError, UnsupportedTokenizer, shown
from quantize.vocab.bpe import read_bpe
from quantize.vocab.byte_fallback import read_byte_fallback
from quantize.vocab.pre_tokenizers import check_name
from quantize.vocab.sentencepiece import count_pieces, read_sentencepiece
from quantize.vocab.tiktoken import count_tiktoken, is_tiktoken, read_tiktoken
from quantize.vocab.vocabulary import Vocabulary, expect

__all__ = ["TOKENIZER_FILES", "Vocabulary", "count_tokens", "read_vocabulary"]

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


def read_vocabulary(directory: Path, n_vocab: int, pre_tokenizer: str | None = None) -> Vocabulary:
    """Read the tokenizer in `directory`, padded to the `n_vocab` rows of the embedding matrix.

    `pre_tokenizer` is llama.cpp's name for the pre-tokenizer of a byte-level BPE, which is otherwise found. Raises
    `UnsupportedTokenizer` where llama.cpp would not produce the same ids, `BadPreTokenizer` for a name that it does
    not have or that is not asked for, `CheckpointError` for damage.
    """
    if pre_tokenizer is not None:
        check_name(pre_tokenizer)
    vocabulary = _read(directory, n_vocab, pre_tokenizer)
    if pre_tokenizer is not None and vocabulary.model != "gpt2":
        raise BadPreTokenizer("A sentencepiece tokenizer has no pre-tokenizer.", "Leave --pre-tokenizer out.")
    _refuse_duplicates(vocabulary)
    return vocabulary


def _read(directory: Path, n_vocab: int, pre_tokenizer: str | None) -> Vocabulary:
    if is_meta_release(directory):
        return _read_metas(directory, n_vocab)
    if (directory / "tokenizer.model").exists():
        return read_sentencepiece(directory, n_vocab)
    path = directory / "tokenizer.json"
    if not path.exists():
        raise UnsupportedTokenizer("neither tokenizer.model nor tokenizer.json is there")
    tokenizer = read_json(path)
    model = expect(tokenizer, "model", dict, path)
    if model.get("type", "BPE") != "BPE":
        raise UnsupportedTokenizer("tokenizer.json is not BPE, and there is no tokenizer.model")
    if model.get("byte_fallback"):
        return read_byte_fallback(directory, n_vocab, tokenizer)
    return read_bpe(directory, n_vocab, tokenizer, pre_tokenizer)


def count_tokens(directory: Path) -> int:
    """Return how many tokens the tokenizer of the release of Meta's in `directory` has; raise as `read_vocabulary`."""
    return count_tiktoken(directory) if _has_tiktoken(directory) else count_pieces(directory)


def _has_tiktoken(directory: Path) -> bool:
    path = directory / "tokenizer.model"
    if not path.exists():
        raise CheckpointError(path, "is missing; Meta's download leaves it one directory up, so copy it here")
    return is_tiktoken(path)


def _read_metas(directory: Path, n_vocab: int) -> Vocabulary:
    """Nothing in these files says so, but Meta's programs put BOS before a prompt, and no EOS after it."""
    vocabulary = (read_tiktoken if _has_tiktoken(directory) else read_sentencepiece)(directory, n_vocab)
    vocabulary.special.add_special_token.update(bos=True, eos=False)
    return vocabulary


def _refuse_duplicates(vocabulary: Vocabulary) -> None:
    """llama.cpp aborts the whole process when it loads a vocabulary that has the same text twice."""
    seen: set[bytes] = set()
    for token in vocabulary.tokens:
        if token.text in seen:
            raise UnsupportedTokenizer(f"it has the token {shown(token.text)} twice")
        seen.add(token.text)
