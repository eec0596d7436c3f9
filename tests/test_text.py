"""From the bytes of a model to the text on the screen: nothing lost, nothing leaked, nothing obeyed."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamachat.chat.text import TextDecoder
from llamachat.cli.terminal.escapes import visible

PROPERTY = settings(max_examples=300, deadline=None, database=None)


def decode(pieces: Sequence[bytes], stop: Sequence[str] = (), *, strip_space: bool = False) -> list[str]:
    """What is shown after each piece, and at the end."""
    decoder = TextDecoder(stop, strip_space=strip_space)
    return [*map(decoder.feed, pieces), decoder.finish()]


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    borders = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(borders)]


def first_stop(text: str, stops: Sequence[str]) -> str:
    """What a reader who stops at the first whole stop string has read, letter by letter."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)]
    return text


# --- characters ---------------------------------------------------------------------------------------------

# Bytes on which UTF-8 turns: starts of two to four bytes, continuations, surrogates, overlong forms, never valid.
_TURNING = bytes.fromhex("00 20 41 7f 80 8f 90 9f a0 bf c0 c1 c2 df e0 e2 ed ef f0 f4 f5 ff")
ANY_BYTES = st.one_of(
    st.binary(max_size=40),
    st.lists(st.sampled_from(_TURNING), max_size=40).map(bytes),
    st.text(max_size=20).map(str.encode),
)
PLACES = st.lists(st.integers(0, 100), max_size=12)


@PROPERTY
@given(data=ANY_BYTES, places=PLACES)
def test_text_does_not_depend_on_the_pieces(data: bytes, places: list[int]) -> None:
    assert "".join(decode(cut(data, places))) == data.decode("utf-8", "replace")
    assert "".join(decode([bytes([byte]) for byte in data])) == data.decode("utf-8", "replace")


@PROPERTY
@given(text=st.text(max_size=30), places=PLACES)
def test_valid_text_comes_whole_and_in_whole_characters(text: str, places: list[int]) -> None:
    shown = decode(cut(text.encode(), places))
    assert "".join(shown) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in shown)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xf0\x9f\x99", "\ufffd"),
        (b"a\xffb", "a\ufffdb"),
        (b"\xe6\x88A", "\ufffdA"),
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),
        (b"\xc0\xaf", "\ufffd\ufffd"),
        (b"\x80\x80", "\ufffd\ufffd"),
    ],
)
def test_invalid_bytes_are_shown(data: bytes, text: str) -> None:
    assert "".join(decode([data])) == "".join(decode([bytes([byte]) for byte in data])) == text


def test_a_character_appears_with_its_last_byte() -> None:
    assert decode([b"\xf0\x9f", b"\x99\x82", b"!"]) == ["", "🙂", "!", ""]


# --- the space sentencepiece puts first ---------------------------------------------------------------------


@PROPERTY
@given(data=ANY_BYTES, places=PLACES)
def test_one_leading_space_is_dropped(data: bytes, places: list[int]) -> None:
    expected = data.decode("utf-8", "replace").removeprefix(" ")
    assert "".join(decode(cut(data, places), strip_space=True)) == expected


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        ([b" Hello"], "Hello"),
        ([b"", b" ", b" Hello"], " Hello"),
        ([b"Hello", b" you"], "Hello you"),
        ([b"\n", b" x"], "\n x"),
        ([b" "], ""),
    ],
)
def test_only_the_first_space_is_dropped(pieces: list[bytes], shown: str) -> None:
    assert "".join(decode(pieces, strip_space=True)) == shown


# --- stop strings -------------------------------------------------------------------------------------------

_LETTERS = st.text("ab|é\n", max_size=24)
_STOPS = st.lists(st.text("ab|é\n", min_size=1, max_size=5), max_size=3)


@PROPERTY
@given(text=_LETTERS, stops=_STOPS, places=PLACES)
def test_stop_strings_cut_exactly(text: str, stops: list[str], places: list[int]) -> None:
    expected = first_stop(text, stops)
    assert "".join(decode(cut(text.encode(), places), stops)) == expected
    assert "".join(decode([text.encode()], stops)) == expected
    assert "".join(decode([bytes([byte]) for byte in text.encode()], stops)) == expected


@PROPERTY
@given(text=_LETTERS, stops=_STOPS, places=PLACES)
def test_nothing_of_a_stop_string_is_ever_shown(text: str, stops: list[str], places: list[int]) -> None:
    """What is shown is always the beginning of the final answer: nothing has to be taken back."""
    expected, shown = first_stop(text, stops), ""
    for piece in decode(cut(text.encode(), places), stops):
        shown += piece
        assert expected.startswith(shown)


@PROPERTY
@given(text=_LETTERS, stops=_STOPS)
def test_no_more_is_held_back_than_could_be_a_stop_string(text: str, stops: list[str]) -> None:
    decoder = TextDecoder(stops)
    shown = decoder.feed(text.encode())
    if not decoder.stopped:
        held = text.removeprefix(shown)
        assert not held or any(stop.startswith(held) for stop in stops)


def test_text_after_a_stop_string_is_ignored() -> None:
    decoder = TextDecoder(["END"])
    assert decoder.feed(b"so E") == "so "
    assert not decoder.stopped
    assert decoder.feed(b"ND of") == ""
    assert decoder.stopped
    assert decoder.feed(b" all") == decoder.finish() == ""


def test_an_almost_stop_string_is_shown() -> None:
    assert decode([b"so E", b"N", b"dless"], ["END"]) == ["so ", "", "ENdless", ""]
    assert decode([b"the EN"], ["END"]) == ["the ", "EN"]
    assert decode([b"aab"], [""]) == ["aab", ""]


def test_a_stop_string_may_hold_what_replaces_bad_bytes() -> None:
    assert "".join(decode([b"a\xf0\x9f"], ["\ufffd"])) == "a"


# --- escapes ------------------------------------------------------------------------------------------------

_BIDI = {"RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI", "FSI", "PDI"}


def _steers_a_terminal(character: str) -> bool:
    is_control = unicodedata.category(character) == "Cc" and character not in "\n\t"
    return is_control or unicodedata.bidirectional(character) in _BIDI or character in "\u061c\u200e\u200f"


def test_no_character_that_steers_a_terminal_is_let_through() -> None:
    for code in range(0x110000):
        character = chr(code)
        shown = visible(character)
        if _steers_a_terminal(character):
            assert shown, ascii(character)
            assert not any(map(_steers_a_terminal, shown)), ascii(character)
        else:
            assert shown == character


@PROPERTY
@given(text=st.text(max_size=40))
def test_text_stays_and_escapes_show(text: str) -> None:
    shown = visible(f"{text}\x1b[31m\x9b1m\u202e\r\x07")
    assert not any(map(_steers_a_terminal, shown))
    assert "".join(map(visible, text)) == visible(text)
