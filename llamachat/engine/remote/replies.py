"""The JSON of chat completions → values. What is not of the right type is as if it were not there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeGuard

from llamachat.engine.remote.words import error_words
from llamachat.errors import ServerFailed

_MOST_TOKENS = 10**9
_MOST_MS = 10**10


@dataclass(frozen=True)
class Usage:
    """Counts of tokens, as the server tells them; None: it does not."""

    n_prompt: int | None = None
    n_reused: int | None = None
    n_generated: int | None = None


@dataclass(frozen=True)
class Timings:
    """llama-server's own clock."""

    usage: Usage
    prefill_s: float
    decode_s: float


@dataclass(frozen=True)
class Delta:
    """What one event, or a whole reply, adds to the answer."""

    content: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    timings: Timings | None = None


class ServerSaid(Exception):
    """The server reports an error in the place of an answer; `about` is what it says besides the message."""

    def __init__(self, message: str, about: dict[str, Any]) -> None:
        super().__init__(message)
        self.about = about


def parse_json(text: str | bytes) -> Any:
    """Any JSON; None for what is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def read_delta(text: str | bytes) -> Delta:
    """One event's data, or the body of a reply that is no stream.

    Raises `ServerSaid` where it is an error, and `ServerFailed` where it is nothing of the kind.
    """
    parsed = parse_json(text)
    message, about = error_words(parsed)
    if message:
        raise ServerSaid(message, about)
    match parsed:
        case {"choices": [dict() as first, *_]}:
            choice = first
        case {"choices": [] | None} | {"usage": {}} | {"timings": {}}:  # of a stream's last events
            choice = {}
        case _:
            raise ServerFailed("sends something that is no chat completion")
    said = choice.get("delta") or choice.get("message")
    said = said if isinstance(said, dict) else {}
    reason = choice.get("finish_reason")
    return Delta(
        content=_text(said.get("content")) or _text(said.get("refusal")),  # OpenAI's name where a schema was to be kept
        # "reasoning_content" is DeepSeek's name, which llama-server and others took; "reasoning" is that of OpenRouter,
        # Ollama and newer vLLM. Where both are there they are the same.
        reasoning=_text(said.get("reasoning_content")) or _text(said.get("reasoning")),
        finish_reason=reason if isinstance(reason, str) else None,
        usage=_usage(parsed.get("usage")),
        timings=_timings(parsed.get("timings")),
    )


def count_of(value: Any) -> int | None:
    """A number of tokens, if it is one."""
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None


def _text(value: Any) -> str:
    if isinstance(value, list):  # content in parts, as some gateways have it
        return "".join(_text(part.get("text")) for part in value if isinstance(part, dict))
    return value if isinstance(value, str) else ""


def _usage(value: Any) -> Usage | None:
    if not isinstance(value, dict):
        return None
    details = value.get("prompt_tokens_details")
    return Usage(
        n_prompt=count_of(value.get("prompt_tokens")),
        n_reused=count_of(details.get("cached_tokens")) if isinstance(details, dict) else None,
        n_generated=count_of(value.get("completion_tokens")),
    )


def _timings(value: Any) -> Timings | None:
    """llama-server's `timings`: `prompt_n` are those evaluated, `cache_n` those that were in its KV cache."""
    if not isinstance(value, dict):
        return None
    n_evaluated, n_generated = count_of(value.get("prompt_n")), count_of(value.get("predicted_n"))
    prompt_ms, predicted_ms = value.get("prompt_ms"), value.get("predicted_ms")
    if n_evaluated is None or n_generated is None or not (_is_ms(prompt_ms) and _is_ms(predicted_ms)):
        return None
    prompt_s, predicted_s = float(prompt_ms) / 1000, float(predicted_ms) / 1000
    n_reused = count_of(value.get("cache_n"))
    n_prompt = n_evaluated + n_reused if n_reused is not None else None
    return Timings(Usage(n_prompt, n_reused, n_generated), prompt_s, predicted_s)


def _is_ms(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and 0 <= value <= _MOST_MS
