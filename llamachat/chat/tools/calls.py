"""What a model writes when it calls tools: a table of forms, and a reader that follows the answer as it comes.

The text of a call is not part of the answer, so whatever may become one is held back. What turns out to be none, or
is not valid JSON, is released as the text it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llamachat.chat.tools.values import WrittenCall, write_json
from llamachat.engine.base import FinishReason

_JSON = json.JSONDecoder(strict=False)
"""Models break lines within strings."""


Calls = list[tuple[str, dict[str, Any]]]
"""Names and arguments."""


@dataclass(frozen=True)
class CallFormat:
    """How a family writes calls."""

    openings: tuple[str, ...]
    """What begins them, wherever it stands; control tokens or plain text."""
    read: Callable[[str], tuple[Calls, str]]
    """The calls in a text that begins with an opening, and what follows them; raises ValueError for anything else."""
    begins_with: str | None = None
    """What begins them at the very beginning of an answer only."""
    closing: str | None = None
    """What each ends with, or all of them do."""
    tags: tuple[str, ...] = ()
    """Plain-text markers around tools, calls and results, which no text in between may pass for."""
    is_single: bool = False
    """Whether the prompt has one call a message."""

    @property
    def marks(self) -> tuple[str, ...]:
        """What is read as text although it may be a control token."""
        return (*self.openings, *([self.closing] if self.closing else []))


def _read_hermes(text: str) -> tuple[Calls, str]:
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, several in a row; the last one may lack its end."""
    calls: Calls = []
    while text.startswith("<tool_call>"):
        call, text = _take_json(text.removeprefix("<tool_call>"))
        calls.append(_name_and_arguments(call))
        if "</tool_call>".startswith(text):
            return calls, ""
        if not text.startswith("</tool_call>"):
            raise ValueError("a call goes on after its JSON")
        text = text.removeprefix("</tool_call>").lstrip()
    return calls, text


def _read_llama3(text: str) -> tuple[Calls, str]:
    """`{"name": …, "parameters": {…}}`, perhaps after <|python_tag|>; several with a semicolon between them."""
    calls: Calls = []
    text = text.strip().removeprefix("<|python_tag|>")
    while text:
        call, text = _take_json(text)
        calls.append(_name_and_arguments(call))
        text = text.removeprefix(";").lstrip()
    return calls, ""


def _read_mistral(text: str) -> tuple[Calls, str]:
    """`[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]`."""
    calls, text = _take_json(text.removeprefix("[TOOL_CALLS]"))
    if not isinstance(calls, list):
        raise ValueError("no list")
    return list(map(_name_and_arguments, calls)), text


def _take_json(text: str) -> tuple[Any, str]:
    text = text.lstrip()
    try:
        value, end = _JSON.raw_decode(text)
    except RecursionError as error:
        raise ValueError("too deep") from error
    return value, text[end:].lstrip()


def _name_and_arguments(call: Any) -> tuple[str, dict[str, Any]]:
    match call:
        case {"type": "function", "function": dict(function)}:
            return _name_and_arguments(function)
        case {"name": str(name), "arguments": dict(arguments)} | {"name": str(name), "parameters": dict(arguments)}:
            return name, arguments
        case {"name": str(name), "arguments": str(text)}:
            return _name_and_arguments({"name": name, "arguments": json.loads(text)})
    raise ValueError("no call")


HERMES = CallFormat(
    ("<tool_call>",),
    _read_hermes,
    closing="</tool_call>",
    tags=("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>"),
)
LLAMA_3 = CallFormat(("<|python_tag|>",), _read_llama3, begins_with="{", is_single=True)
MISTRAL = CallFormat(("[TOOL_CALLS]",), _read_mistral, closing="]")

_SIGNS: tuple[tuple[str, CallFormat | None], ...] = (
    (r"<function=|<arg_key>|\[ARGS\]|\[CALL_ID\]", None),  # Qwen3-Coder; GLM; Mistral since 2025
    (r'<tool_call>[^<]{0,40}\{\\?"name', HERMES),
    (r"\[TOOL_CALLS\]", MISTRAL),
    (r"ipython<\|end_header_id\|>", LLAMA_3),
)
"""What stands in chat templates that take tools; the first that is found tells the form of the calls."""


def format_in(template: str) -> CallFormat | None:
    """How calls look that a Jinja chat template asks for; None if it takes no tools, or in no form known here."""
    if "tools" not in template or "tool_calls" not in template:
        return None
    return next((form for sign, form in _SIGNS if re.search(sign, template)), None)


class CallReader:
    """Follows one answer. Without a format everything is text."""

    def __init__(self, form: CallFormat | None) -> None:
        self._form = form
        self._held = ""
        self._is_begun = self._is_call = False
        self.is_over = False
        """Whether the calls have ended, so that nothing that follows matters."""
        self.is_broken = False
        """After `finish`: whether a call was begun that could not be read."""

    def feed(self, text: str) -> str:
        """Return what of the answer is certain to be text."""
        form = self._form
        if form is None:
            return text
        self._held += text
        if self._is_call:
            self.is_over = self.is_over or _is_over(self._held, form)
            return ""
        if not self._is_begun and form.begins_with:
            first = self._held.lstrip()[:1]
            self._is_begun = bool(first)
            if not first or first == form.begins_with:
                self._is_call = bool(first)
                return ""
        places = [place for opening in form.openings if (place := self._held.find(opening)) >= 0]
        self._is_call = bool(places)
        n_certain = min(places) if places else len(self._held) - _n_possible(self._held, form.openings)
        certain, self._held = self._held[:n_certain], self._held[n_certain:]
        return certain

    def finish(self, reason: FinishReason) -> tuple[str, list[WrittenCall]]:
        """The answer is over: the rest of its text, and the names and JSON arguments of the calls.

        Of an answer that was cut short, a call that is not whole is left out, so that it may begin anew; and calls are
        none that the user interrupted.
        """
        held, self._held = self._held, ""
        if self._form is None or not self._is_call:
            return held, []
        is_marked = held.startswith(self._form.openings)
        try:
            calls, _ = self._form.read(held)
        except ValueError:
            self.is_broken = is_marked and reason == "stop"
            return "" if is_marked and reason != "stop" else held, []
        whole = [(_clean(name), _clean(write_json(arguments))) for name, arguments in calls]
        return "", whole if reason != "interrupted" else []


def _clean(text: str) -> str:
    """Half a surrogate pair, which JSON can escape, is no character."""
    return text.encode("utf-8", "replace").decode()


def _is_over(held: str, form: CallFormat) -> bool:
    """Whether all calls are whole, and something follows that is not going to be another one."""
    if form.closing is None or form.closing not in held:
        return False
    try:
        _, rest = form.read(held)
    except ValueError:
        return False
    return bool(rest) and not any(opening.startswith(rest) for opening in form.openings)


def _n_possible(text: str, openings: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that an opening begins with."""
    longest = min(len(text), max(map(len, openings)) - 1)
    return next((n for n in range(longest, 0, -1) if any(opening.startswith(text[-n:]) for opening in openings)), 0)
