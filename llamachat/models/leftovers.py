"""What interrupted work has left behind: found, measured, and removed without touching what a live process holds."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from llamachat.models.contexts import SUFFIX, UNFINISHED, is_being_written
from llamachat.models.locks import find_busy, locked, writing
from llamachat.models.store import delete
from llamachat.paths import contexts_dir, locks_dir, models_dir, staging_dir

_UNFINISHED = (".partial", ".journal")
_BLOCK_BYTES = 512  # the unit of st_blocks, whatever the file system's own is


@dataclass(frozen=True)
class Leftover:
    """A file or directory nobody needs any more. `size_bytes` is what its removal frees: no holes, no linked content.

    `locks` are the names under which a pull would hold it.
    """

    path: Path
    kind: str
    size_bytes: int
    locks: Sequence[str]


@dataclass(frozen=True)
class InUse:
    """Something that looks left behind but is being worked on; `holder` says by whom, as far as that is known."""

    path: Path
    holder: str | None


def find_leftovers() -> tuple[list[Leftover], list[InUse]]:
    """What could go, and what looks like it but is in use. Raises `CannotWrite` if locks cannot be taken."""
    free: list[Leftover] = []
    in_use: list[InUse] = []
    for leftover in [*_staged(), *_removed(), *_unfinished(), *_notes(), *_contexts()]:
        if busy := next(filter(None, map(find_busy, leftover.locks)), None):
            in_use.append(InUse(leftover.path, busy.holder))
        else:
            free.append(leftover)
    return free, in_use


def remove(leftover: Leftover) -> None:
    """Delete it; raise `StoreBusy` if somebody has begun to work on it, `CannotWrite` if the system refuses."""
    with ExitStack() as stack, writing():
        for name in leftover.locks:
            stack.enter_context(locked(name))
        delete(leftover.path)


def _staged() -> Iterator[Leftover]:
    """Checkpoints, `org--repo@commit`, and models in the making, `org--repo--quant`."""
    for path in _entries(staging_dir()):
        if "@" not in path.name:
            yield _leftover(path, "unfinished model", [path.name, _model_of(path.name)])
        elif _is_unfinished(path):
            yield _leftover(path, "unfinished download", [path.name])
        else:
            yield _leftover(path, "downloaded weights", [path.name])


def _removed() -> Iterator[Leftover]:
    """Models out of sight whose removal was cut short: `.org--repo--quant.PID.removed`."""
    for path in _entries(models_dir()):
        if path.name.startswith(".") and path.name.endswith(".removed"):
            yield _leftover(path, "removed model", [_model_of(path.name[1:].rsplit(".", 2)[0])])


def _unfinished() -> Iterator[Leftover]:
    for directory in _entries(models_dir()):
        if not directory.name.startswith(".") and not directory.is_symlink():
            for path in _entries(directory):
                if path.name.endswith(_UNFINISHED):
                    yield _leftover(path, "unfinished file", [_model_of(directory.name)])


def _notes() -> Iterator[Leftover]:
    """What a killed process left beside its lock: `NAME.who`, and `.NAME.who.PID` that has not become one."""
    for path in _entries(locks_dir()):
        name, found, _ = path.name.removeprefix(".").rpartition(".who")
        if found and not find_busy(name):
            yield _leftover(path, "note of a dead process", [name])


def _contexts() -> Iterator[Leftover]:
    """`ID.kv`, and `.ID.kv.PID.partial`."""
    for path in _entries(contexts_dir()):
        if path.name.endswith(SUFFIX):
            yield _leftover(path, "kept context", [])
        elif path.name.endswith(UNFINISHED) and not is_being_written(path):
            yield _leftover(path, "unfinished context", [])


def _leftover(path: Path, kind: str, locks: Sequence[str]) -> Leftover:
    return Leftover(path, kind, disk_usage(path), tuple(dict.fromkeys(name for name in locks if name)))


def _model_of(directory_name: str) -> str:
    """The model, as its lock has it, from `org--repo--quant`."""
    return directory_name.rpartition("--")[0]


def _is_unfinished(directory: Path) -> bool:
    return any(name.endswith(_UNFINISHED) for _, _, names in os.walk(directory) for name in names)


def disk_usage(path: Path) -> int:
    """What a file or a directory takes on the disk.

    Links count as themselves; what has just gone, or has its content under another name as well, counts nothing.
    """
    total = _allocated(path)
    if path.is_dir() and not path.is_symlink():
        for directory, subdirectories, names in os.walk(path):
            total += sum(_allocated(Path(directory, name)) for name in (*subdirectories, *names))
    return total


def _allocated(path: Path) -> int:
    try:
        status = path.lstat()
    except OSError:
        return 0
    if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
        return 0
    return status.st_blocks * _BLOCK_BYTES if hasattr(status, "st_blocks") else status.st_size


def _entries(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []
