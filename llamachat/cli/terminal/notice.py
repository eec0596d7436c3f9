"""Says that the prompt is being read, once that takes long enough to wonder."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

from llamachat.cli.output import out

_WONDER_S = 0.5


class PrefillNotice:
    """A context around an answer. The notice appears on a terminal after a while, and is wiped by `close`.

    After that, an `update` begins anew: what tools have told is read as well.
    """

    def __init__(self) -> None:
        self._words = "Reading"
        self._lock = threading.Lock()
        self._shown = ExitStack()
        self._change: Callable[[str], None]
        self._begin()

    def _begin(self) -> None:
        self._closed = False
        self._change = lambda _: None
        self._timer = threading.Timer(_WONDER_S, self._show)
        self._timer.daemon = True

    def __enter__(self) -> PrefillNotice:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def update(self, n_done: int, n_total: int) -> None:
        """Tell how many tokens of the prompt have been read."""
        with self._lock:
            self._words = f"Reading: {n_done:,} of {n_total:,} tokens"
            self._change(self._words)
            if self._closed:
                self._begin()
                self._timer.start()

    def close(self) -> None:
        """Wipe the notice, or see that it never comes."""
        if self._closed:
            return
        self._timer.cancel()
        with self._lock:
            self._closed = True
            self._shown.close()

    def _show(self) -> None:
        with self._lock:
            if not self._closed:
                self._change = self._shown.enter_context(out.status(self._words))
