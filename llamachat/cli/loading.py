"""Loading a model while something else goes on: a line that is typed, or a sign that it takes a while."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from llamachat.cli.memory import describe_draft
from llamachat.cli.output import out
from llamachat.cli.terminal.interrupt import cancel_on_interrupt
from llamachat.engine import open_engine
from llamachat.engine.base import Engine, EngineOptions, LoraAdapter
from llamachat.errors import LlamachatError
from llamachat.models.adapters import check_adapter, find_adapter
from llamachat.models.store import StoredModel


class Meanwhile(Protocol):
    """What to do while a model loads."""

    def __call__(self, what: str, is_done: Callable[[], bool]) -> None:
        """Return once `is_done`, or raise to give up; `what` is being loaded."""


def _load_beside(stored: StoredModel, options: EngineOptions, meanwhile: Meanwhile) -> Engine:
    """Load a model in a thread; if `meanwhile` raises, the loading ends first."""
    cancel = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(open_engine, stored.path, options, cancel)
        try:
            meanwhile(stored.label, loading.done)
        except BaseException:
            cancel.set()
            with suppress(LlamachatError):
                loading.result().close()
            raise
        return loading.result()


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


def load_with_adapters(
    stored: StoredModel, options: EngineOptions, meanwhile: Meanwhile | None = None
) -> tuple[Engine, Sequence[LoraAdapter]]:
    """Load a model with its adapters; also return those by the paths they were found at."""
    found = [replace(a, path=find_adapter(a.path.as_posix(), stored)) for a in options.adapters]
    for adapter in found:
        for note in check_adapter(adapter.path, stored.path):
            out.warning(note)
    wanted = replace(options, adapters=found)
    if isinstance(options.draft, Path):
        out.note(describe_draft(options.draft, stored, options))
    engine = _load_beside(stored, wanted, meanwhile) if meanwhile else load_engine(stored, wanted)
    if engine.info.n_ctx > engine.info.n_ctx_train > 0:
        out.warning(
            f"The window of {engine.info.n_ctx:,} tokens is longer than the {engine.info.n_ctx_train:,} "
            f"the model was trained for: with stretched positions ({options.rope_scaling}) answers get worse."
        )
    return engine, found
