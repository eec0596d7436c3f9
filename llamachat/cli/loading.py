"""Loading a model while something else goes on: a line that is typed, or a sign that it takes a while."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

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
        """Return once `is_done`, or raise to give up; `what` is going on."""


class _Closable(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=_Closable)

Begin = Callable[[threading.Event], T]
"""Gets something ready; ends soon, with an error, once the event is set."""


def _beside(what: str, begin: Begin[T], meanwhile: Meanwhile) -> T:
    """Get something ready in a thread; if `meanwhile` raises, that ends first."""
    cancel = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(begin, cancel)
        try:
            meanwhile(what, loading.done)
        except BaseException:
            cancel.set()
            with suppress(LlamachatError):
                loading.result().close()
            raise
        return loading.result()


def _alone(words: str, begin: Begin[T]) -> T:
    """Get something ready, showing that it takes a while.

    Ctrl-C ends that: llama.cpp must not be interrupted half-way.
    """
    with out.status(words), cancel_on_interrupt() as cancel:
        try:
            ready = begin(cancel)
        except LlamachatError:
            if cancel.is_set():
                raise KeyboardInterrupt from None
            raise
    if cancel.is_set():
        ready.close()
        raise KeyboardInterrupt
    return ready


def wait_for(words: str, begin: Begin[T], meanwhile: Meanwhile | None) -> T:
    """Get something ready while something else goes on, if there is anything."""
    return _beside(words, begin, meanwhile) if meanwhile else _alone(words, begin)


def load_engine(stored: StoredModel, options: EngineOptions) -> Engine:
    """Load a model, showing that it takes a while."""
    return _alone(f"Loading {stored.label}", lambda cancel: open_engine(stored.path, options, cancel))


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
    if meanwhile:
        engine = _beside(f"Loading {stored.label}", lambda cancel: open_engine(stored.path, wanted, cancel), meanwhile)
    else:
        engine = load_engine(stored, wanted)
    if engine.info.n_ctx > engine.info.n_ctx_train > 0:
        out.warning(
            f"The window of {engine.info.n_ctx:,} tokens is longer than the {engine.info.n_ctx_train:,} "
            f"the model was trained for: with stretched positions ({options.rope_scaling}) answers get worse."
        )
    return engine, found
