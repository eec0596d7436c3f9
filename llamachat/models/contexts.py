"""What was in the context window of conversations, in files: one a session, readable for its owner alone.

They only save time, so there are never more of them than fit a budget; those that were not used for longest go first.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from llamachat.models.durable import sync_directory
from llamachat.models.gguf_names import shard_name, shard_of
from llamachat.models.store import StoredModel
from llamachat.paths import contexts_dir

BUDGET_BYTES = 8 * 2**30
"""All files together."""

RESERVE_BYTES = 2 * 2**30
"""What stays free on the disk."""

SUFFIX = ".kv"
UNFINISHED = ".partial"


def context_path(session: int) -> Path:
    """The file of a session, whether or not it is there."""
    return contexts_dir() / f"{session}{SUFFIX}"


def model_key(model: StoredModel) -> str:
    """What tells the content of a model from all others: its hashes, or for files elsewhere their sizes and times."""
    if model.manifest:
        return " ".join(file.sha256 for file in model.manifest.contents)
    shard = shard_of(model.path.name)
    names = [shard_name(shard.base, i + 1, shard.n_shards) for i in range(shard.n_shards)] if shard else []
    paths = [model.path.with_name(name) for name in names] or [model.path]
    return repr([(found.st_size, found.st_mtime_ns) for found in (path.stat() for path in paths)])


def open_context(session: int) -> BinaryIO:
    """Open the file of a session for reading; raise `OSError`, also for what is no file."""
    fd = os.open(context_path(session), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError("no regular file")
    return os.fdopen(fd, "rb")


def touch_context(session: int) -> None:
    """Note that the file of a session was used."""
    with suppress(OSError):
        os.utime(context_path(session))


def forget_context(session: int) -> None:
    """Remove the file of a session, if there is one and it can be removed."""
    with suppress(OSError):
        context_path(session).unlink()


def make_room(session: int, n_bytes: int) -> bool:
    """See that a file of a session may become so large, by removing older ones of others; raise `OSError`.

    False, and nothing removed, if there is no room even then.
    """
    contexts_dir().mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove_unfinished()
    others = _by_last_use(besides=context_path(session))
    n_total = n_bytes + sum(n for _, n in others)
    n_free = shutil.disk_usage(contexts_dir()).free - n_bytes
    going = []
    for path, n in others:
        if n_total <= BUDGET_BYTES and n_free >= RESERVE_BYTES:
            break
        n_total, n_free = n_total - n, n_free + n
        going.append(path)
    if n_total > BUDGET_BYTES or n_free < RESERVE_BYTES:
        return False
    for path in going:
        path.unlink(missing_ok=True)
    return True


@contextmanager
def writing_context(session: int, *, is_synced: bool) -> Iterator[BinaryIO]:
    """A file that takes the place of the session's when the block ends; after an exception all is as it was.

    Without `is_synced` it may be damaged after a power cut, which whoever reads it will find.
    """
    path = context_path(session)
    partial = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    partial.unlink(missing_ok=True)
    synced = os.O_DSYNC if is_synced else 0  # so that no write is long, however slow the disk
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | synced, 0o600)
    with os.fdopen(fd, "wb") as file:
        try:
            _try_lock(fd)  # whoever finds the file unlocked knows that its writer is gone
            yield file
            file.flush()
            if is_synced:
                os.fsync(fd)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    if is_synced:
        sync_directory(path.parent)


def is_being_written(path: Path) -> bool:
    """Whether a live process holds an unfinished file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try_lock(fd)
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    from quantize.claim import try_lock  # the converter takes a while to load, and most chats keep nothing

    return try_lock(fd)


def _remove_unfinished() -> None:
    for path in contexts_dir().glob(f".*{UNFINISHED}"):
        if not is_being_written(path):
            path.unlink(missing_ok=True)


def _by_last_use(besides: Path) -> list[tuple[Path, int]]:
    """The other sessions' files with their sizes, the one that was not used for longest first."""
    found = []
    for path in contexts_dir().glob(f"*{SUFFIX}"):
        with suppress(FileNotFoundError):
            if path != besides:
                found.append((path.stat().st_mtime_ns, path, path.stat().st_size))
    return [(path, n_bytes) for _, path, n_bytes in sorted(found)]
