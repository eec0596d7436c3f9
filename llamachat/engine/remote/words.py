"""What servers say, made fit to be shown: one line, short, without control characters and without the key."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from typing import Any

_MOST_CHARACTERS = 240


def plain(text: str, *, secret: str | None = None, most: int = _MOST_CHARACTERS) -> str:
    """One line of `text`, with nothing in it that steers a terminal."""
    text = text[: 20 * most]
    if secret:
        text = text.replace(secret, "…")
    shown = "".join(" " if unicodedata.category(character)[0] in "CZ" else character for character in text)
    line = " ".join(shown.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def error_words(body: Any) -> tuple[str, dict[str, Any]]:
    """The message of an error, in any of the forms that are about, and the object it stands in; "" if there is none.

    OpenAI and llama.cpp: {"error": {"message", "type", "param", "code"}}; Ollama: {"error": "…"}; FastAPI:
    {"detail": "…" or [{"loc": […], "msg": "…"}]}; vLLM: also {"object": "error", "message": "…"}.
    """
    match body:
        case {"error": {"message": str(message), **rest}} | {"object": "error", "message": str(message), **rest}:
            return message, _by_name(rest)
        case {"error": dict() as other} if other:
            return json.dumps(other)[:1000], dict(other)
        case {"error": str(message)} | {"detail": str(message)}:
            return message, {}
        case {"detail": [*details]}:
            return "; ".join(filter(None, map(_detail, details[:5]))), {}
    return "", {}


def _by_name(table: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in table.items()}


def _detail(detail: Any) -> str:
    match detail:
        case {"loc": [*places], "msg": str(message)}:
            return f"{'.'.join(str(place) for place in places[-3:])}: {message}"
        case {"msg": str(message)}:
            return message
    return ""
