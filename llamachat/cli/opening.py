"""From a model's name to a chat: what answers come from, and what was said, put together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llamachat.chat.history import History, StoredSession
from llamachat.chat.history_record import HistoryRecord
from llamachat.chat.session import Session
from llamachat.cli.chat_wishes import THINKING, ChatOptions, as_before
from llamachat.cli.describing import describe_unmet
from llamachat.cli.live_chat import OpenChat
from llamachat.cli.loading import Meanwhile
from llamachat.cli.local_model import LocalModel
from llamachat.cli.output import out
from llamachat.cli.source import Source
from llamachat.errors import HistoryFailed, LlamachatError
from llamachat.models.resolve import resolve
from llamachat.models.store import StoredModel
from llamachat.paths import history_path


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
        options = as_before(options, stored.facts, found) if stored else options
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
            overflow=options.when_full,
            grammar=options.grammar,
            schema=options.schema,
            strict_tags=options.strict_tags,
            examples=options.examples,
            thinking=THINKING[options.thinks],
            toolbox=options.toolbox,
        )
    except LlamachatError:
        new.engine.close()
        raise
    opened = OpenChat(options, source, session, new.choice, new.adapters)
    if note := describe_unmet(session, options.thinks):
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
