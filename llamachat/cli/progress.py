"""Progress on stderr: bars on a terminal, a plain line every few seconds in a pipe."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llamachat.cli.format import duration, share, size
from llamachat.cli.output import out
from llamachat.cli.terminal.escapes import visible

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from llamachat.models.plan import PullPlan
    from llamachat.models.progress import Progress

_PLAIN_EVERY_S = 5.0
_NARROW = 60
"""A terminal of fewer columns has no room for bars."""
_BESIDE_TITLE = 34
_BESIDE_NARROW_TITLE = 25
"""Columns that per cent, speed and time left take beside a title, and a short bar or none."""
_TITLES = {"download": "Downloading", "import": "Importing", "quantize": "Quantizing", "verify": "Checking"}


@contextmanager
def pull_progress() -> Iterator[Progress]:
    """Show the stages of a pull: how far, how fast, how long still."""
    if not out.talk.is_terminal:
        yield _PlainLines()
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.table import Column

    width = out.talk.width
    is_narrow = width < _NARROW
    n_title = max(8, width - (_BESIDE_NARROW_TITLE if is_narrow else _BESIDE_TITLE))
    cut = Column(no_wrap=True, overflow="ellipsis", max_width=n_title)
    title, speed = TextColumn("{task.description}", markup=False, table_column=cut), TextColumn("{task.fields[speed]}")
    bar, left = [] if is_narrow else [BarColumn()], TimeRemainingColumn(compact=is_narrow)
    with Progress(title, *bar, TaskProgressColumn(), speed, left, console=out.talk) as bars:
        yield _Bars(bars)


class _Bars:
    """A bar for each stage, and one for each file under way."""

    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def __call__(self, stage: str, done: int, total: int) -> None:
        self._show(stage, _TITLES[stage], done, total, is_bytes=stage != "quantize")

    def planned(self, plan: PullPlan) -> None:
        self.notice(_in_words(plan))

    def file(self, name: str, done: int, total: int) -> None:
        self._show(f"file {name}", f"  {visible(name)}", done, total, is_bytes=True)

    def paused(self, name: str) -> None:
        with self._lock:
            task = self._tasks.pop(f"file {name}", None)
        if task is not None:
            self._bars.remove_task(task)

    def arrived(self, name: str, size_bytes: int) -> None:
        self.paused(name)
        self._bars.console.print(f"  {visible(name)}: {size(size_bytes)}", markup=False, highlight=False)

    def notice(self, text: str) -> None:
        self._bars.console.print(visible(text), markup=False, highlight=False)

    def _show(self, key: str, title: str, done: int, total: int, *, is_bytes: bool) -> None:
        with self._lock:
            if key not in self._tasks:
                self._tasks[key] = self._bars.add_task(title, total=total, completed=done, speed="")
            task = self._tasks[key]
        speed = next((shown.speed for shown in self._bars.tasks if shown.id == task), None)
        self._bars.update(task, completed=done, total=total, speed=_speed(speed or 0.0, is_bytes=is_bytes))


class _PlainLines:
    """One line now and then, and one at the end of each stage and file."""

    def __init__(self) -> None:
        self._started: dict[str, tuple[float, int]] = {}
        self._last: dict[str, float] = {}
        self._lock = threading.Lock()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        with self._lock:
            started, first = self._started.setdefault(stage, (now, done))
            if done < total and now - self._last.get(stage, 0.0) < _PLAIN_EVERY_S:
                return
            self._last[stage] = now
        per_second = (done - first) / (now - started) if now > started else 0.0
        is_bytes = stage != "quantize"
        facts = [
            share(done, total) if is_bytes else "",
            f"{100 * done // max(total, 1)} %",
            _speed(per_second, is_bytes=is_bytes),
            f"{duration((total - done) / per_second)} left" if per_second and done < total else "",
        ]
        out.note(f"{_TITLES[stage]}: {', '.join(filter(None, facts))}")

    def planned(self, plan: PullPlan) -> None:
        out.note(_in_words(plan))

    def file(self, name: str, done: int, total: int) -> None:
        """In a pipe a file has its line when it is here."""

    def paused(self, name: str) -> None:
        """See `file`."""

    def arrived(self, name: str, size_bytes: int) -> None:
        out.note(f"  {name}: {size(size_bytes)}")

    def notice(self, text: str) -> None:
        out.note(text)


def _in_words(plan: PullPlan) -> str:
    weights = f" and up to {size(plan.temporary_bytes)} of weights at a time" if plan.temporary_bytes else ""
    return (
        f"Planned: {size(plan.download_bytes)} to download; {size(plan.output_bytes)} for the model{weights}; "
        f"{size(plan.needed_bytes)} needed of {size(plan.free_bytes)} free in {plan.directory}."
    )


def _speed(per_second: float, *, is_bytes: bool) -> str:
    if not per_second:
        return ""
    return f"{size(per_second)}/s" if is_bytes else f"{per_second / 1e6:.0f}M weights/s"
