"""A model that a server runs as a `Source`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from llamachat.chat.templates import Seen, Served, TemplateChoice
from llamachat.cli.loading import Meanwhile, wait_for
from llamachat.cli.output import out
from llamachat.cli.source import Opened, Source
from llamachat.engine.base import EngineInfo, EngineOptions, LoraAdapter
from llamachat.engine.sampling import NOTHING_CHOSEN
from llamachat.errors import BadServer, NoServedModel, OnlyLocal, PromptTooLong

if TYPE_CHECKING:
    from llamachat.cli.chat_wishes import ChatOptions
    from llamachat.engine.remote import Server

_KEY = "LLAMACHAT_API_KEY"
_OWN_KEYS = {"api.openai.com": "OPENAI_API_KEY"}
"""Keys that go to nobody but whom they are of."""
_N_NAMED = 12

_LOCAL: Mapping[str, Callable[[ChatOptions], object]] = {
    "--ctx": lambda options: options.engine.n_ctx,
    "--threads": lambda options: options.engine.n_threads,
    "--gpu-layers": lambda options: options.engine.n_gpu_layers != "auto",
    "--kv-type": lambda options: options.engine.kv_type is not None,
    "--draft": lambda options: options.engine.draft not in ("auto", "off"),
    "--tools": lambda options: options.toolbox,
    "--rope-scaling": lambda options: options.engine.rope_scaling,
    "--adapter": lambda options: options.engine.adapters,
    "--template": lambda options: options.template,
    "--strict-tags": lambda options: options.strict_tags,
    "--infill": lambda options: options.infill,
}
"""What belongs to whoever loads a model and renders its prompts, and whether it was asked for."""


def refuse_local(options: ChatOptions, *, has_tools: bool = False) -> None:
    """Raise `OnlyLocal` if something was asked for that means nothing with a server.

    `has_tools`: files of tools were named; that is known before they are run.
    """
    if names := [name for name, is_asked in _LOCAL.items() if is_asked(options) or (has_tools and name == "--tools")]:
        raise OnlyLocal(names)


@dataclass(frozen=True)
class ServedModel:
    """See `Source`."""

    reached: Server
    label: str
    sha256: None = None
    content_key: None = None

    @property
    def server(self) -> str:
        """See `Source`."""
        return self.reached.base

    def open(self, options: ChatOptions, meanwhile: Meanwhile | None = None) -> Opened:  # noqa: ARG002
        """See `Source`. The system prompt and all sampling that nobody chose are the server's."""
        from llamachat.engine.remote import ServedEngine

        refuse_local(options)
        engine = wait_for(
            f"Asking {self.server} about {self.label}", partial(ServedEngine, self.reached, self.label), None
        )
        if options.grammar is not None and options.schema is None and not engine.takes_gbnf:
            raise NoServedModel("This server takes no grammar.", "Give --json-schema, or use llama-server.")
        if options.overflow and not engine.info.n_ctx:
            out.note("The server does not tell its window, so it decides what happens when that is full.")
        template = Served(partial(_view, self.reached, self.label))
        choice = TemplateChoice(template, "it gets the messages as they are")
        return Opened(engine, choice, NOTHING_CHOSEN.override(options.sampling))

    def is_same(self, other: Source) -> bool:
        """See `Source`."""
        return (other.server, other.label) == (self.server, self.label)

    def other(self, name: str) -> Source:
        """See `Source`."""
        names = self.reached.names()
        found = _listed(name, names)
        if names and found not in names:
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names[:_N_NAMED]
            raise NoServedModel(f"{self.server} lists no model {name!r}.", f"It has {', '.join(near)}.")
        return ServedModel(self.reached, found)

    def names(self) -> Iterable[str]:
        """See `Source`."""
        return self.reached.names()

    def describe(self, info: EngineInfo, adapters: Sequence[LoraAdapter], template: str) -> str:  # noqa: ARG002
        """Model, server, context if it is known, and whose template."""
        window = [f"{info.n_ctx:,} tokens"] if info.n_ctx else []
        return " · ".join([f"{self.label} at {self.server}", *window, f"template: {template}"])

    def room_advice(self, error: PromptTooLong, options: EngineOptions, shorten: str) -> str:  # noqa: ARG002
        """See `Source`."""
        return f"{shorten}or start the server with a window of at least {error.n_needed:,} tokens."


def reach(address: str, model: str | None, *, is_named: bool, meanwhile: Meanwhile | None) -> ServedModel:
    """Connect to a server and find the model there; without `model`, the only one that it has.

    A key is sent only if the command line names the server (`is_named`): an address in a conversation may come from
    a file that somebody else has written.
    """
    from llamachat.engine.remote import connect, parse_address

    address = parse_address(address)
    if model is not None and not model.isprintable():
        raise NoServedModel("No model has a name with such characters.", "llamachat chat --server URL tells the names.")
    key = _key(address) if is_named else None
    reached = wait_for(f"Connecting to {address}", partial(connect, address, key), meanwhile)
    names = reached.names()
    if model is not None:
        return ServedModel(reached, _listed(model, names))
    if len(names) == 1:
        return ServedModel(reached, names[0])
    if not names:
        raise NoServedModel(f"{address} lists no model.", f"Name one: llamachat chat MODEL --server {address}")
    more = f", and {len(names) - _N_NAMED} more" if len(names) > _N_NAMED else ""
    raise NoServedModel(
        f"{address} has {len(names)} models: {', '.join(names[:_N_NAMED])}{more}.",
        f"Choose one: llamachat chat {names[0]} --server {address}",
    )


def is_same_server(address: str, base: str) -> bool:
    """Whether what a user writes means the server whose API begins at `base`."""
    from llamachat.engine.remote.address import bases, parse_address

    return base in bases(parse_address(address))


def _listed(name: str, names: Sequence[str]) -> str:
    """A name as the server lists it: Ollama's `:latest` may be left out. Others may be aliases, and stay."""
    return f"{name}:latest" if name not in names and f"{name}:latest" in names else name


def _key(address: str) -> str | None:
    from llamachat.engine.remote.address import is_loopback

    names = filter(None, (_KEY, _OWN_KEYS.get(urlsplit(address).hostname or "")))
    name = next((name for name in names if os.environ.get(name, "").strip()), None)
    if name is None:
        return None
    key = os.environ[name].strip()
    if not (key.isascii() and key.isprintable()):
        raise BadServer(f"{name} holds characters that no key has.")
    if address.startswith("http:") and not is_loopback(address):
        out.warning(f"{name} is sent to {address} without encryption; https would hide it.")
    return key


def _view(reached: Server, model: str, messages: Sequence[Mapping[str, str]]) -> Seen | None:
    view = reached.view(model, messages)
    return (view.ids, view.text) if view else None
