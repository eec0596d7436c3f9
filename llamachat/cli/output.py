"""The one sink for what the program says: stdout is data, stderr is talk.

Colour only on a terminal and never with NO_COLOR (Rich sees to both). Text from elsewhere (models, files, the
Hub) passes through `visible` before it reaches a terminal.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llamachat.cli.terminal.escapes import visible, visible_json
from llamachat.errors import CannotWrite

if TYPE_CHECKING:
    from rich.console import Console


_COLUMN_GAP = 2


class Output:
    """Verbs for everything a command has to say."""

    @cached_property
    def talk(self) -> Console:
        """Rich on stderr."""
        from rich.console import Console

        return Console(stderr=True, highlight=False, soft_wrap=True)

    @cached_property
    def data(self) -> Console:
        """Rich on stdout."""
        from rich.console import Console

        return Console(highlight=False)

    def text(self, text: str, *, end: str = "\n") -> None:
        """Data for people or pipes."""
        self._write((visible(text) if sys.stdout.isatty() else text) + end)

    def copy(self, text: str) -> None:
        """Put a text into the terminal's clipboard (OSC 52), on a terminal only."""
        if sys.stdout.isatty():
            self._write(f"\x1b]52;c;{base64.b64encode(text.encode('utf-8', 'replace')).decode()}\a")

    def sequences(self, text: str) -> None:
        """For a terminal: text that was made visible, and sequences of our own."""
        self._write(text)

    def json(self, value: Any) -> None:
        """One JSON document."""
        document = visible_json(json.dumps(value, ensure_ascii=False, indent=2))
        try:
            document.encode(sys.stdout.encoding)
        except UnicodeEncodeError:  # a lone surrogate, or a stream that is not UTF-8: escapes lose nothing
            document = json.dumps(value, indent=2)
        self._write(document + "\n")

    def _write(self, text: str) -> None:
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise CannotWrite("standard output", error) from error

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Columns for people; in a pipe, tab-separated lines with the same header.

        A leading ">" aligns right. Columns with a trailing "?" are left out, last first, on a terminal too narrow.
        """
        names = [column.removeprefix(">").removesuffix("?") for column in columns]
        if not sys.stdout.isatty():
            for row in (names, *rows):
                self.text("\t".join(row))
            return
        from rich.table import Table
        from rich.text import Text

        cells = [[visible(cell) for cell in row] for row in rows]
        table = Table(box=None, pad_edge=False, header_style="bold")
        shown = _columns_that_fit(columns, [names, *cells], self.data.width)
        for i in shown:
            table.add_column(names[i], justify="right" if columns[i].startswith(">") else "left", overflow="fold")
        for row in cells:
            table.add_row(*(Text(row[i]) for i in shown))
        self.data.print(table)

    def note(self, text: str) -> None:
        """Something worth knowing, quietly."""
        self._say(text, "dim")

    def aside(self, text: str) -> None:
        """A piece of a text that is no data, such as what a model thinks: on stderr, dim on a terminal."""
        from rich.text import Text

        self.talk.print(Text(visible(text), style="dim"), end="")

    def faint(self, text: str) -> None:
        """Data that matters less: dim on a terminal."""
        from rich.text import Text

        if sys.stdout.isatty():
            self.data.print(Text(visible(text), style="dim"), soft_wrap=True)
        else:
            self.text(text)

    def warning(self, text: str) -> None:
        """Something the user should not miss."""
        self._say(f"Warning: {text}", "yellow")

    def error(self, sentence: str, next_step: str) -> None:
        """What went wrong, and what to do about it."""
        self._say(f"Error: {sentence}", "bold red")
        self._say(f"Next: {next_step}", "default")

    def question(self, text: str, *, end: str = " ") -> None:
        """Something that a key is to be pressed for; its echo goes on in the same line."""
        self._say(text, "bold", end=end)

    @contextmanager
    def status(self, text: str) -> Iterator[Callable[[str], None]]:
        """Show that something is going on, on a terminal only; the value changes the words."""
        if not self.talk.is_terminal:
            yield lambda _: None
            return
        from rich.text import Text

        with self.talk.status(Text(visible(text))) as status:
            yield lambda changed: status.update(Text(visible(changed)))

    def _say(self, text: str, style: str, *, end: str = "\n") -> None:
        from rich.text import Text

        self.talk.print(Text(visible(text), style=style), end=end)


def _columns_that_fit(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Which columns to show; those that must be are, however narrow it is."""
    from rich.cells import cell_len

    widths = [max(cell_len(row[i]) for row in rows) for i in range(len(columns))]
    shown = list(range(len(columns)))
    optional = [i for i in shown if columns[i].endswith("?")]
    while optional and sum(widths[i] + _COLUMN_GAP for i in shown) - _COLUMN_GAP > width:
        shown.remove(optional.pop())
    return shown


out = Output()
