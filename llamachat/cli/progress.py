"""Progress on stderr: bars on a terminal, a plain line every few seconds in a pipe."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llamachat.cli.format import size
from llamachat.cli.output import out

if TYPE_CHECKING:
    from llamachat.models.pull import Progress

_PLAIN_EVERY_S = 5.0
_TITLES = {"download": "Downloading", "import": "Importing", "quantize": "Quantizing", "verify": "Checking"}


@contextmanager
def pull_progress() -> Iterator[Progress]:
    """Show the stages of a pull: how far, how fast, how long still."""
    if out.talk.is_terminal:
        with _bars() as report:
            yield report
    else:
        yield _PlainLines()


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.progress import (
        BarColumn,
        Progress,
        TaskID,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[speed]}"))
    with Progress(*columns, TimeRemainingColumn(), console=out.talk) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(_TITLES[stage], total=total, completed=done, speed="")
            task = tasks[stage]
            bars.update(task, completed=done, speed=_speed(stage, bars.tasks[task].speed or 0.0))

        yield report


class _PlainLines:
    """One line now and then, and one at the end of each stage."""

    def __init__(self) -> None:
        self._started: dict[str, tuple[float, int]] = {}
        self._last = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        started, first = self._started.setdefault(stage, (now, done))
        if done < total and now - self._last < _PLAIN_EVERY_S:
            return
        self._last = now
        per_second = (done - first) / (now - started) if now > started else 0.0
        left = f", {(total - done) / per_second:.0f} s left" if per_second and done < total else ""
        out.note(f"{_TITLES[stage]}: {100 * done // max(total, 1)} %{left} {_speed(stage, per_second)}".rstrip())


def _speed(stage: str, per_second: float) -> str:
    if not per_second:
        return ""
    return f"{per_second / 1e6:.0f}M weights/s" if stage == "quantize" else f"{size(per_second)}/s"
