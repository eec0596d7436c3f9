"""Text, numbers, true, false and null."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llamachat.chat.json_schema.bounds import Impossible, read_bounds, read_counts
from llamachat.chat.json_schema.formats import FORMATS
from llamachat.chat.json_schema.pattern import PatternError, pattern_to_gbnf
from llamachat.chat.json_schema.text import integers_between, numbers_between

if TYPE_CHECKING:
    from llamachat.chat.json_schema.compiler import Compiler


def string_rule(compiler: Compiler, schema: Mapping[str, Any], place: str) -> str:
    """A rule for text."""
    least, most = read_counts(compiler, schema, "minLength", "maxLength", place)
    pattern, what = schema.get("pattern"), schema.get("format")
    if pattern is None and isinstance(what, str) and what in FORMATS:
        pattern = FORMATS[what]
    elif what is not None:
        compiler.notes.append(f"{place or '/'} format {what}")
    if pattern is None:
        if (least, most) == (0, None):
            return compiler.rules.json("string")
        counts = f"{{{least},{'' if most is None else most}}}"
        return compiler.rules.add(f'"\\"" {compiler.rules.json("char")}{counts} "\\""')
    if least or most is not None:
        compiler.notes.append(f"{place or '/'} minLength, maxLength (beside a pattern or format)")
    if not isinstance(pattern, str):
        raise compiler.bad(place, "pattern is not text")
    compiler.rules.json("char")
    try:
        return compiler.rules.add(f'"\\"" {pattern_to_gbnf(pattern)} "\\""')
    except PatternError as error:
        raise compiler.bad(place, f"the pattern {pattern[:80]!r} cannot be held: {error}") from error


def number_rule(compiler: Compiler, schema: Mapping[str, Any], place: str) -> str:
    """A rule for numbers."""
    (low, low_open), (high, high_open) = read_bounds(compiler, schema, place)
    if low is None and high is None:
        return compiler.rules.json("number")
    written = numbers_between(low, high, low_open=low_open, high_open=high_open)
    return compiler.rules.add(_possible_value(written, place))


def integer_rule(compiler: Compiler, schema: Mapping[str, Any], place: str) -> str:
    """A rule for whole numbers."""
    (low, low_open), (high, high_open) = read_bounds(compiler, schema, place)
    if low is None and high is None:
        return compiler.rules.json("integer")
    least = None if low is None else math.floor(low) + 1 if low_open else math.ceil(low)
    most = None if high is None else math.ceil(high) - 1 if high_open else math.floor(high)
    return compiler.rules.add(_possible_value(integers_between(least, most), place))


def boolean_rule(compiler: Compiler, _schema: Mapping[str, Any], _place: str) -> str:
    """A rule for true and false."""
    return compiler.rules.json("boolean")


def null_rule(compiler: Compiler, _schema: Mapping[str, Any], _place: str) -> str:
    """A rule for null."""
    return compiler.rules.json("null")


def _possible_value(written: str | None, place: str) -> str:
    if written is None:
        raise Impossible(place)
    return written
