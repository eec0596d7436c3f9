"""Bounds of numbers and lengths, as far as a grammar can count."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from llamachat.chat.json_schema.values import is_number

if TYPE_CHECKING:
    from llamachat.chat.json_schema.compiler import Compiler

_MAX_COUNT = 2000
"""What llama.cpp counts to."""
_MAX_BOUND = 10**15
_MAX_DECIMALS = 12


class Impossible(Exception):
    """No value is valid here; what surrounds it may do without."""

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.place = place


def read_bounds(
    compiler: Compiler, schema: Mapping[str, Any], place: str
) -> tuple[tuple[Decimal | None, bool], tuple[Decimal | None, bool]]:
    """Lower and upper bound, each with whether it is excluded. One that the longest numbers keep to is none."""
    low = _bound(compiler, schema, "minimum", "exclusiveMinimum", place)
    high = _bound(compiler, schema, "maximum", "exclusiveMaximum", place)
    if low[0] is not None and low[0] < -_MAX_BOUND:
        low = None, False
    if high[0] is not None and high[0] > _MAX_BOUND:
        high = None, False
    for bound in (low[0], high[0]):
        if bound is not None and (abs(bound) > _MAX_BOUND or -int(bound.as_tuple().exponent) > _MAX_DECIMALS):
            raise compiler.bad(place, f"a bound has too many digits ({bound})")
    return low, high


def _bound(
    compiler: Compiler, schema: Mapping[str, Any], closed: str, opened: str, place: str
) -> tuple[Decimal | None, bool]:
    value, exclusive = schema.get(closed), schema.get(opened)
    if isinstance(exclusive, bool):  # draft 4
        return (None if value is None else _decimal(compiler, value, closed, place)), exclusive
    found = [
        (_decimal(compiler, bound, name, place), name == opened)
        for name, bound in ((closed, value), (opened, exclusive))
        if bound is not None
    ]
    if not found:
        return None, False
    sign = 1 if closed == "minimum" else -1
    return max(found, key=lambda entry: (sign * entry[0], entry[1]))


def _decimal(compiler: Compiler, value: Any, name: str, place: str) -> Decimal:
    if not is_number(value):
        raise compiler.bad(place, f"{name} is not a number")
    return Decimal(str(value)).normalize() + 0


def read_counts(
    compiler: Compiler, schema: Mapping[str, Any], low: str, high: str, place: str
) -> tuple[int, int | None]:
    """What the keywords `low` and `high` say about a length; None: there is no limit."""
    least, most = schema.get(low, 0), schema.get(high)
    for name, value in ((low, least), (high, 0 if most is None else most)):
        if not is_number(value) or value != int(value) or value < 0:
            raise compiler.bad(place, f"{name} is not a count")
    least, most = int(least), None if most is None else int(most)
    if least > _MAX_COUNT:
        raise compiler.bad(place, f"{low} {least} is more than a grammar can count ({_MAX_COUNT})")
    if most is not None and most > _MAX_COUNT:
        compiler.notes.append(f"{place or '/'} {high} (more than {_MAX_COUNT})")
        most = None
    if most is not None and most < least:
        raise Impossible(place)
    return least, most
