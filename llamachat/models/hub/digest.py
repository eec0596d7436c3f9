"""The hash of a file while it arrives: a thread of its own follows the contiguous prefix that is on disk."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from llamachat.models.hub.journal import content_id, range_count, range_span
from llamachat.models.hub.repository import RemoteFile

_PIECE_BYTES = 1 << 20


class PrefixDigest:
    """Reads a file's ranges from disk in order, each as soon as it is there, and hashes them.

    Ranges come in any order and from several connections, a hash needs them in one; what was read a moment ago comes
    from the page cache. After a resume, the prefix that was there already is read again.
    """

    def __init__(self, file: RemoteFile, path: Path, present: Iterable[int]) -> None:
        """Start following `path`, which has the ranges `present` already."""
        self._file = file
        self._path = path
        self._present = set(present)
        self._changed = threading.Condition()
        self._is_stopped = False
        self._error: OSError | None = None
        self._digest = _new_digest(file)
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def add(self, index: int) -> None:
        """A range has been written."""
        with self._changed:
            self._present.add(index)
            self._changed.notify()

    def stop(self) -> None:
        """Give up; returns when the file is no longer read."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()
        self._thread.join()

    def matches(self, timeout_s: float) -> bool | None:
        """Whether the whole content is what the Hub announced; None if that is not known within `timeout_s`."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return None
        if self._error:
            raise self._error
        return self._digest.hexdigest() == content_id(self._file)

    def _follow(self) -> None:
        buffer = memoryview(bytearray(_PIECE_BYTES))
        try:
            with self._path.open("rb", buffering=0) as data:
                for index in range(range_count(self._file.size_bytes)):
                    self._await(index)
                    at, stop = range_span(index, self._file.size_bytes)
                    while at < stop and not self._is_stopped:
                        n_read = data.readinto(buffer[: min(len(buffer), stop - at)])
                        self._digest.update(buffer[:n_read])
                        at = at + n_read if n_read else stop  # cut short by somebody else: the hash will tell
                    if self._is_stopped:
                        return
        except OSError as error:
            self._error = error

    def _await(self, index: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopped or index in self._present)


def has_content(file: RemoteFile, path: Path, on_bytes: Callable[[int], None] | None = None) -> bool:
    """Whether what lies at `path` is what the Hub announced; `on_bytes` is told how much has been read so far."""
    if path.stat().st_size != file.size_bytes:
        return False
    digest, n_read = _new_digest(file), 0
    with path.open("rb", buffering=0) as data:
        while piece := data.read(_PIECE_BYTES):
            digest.update(piece)
            n_read += len(piece)
            if on_bytes:
                on_bytes(n_read)
    return digest.hexdigest() == content_id(file)


def _new_digest(file: RemoteFile) -> hashlib._Hash:
    if file.sha256:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)  # git's name for a file's content
