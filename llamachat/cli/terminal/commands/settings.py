"""Commands that change how the model answers, or which model does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import typer

from llamachat.chat.history.titles import make_title
from llamachat.chat.session import Overflow
from llamachat.cli.chat_wishes import Reasoning
from llamachat.cli.describing import describe_unmet
from llamachat.cli.live_chat import OpenChat
from llamachat.cli.options import parse_adapter
from llamachat.cli.terminal.commands.command import BadCommand, Command, Reply
from llamachat.engine.base import LoraAdapter
from llamachat.engine.sampling import SamplingParams

Limits = tuple[type[int] | type[float], float, float]

_SAMPLING: dict[str, Limits] = {
    "temperature": (float, 0.0, 100.0),
    "top_k": (int, 0, 2**31 - 1),
    "typical_p": (float, 0.0, 1.0),
    "top_p": (float, 0.0, 1.0),
    "min_p": (float, 0.0, 1.0),
    "repeat_penalty": (float, 0.1, 100.0),
    "seed": (int, 0, 2**32 - 2),
}
_MAX_TOKENS: Limits = (int, 1, 10_000_000)
_CTX: Limits = (int, 256, 10_000_000)
"""Name → its type, the lowest and the highest value."""
_ABOUT_COLUMNS = 60

SAMPLING_NAMES = tuple(_SAMPLING)
SETTINGS_NAMES = (*_SAMPLING, "max_tokens", "ctx", "overflow")
_NO_LIMIT = "off"
"""As max_tokens."""


_REASONING: Mapping[Reasoning, str] = {
    "auto": "as the model does it by itself",
    "on": "on",
    "off": "off",
    "hide": "as the model does it by itself, not shown",
}
REASONING_MODES = tuple(_REASONING)


def parse_settings(chat: OpenChat, words: Sequence[str]) -> SamplingParams:
    """The session's sampling with every NAME=VALUE of `words`."""
    pairs = [word.partition("=") for word in words]
    if not all(equals for _, equals, _ in pairs):
        raise BadCommand("Sampling is given as NAME=VALUE.", "For example: /retry temperature=1.0")
    return chat.session.sampling.override({_name(name): _value(name, value) for name, _, value in pairs})


def _set(chat: OpenChat, argument: str) -> Reply:
    name, value = (*argument.replace("=", " ", 1).split(maxsplit=1), "", "")[:2]
    if not value:
        return Reply(_show(chat))
    match name.replace("-", "_"):
        case "max_tokens":
            n_tokens = None if value == _NO_LIMIT else int(_parse(name, value, _MAX_TOKENS))
            chat.set_limits(max_tokens=n_tokens, overflow=chat.session.overflow)
        case "overflow":
            chat.set_limits(max_tokens=chat.session.max_tokens, overflow=_overflow(value))
        case "ctx":
            options = replace(chat.options.engine, n_ctx=int(_parse(name, value, _CTX)))
            chat.reopen(chat.model, options)
            value = str(chat.session.engine.info.n_ctx)  # which may be rounded up
        case _:
            chat.set_sampling({_name(name): _value(name, value)})
    return Reply(f"{name} is {value} now.")


def _show(chat: OpenChat) -> str:
    session, sampling = chat.session, chat.session.sampling
    values: dict[str, object] = {name: getattr(sampling, name) for name in _SAMPLING}
    values |= dict.fromkeys(sampling.left_open & values.keys(), "the server's")
    n_ctx = session.engine.info.n_ctx or "the server's"
    values |= {"max_tokens": session.max_tokens, "ctx": n_ctx, "overflow": session.overflow}
    unset = {"seed": "a new one each time", "max_tokens": "as many as there is room for"}
    width = max(map(len, values)) + 2
    return "\n".join(f"{name:{width}}{unset[name] if value is None else value}" for name, value in values.items())


def _overflow(word: str) -> Overflow:
    match word:
        case "drop" | "stop" | "compact":
            return word
    raise BadCommand(f"overflow is {', '.join(get_args(Overflow))}.", "For example: /set overflow compact")


def _name(name: str) -> str:
    known = name.replace("-", "_")
    if known not in _SAMPLING:
        raise BadCommand(f"There is no setting {name}.", f"There are: {', '.join(SETTINGS_NAMES)}.")
    return known


def _value(name: str, text: str) -> float:
    return _parse(name, text, _SAMPLING[_name(name)])


def _parse(name: str, text: str, limits: Limits) -> float:
    kind, lowest, highest = limits
    try:
        value = kind(text)
    except ValueError:
        value = -1
    if not lowest <= value <= highest:
        noun = "a whole number" if kind is int else "a number"
        raise BadCommand(f"{name} is {noun} from {lowest:g} to {highest:g}.", f"For example: /set {name} {lowest:g}")
    return value


def _model(chat: OpenChat, argument: str) -> Reply:
    if not argument:
        return Reply(chat.describe())
    model = chat.model.other(argument)
    engine = chat.options.engine
    if not model.is_same(chat.model):  # what belongs to the one that answered so far
        engine = replace(engine, adapters=(), draft="auto" if isinstance(engine.draft, Path) else engine.draft)
    chat.reopen(model, engine)
    return Reply(f"{chat.describe()}\nThe conversation goes on.")


def model_words(chat: OpenChat) -> Iterable[str]:
    """What /model takes."""
    return chat.model.names()


def _adapter(chat: OpenChat, argument: str) -> Reply:
    if not argument:
        names = [f"{adapter.path.name} × {adapter.scale:g}" for adapter in chat.adapters]
        return Reply("\n".join(names) if names else "There is no adapter.")
    try:
        adapters = [] if argument == "off" else [LoraAdapter(*parse_adapter(argument))]
    except typer.BadParameter as error:
        raise BadCommand(error.message.replace("--adapter", "/adapter"), "For example: /adapter my.gguf:0.8") from error
    chat.reopen(chat.model, replace(chat.options.engine, adapters=adapters))
    return Reply(chat.describe())


def _reasoning(chat: OpenChat, argument: str) -> Reply:
    wanted = next((mode for mode in REASONING_MODES if mode == argument.lower()), None)
    if argument and wanted is None:
        raise BadCommand(f"There is no /reasoning {argument}.", f"There are: {', '.join(REASONING_MODES)}.")
    if wanted:
        chat.set_reasoning(wanted)
    mode = chat.options.thinks
    return Reply(describe_unmet(chat.session, mode) or f"Thinking before answers: {_REASONING[mode]}.")


def _tools(chat: OpenChat, argument: str) -> Reply:
    session = chat.session
    if session.toolbox is None:
        raise BadCommand("There are no tools in this chat.", "Start it with --tools FILE.py, whose functions they are.")
    if argument not in ("", "on", "off"):
        raise BadCommand("/tools is on or off, or shows them.", "For example: /tools off")
    if argument:
        session.offer_tools(is_offered=argument == "on")
    if not session.tools:
        return Reply("Tools are off; /tools on lets the model call them again.")
    lines = [f"{tool.name}({', '.join(tool.parameters['properties'])})" for tool in session.tools]
    abouts = [make_title(tool.description, _ABOUT_COLUMNS) for tool in session.tools]
    width = max(map(len, lines)) + 2
    return Reply("\n".join(f"{line:{width}}{about}".rstrip() for line, about in zip(lines, abouts, strict=True)))


SETTINGS = (
    Command("set", "[NAME VALUE]", "show or change temperature, top_p, seed, max_tokens, ctx, overflow, …", _set),
    Command("model", "[NAME]", "go on with another model", _model),
    Command("reasoning", "[auto|on|off|hide]", "let the model think before it answers, or not, or unseen", _reasoning),
    Command("adapter", "[PATH[:SCALE]|off]", "go on with an adapter (LoRA), or without", _adapter),
    Command("tools", "[on|off]", "show what the model may call, or let it, or not", _tools),
)
