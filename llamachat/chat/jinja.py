"""A checkpoint's own Jinja chat template, rendered without trusting the template or the messages.

The template runs in Jinja's immutable sandbox, in a time limit. Control tokens that stand in a *message* must not
take effect: before rendering, the first character of each is replaced by a private-use character drawn at random
for this call; afterwards, whatever control tokens are found can only be the template's own, and the characters
are put back. Everything else about a message stays as it is, so that templates may trim, test and slice it.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llamachat.chat.prompt import Marker, Part, Text
from llamachat.engine.base import Tokenizer
from llamachat.errors import TemplateFailed

_TIME_LIMIT_S = 5.0
_PRIVATE_USE = range(0xF0000, 0xFFFFE)


class JinjaRenderer:
    """One compiled template. The date it may ask for is frozen when it is made, so that prompts keep their prefix."""

    def __init__(self, source: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        now = datetime.now()
        environment.globals["strftime_now"] = now.strftime
        environment.globals["raise_exception"] = _raise
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise TemplateFailed(f"it does not compile ({error})") from error

    def parts(self, messages: list[dict[str, str]], tokenizer: Tokenizer) -> list[Part]:
        """Render the messages up to the place where the answer begins."""
        control = list(tokenizer.control_tokens)
        defused, restore = _defuse(messages, control)
        rendered = _in_time(lambda: self._render(defused, tokenizer))
        return [_restored(part, restore) for part in _split(rendered, control)]

    def _render(self, messages: list[dict[str, str]], tokenizer: Tokenizer) -> str:
        names = {token_id: text for text, token_id in tokenizer.control_tokens.items()}
        return self._template.render(
            messages=messages,
            add_generation_prompt=True,
            bos_token=names.get(tokenizer.bos_id, "") if tokenizer.bos_id is not None else "",
            eos_token=names.get(tokenizer.eos_id, "") if tokenizer.eos_id is not None else "",
        )


def _defuse(messages: list[dict[str, str]], control: Iterable[str]) -> tuple[list[dict[str, str]], dict[int, str]]:
    """Break every control token in the messages; return them with the table that undoes it.

    A message's end is broken too where it could be the beginning of one, and its start where it could be the end.
    """
    everything = "".join(message["content"] for message in messages)
    first_characters = sorted({text[0] for text in control if text})
    stand_ins = dict(zip(first_characters, _unused_characters(everything, len(first_characters)), strict=True))
    edge_stand_in = _unused_characters(everything + "".join(stand_ins.values()), 1)[0]
    whole = _alternatives(control)
    heads = {text[:n] for text in control for n in range(1, len(text))}
    tails = {text[n:] for text in control for n in range(1, len(text))}

    def defuse(content: str) -> str:
        if whole:
            content = whole.sub(lambda match: stand_ins[match[0][0]] + match[0][1:], content)
        longest = max(map(len, heads), default=0)
        for n in range(min(longest, len(content)), 0, -1):
            if content[-n:] in heads:
                content = content[:-n] + stand_ins[content[-n]] + content[len(content) - n + 1 :]
        return edge_stand_in + content if any(content.startswith(tail) for tail in tails) else content

    restore = {ord(stand_in): character for character, stand_in in stand_ins.items()}
    restore[ord(edge_stand_in)] = ""
    return [{**message, "content": defuse(message["content"])} for message in messages], restore


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


def _restored(part: Part, restore: Mapping[int, str]) -> Part:
    return Text(part.text.translate(restore)) if isinstance(part, Text) else part


def _alternatives(texts: Iterable[str]) -> re.Pattern[str] | None:
    longest_first = sorted((text for text in texts if text), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _unused_characters(text: str, n: int) -> list[str]:
    chosen: list[str] = []
    while len(chosen) < n:
        character = chr(secrets.choice(_PRIVATE_USE))
        if character not in text and character not in chosen:
            chosen.append(character)
    return chosen


def _in_time(render: Any) -> str:
    """Run the template in a thread of its own and give up on it after the time limit."""
    outcome: list[str | Exception] = []

    def run() -> None:
        try:
            outcome.append(render())
        except Exception as error:  # a template can raise anything Python can
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_TIME_LIMIT_S)
    if not outcome:
        raise TemplateFailed(f"it did not finish in {_TIME_LIMIT_S:.0f} s")
    if isinstance(outcome[0], Exception):
        raise TemplateFailed(str(outcome[0]) or type(outcome[0]).__name__) from outcome[0]
    return outcome[0]


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    """As in transformers: no HTML escaping."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
