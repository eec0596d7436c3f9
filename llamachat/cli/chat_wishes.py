"""What is asked for in a chat, and what of it a conversation that goes on brings along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from llamachat.chat.history import SessionFacts
from llamachat.chat.message import Message
from llamachat.chat.session import Overflow
from llamachat.chat.tools.use import Toolbox
from llamachat.cli.source import Source
from llamachat.engine.base import EngineOptions, KvType, LoraAdapter, RopeScaling
from llamachat.errors import UnusableAdapter

Reasoning = Literal["auto", "on", "off", "hide"]
"""Thinking before answers: as the template has it by itself, switched on, switched off, or as it is but not shown."""

THINKING: Mapping[Reasoning, bool | None] = {"auto": None, "on": True, "off": False, "hide": None}
"""The template's switch for each."""


@dataclass(frozen=True)
class ChatOptions:
    """What the command line asks for; None leaves it to the model."""

    engine: EngineOptions
    sampling: Mapping[str, float | int | None]
    system: str | None = None
    template: str | None = None
    without_adapters: bool = False
    """Not even those that a conversation was held with."""
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    overflow: Overflow | None = None
    reasoning: Reasoning | None = None
    grammar: str | None = None
    schema: Any = None
    """The JSON Schema that the grammar was made of."""
    strict_tags: bool = False
    examples: Sequence[Message] = ()
    infill: tuple[str, str] | None = None
    """The texts before and after a gap to fill; there is no conversation then."""
    toolbox: Toolbox | None = None

    @property
    def when_full(self) -> Overflow:
        """What happens when the window is full."""
        return self.overflow or "drop"

    @property
    def thinks(self) -> Reasoning:
        """What becomes of thinking before answers."""
        return self.reasoning or "auto"


def is_held_with(source: Source, facts: SessionFacts) -> bool:
    """Whether a conversation was held with this model. One of a server is no other by the same name."""
    return (source.label, source.server) == (facts.model, facts.server)


def as_before(options: ChatOptions, facts: SessionFacts, source: Source) -> ChatOptions:
    """What the command line leaves open is as it was; what belongs to a model only if that is the same."""
    if (source.server is None) != (facts.server is None):
        return options
    asked = {name: value for name, value in options.sampling.items() if value is not None}
    then = facts.options
    options = replace(
        options,
        sampling={**facts.sampling_params().chosen(), **asked},
        max_tokens=options.max_tokens or then.get("max_tokens"),
        stop=options.stop or tuple(then.get("stop", ())),
        overflow=options.overflow or _known(then.get("overflow"), Overflow),
        reasoning=options.reasoning or _known(then.get("reasoning"), Reasoning),
        strict_tags=options.strict_tags or then.get("strict_tags") is True,
    )
    if source.server is not None or not is_held_with(source, facts):
        return options
    engine = replace(
        options.engine,
        n_ctx=options.engine.n_ctx or facts.n_ctx,
        kv_type=options.engine.kv_type or _known(then.get("kv_type"), KvType),
        rope_scaling=options.engine.rope_scaling or _known(then.get("rope_scaling"), RopeScaling),
    )
    if not (engine.adapters or options.without_adapters):
        engine = replace(engine, adapters=[LoraAdapter(_still_there(path), scale) for path, scale in facts.adapters])
    return replace(options, engine=engine, template=options.template or facts.template)


def _still_there(adapter: str) -> Path:
    if not Path(adapter).exists():
        step = "Go on without it, or with others: llamachat chat --resume ID --adapter off"
        raise UnusableAdapter(f"The adapter that the conversation was held with is gone: {adapter}.", step)
    return Path(adapter)


def _known(word: Any, words: Any) -> Any:
    """A word that was kept, unless it means nothing to this program."""
    return word if word in get_args(words) else None
