"""From a model's name to a session: what answers come from, and what was said, put together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

from llamachat.chat.events import Answer
from llamachat.chat.history import History, SessionFacts, StoredSession
from llamachat.chat.history_record import HistoryRecord
from llamachat.chat.message import Message
from llamachat.chat.session import Overflow, Session
from llamachat.chat.templates import TemplateChoice
from llamachat.chat.tools.use import Toolbox
from llamachat.cli.describing import describe_stats, describe_unmet
from llamachat.cli.loading import Meanwhile
from llamachat.cli.local_model import LocalModel
from llamachat.cli.output import out
from llamachat.cli.source import Source
from llamachat.engine.base import EngineOptions, KvType, LoraAdapter, RopeScaling
from llamachat.engine.sampling import SamplingParams
from llamachat.errors import HistoryFailed, LlamachatError, NoToolCalls, PromptTooLong, UnusableAdapter
from llamachat.models.resolve import resolve
from llamachat.models.store import StoredModel
from llamachat.paths import history_path

Reasoning = Literal["auto", "on", "off", "hide"]
"""Thinking before answers: as the template has it by itself, switched on, switched off, or as it is but not shown."""

_THINKING: Mapping[Reasoning, bool | None] = {"auto": None, "on": True, "off": False, "hide": None}


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


@dataclass
class OpenChat:
    """A session with what it was made of. Model, window and adapters can be changed while the conversation goes on."""

    options: ChatOptions
    model: Source
    session: Session
    choice: TemplateChoice
    adapters: Sequence[LoraAdapter] = ()
    record: HistoryRecord | None = None
    """None: nothing is saved."""
    attached: list[str] = field(default_factory=list)
    """Texts of files that go before the next message."""
    last_answer: Answer | None = None
    resumed: StoredSession | None = None
    """The stored conversation that goes on, as it was then."""
    kept_ids: tuple[int, ...] = ()
    """What of the context window is in a file."""

    def reopen(self, model: Source, options: EngineOptions) -> None:
        """Go on with another model, or the same one opened otherwise. If that fails everything is as it was."""
        same = model.is_same(self.model)
        self._become(model, replace(self.options, engine=options, template=self.options.template if same else None))
        self._keep_facts()

    def _become(self, model: Source, changed: ChatOptions) -> None:
        new = model.open(changed)
        try:
            if self.session.tools and new.choice.template.calls is None:
                raise NoToolCalls(new.choice.template.name)
            if self.session.conversation.messages:
                new.choice.template.render(self.session.conversation, new.engine.tokenizer)  # which some refuse
        except LlamachatError:
            new.engine.close()
            raise
        self.session.engine.close()
        self.session.change(new.engine, new.choice.template, new.sampling)
        self.options, self.model, self.choice, self.adapters = changed, model, new.choice, new.adapters
        self.kept_ids = ()

    def set_sampling(self, values: Mapping[str, float]) -> None:
        """Change how answers are sampled from now on, whichever model gives them."""
        self.options = replace(self.options, sampling={**self.options.sampling, **values})
        self.session.sampling = self.session.sampling.override(values)
        self._keep_facts()

    def set_limits(self, *, max_tokens: int | None, overflow: Overflow) -> None:
        """Change how long answers may get, and what happens when the window is full."""
        self.options = replace(self.options, max_tokens=max_tokens, overflow=overflow)
        self.session.max_tokens, self.session.overflow = max_tokens, overflow
        self._keep_facts()

    def _keep_facts(self) -> None:
        if self.record:
            self.record.keep_facts()

    def set_reasoning(self, reasoning: Reasoning) -> None:
        """Let the model think before its answers from now on, or not, or unseen; whichever model it is."""
        self.options = replace(self.options, reasoning=reasoning)
        self.session.think(_THINKING[reasoning])
        self._keep_facts()

    @property
    def reasoning(self) -> Reasoning:
        """Whether the model thinks before its answers, and whether that is shown."""
        return _reasoning(self.options)

    @property
    def shows_thoughts(self) -> bool:
        """Whether what the model thinks is to be seen."""
        return self.reasoning in ("auto", "on")

    def resume(self, stored: StoredSession) -> None:
        """Go on with a stored conversation as it stopped, if that was with the model there is now; else with that."""
        if is_held_with(self.model, stored.facts):
            self._answer_as(stored.facts)
        self.last_answer = None
        self.adopt(stored)

    def _answer_as(self, facts: SessionFacts) -> None:
        open_engine = replace(self.options.engine, n_ctx=None, adapters=(), kv_type=None, rope_scaling=None)
        open_options = replace(
            self.options,
            sampling={},
            template=None,
            engine=open_engine,
            without_adapters=False,
            max_tokens=None,
            stop=(),
            overflow=None,
            reasoning=None,
        )
        options = _as_before(open_options, facts, self.model)
        now, engine = self.facts(), self.options.engine
        is_other = (engine.kv_type, engine.rope_scaling) != (options.engine.kv_type, options.engine.rope_scaling)
        if is_other or (now.template, now.n_ctx, now.adapters) != (facts.template, facts.n_ctx, facts.adapters):
            self._become(self.model, options)
        session = self.session
        self.options, session.sampling = options, facts.sampling_params()
        session.max_tokens, session.own_stop, session.overflow = options.max_tokens, options.stop, _overflow(options)
        session.strict_tags = options.strict_tags
        session.think(_THINKING[self.reasoning])

    def adopt(self, stored: StoredSession) -> None:
        """Go on with a stored conversation as answers are made now."""
        self.resumed, self.kept_ids = stored, ()
        if self.record:
            self.record.catch_up(self.session.said)
            self.record.adopt(stored)
        self.session.began(datetime.fromisoformat(stored.created).astimezone())
        self.session.resume(stored.conversation, stored.unanswered)

    def start_over(self, system: str | None) -> int | None:
        """Begin another conversation with this system prompt; return the id of the one so far, if that is kept."""
        so_far = None
        if self.record:
            self.record.catch_up(self.session.said)
            so_far = self.record.session_id if self.record.is_working else None
            self.record.adopt(None)
        self.resumed, self.last_answer, self.kept_ids = None, None, ()
        self.session.began(datetime.now())
        self.session.start_over(system)
        return so_far

    def window_advice(self, error: PromptTooLong) -> str:
        """What would make room for a prompt that is too long, and what that costs in memory."""
        shorten = "Shorten it, "
        if any(turn[0].is_pinned for turn in self.session.conversation.turns):
            shorten += "let pinned turns go with /pin off, "
        return self.model.room_advice(error, self.options.engine, shorten)

    def title(self) -> str:
        """What the conversation is called in the history; empty if it is not there."""
        if self.record is None or self.record.session_id is None:
            return ""
        try:
            return self.record.history.load(self.record.session_id).title
        except LlamachatError:
            return ""

    def facts(self, sampling: SamplingParams | None = None) -> SessionFacts:
        """What answers are made with at the moment, for the history; `sampling` for one that has its own."""
        return SessionFacts(
            model=self.model.label,
            model_sha256=self.model.sha256,
            template=self.choice.template.name,
            sampling=self._chosen(sampling or self.session.sampling),
            n_ctx=self.session.engine.info.n_ctx,
            adapters=tuple((str(adapter.path.absolute()), adapter.scale) for adapter in self.adapters),
            options=self._other_options(),
            server=self.model.server,
        )

    def _chosen(self, sampling: SamplingParams) -> Mapping[str, Any]:
        """The seed is the session's: an answer's own is kept with it."""
        chosen = sampling.chosen()
        return {**chosen, "seed": self.session.sampling.seed} if "seed" in chosen else chosen

    def _other_options(self) -> dict[str, Any]:
        """What is not as it would be by itself. Of a grammar only that there is one: see `open_chat`."""
        session, engine = self.session, self.options.engine
        options = {
            "max_tokens": session.max_tokens,
            "stop": [text for text in session.own_stop if text],
            "overflow": session.overflow if session.overflow != "drop" else None,
            "reasoning": self.reasoning if self.reasoning != "auto" else None,
            "kv_type": engine.kv_type if engine.kv_type != "f16" else None,
            "rope_scaling": engine.rope_scaling,
            "strict_tags": session.strict_tags,
            "grammar": session.is_held,
        }
        return {name: value for name, value in options.items() if value}

    def describe(self) -> str:
        """One line: the model, where it runs and how, its template."""
        return self.model.describe(self.session.engine.info, self.adapters, self.choice.template.name)

    def describe_stats(self, answer: Answer) -> str:
        """One line about an answer: why it ended, tokens and speeds."""
        return f"{describe_stats(answer)} · template {self.choice.template.name} ({self.choice.reason})"


@contextmanager
def open_chat(
    model: str | None,
    options: ChatOptions,
    *,
    server: str | None = None,
    resume: str | None = None,
    save: bool = True,
    meanwhile: Meanwhile | None = None,
) -> Iterator[OpenChat]:
    """Load a model and begin a conversation with it, or go on with a stored one where and as it stopped.

    With `server`, an address, the model is one of those that run there.
    The model is loaded in a thread if there is something to do `meanwhile`.
    """
    with open_history(needed=resume is not None, wanted=save) as history:
        stored = history.load(history.find(resume)) if history and resume is not None else None
        found = _find(model, server, stored, meanwhile)
        options = _as_before(options, stored.facts, found) if stored else options
        with _open_session(found, options, meanwhile) as opened:
            if history and save:
                opened.record = opened.session.record = HistoryRecord(
                    history,
                    opened.facts,
                    on_trouble=lambda error: out.warning(f"Not saved: {error} {error.next_step}"),
                    on_recovery=lambda: out.note("The conversation is saved again, all of it."),
                )
            if stored:
                opened.adopt(stored)
                if opened.facts().model_sha256 != stored.facts.model_sha256:
                    out.note(f"It began with another model: {stored.facts.model}, of other content.")
                if stored.facts.options.get("grammar") and not options.grammar:  # which is for one use, not for a talk
                    out.note("Its answers obeyed a grammar; now they do only with --grammar or --json-schema.")
            try:
                yield opened
            finally:
                if opened.record:
                    opened.record.catch_up(opened.session.said)


def _find(model: str | None, server: str | None, stored: StoredSession | None, meanwhile: Meanwhile | None) -> Source:
    """What is asked for, or else what a stored conversation was held with. A served model is never sought here."""
    facts = stored.facts if stored else None
    was_served = facts is not None and facts.server is not None
    if server is None and (model is not None or not was_served):
        return LocalModel(resolve(model) if model or not stored else _model_of(stored))
    from llamachat.cli.served_model import is_same_server, reach

    there = server or (facts.server if facts else None) or ""
    if model is None and facts and facts.server and is_same_server(there, facts.server):
        model = facts.model
    served = reach(there, model, is_named=server is not None, meanwhile=meanwhile)
    if server is None:  # the conversation may come from a file that somebody else has written
        out.note(f"What you say goes to {served.label} at {served.server}.")
    return served


def _model_of(stored: StoredSession) -> StoredModel:
    try:
        return resolve(stored.facts.model)
    except LlamachatError as error:
        step = error.next_step.removesuffix(".")
        error.next_step = f"{step}, or go on with another model: llamachat chat MODEL --resume {stored.id}"
        raise


def is_held_with(source: Source, facts: SessionFacts) -> bool:
    """Whether a conversation was held with this model. One of a server is no other by the same name."""
    return (source.label, source.server) == (facts.model, facts.server)


def _overflow(options: ChatOptions) -> Overflow:
    return options.overflow or "drop"


def _reasoning(options: ChatOptions) -> Reasoning:
    return options.reasoning or "auto"


def _as_before(options: ChatOptions, facts: SessionFacts, source: Source) -> ChatOptions:
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


@contextmanager
def _open_session(source: Source, options: ChatOptions, meanwhile: Meanwhile | None) -> Iterator[OpenChat]:
    new = source.open(options, meanwhile)
    try:
        system = options.system if options.system is not None else new.system
        session = Session(
            new.engine,
            new.choice.template,
            new.sampling,
            system=system or new.choice.template.no_system,
            max_tokens=options.max_tokens,
            stop=options.stop,
            overflow=_overflow(options),
            grammar=options.grammar,
            schema=options.schema,
            strict_tags=options.strict_tags,
            examples=options.examples,
            thinking=_THINKING[_reasoning(options)],
            toolbox=options.toolbox,
        )
    except LlamachatError:
        new.engine.close()
        raise
    opened = OpenChat(options, source, session, new.choice, new.adapters)
    if note := describe_unmet(session, _reasoning(options)):
        out.note(note)
    try:
        yield opened
    finally:
        session.engine.close()  # which may be another one by now


@contextmanager
def open_history(*, needed: bool, wanted: bool) -> Iterator[History | None]:
    """The history, with what there is to say about it; None if it is not wanted, or cannot be had and is not needed."""
    if not (needed or wanted):
        yield None
        return
    try:
        history = History(history_path())
    except HistoryFailed as error:
        if needed:
            raise
        out.warning(f"This conversation is not saved. {error} {error.next_step}")
        yield None
        return
    with history:
        for notice in history.notices:
            out.warning(notice)
        yield history
