"""A chat while it goes on: its session, and what that was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from llamachat.chat.events import Answer
from llamachat.chat.history import SessionFacts, StoredSession
from llamachat.chat.history_record import HistoryRecord
from llamachat.chat.session import Overflow, Session
from llamachat.chat.templates import TemplateChoice
from llamachat.cli.chat_wishes import THINKING, ChatOptions, Reasoning, as_before, is_held_with
from llamachat.cli.describing import describe_stats
from llamachat.cli.source import Source
from llamachat.engine.base import EngineOptions, LoraAdapter
from llamachat.engine.sampling import SamplingParams
from llamachat.errors import LlamachatError, NoToolCalls, PromptTooLong


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
        self.session.think(THINKING[reasoning])
        self._keep_facts()

    @property
    def shows_thoughts(self) -> bool:
        """Whether what the model thinks is to be seen."""
        return self.options.thinks in ("auto", "on")

    def resume(self, stored: StoredSession) -> None:
        """Go on with a stored conversation: as it stopped if that was with this model, else as this one answers now."""
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
        options = as_before(open_options, facts, self.model)
        now, engine = self.facts(), self.options.engine
        is_other = (engine.kv_type, engine.rope_scaling) != (options.engine.kv_type, options.engine.rope_scaling)
        if is_other or (now.template, now.n_ctx, now.adapters) != (facts.template, facts.n_ctx, facts.adapters):
            self._become(self.model, options)
        session = self.session
        self.options, session.sampling = options, facts.sampling_params()
        session.max_tokens, session.own_stop, session.overflow = options.max_tokens, options.stop, options.when_full
        session.strict_tags = options.strict_tags
        session.think(THINKING[self.options.thinks])

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
            "reasoning": self.options.thinks if self.options.thinks != "auto" else None,
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
