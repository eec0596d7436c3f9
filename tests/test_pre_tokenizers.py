"""Which of llama.cpp's pre-tokenizers a tokenizer.json means: found by trying, held to llama.cpp's ids."""

from __future__ import annotations

import json
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from conftest import RunCommand
from test_vocab import TEXTS

from quantize import QuantizeError
from quantize.gguf_reader import open_gguf
from quantize.vocab.pre_tokenizers import NAMES, PRE_TOKENIZERS, PreTokenizer
from quantize.vocab.probe import PROBE
from support.checkpoints import BPE_FAMILIES, add_stress_merges, write_bpe_tokenizer
from support.vocab import bpe_reference, convert_vocab, open_vocab, tokenize

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_GPT_2 = BPE_FAMILIES["gpt-2"].pre_tokenizer
_GPT_2_REGEX = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPELLED_OUT = "'(?:[sSſ]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])"
_QWEN_2 = BPE_FAMILIES["qwen2"].pre_tokenizer["pretokenizers"][0]["pattern"]["Regex"]
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}"
    r"\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""What Mistral's own tokenizers have; llama.cpp's `tekken` is only near it."""


def _split(regex: str, *, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def _sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _write(directory: Path, definition: Any, *, ignore_merges: bool = False, n_merges: int | None = 3000) -> int:
    """A tokenizer.json with that pre-tokenizer, and merges over all borders if `n_merges`; return how many ids."""
    n_vocab = write_bpe_tokenizer(directory, "gpt-2")
    if n_merges is not None:
        n_vocab = add_stress_merges(directory, n_merges=n_merges)
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["pre_tokenizer"] = definition
    tokenizer["model"]["ignore_merges"] = ignore_merges
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    return n_vocab


def _name(path: Path) -> str:
    with open_gguf(path) as contents:
        return str(contents.values["tokenizer.ggml.pre"])


def _assert_same_ids(path: Path, directory: Path) -> None:
    reference = bpe_reference(directory)
    with open_vocab(path) as vocab:
        for text in (*TEXTS, *(PROBE[i : i + 500] for i in range(0, len(PROBE), 500))):
            assert tokenize(vocab, text) == reference(text), ascii(text)


# --- what is recognized -------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", PRE_TOKENIZERS, ids=lambda known: known.name)
def test_each_definition_is_what_llama_cpp_does_under_its_name(known: PreTokenizer, tmp_path: Path) -> None:
    n_vocab = _write(tmp_path, known.definition, ignore_merges=known.ignores_merges)
    path = convert_vocab(tmp_path, n_vocab)
    assert _name(path) == known.name
    _assert_same_ids(path, tmp_path)


def test_the_probe_tells_all_of_them_apart() -> None:
    splits = {}
    for known in PRE_TOKENIZERS:
        definition = {"pre_tokenizer": known.definition, "model": {"type": "BPE", "vocab": {}, "merges": []}}
        pre_tokenizer = tokenizers.Tokenizer.from_str(json.dumps(definition)).pre_tokenizer
        splits[known] = pre_tokenizer.pre_tokenize_str(PROBE)
    for one, other in combinations(PRE_TOKENIZERS, 2):
        if splits[one] == splits[other]:
            assert one.regexes == other.regexes
            assert one.ignores_merges != other.ignores_merges, (one.name, other.name)


VARIANTS: dict[str, tuple[Any, str]] = {
    "GPT-2's pieces as matches": (
        _sequence(
            _split(_GPT_2_REGEX, behavior="Removed", invert=True),
            _BYTE_LEVEL,
        ),
        "gpt-2",
    ),
    "digits as a regex that asks for one at a time": (_sequence(_split(r"\p{N}{1}"), _GPT_2), "smollm"),
    "contractions spelled out": (
        _sequence(
            _split(_QWEN_2.replace(_CONTRACTION, _SPELLED_OUT)),
            _BYTE_LEVEL,
        ),
        "qwen2",
    ),
    "possessive": (_sequence(_split(_QWEN_2.replace(r"?\p{L}+", r"?+\p{L}++")), _BYTE_LEVEL), "qwen2"),
}  # fmt: skip


@pytest.mark.parametrize(("definition", "name"), VARIANTS.values(), ids=VARIANTS)
def test_another_spelling_of_the_same_is_recognized(definition: Any, name: str, tmp_path: Path) -> None:
    path = convert_vocab(tmp_path, _write(tmp_path, definition))
    assert _name(path) == name
    _assert_same_ids(path, tmp_path)


def test_borders_that_no_token_crosses_make_no_difference(tmp_path: Path) -> None:
    """Digits one by one, where llama.cpp's deepseek-llm takes them together: the same while no token has two digits."""
    known = next(known for known in PRE_TOKENIZERS if known.name == "deepseek-llm")
    *splits, _, byte_level = known.definition["pretokenizers"]
    definition = _sequence(*splits, {"type": "Digits", "individual_digits": True}, byte_level)
    path = convert_vocab(tmp_path / "without", _write(tmp_path / "without", definition, n_merges=None))
    assert _name(path) == "deepseek-llm"
    _assert_same_ids(path, tmp_path / "without")
    with pytest.raises(QuantizeError, match=r"deepseek-\w+, the nearest"):
        convert_vocab(tmp_path / "with", _write(tmp_path / "with", definition))


def test_whether_merges_are_ignored_counts(tmp_path: Path) -> None:
    """Llama 3's splits, but words that are tokens are merged like others: smaug-bpe in llama.cpp."""
    definition = BPE_FAMILIES["llama-3"].pre_tokenizer
    n_vocab = _write(tmp_path, definition)
    assert _name(convert_vocab(tmp_path, n_vocab)) == "smaug-bpe"
    _write(tmp_path, BPE_FAMILIES["qwen2"].pre_tokenizer, ignore_merges=True)
    with pytest.raises(QuantizeError, match=r"ignore_merges is True, other than in llama\.cpp's pre-tokenizer qwen2"):
        convert_vocab(tmp_path, n_vocab)


# --- what is not --------------------------------------------------------------------------------------------


def test_the_nearest_is_named_with_a_piece_that_differs(tmp_path: Path) -> None:
    definition = _sequence(_split(_QWEN_2.replace(r"|\p{N}|", r"|\p{N}{1,2}|")), _BYTE_LEVEL)
    with pytest.raises(QuantizeError, match=r'smaug-bpe, the nearest, makes "123" .* own makes "12"') as caught:
        convert_vocab(tmp_path, _write(tmp_path, definition))
    assert "--pre-tokenizer NAME" in caught.value.next_step


def test_mistrals_own_definition_is_only_near_llama_cpps(tmp_path: Path) -> None:
    definition = _sequence(_split(_TEKKEN), _BYTE_LEVEL)
    n_vocab = _write(tmp_path, definition, ignore_merges=True)
    with pytest.raises(QuantizeError, match="tekken, the nearest"):
        convert_vocab(tmp_path, n_vocab)
    assert _name(convert_vocab(tmp_path, n_vocab, "tekken")) == "tekken"


HOSTILE: dict[str, Any] = {
    "nothing": None,
    "not an object": "ByteLevel",
    "unknown": {"type": "Whatever"},
    "not a regex": _sequence(_split("(a"), _BYTE_LEVEL),
    "runs for ever": _sequence(_split(r"(?:(?:\w|\w\w|\s|.)+)+\z\A"), _BYTE_LEVEL),
    "doubles the text": _sequence(_split("."), *[{**_GPT_2, "add_prefix_space": True}] * 30),
    "a huge automaton": _sequence(_split("(?:(?:(?:a{999}){999}){999}){999}"), _BYTE_LEVEL),
    "a long regex": _sequence(_split("a" * 10**6), _BYTE_LEVEL),
    "changes the text": {**_GPT_2, "add_prefix_space": True},
    "byte level twice": _sequence(_GPT_2, _BYTE_LEVEL),
    "no byte level": {"type": "Whitespace"},
    "steps that are none": _sequence(1, None),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("definition", HOSTILE.values(), ids=HOSTILE)
def test_hostile_definitions_end_in_one_error_soon(definition: Any, tmp_path: Path) -> None:
    n_vocab, started = _write(tmp_path, definition, n_merges=None), time.monotonic()
    with pytest.raises(QuantizeError, match="cannot be converted exactly") as caught:
        convert_vocab(tmp_path, n_vocab)
    assert len(str(caught.value)) < 500
    assert time.monotonic() - started < 20


# --- the override -------------------------------------------------------------------------------------------


def test_the_name_can_be_given_on_the_command_line(tmp_path: Path, run: RunCommand) -> None:
    directory = tmp_path / "mine"
    convert_vocab(directory, _write(directory, _GPT_2))
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    out_path = tmp_path / "out.gguf"
    refused = run("quantize", directory, "--quant", "f16", "-o", out_path)
    assert refused.returncode == 1
    assert "--pre-tokenizer NAME" in refused.stderr
    assert run("quantize", directory, "--quant", "f16", "-o", out_path, "--pre-tokenizer", "tekken").returncode == 0
    assert _name(out_path) == "tekken"


def test_a_name_that_llama_cpp_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match="no pre-tokenizer named tekkeen") as caught:
        convert_vocab(tmp_path, _write(tmp_path, _GPT_2), "tekkeen")
    assert "gpt-2, " in caught.value.next_step


def test_a_name_where_none_is_asked_for(small_tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(small_tokenizer.read_bytes())
    with pytest.raises(QuantizeError, match="sentencepiece"):
        convert_vocab(tmp_path, 600, "gpt-2")


def test_every_name_on_offer_is_one_that_llama_cpp_loads(tmp_path: Path) -> None:
    n_vocab = _write(tmp_path, _GPT_2, n_merges=None)
    assert len(set(NAMES)) == len(NAMES) > 60
    for name in NAMES:
        with open_vocab(convert_vocab(tmp_path, n_vocab, name)) as vocab:
            assert tokenize(vocab, "hello")
