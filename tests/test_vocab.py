"""Token for token what the reference tokenizers make of the same text."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args

import gguf
import llama_cpp
import pytest
import sentencepiece
import tokenizers
from gguf import TokenType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantize import FILE_TYPES, QuantizeError, convert
from support.checkpoints import (
    BPE_FAMILIES,
    CORPUS,
    BpeStyle,
    add_stress_merges,
    train_sentencepiece,
    write_bpe_tokenizer,
    write_byte_fallback_tokenizer,
)
from support.vocab import Tokenize, bpe_reference, convert_vocab, detokenize, open_vocab, tokenize

LLAMA_2 = Path(__file__).parents[2] / "shared/data/llama2-tokenizer.model"
BPE_STYLES: tuple[BpeStyle, ...] = get_args(BpeStyle)
N_SPM = 600

TEXTS = [
    "",
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    " \n ",
    "\t\t x",
    "a",
    " a",
    "a ",
    "  a  b   c  ",
    "a\n b\n\n\n c",
    "Hello, world!",
    "hello HELLO hElLo",
    "The lighthouse keeper's lamp wasn't lit; they'll see, I'd say we've won.",
    "I'M SURE YOU'RE RIGHT'S 'tis ''ll '\u017fs",
    "e-mail: someone@example.org, https://example.org/a?b=c#d",
    'def f(x):\n    return x ** 2  # squared\n\n\tif (a[i] <= b && !c) { return "x\\n"; }',
    "<div class='a'>&nbsp;</div>",
    "0",
    "42",
    "007",
    "3.14159",
    "1234567890",
    "1,000,000",
    "12 345",
    "x86_64",
    "\u00b2\u2153\u2167\u0664\u0662",
    "v1.2.3-rc4",
    "我喜欢吃苹果。",
    "漢字、かな、カタカナ。",
    "日本語のテキスト1234です",
    "한국어 문장입니다",
    "مرحبا بالعالم، كيف حالك؟",
    "שלום עולם",
    "Привет, мир! Ёлка",
    "नमस्ते दुनिया",
    "ภาษาไทย",
    "naïve café Straße Æsop",
    "\u1e69 \u00e5ngstr\u00f6m \ufb01",
    "🙂",
    "👨\u200d👩\u200d👧\u200d👦 family",
    "👍🏽👍🏿",
    "🇩🇪🇯🇵",
    "❤\ufe0f\u200d🔥",
    "\u200b\u200d\ufeff",
    "a\u00a0b\u2003c\u3000d\u2028e\u0085f",
    "\x00",
    "a\x00b",
    "\x1b[31mred",
    "▁",
    "a▁b",
    "<0x0A>",
    "\ufffd",
    "\ue000",
    "x" * 300,
    " " * 70,
    "\n" * 40,
    "!?" * 50,
    *CORPUS.splitlines()[:6],
]


@dataclass(frozen=True)
class Pair:
    """A converted vocabulary as llama.cpp uses it, and the reference it comes from."""

    name: str
    ours: Tokenize
    reference: Tokenize
    is_comparable: Callable[[str], bool] = lambda _: True


# --- where llama.cpp itself differs -------------------------------------------------------------------------

# Letters, digits and marks that Unicode got in version 16 and later: `tokenizers` knows them, and llama.cpp's
# table (unicode-data.cpp, Unicode 15) does not, so that its regular expressions split them off as symbols.
_NEW_IN_UNICODE_16 = (
    (0x1C89, 0x1C8A), (0xA7CB, 0xA7DC), (0x105C0, 0x105FF), (0x10D40, 0x10D8F), (0x10EC2, 0x10EC4), (0x11380, 0x113FF),
    (0x116D0, 0x116E3), (0x11BC0, 0x11BFF), (0x13460, 0x143FF), (0x16100, 0x1613F), (0x16D40, 0x16D7F),
    (0x16FF4, 0x16FF6), (0x18CFF, 0x18CFF), (0x1CCF0, 0x1CCF9), (0x1E5D0, 0x1E5FF),
)  # fmt: skip


def _is_known_to_llama_cpp(text: str) -> bool:
    """Also false for what this Python does not know: a newer `tokenizers` may."""
    newer = any(first <= ord(c) <= last for c in text for first, last in _NEW_IN_UNICODE_16)
    return not newer and all(unicodedata.category(c) != "Cn" for c in text)


def _is_comparable(style: BpeStyle) -> Callable[[str], bool]:
    """Qwen 2 brings text into form NFC first; llama.cpp leaves that to its caller."""
    if BPE_FAMILIES[style].normalizer is None:
        return _is_known_to_llama_cpp
    return lambda text: _is_known_to_llama_cpp(text) and unicodedata.is_normalized("NFC", text)


# --- both sides ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["trained", "llama-2", "trained.json", "llama-2.json", *BPE_STYLES])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    directory = tmp_path_factory.mktemp("checkpoint")
    if request.param in BPE_STYLES:
        # Merges over all kinds of bytes: with those of a small corpus a wrong split would make no difference.
        write_bpe_tokenizer(directory, request.param)
        n_vocab = add_stress_merges(directory)
        reference, is_comparable = bpe_reference(directory), _is_comparable(request.param)
    else:
        path = LLAMA_2
        if request.param.startswith("trained"):
            path = directory / "trained.model"
            train_sentencepiece(path, N_SPM)
        elif not path.exists():
            pytest.skip("the Llama 2 tokenizer is not on this machine")
        is_comparable = lambda _: True  # noqa: E731
        if request.param.endswith(".json"):
            n_vocab = write_byte_fallback_tokenizer(directory, path)
            reference = bpe_reference(directory)
        else:
            processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
            n_vocab, reference = processor.vocab_size(), processor.encode
            (directory / "tokenizer.model").write_bytes(path.read_bytes())
    with open_vocab(convert_vocab(directory, n_vocab)) as vocab:
        yield Pair(request.param, lambda text: tokenize(vocab, text), reference, is_comparable)


# --- the ids ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: ascii(text)[1:30])
def test_ids_equal_the_reference(pair: Pair, text: str) -> None:
    text = unicodedata.normalize("NFC", text) if pair.name == "qwen2" else text
    assert pair.is_comparable(text)
    assert pair.ours(text) == pair.reference(text)


_TELLING = " \n\r\t'astlrevmdST019.!<|▁\u00a0\u3000\u200d\u0301é中あ한م🙂🏽"
ANY_TEXT = st.lists(
    st.one_of(st.text(st.sampled_from(_TELLING), min_size=1), st.text(st.characters(exclude_categories=["Cs"]))),
    max_size=5,
).map("".join)


@settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(text=ANY_TEXT)
def test_ids_of_any_text_equal_the_reference(pair: Pair, text: str) -> None:
    comparable = "".join(c for c in unicodedata.normalize("NFC", text) if _is_known_to_llama_cpp(c))
    text = comparable if pair.name == "qwen2" else text
    if pair.is_comparable(text):
        assert pair.ours(text) == pair.reference(text)


def test_every_character_is_classed_as_in_the_reference(pair: Pair) -> None:
    """A thousandth of Unicode, evenly, between a letter, a digit, a mark and a blank."""
    for code, frame in product(range(0x20, 0x30000, 173), ("a{0}a", "1{0}1", ".{0}.", " {0} ", "{0}{0}")):
        text = frame.format(chr(code))
        if not 0xD800 <= code < 0xE000 and pair.is_comparable(text):
            assert pair.ours(text) == pair.reference(text), ascii(text)


INVALID_UTF_8 = {
    b"a\xffb": "a\ufffdb",
    b"\x80\x80 x": "\ufffd\ufffd x",
    b"caf\xc3\xa9\xc3": "café\ufffd",
    b"\xc3(": "\ufffd(",
    b"cut off: \xe2\x82": "cut off: \ufffd\ufffd",
    b"\xf0\x9f\x99": "\ufffd\ufffd\ufffd",
    b"\xf0\x9f\x91\xa8\xe2\x80\x8d\xf0\x9f": "👨\u200d\ufffd\ufffd",
}
"""Bytes, and the text with a replacement character for each byte that is none of a character."""


@pytest.mark.parametrize("data", INVALID_UTF_8, ids=repr)
def test_invalid_utf_8_in_bpe_is_replaced(data: bytes, tmp_path: Path) -> None:
    write_bpe_tokenizer(tmp_path, "llama-3")
    n_vocab = add_stress_merges(tmp_path, n_merges=2000)
    with open_vocab(convert_vocab(tmp_path, n_vocab)) as vocab:
        assert tokenize(vocab, data) == bpe_reference(tmp_path)(INVALID_UTF_8[data])


@settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    data=st.binary(max_size=30) | st.lists(st.sampled_from([*INVALID_UTF_8, b" the ", b"\xe2\x82\xac"])).map(b"".join)
)
def test_invalid_utf_8_in_sentencepiece_is_kept_byte_for_byte(trained: Any, data: bytes) -> None:
    """But for a blank next to such bytes, which may stay the ▁ that llama.cpp makes of it."""
    text = b"".join(detokenize(trained, token_id) for token_id in tokenize(trained, data))
    blank = "▁".encode()
    assert text.replace(blank, b" ") == (b" " + data if data else b"").replace(blank, b" ")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    directory = _write_sentencepiece(tmp_path_factory.mktemp("trained"))
    with open_vocab(convert_vocab(directory, N_SPM)) as vocab:
        yield vocab


@pytest.mark.parametrize("style", BPE_STYLES)
def test_special_tokens_in_a_prompt(style: BpeStyle, tmp_path: Path) -> None:
    """As text they are text; where the caller says so, they are tokens; and BOS comes if the family has it."""
    n_vocab = write_bpe_tokenizer(tmp_path, style)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "one ".join(BPE_FAMILIES[style].special_tokens) + "\ntwo"
    specials = {tokenizer.token_to_id(token) for token in BPE_FAMILIES[style].special_tokens}
    with open_vocab(convert_vocab(tmp_path, n_vocab)) as vocab:
        assert tokenize(vocab, text, parse_special=True) == tokenizer.encode(text, add_special_tokens=False).ids
        assert specials <= set(tokenize(vocab, text, parse_special=True))
        assert not specials & set(tokenize(vocab, text))
        assert tokenize(vocab, "one", add_special=True) == tokenizer.encode("one").ids


# --- the rest of the header ---------------------------------------------------------------------------------


def _read_header(path: Path) -> dict[str, Any]:
    header = {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}
    return {key.removeprefix("tokenizer."): value for key, value in header.items() if key.startswith("tokenizer.")}


def _write_sentencepiece(directory: Path, config: dict[str, Any] | None = None) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    train_sentencepiece(directory / "tokenizer.model", N_SPM)
    if config is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def _token(header: dict[str, Any], token_id: int) -> tuple[str, TokenType]:
    return header["ggml.tokens"][token_id], TokenType(header["ggml.token_type"][token_id])


def test_special_tokens_of_sentencepiece(tmp_path: Path) -> None:
    config = {"add_bos_token": True, "add_eos_token": False, "chat_template": "{{ bos_token }}[INST]"}
    path = convert_vocab(_write_sentencepiece(tmp_path, config), N_SPM)
    header = _read_header(path)
    assert header["ggml.model"] == "llama"
    assert [header[f"ggml.{name}_token_id"] for name in ("unknown", "bos", "eos")] == [0, 1, 2]
    assert (header["ggml.add_bos_token"], header["ggml.add_eos_token"]) == (True, False)
    assert header["chat_template"] == config["chat_template"]
    assert [_token(header, i)[1] for i in range(4)] == [
        TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE,
    ]  # fmt: skip
    with open_vocab(path) as vocab:
        assert llama_cpp.llama_vocab_bos(vocab) == 1
        assert llama_cpp.llama_vocab_eos(vocab) == 2
        assert llama_cpp.llama_vocab_get_add_bos(vocab)
        assert tokenize(vocab, "", add_special=True) == [1]


@pytest.mark.parametrize("style", BPE_STYLES)
def test_special_tokens_of_bpe(style: BpeStyle, tmp_path: Path) -> None:
    family = BPE_FAMILIES[style]
    n_vocab = write_bpe_tokenizer(tmp_path, style)
    # The ids come from the tokenizer's own files, whatever config.json says.
    path = convert_vocab(tmp_path, n_vocab)
    header, reference = _read_header(path), tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert header["ggml.model"] == "gpt2"
    assert header["ggml.eos_token_id"] == reference.token_to_id(family.eos)
    if family.bos:
        assert header["ggml.bos_token_id"] == reference.token_to_id(family.bos)
    assert header.get("ggml.add_bos_token", False) == family.adds_bos
    assert header.get("chat_template") == family.chat_template
    for special in family.special_tokens:
        assert _token(header, reference.token_to_id(special)) == (special, TokenType.CONTROL)


@pytest.mark.parametrize("file", ["jinja", "json"])
def test_chat_template_from_a_file_of_its_own(file: str, tmp_path: Path) -> None:
    _write_sentencepiece(tmp_path, {"add_bos_token": True})
    template = "{{ messages }} – ünï"
    text = template if file == "jinja" else json.dumps({"chat_template": template})
    (tmp_path / f"chat_template.{file}").write_text(text, encoding="utf-8")
    assert _read_header(convert_vocab(tmp_path, N_SPM))["chat_template"] == template


def test_chat_template_without_a_config(tmp_path: Path) -> None:
    _write_sentencepiece(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert _read_header(convert_vocab(tmp_path, N_SPM))["chat_template"] == "{{ messages }}"


def test_an_id_of_minus_one_is_none(tmp_path: Path) -> None:
    _write_sentencepiece(tmp_path)
    convert_vocab(tmp_path, N_SPM)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"pad_token_id": -1}))
    header = _read_header(convert(tmp_path, tmp_path / "again.gguf", FILE_TYPES["f16"]).path)
    assert "ggml.padding_token_id" not in header
    assert header["ggml.eos_token_id"] == 2


def test_embeddings_without_a_token_are_unused(tmp_path: Path) -> None:
    header = _read_header(convert_vocab(_write_sentencepiece(tmp_path), N_SPM + 8))
    assert len(header["ggml.tokens"]) == N_SPM + 8
    assert [_token(header, i) for i in (N_SPM, N_SPM + 7)] == [
        (f"[PAD{N_SPM}]", TokenType.UNUSED), (f"[PAD{N_SPM + 7}]", TokenType.UNUSED),
    ]  # fmt: skip


@pytest.mark.parametrize("style", BPE_STYLES)
def test_padding_changes_no_id(style: BpeStyle, tmp_path: Path) -> None:
    n_vocab = write_bpe_tokenizer(tmp_path, style)
    path, reference = convert_vocab(tmp_path, n_vocab + 21), bpe_reference(tmp_path)
    assert _token(_read_header(path), n_vocab + 20) == (f"[PAD{n_vocab + 20}]", TokenType.UNUSED)
    with open_vocab(path) as vocab:
        assert llama_cpp.llama_vocab_n_tokens(vocab) == n_vocab + 21
        for text in (*CORPUS.splitlines(), f"[PAD{n_vocab}]"):
            assert tokenize(vocab, text) == reference(text)


def test_added_tokens_have_their_place_and_kind(tmp_path: Path) -> None:
    decoder = {
        "1": {"content": "<s>", "special": True},
        str(N_SPM + 1): {"content": "<|user|>", "special": False},
        str(N_SPM + 2): {"content": "[TOOL]", "special": True},
        str(N_SPM + 3): {"content": "▁wide▁", "special": False},
        str(N_SPM + 4): {"content": "<past the embeddings>", "special": True},
    }
    _write_sentencepiece(tmp_path, {"added_tokens_decoder": decoder})
    added = {"<extra>": N_SPM, "<|user|>": N_SPM + 1, "<far past>": 10**9}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    path = convert_vocab(tmp_path, N_SPM + 4)
    header = _read_header(path)
    assert _token(header, 1) == ("<s>", TokenType.CONTROL)
    assert [_token(header, N_SPM + i) for i in range(4)] == [
        ("<extra>", TokenType.USER_DEFINED),
        ("<|user|>", TokenType.CONTROL),  # not marked special, but it looks it
        ("[TOOL]", TokenType.CONTROL),
        (" wide ", TokenType.USER_DEFINED),
    ]
    assert len(header["ggml.tokens"]) == N_SPM + 4
    with open_vocab(path) as vocab:
        assert N_SPM in tokenize(vocab, "an <extra> token")
        assert N_SPM + 1 not in tokenize(vocab, "<|user|>")
        assert N_SPM + 1 in tokenize(vocab, "<|user|>", parse_special=True)


def test_added_tokens_that_repeat_control_tokens_leave_them_so(tmp_path: Path) -> None:
    _write_sentencepiece(tmp_path, {})
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<unk>": 0, "<s>": 1, "</s>": 2, "[PAD]": N_SPM}))
    path = convert_vocab(tmp_path, N_SPM + 1)
    header = _read_header(path)
    assert [_token(header, i) for i in (0, 1, 2, N_SPM)] == [
        ("<unk>", TokenType.UNKNOWN),
        ("<s>", TokenType.CONTROL),
        ("</s>", TokenType.CONTROL),
        ("[PAD]", TokenType.USER_DEFINED),
    ]
    with open_vocab(path) as vocab:
        assert not {0, 1, 2} & set(tokenize(vocab, "a </s> b <s>"))


def test_added_bpe_token_that_is_not_special_is_found_in_text(tmp_path: Path) -> None:
    n_vocab = write_bpe_tokenizer(tmp_path, "smollm")
    path = tmp_path / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"].append(
        tokenizer["added_tokens"][0] | {"id": n_vocab, "content": "<tag>", "special": False}
    )
    path.write_text(json.dumps(tokenizer))
    gguf_path, reference = convert_vocab(tmp_path, n_vocab + 1), bpe_reference(tmp_path)
    assert _token(_read_header(gguf_path), n_vocab) == ("<tag>", TokenType.USER_DEFINED)
    with open_vocab(gguf_path) as vocab:
        text = "one<tag>two <tag> three"
        assert tokenize(vocab, text) == reference(text)
        assert n_vocab in tokenize(vocab, text)


def test_merges_as_pairs_give_the_same_vocabulary(tmp_path: Path) -> None:
    headers = []
    for merge_pairs in (False, True):
        directory = tmp_path / str(merge_pairs)
        n_vocab = write_bpe_tokenizer(directory, "llama-3", merge_pairs=merge_pairs)
        headers.append(_read_header(convert_vocab(directory, n_vocab)))
    assert headers[0] == headers[1]


@pytest.mark.parametrize("add_prefix_space", [True, False])
def test_add_prefix_space_is_what_the_checkpoint_says(add_prefix_space: bool, tmp_path: Path) -> None:
    _write_sentencepiece(tmp_path, {"add_prefix_space": add_prefix_space})
    path = convert_vocab(tmp_path, N_SPM)
    with open_vocab(path) as vocab:
        first = _read_header(path)["ggml.tokens"][tokenize(vocab, "the")[0]]
    assert first.startswith("▁") == add_prefix_space


def test_infill_tokens_of_code_llama(tmp_path: Path) -> None:
    """Its vocabulary: the 32000 of Llama 2, seven more, the four infill tokens, and five more."""
    marks = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")
    _write_sentencepiece(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({mark: 32007 + i for i, mark in enumerate(marks)}))
    path = convert_vocab(tmp_path, 32016)
    header = _read_header(path)
    names = ("fim_pre", "fim_suf", "fim_mid", "eot")
    assert [header[f"ggml.{name}_token_id"] for name in names] == [32007, 32008, 32009, 32010]
    with open_vocab(path) as vocab:
        assert llama_cpp.llama_vocab_n_tokens(vocab) == 32016
        assert llama_cpp.llama_vocab_fim_pre(vocab) == 32007
        assert llama_cpp.llama_vocab_fim_suf(vocab) == 32008
        assert llama_cpp.llama_vocab_fim_mid(vocab) == 32009
        assert llama_cpp.llama_vocab_is_eog(vocab, 32010)


def test_other_vocabularies_have_no_infill_tokens(tmp_path: Path) -> None:
    header = _read_header(convert_vocab(_write_sentencepiece(tmp_path), N_SPM))
    assert not {"ggml.fim_pre_token_id", "ggml.eot_token_id"} & header.keys()


# --- what is refused because the ids would differ -----------------------------------------------------------


def test_more_pieces_than_embeddings(tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match=r"tokenizer\.model.*600 tokens.*599"):
        convert_vocab(_write_sentencepiece(tmp_path), N_SPM - 1)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "unigram", "hard_vocab_limit": False},
        {"normalization_rule_name": "nmt_nfkc"},
        {"remove_extra_whitespaces": True},
        {"byte_fallback": False},
        {"treat_whitespace_as_suffix": True},
    ],
    ids=str,
)
def test_sentencepiece_settings_that_llama_cpp_does_not_know(change: dict[str, Any], tmp_path: Path) -> None:
    train_sentencepiece(tmp_path / "tokenizer.model", N_SPM, **change)
    with pytest.raises(QuantizeError, match=r"cannot be converted exactly: tokenizer\.model"):
        convert_vocab(tmp_path, N_SPM)


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("model", {"dropout": 0.1}),
        ("model", {"end_of_word_suffix": "</w>"}),
        ("model", {"continuing_subword_prefix": "##"}),
        ("model", {"byte_fallback": True}),
        ("pre_tokenizer", {"add_prefix_space": True}),
        ("pre_tokenizer", {"type": "Whitespace"}),
    ],
    ids=str,
)
def test_bpe_settings_that_llama_cpp_does_not_know(section: str, change: dict[str, Any], tmp_path: Path) -> None:
    n_vocab = write_bpe_tokenizer(tmp_path, "gpt-2")
    path = tmp_path / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer[section] |= change
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(QuantizeError, match="cannot be converted exactly"):
        convert_vocab(tmp_path, n_vocab)


def test_the_same_text_twice(tmp_path: Path) -> None:
    """llama.cpp would abort the process."""
    _write_sentencepiece(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"▁the": N_SPM}))
    with pytest.raises(QuantizeError, match="twice"):
        convert_vocab(tmp_path, N_SPM + 1)
