"""From a model's name to a session: store, engine, template and sampling put together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from llamachat.chat.session import Answer, Session
from llamachat.chat.templates import TemplateChoice, choose_template
from llamachat.cli.output import out
from llamachat.cli.terminal.interrupt import cancel_on_interrupt
from llamachat.engine import open_engine
from llamachat.engine.base import Engine, EngineOptions, LoraAdapter
from llamachat.engine.sampling import SamplingParams, recommended
from llamachat.errors import LlamachatError
from llamachat.models.adapters import check_adapter, find_adapter
from llamachat.models.resolve import resolve
from llamachat.models.store import StoredModel


@dataclass(frozen=True)
class ChatOptions:
    """What the command line asks for; None leaves it to the model."""

    engine: EngineOptions
    sampling: Mapping[str, float | int | None]
    system: str | None = None
    template: str | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class OpenChat:
    """A session with what it was made of."""

    model: StoredModel
    session: Session
    choice: TemplateChoice
    default_system: str | None
    adapters: Sequence[LoraAdapter] = ()

    def describe(self) -> str:
        """One line: model with its adapters, context, threads or GPU, template."""
        info = self.session.engine.info
        n_threads = info.n_threads
        where = "GPU" if info.backend == "GPU" else f"{n_threads} thread{'s' * (n_threads > 1)}"
        model = " + ".join([self.model.label, *(adapter.path.name for adapter in self.adapters)])
        return f"{model} · {info.n_ctx:,} tokens · {where} · template {self.choice.template.name}"

    def describe_stats(self, answer: Answer) -> str:
        """One line about an answer: why it ended, tokens and speeds."""
        stats = answer.stats
        return (
            f"{answer.finish_reason} · prompt {stats.n_prompt} tokens, {stats.n_reused} of them reused, "
            f"{stats.prompt_tps:.1f} tok/s · answer {stats.n_generated} tokens, {stats.generation_tps:.1f} tok/s · "
            f"first token after {stats.ttft_s:.2f} s · "
            f"template {self.choice.template.name} ({self.choice.reason})"
        )


def load_engine(stored: StoredModel, options: EngineOptions) -> Engine:
    """Load a model, showing that it takes a while. Ctrl-C ends it: llama.cpp must not be interrupted half-way."""
    with out.status(f"Loading {stored.label}"), cancel_on_interrupt() as cancel:
        try:
            engine = open_engine(stored.path, options, cancel)
        except LlamachatError:
            if cancel.is_set():
                raise KeyboardInterrupt from None
            raise
    if cancel.is_set():
        engine.close()
        raise KeyboardInterrupt
    return engine


@contextmanager
def open_chat(model: str | None, options: ChatOptions) -> Iterator[OpenChat]:
    """Load a model and begin a conversation with it."""
    stored = resolve(model)
    found = [replace(a, path=find_adapter(a.path.as_posix(), stored)) for a in options.engine.adapters]
    for adapter in found:
        for note in check_adapter(adapter.path, stored.path):
            out.warning(note)
    engine = load_engine(stored, replace(options.engine, adapters=found))
    try:
        choice = choose_template(options.template, stored.template, engine.info.metadata)
        if not choice.template.is_chat and options.template is None:
            out.warning(f"{stored.label} is not a chat model ({choice.reason}): it continues the text you type.")
        system = options.system if options.system is not None else stored.system
        session = Session(
            engine,
            choice.template,
            _sampling(stored, choice, engine.info.metadata, options),
            system=system or None,
            max_tokens=options.max_tokens,
            stop=options.stop,
        )
        yield OpenChat(stored, session, choice, stored.system, found)
    finally:
        engine.close()


def _sampling(
    stored: StoredModel, choice: TemplateChoice, metadata: Mapping[str, str], options: ChatOptions
) -> SamplingParams:
    """General defaults, then what the header, the family and the catalogue recommend, then the user's wish."""
    params = SamplingParams()
    for layer in (recommended(metadata), choice.template.sampling, stored.sampling, options.sampling):
        params = params.override(layer)
    return params
