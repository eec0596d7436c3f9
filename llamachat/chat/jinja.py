"""A checkpoint's own Jinja chat template, rendered without trusting the template or the messages.

The template runs in a process apart (`sandbox`). Control tokens that stand in a *message* must not take effect:
before rendering, the first character of each is replaced by a private-use character drawn at random for this call;
afterwards, whatever control tokens are found can only be the template's own, and the characters are put back.
Everything else about a message stays as it is, so that templates may trim, test and slice it.

That leaves the tokens that only come about while rendering, when a template trims two messages and puts them side
by side, or changes their case. So the messages are rendered a second time with *every* such first character
replaced. As a rule both renderings have the same control tokens; if not, the second one is taken.

A template's markers that are plain text (`tags`) are handled in the same way, so that the template's own can be told
from those in a message.

An answer to be continued gets one more private-use character at its end, and the rendering is cut there: what a
template does to an answer it does to this one, too, but for its end.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from llamachat.chat import sandbox
from llamachat.chat.prompt import Content, Marker, Part, Text
from llamachat.engine.base import Tokenizer
from llamachat.errors import TemplateFailed

_PRIVATE_USE = range(0xF0000, 0xFFFFE)

Messages = list[dict[str, Any]]
"""With calls of tools and their results, as transformers has them."""
Tools = list[dict[str, Any]]

_SPOKEN = ("content", "reasoning_content", "name", "arguments", "description", "enum")
"""What of messages and tools is anybody's text; the rest is form, which templates look at."""


class JinjaRenderer:
    """One template. The time it may ask for does not pass, so that prompts keep their prefix."""

    def __init__(self, source: str, tags: Sequence[str] = ()) -> None:
        """`tags` are its markers that are plain text. Raise `TemplateFailed` if it does not compile."""
        self._source = source
        self._tags = tags
        self.now = datetime.now()
        """What the template is told when it asks for the time."""
        sandbox.render(source, [], self.now)

    def parts(
        self,
        messages: Messages,
        tokenizer: Tokenizer,
        *,
        tools: Tools | None = None,
        tags: Sequence[str] = (),
        switches: Mapping[str, bool] | None = None,
    ) -> list[Part]:
        """Render the messages up to the place where the answer begins, or goes on if the last message is one.

        `tags` are markers that are plain text, besides those of the constructor; `switches` are variables that a
        template asks for besides those that all are given.
        """
        control = [text for text in tokenizer.control_tokens if text]
        marks = [*control, *(tag for tag in (*self._tags, *tags) if tag not in tokenizer.control_tokens)]
        end = ""
        if messages[-1]["role"] == "assistant":
            end = _unused_characters("".join(_texts(messages)), 1)[0]
            messages = [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + end}]
        defusal = _Defusal(messages, tools, marks)
        contexts = [
            {**_context(*defused, tokenizer, is_open=bool(end)), **(switches or {})}
            for defused in (defusal.gentle, defusal.thorough)
        ]
        rendered = (_cut(text, end) for text in sandbox.render(self._source, contexts, self.now))
        gentle, thorough = (_split(text, marks) for text in rendered)
        chosen = gentle if _markers(gentle) == _markers(thorough) else thorough
        return [_tag_as_text(defusal.undo(part), tokenizer) for part in chosen]


def _cut(rendered: str, end: str) -> str:
    """What stands before `end`, if there is one."""
    if not end:
        return rendered
    before, found, _ = rendered.rpartition(end)
    if not found:
        raise TemplateFailed("it does not show the answer that is to be continued")
    return before


def _tag_as_text(part: Part, tokenizer: Tokenizer) -> Part:
    is_tag = isinstance(part, Marker) and part.text not in tokenizer.control_tokens
    return Text(part.text) if is_tag else part  # type: ignore[union-attr]


def _context(messages: Messages, tools: Tools | None, tokenizer: Tokenizer, *, is_open: bool) -> dict[str, object]:
    """The names that transformers gives a template."""
    names = {token_id: text for text, token_id in tokenizer.control_tokens.items()}
    return {
        "messages": messages,
        "tools": tools,
        "documents": None,
        "add_generation_prompt": not is_open,
        "bos_token": names.get(tokenizer.bos_id, "") if tokenizer.bos_id is not None else "",
        "eos_token": names.get(tokenizer.eos_id, "") if tokenizer.eos_id is not None else "",
    }


class _Defusal:
    """Messages whose control tokens are broken by stand-ins for their first characters, and how to undo it."""

    def __init__(self, messages: Messages, tools: Tools | None, control: Iterable[str]) -> None:
        cases = {first for text in control for first in (text[0], text[0].lower(), text[0].upper())}
        first_characters = sorted(first for first in cases if len(first) == 1)  # some capitals are two letters
        everything = "".join(_texts([messages, tools]))
        guard, *unused = _unused_characters(everything, 1 + len(first_characters))
        stand_ins = dict(zip(first_characters, unused, strict=True))
        self._restore = {ord(stand_in): character for character, stand_in in stand_ins.items()} | {ord(guard): ""}
        table = {ord(character): stand_in for character, stand_in in stand_ins.items()}
        whole = _alternatives(control)
        tails = tuple({text[n:] for text in control for n in range(1, len(text))})

        def break_whole(content: str) -> str:
            return whole.sub(lambda match: stand_ins[match[0][0]] + match[0][1:], content) if whole else content

        def break_everywhere(content: str) -> str:
            guarded = guard + content if content.lstrip().startswith(tails) else content
            return guarded.translate(table)

        self.gentle = (_changed(messages, break_whole), _changed(tools, break_whole))
        """Only the tokens are broken."""
        self.thorough = (_changed(messages, break_everywhere), _changed(tools, break_everywhere))
        """Every character is replaced that a token begins with, and no message goes on with what stands before it."""

    def undo(self, part: Part) -> Part:
        """Put the characters back."""
        return Content(part.text.translate(self._restore)) if isinstance(part, Text) else part


def _changed(value: Any, change: Callable[[str], str], *, is_spoken: bool = False) -> Any:
    """The same with every text of messages and tools changed that somebody may have written."""
    if isinstance(value, str):
        return change(value) if is_spoken else value
    if isinstance(value, list):
        return [_changed(item, change, is_spoken=is_spoken) for item in value]
    if isinstance(value, dict):
        return {
            change(key) if is_spoken else key: _changed(item, change, is_spoken=is_spoken or key in _SPOKEN)
            for key, item in value.items()
        }
    return value


def _texts(value: Any) -> Iterator[str]:
    """All texts in it, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value:
            yield from _texts(item)
        if isinstance(value, dict):
            yield from _texts(list(value.values()))


def _markers(parts: Iterable[Part]) -> list[Part]:
    return [part for part in parts if isinstance(part, Marker)]


def _split(rendered: str, control: Iterable[str]) -> list[Part]:
    pattern = _alternatives(control)
    if pattern is None:
        return [Text(rendered)]
    parts: list[Part] = []
    end = 0
    for match in pattern.finditer(rendered):
        parts += [Text(rendered[end : match.start()]), Marker(match[0])]
        end = match.end()
    parts.append(Text(rendered[end:]))
    return [part for part in parts if part.text]  # type: ignore[union-attr]


def _alternatives(texts: Iterable[str]) -> re.Pattern[str] | None:
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _unused_characters(text: str, n: int) -> list[str]:
    chosen: list[str] = []
    while len(chosen) < n:
        character = chr(secrets.choice(_PRIVATE_USE))
        if character not in text and character not in chosen:
            chosen.append(character)
    return chosen
