"""Where an answer appears: as Markdown on a terminal that can draw, as it is anywhere else."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

from llamachat.cli.output import out
from llamachat.cli.terminal.blocks import Block, BlockSplitter
from llamachat.cli.terminal.escapes import visible
from llamachat.cli.terminal.graphemes import held_back
from llamachat.cli.terminal.rows import ChangingRows
from llamachat.cli.terminal.size import Size, terminal_size
from llamachat.errors import LlamachatError

if TYPE_CHECKING:
    from rich.console import Console

_BETWEEN_DRAWINGS_S = 1 / 18
_LATE_S = 0.1
"""After which a piece is drawn although no other has come."""

_MOST_OF_THE_TIME = 0.02
"""The share of the time that drawing may take: a long table is drawn less often."""

_SELDOMEST_S = 3.0
"""Between two drawings. What is finished takes its time whenever it is drawn; to wait for that would pile up more."""


class RawView:
    """The text as it comes."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._last = "\n"

    def __enter__(self) -> RawView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def feed(self, text: str) -> None:
        """Show the next piece of the answer."""
        self._write(text)
        self._last = text[-1:] or self._last

    def close(self) -> None:
        """Show all that is left and end the line, if there is one."""
        if self._last != "\n":
            self._write("\n")
            self._last = "\n"


class WholeCharacters(RawView):
    """The text as it comes, on a terminal: characters are held back until they are complete."""

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__(write)
        self._held = ""

    def feed(self, text: str) -> None:
        """See `RawView`."""
        text = self._held + text
        n_held = held_back(text)
        self._held = text[len(text) - n_held :]
        super().feed(text[: len(text) - n_held])

    def close(self) -> None:
        """See `RawView`."""
        held, self._held = self._held, ""
        super().feed(held)
        super().close()


class MarkdownView(WholeCharacters):
    """Finished blocks are rendered once; only the one that is still growing is drawn again, in its place."""

    def __init__(
        self,
        console: Console,
        write: Callable[[str], None],
        size: Callable[[], Size] = terminal_size,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`console` tells the colours; `write` gets sequences for the terminal, each to be written at once."""
        from llamachat.cli.terminal.markdown import BlockRenderer

        super().__init__(self._take)
        self._size = size
        self._clock = clock
        self._splitter = BlockSplitter()
        self._renderer = BlockRenderer(console)
        self._rows = ChangingRows(write, size)
        self._finished: list[Block] = []
        self._next_drawing = clock()
        self._lock = threading.Lock()
        self._is_drawn = True
        self._late: threading.Timer | None = None

    def close(self) -> None:
        """See `RawView`."""
        super().close()
        with self._lock:
            self._finished += self._splitter.finish()
            self._draw()

    def _take(self, text: str) -> None:
        with self._lock:
            self._finished += self._splitter.feed(visible(text))
            self._is_drawn = False
            if self._clock() >= self._next_drawing:
                self._draw()
            elif self._late is None:
                self._late = threading.Timer(_LATE_S, self._draw_late)
                self._late.daemon = True
                self._late.start()

    def _draw_late(self) -> None:
        """Draw what came before the model fell silent."""
        with self._lock, suppress(OSError, LlamachatError):  # a terminal that is gone is the main thread's matter
            self._late = None
            if not self._is_drawn:
                self._draw()

    def _draw(self) -> None:
        started = self._clock()
        finished, self._finished = self._finished, []
        columns = self._size().columns
        final = self._renderer.final(finished, columns)
        self._rows.draw(final, self._renderer.changing(self._splitter.unfinished(), columns))
        ended = self._clock()
        pause_s = min((ended - started) / _MOST_OF_THE_TIME, _SELDOMEST_S)
        self._next_drawing = ended + max(_BETWEEN_DRAWINGS_S, pause_s)
        self._is_drawn = True


def open_view() -> RawView:
    """The view for this standard output."""
    piece = partial(out.text, end="")
    if not sys.stdout.isatty():
        return RawView(piece)
    if os.environ.get("TERM", "").lower() in ("", "dumb", "unknown"):
        return WholeCharacters(piece)
    return MarkdownView(out.data, out.sequences)
