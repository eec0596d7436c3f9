"""tokenizer.json with byte fallback and no tokenizer.model: a sentencepiece model in another form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import sentencepiece
from gguf import TokenType

from quantize import QuantizeError
from support.checkpoints import METASPACE, write_byte_fallback_tokenizer
from support.vocab import bpe_reference, convert_vocab, open_vocab, tokenize

Json = dict[str, Any]


@pytest.fixture
def exported(small_tokenizer: Path, tmp_path: Path) -> tuple[Path, int]:
    return tmp_path, write_byte_fallback_tokenizer(tmp_path, small_tokenizer)


def _edit(directory: Path, change: Callable[[Json], object]) -> None:
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    change(tokenizer)
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


def _header(path: Path) -> Json:
    fields = gguf.GGUFReader(path).fields
    return {key.removeprefix("tokenizer.ggml."): fields[key].contents() for key in fields if "tokenizer" in key}


def test_header_is_that_of_the_model_it_came_from(exported: tuple[Path, int], small_tokenizer: Path) -> None:
    """Pieces, kinds, special tokens, and the scores of all that merges make."""
    directory, n_vocab = exported
    derived = _header(convert_vocab(directory, n_vocab))
    (directory / "tokenizer.model").write_bytes(small_tokenizer.read_bytes())
    original = _header(convert_vocab(directory, n_vocab))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(small_tokenizer))
    scores, known = derived.pop("scores"), original.pop("scores")
    assert derived == original
    assert derived["token_type"][:4] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE]
    merged = [
        i for i in range(n_vocab) if len(processor.IdToPiece(i)) > 1 and derived["token_type"][i] == TokenType.NORMAL
    ]
    assert len(merged) > 200
    assert [scores[i] for i in merged] == [known[i] for i in merged]


def test_merges_as_texts(exported: tuple[Path, int]) -> None:
    directory, n_vocab = exported
    before = _header(convert_vocab(directory, n_vocab))
    _edit(directory, lambda t: t["model"].update(merges=[" ".join(pair) for pair in t["model"]["merges"]]))
    assert _header(convert_vocab(directory, n_vocab)) == before


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_metaspace(scheme: str, small_tokenizer: Path, tmp_path: Path) -> None:
    n_vocab = write_byte_fallback_tokenizer(tmp_path, small_tokenizer, METASPACE | {"prepend_scheme": scheme})
    path, reference = convert_vocab(tmp_path, n_vocab), bpe_reference(tmp_path)
    assert _header(path)["add_space_prefix"] == (scheme != "never")
    with open_vocab(path) as vocab:
        for text in ("the lamp", "a  b   c ", "naïve 42\n\tx", "\n  the", "我喜欢"):
            assert tokenize(vocab, text) == reference(text)
        if scheme != "never":  # Metaspace would not put a second blank before this one, sentencepiece does
            processor = sentencepiece.SentencePieceProcessor(model_file=str(small_tokenizer))
            assert tokenize(vocab, " the lamp") == processor.encode(" the lamp") != reference(" the lamp")


def test_no_blank_before_the_text(exported: tuple[Path, int]) -> None:
    directory, n_vocab = exported
    _edit(directory, lambda t: t["normalizer"]["normalizers"].pop(0))
    path, reference = convert_vocab(directory, n_vocab), bpe_reference(directory)
    with open_vocab(path) as vocab:
        for text in ("the lamp", " the lamp", "  x"):
            assert tokenize(vocab, text) == reference(text)


def test_added_tokens(exported: tuple[Path, int]) -> None:
    directory, n_vocab = exported
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    added = [plain | {"id": n_vocab, "content": "<|im_start|>", "special": True},
             plain | {"id": n_vocab + 1, "content": "<tool>"}]  # fmt: skip
    _edit(directory, lambda t: t["added_tokens"].extend(added))
    path, reference = convert_vocab(directory, n_vocab + 3), bpe_reference(directory)
    assert _header(path)["token_type"][n_vocab:] == [TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNUSED]
    with open_vocab(path) as vocab:
        text = "<|im_start|>the lamp"
        assert tokenize(vocab, text, parse_special=True) == reference(text)
        assert n_vocab not in tokenize(vocab, text)
        assert n_vocab + 1 in tokenize(vocab, "the<tool>lamp")


def _swap_merges(tokenizer: Json) -> None:
    """Move the last merge of a token that has several to the end."""
    merges = tokenizer["model"]["merges"]
    i = next(i for i in range(len(merges)) if "".join(merges[i]) == "".join(merges[i + 1]))
    merges.append(merges.pop(i))


REFUSED: dict[str, tuple[Callable[[Json], object], str]] = {
    "merges apart": (_swap_merges, "do not stand together"),
    "a merge less": (lambda t: t["model"]["merges"].pop(5), "llama.cpp would merge"),
    "a byte less": (lambda t: t["model"]["vocab"].pop("<0x41>"), "no token for each byte"),
    "a merge without its token": (lambda t: t["model"]["merges"].append(["the", "lamp"]), "all of their tokens"),
    "a merge of three": (lambda t: t["model"]["merges"].append(["a", "b", "c"]), "not a pair"),
    "a merge of none": (lambda t: t["model"]["merges"].append(7), "not a pair"),
    "bytes merged": (
        lambda t: (
            t["model"]["vocab"].update({"<0x41><0x42>": 600}),
            t["model"]["merges"].append(["<0x41>", "<0x42>"]),
        ),
        "single bytes",
    ),
    "a token of a megabyte": (lambda t: t["model"]["vocab"].update({"x" * 10**6: 600}), "too long"),
    "words apart": (lambda t: t.update(normalizer=None, pre_tokenizer=METASPACE | {"split": True}), "blanks"),
    "another sign": (lambda t: t.update(normalizer=None, pre_tokenizer=METASPACE | {"replacement": "_"}), "blanks"),
    "a prefix twice": (lambda t: t.update(pre_tokenizer=METASPACE), "blanks"),
    "lower case": (lambda t: t["normalizer"]["normalizers"].append({"type": "Lowercase"}), "blanks"),
    "blanks as they are": (lambda t: t.update(normalizer=None), "blanks"),
    "a normalizer that is none": (lambda t: t.update(normalizer=[1]), "blanks"),
    "whole words": (lambda t: t["model"].update(ignore_merges=True), "ignore_merges"),
    "dropout": (lambda t: t["model"].update(dropout=0.5), "dropout"),
    "an added token that eats blanks": (
        lambda t: t["added_tokens"].append({"id": 600, "content": "<tool>", "lstrip": True}), "lstrip",
    ),
    "an added token sought later": (
        lambda t: t["added_tokens"].append({"id": 600, "content": "<tool>", "normalized": True}), "<tool>",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_llama_cpp_would_do_otherwise_is_refused(
    change: Callable[[Json], object], message: str, exported: tuple[Path, int]
) -> None:
    directory, n_vocab = exported
    _edit(directory, change)
    with pytest.raises(QuantizeError, match=message):
        convert_vocab(directory, n_vocab + 1)
