"""What answers come from: a model that is loaded here, or one that a server runs, behind one small protocol."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from llamachat.chat.templates import TemplateChoice
from llamachat.engine.base import Engine, EngineInfo, EngineOptions, LoraAdapter
from llamachat.engine.sampling import SamplingParams
from llamachat.errors import PromptTooLong

if TYPE_CHECKING:
    from llamachat.cli.chat_wishes import ChatOptions
    from llamachat.cli.loading import Meanwhile


@dataclass(frozen=True)
class Opened:
    """What a session is made of, once its source is open."""

    engine: Engine
    choice: TemplateChoice
    sampling: SamplingParams
    adapters: Sequence[LoraAdapter] = ()
    system: str | None = None
    """The system prompt that goes with the model, where the user gives none."""


class Source(Protocol):
    """Where answers come from."""

    @property
    def label(self) -> str:
        """What the model is called, there."""

    @property
    def server(self) -> str | None:
        """The address of the server that runs it; None: it is loaded here."""

    @property
    def sha256(self) -> str | None:
        """The content, as far as it is known."""

    @property
    def content_key(self) -> str | None:
        """What tells its content from all others, so that a kept KV cache is known to fit; None: none is kept."""

    def open(self, options: ChatOptions, meanwhile: Meanwhile | None = None) -> Opened:
        """Get it ready; raise `OnlyLocal` for options that mean nothing there."""

    def is_same(self, other: Source) -> bool:
        """Whether both are the same weights."""

    def other(self, name: str) -> Source:
        """Another model of the same place; raise an error that tells how to find one."""

    def names(self) -> Iterable[str]:
        """What `other` takes."""

    def describe(self, info: EngineInfo, adapters: Sequence[LoraAdapter], template: str) -> str:
        """One line about it."""

    def room_advice(self, error: PromptTooLong, options: EngineOptions, shorten: str) -> str:
        """What would make room for a prompt that is too long; `shorten` begins that sentence."""
