"""One lock a model: who holds it, waiting for it, or being refused.

The lock is the operating system's, on `locks/NAME.lock`, so it ends with its holder however that ended. Beside it
`NAME.who` says who took it. That note survives a kill; so it counts only while the lock is held, and only for a
process that lives.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from llamachat.errors import CannotWrite, StoreBusy
from llamachat.paths import home_dir, locks_dir

if TYPE_CHECKING:
    from filelock import BaseFileLock

_ASK_AGAIN_S = 1.0
_MAX_NOTE_BYTES = 1000


@dataclass(frozen=True)
class Holder:
    """The process that has a lock; `since` is ISO 8601 in UTC."""

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        """`process 4711, since 2026-11-21 14:05`, in local time; with the host's name if that is another one."""
        elsewhere = f" on {self.host}" if self.host != platform.node() else ""
        return f"process {self.pid}{elsewhere}, since {datetime.fromisoformat(self.since).astimezone():%Y-%m-%d %H:%M}"


OnWait = Callable[[str, Holder | None], None]
"""Called with the lock's name and its holder (None: not known) when waiting begins, and when the holder changes."""


@contextmanager
def locked(name: str, on_wait: OnWait | None = None) -> Iterator[None]:
    """Hold the lock of a model.

    If another process has it: wait after telling `on_wait`; without that, raise `StoreBusy`. A dead holder's is free.
    """
    with writing():
        locks_dir().mkdir(parents=True, exist_ok=True)
        lock = _acquire(name, on_wait)
    try:
        _write_note(name)
        yield
    finally:
        _note_path(name).unlink(missing_ok=True)
        lock.release()


def find_busy(name: str) -> StoreBusy | None:
    """What `locked` would raise now, or None if the lock is free. Leaves notes as they are."""
    with writing():
        locks_dir().mkdir(parents=True, exist_ok=True)
        try:
            _acquire(name, None).release()
        except StoreBusy as busy:
            return busy
    return None


@contextmanager
def writing() -> Iterator[None]:
    """Around everything that writes under LLAMACHAT_HOME: what the system refuses becomes `CannotWrite`."""
    try:
        yield
    except OSError as error:
        raise CannotWrite(home_dir(), error) from error


def flat(name: str) -> str:
    """A model's name as one part of a path: names cannot contain "--", so nothing is lost."""
    return name.replace("/", "--")


def _acquire(name: str, on_wait: OnWait | None) -> BaseFileLock:
    from filelock import FileLock, Timeout

    lock = FileLock(locks_dir() / f"{flat(name)}.lock")
    told: list[Holder | None] = []
    while True:
        try:
            lock.acquire(timeout=_ASK_AGAIN_S if told else 0)
            return lock
        except Timeout:
            holder = _read_note(_note_path(name))
        if on_wait is None:
            raise StoreBusy(name.replace("--", "/"), str(holder) if holder else None)
        if told != [holder]:
            told = [holder]
            on_wait(name.replace("--", "/"), holder)


def _write_note(name: str) -> None:
    """Replace the note in one step, so that nobody reads half of one. On a full disk work goes on without."""
    note = Holder(os.getpid(), platform.node(), datetime.now(timezone.utc).isoformat(timespec="seconds"))
    path = _note_path(name)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(OSError):
        path.unlink(missing_ok=True)
        beside.write_text(json.dumps(asdict(note)), encoding="utf-8")
        beside.replace(path)


def _read_note(path: Path) -> Holder | None:
    try:
        with path.open("rb") as file:
            holder = Holder(**json.loads(file.read(_MAX_NOTE_BYTES)))
        str(holder)
        return holder if type(holder.pid) is int and holder.pid > 0 and _may_live(holder) else None
    except (OSError, ValueError, TypeError, RecursionError, OverflowError):
        return None


def _may_live(holder: Holder) -> bool:
    """False if the process is certainly gone. Other hosts, and Windows, cannot be asked without harm."""
    if sys.platform == "win32" or holder.host != platform.node():
        return True
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _note_path(name: str) -> Path:
    return locks_dir() / f"{flat(name)}.who"
