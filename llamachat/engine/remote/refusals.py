"""What a refusal means: something to leave out, something to wait for, or an error with a fitting next step."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

from llamachat.engine.remote.replies import parse_json
from llamachat.engine.remote.words import error_words, plain
from llamachat.errors import LlamachatError, ServerRefused

MOST_BYTES = 1 << 16
"""Of a refusal that is read."""

_MAY_PASS = (429, 502, 503, 504)
_NO_MONEY = ("insufficient_quota", "billing_hard_limit_reached")
_TOO_LONG = re.compile(
    r"context[ _]length|context[ _]window|available context size|maximum context|exceed_context|prompt is too long",
    re.IGNORECASE,
)
_LONGEST_ASKED_S = 20.0
"""A server that wants a longer pause is told of, and not waited for."""

_STEPS = {
    400: "Change what it names, or ask the server's operator.",
    401: "Set LLAMACHAT_API_KEY (for OpenAI, OPENAI_API_KEY will do) to a key of that server.",
    402: "Look at your account with the server's operator.",
    403: "Use a key that may use this model, or choose another one with /model.",
    404: "Check the model's name (/model lists them in a chat), and that --server ends where the server's /v1 does.",
    413: "Shorten the message, or take turns back with /undo.",
    429: "Wait a while, then ask again: /retry in a chat.",
}
_NO_KEY_STEP = (
    "Set LLAMACHAT_API_KEY (for OpenAI, OPENAI_API_KEY will do), "
    "and name the server with --server: only then is it sent."
)
_SERVER_STEP = "Look at the server's log, then ask again: /retry in a chat."
_ROOM_STEP = "Shorten it, take turns back with /undo, or give the server a larger window."


@dataclass(frozen=True)
class Refusal:
    """A reply that is no answer."""

    status: int
    headers: Mapping[str, str]
    words: str
    about: Mapping[str, Any]
    message: str = ""
    """All that the server says, as it says it."""

    @property
    def may_pass(self) -> bool:
        """Whether asking again may help."""
        is_over = any(code in _NO_MONEY for code in (self.about.get("code"), self.about.get("type")))
        return self.status in _MAY_PASS and not is_over and (self.asked_pause_s or 0.0) <= _LONGEST_ASKED_S

    @property
    def asked_pause_s(self) -> float | None:
        """What `Retry-After` asks for (RFC 9110, 10.2.3), in seconds."""
        text = self.headers.get("retry-after", "").strip()
        if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII):
            return float(text)
        try:
            date = parsedate_to_datetime(text)
            return max(0.0, (date.astimezone(timezone.utc) - datetime.now(timezone.utc)).total_seconds())
        except (ValueError, TypeError, OverflowError):
            return None

    def is_about(self, *names: str) -> bool:
        """Whether it is the request that is wrong, and one of these names stands in what the server says."""
        return self.status in (400, 422, 500, 501) and any(name in self.message for name in names)

    def unwanted(self, names: Iterable[str]) -> list[str]:
        """Which of the names of a request the refusal is about."""
        if self.status not in (400, 422, 501) or is_too_long(self.message, self.about):
            return []
        names = list(names)
        if self.about.get("param") in names:
            return [str(self.about["param"])]
        return [
            name for name in names if re.search(rf"(?<![A-Za-z0-9_]){re.escape(name)}(?![A-Za-z0-9_])", self.message)
        ]


def read_refusal(status: int, headers: Mapping[str, str], body: bytes, secret: str | None) -> Refusal:
    """A refusal from the body of a reply, whatever that is."""
    message, about = error_words(parse_json(body))
    if not message and "html" not in headers.get("content-type", "").lower():
        message = body.decode("utf-8", "replace")
    return Refusal(status, headers, plain(message, secret=secret), about, message)


def refused(refusal: Refusal, address: str, *, has_key: bool) -> LlamachatError:
    """The error for a refusal that nothing can be done about."""
    if is_too_long(refusal.message, refusal.about):
        return too_long(refusal.words)
    step = _STEPS.get(refusal.status, _SERVER_STEP if refusal.status >= 500 else _STEPS[400])
    if refusal.status == 401 and not has_key:
        step = _NO_KEY_STEP
    if 300 <= refusal.status < 400:
        target = plain(refusal.headers.get("location", ""))
        step = f"If you trust it, give the address that it points to: {target}" if target else _STEPS[404]
        return ServerRefused(f"The server at {address} points to another place", step, status=refusal.status)
    if refusal.status == 429 and (pause_s := refusal.asked_pause_s):
        step = f"It asks to wait {pause_s:,.0f} s; then ask again: /retry in a chat."
    sentence = f"The server at {address} refuses (HTTP {refusal.status})"
    return ServerRefused(sentence, step, status=refusal.status, words=refusal.words)


def said(words: str, about: Mapping[str, Any], address: str) -> LlamachatError:
    """The error for one that came in the place of an answer, after the server had accepted the request."""
    if is_too_long(words, about):
        return too_long(words)
    return ServerRefused(f"The server at {address} gave up", _SERVER_STEP, words=words)


def is_too_long(words: str, about: Mapping[str, Any]) -> bool:
    """Whether the prompt does not fit the model's window, in the words of OpenAI, llama.cpp or vLLM."""
    return any(_TOO_LONG.search(str(text)) for text in (words, about.get("code"), about.get("type")))


def too_long(words: str) -> LlamachatError:
    """As `PromptTooLong`, where only the server knows the numbers."""
    return ServerRefused("The prompt is too long for the server's context window", _ROOM_STEP, words=words)
