"""What an answer to a request for bytes means: the bytes, trouble that may pass, or a copy that is another one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal

from llamachat.models.hub.retry import asked_pause_s

PASSING = frozenset({408, 416, 425, 429})
"""Refusals that may be others at the next try."""

_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,19})-(\d{1,19})|\*)/(\d{1,19}|\*)", re.ASCII)


def may_pass(status: int) -> bool:
    """Whether it is worth asking again."""
    return status in PASSING or status >= 500


class Trouble(Exception):
    """Something that may be better at the next try; `asked_s` is how long the server wants to be left alone."""

    def __init__(self, problem: str, asked_s: float | None = None) -> None:
        super().__init__(problem)
        self.asked_s = asked_s


class StartOver(Exception):
    """What was fetched so far is of no use. `cause` says why, by which the number of repetitions is limited."""

    def __init__(self, cause: Literal["changed", "no ranges", "damaged"], problem: str) -> None:
        super().__init__(problem)
        self.cause = cause


@dataclass(frozen=True)
class Wanted:
    """The bytes asked for, [start, stop) of a file of `size_bytes`; `is_stream`: the whole file, without a range."""

    start: int
    stop: int
    size_bytes: int
    is_stream: bool = False

    def headers(self, etag: str | None) -> dict[str, str]:
        """The request's. A weak ETag cannot vouch for bytes, so it is no condition (RFC 9110, 13.1.5)."""
        if self.is_stream:
            return {}
        condition = {"If-Range": etag} if etag and etag.startswith('"') else {}
        return {"Range": f"bytes={self.start}-{self.stop - 1}", **condition}


def check_answer(status: int, headers: Mapping[str, str], wanted: Wanted, etag: str | None) -> None:
    """Return if the body holds what is wanted, from its first byte on. Raises `Trouble` and `StartOver`."""
    theirs = headers.get("ETag")
    match status:
        case 200:
            _check_whole(headers, wanted, theirs, etag)
        case 206 if not wanted.is_stream:
            _check_etag(theirs, etag)
            _check_range(headers, wanted)
        case 416:
            _check_size(_content_range(headers)[2], wanted)
            raise Trouble("HTTP 416")
        case _ if may_pass(status):
            raise Trouble(f"HTTP {status}", asked_pause_s(headers, datetime.now(timezone.utc)))
        case _:
            raise Trouble(f"HTTP {status}")


def _check_whole(headers: Mapping[str, str], wanted: Wanted, theirs: str | None, etag: str | None) -> None:
    _check_etag(theirs, etag)
    _check_size(_content_length(headers), wanted)
    if not wanted.is_stream and (wanted.start, wanted.stop) != (0, wanted.size_bytes):
        raise StartOver("no ranges", "the server does not send parts of it")


def _check_range(headers: Mapping[str, str], wanted: Wanted) -> None:
    start, stop, size_bytes = _content_range(headers)
    _check_size(size_bytes, wanted)
    if (start, stop) != (wanted.start, wanted.stop):
        raise Trouble("the server sent other bytes than were asked for")
    length = _content_length(headers)
    if length is not None and length != wanted.stop - wanted.start:
        raise Trouble(f"the server announced {length:,} bytes where {wanted.stop - wanted.start:,} were asked for")


def _check_etag(theirs: str | None, etag: str | None) -> None:
    if theirs and etag and theirs != etag:
        raise StartOver("changed", "the server's copy changed")


def _check_size(size_bytes: int | None, wanted: Wanted) -> None:
    if size_bytes is not None and size_bytes != wanted.size_bytes:
        problem = f"the server's copy has {size_bytes:,} bytes where the Hub lists {wanted.size_bytes:,}"
        raise StartOver("changed", problem)


def _content_length(headers: Mapping[str, str]) -> int | None:
    text = headers.get("Content-Length", "")
    return int(text) if re.fullmatch(r"\d{1,19}", text, re.ASCII) else None


def _content_range(headers: Mapping[str, str]) -> tuple[int | None, int | None, int | None]:
    """Start, stop and size of the whole, as far as they are told (RFC 9110, 14.4)."""
    found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    if found is None:
        return None, None, None
    first, last, size = found.groups()
    return (
        int(first) if first else None,
        int(last) + 1 if last else None,
        int(size) if size != "*" else None,
    )
