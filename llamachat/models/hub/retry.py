"""When to try again, and how long to wait before: exponential backoff with jitter, and what the server asks for."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]  # as in client.py

_LONGEST_ASKED_S = 300.0


@dataclass(frozen=True)
class Patience:
    """How much trouble is borne. `n_tries` counts failures in a row, without a single new byte between them."""

    n_tries: int = 8
    first_pause_s: float = 1.0
    longest_pause_s: float = 60.0
    silence_s: float = 30.0
    """A connection that brings nothing for so long counts as dropped."""

    def with_environment(self) -> Patience:
        """The same with the number of tries that LLAMACHAT_RETRIES wants, if it is one."""
        wanted = os.environ.get("LLAMACHAT_RETRIES", "")
        return replace(self, n_tries=int(wanted[:6])) if wanted.isascii() and wanted.isdigit() else self

    def pause_s(self, n_failures: int, asked_s: float | None) -> float:
        """How long to wait after the n-th failure in a row; at least what the server asked for, within reason."""
        longest = min(self.longest_pause_s, self.first_pause_s * 2.0 ** min(n_failures - 1, 30))
        pause = longest * random.uniform(0.5, 1.0)  # so that clients which failed together do not return together
        return max(pause, min(asked_s or 0.0, _LONGEST_ASKED_S))

    def announce(self, n_failures: int, pause_s: float) -> str:
        """`retry 2 of 8 in 4 s`: for the user, never fewer seconds than it takes."""
        return f"retry {n_failures} of {self.n_tries} in {math.ceil(pause_s)} s"


def asked_pause_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """What `Retry-After` (RFC 9110, 10.2.3: seconds or a date) or else the Hub's `RateLimit` asks for, in seconds."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        limit = parse_ratelimit_headers(headers)
        return float(limit.reset_in_seconds) if limit and limit.remaining == 0 else None
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    return max(0.0, (date - now).total_seconds())
