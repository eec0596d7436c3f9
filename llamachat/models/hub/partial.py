"""A file under way: its data at full length, the journal beside it, and the order in which the two are written.

The order makes a kill at any moment harmless: the journal is durable before the data file exists and goes only after
the data was verified and synced; a range is declared finished only when its bytes are synced.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from llamachat.models.durable import sync_directory
from llamachat.models.hub.digest import has_content
from llamachat.models.hub.journal import (
    RANGE_BYTES,
    Journal,
    content_id,
    journal_path,
    range_count,
    read_journal,
    remove_journal,
)
from llamachat.models.hub.repository import RemoteFile

_sync_data = getattr(os, "fdatasync", os.fsync)

_WRITE_BYTES = 16 << 10
"""Larger writes make Linux take large folios for its page cache; where the host of a virtual machine has to find that
memory first, they cost twice the time of all the rest (docs/log.md)."""


def is_complete(path: Path) -> bool:
    """Whether the file is there, whole and verified."""
    return path.is_file() and not journal_path(path).exists()


def n_missing(file: RemoteFile, path: Path) -> int:
    """How many bytes of `file` are still to be fetched into `path`."""
    if is_complete(path):
        return 0
    journal = read_journal(path, file)
    return file.size_bytes - (journal.n_finished_bytes if journal else 0)


def drop_contents(file: RemoteFile, path: Path) -> None:
    """Free the disk space of a file, but keep its first range and a journal that says so.

    The journal comes first: killed between the steps, the file is one whose first range has arrived.
    """
    if file.size_bytes <= RANGE_BYTES:
        return
    if is_complete(path):
        journal: Journal | None = Journal("", content_id(file), file.size_bytes, None, frozenset({0}))
    else:
        journal = read_journal(path, file)
    if journal is None or not path.exists():
        return
    journal.only(1).write(path)
    sync_directory(path.parent)
    with path.open("r+b") as data:
        data.truncate(RANGE_BYTES)
        data.truncate(file.size_bytes)


def move_arrived(
    commit: str, file: RemoteFile, source: Path, target: Path, on_bytes: Callable[[int], None] | None = None
) -> bool:
    """Move what has arrived of `file` from `source`, where it may be under way or complete, to `target`.

    False if it has other content, or nothing of it is there; all is as it was then. A complete file is hashed for that,
    and `on_bytes` is told how much has been read so far; of one under way the journal knows. `target` must not exist.

    Killed between the steps, data never lies without its journal: that is at both places while the data moves.
    """
    if source.is_symlink() or not source.is_file():
        return False
    if is_complete(source):
        if not has_content(file, source, on_bytes):
            return False
        journal_path(target).unlink(missing_ok=True)
    else:
        journal = read_journal(source, file)
        if journal is None or not journal.finished:
            return False
        replace(journal, commit=commit).write(target)
    sync_directory(target.parent)
    source.rename(target)
    sync_directory(target.parent)
    remove_journal(source)
    return True


class Partial:
    """The data and the journal of one file. `write` and `finish` may be called by several threads at once."""

    def __init__(self, path: Path, journal: Journal) -> None:
        """Make the journal durable, then open the data file and give it its full length."""
        self.path = path
        self._journal = journal
        self._durable = journal.finished
        self._is_saving = False
        self._saved = threading.Condition()
        self._writing = threading.Lock()
        journal.write(path)
        sync_directory(path.parent)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            os.ftruncate(self._fd, journal.size_bytes)
            sync_directory(path.parent)
        except OSError:
            os.close(self._fd)
            raise

    @property
    def etag(self) -> str | None:
        """What the server calls the copy that is being fetched; None before its first answer."""
        return self._journal.etag

    @property
    def size_bytes(self) -> int:
        """Length of the whole file."""
        return self._journal.size_bytes

    @property
    def finished(self) -> frozenset[int]:
        """The ranges that are there."""
        return self._journal.finished

    @property
    def is_whole(self) -> bool:
        """Whether all ranges are there; their content has not been verified."""
        return len(self.finished) == range_count(self.size_bytes)

    def adopt_etag(self, etag: str | None) -> str | None:
        """Take the server's name for its copy if none is known yet; return the one that is known."""
        with self._saved:
            if self._journal.etag is None:
                self._journal = replace(self._journal, etag=etag)
            return self._journal.etag

    def write(self, data: memoryview, offset: int) -> None:
        """Put bytes where they belong. One thread at a time: to wait here costs less than in the kernel."""
        with self._writing:
            while data:
                n_written = os.pwrite(self._fd, data[:_WRITE_BYTES], offset)
                data, offset = data[n_written:], offset + n_written

    def finish(self, index: int) -> None:
        """Declare a range finished; returns when that is durable. Threads that come together share one sync."""
        with self._saved:
            self._journal = replace(self._journal, finished=self._journal.finished | {index})
            self._saved.wait_for(lambda: not self._is_saving or index in self._durable)
            if index in self._durable:
                return
            self._is_saving, journal = True, self._journal
        try:
            _sync_data(self._fd)
            journal.write(self.path)
            self._durable = journal.finished
        finally:
            with self._saved:
                self._is_saving = False
                self._saved.notify_all()

    def start_over(self) -> None:
        """Forget everything that arrived, and free its space. No thread may be writing."""
        self._journal = replace(self._journal, etag=None, finished=frozenset())
        self._durable = frozenset()
        self._journal.write(self.path)
        sync_directory(self.path.parent)
        os.ftruncate(self._fd, 0)
        os.ftruncate(self._fd, self.size_bytes)

    def publish(self) -> None:
        """The content is whole and verified: sync it, and take the journal away."""
        os.fsync(self._fd)
        journal_path(self.path).unlink()
        sync_directory(self.path.parent)

    def close(self) -> None:
        """Let go of the file; what is there stays."""
        os.close(self._fd)


def open_partial(commit: str, file: RemoteFile, path: Path) -> tuple[Partial, bool]:
    """The file under way at `path`, begun now if need be, and whether a journal there was of no use."""
    journal = read_journal(path, file)
    was_useless = journal is None and journal_path(path).exists()
    if journal and not journal.finished:
        journal = None  # with nothing to go on with, there is no copy to be bound to, either
    return Partial(path, journal or Journal(commit, content_id(file), file.size_bytes)), was_useless
