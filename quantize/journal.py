"""Which tensors of a file in the making are safely on the disk, so that cut-short work can go on from there.

A text file: first a fingerprint of what is being made, then lines of tensor names. A line cut short by a crash does
not count, nor does a journal of something else.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path

from quantize.claim import try_lock


class Journal:
    """The journal at `path` of the work known by `fingerprint`."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        """Open the journal, for this process alone; raise `BlockingIOError` if another one has it open."""
        self.path = path
        self._first_line = json.dumps({"fingerprint": fingerprint})
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if not try_lock(self._fd):
            self.close()
            raise BlockingIOError(errno.EAGAIN, "it is in use")

    def close(self) -> None:
        """Let others have it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self) -> set[str] | None:
        """The names noted so far; None if there is no journal of this work."""
        try:
            first, *lines = self.path.read_text(encoding="utf-8").split("\n")
        except (OSError, ValueError):
            return None
        if first != self._first_line:
            return None
        names: set[str] = set()
        for line in lines[:-1]:  # what follows the last line break is empty, or was cut short
            try:
                names.update(json.loads(line))
            except (ValueError, TypeError):
                return None
        return names

    def start(self) -> None:
        """Begin anew, with no names."""
        self._write("w", self._first_line)

    def append(self, names: Sequence[str]) -> None:
        """Note names, durably."""
        self._write("a", json.dumps(list(names)))

    def _write(self, mode: str, line: str) -> None:
        with self.path.open(mode, encoding="utf-8") as file:
            file.write(f"{line}\n")
            file.flush()
            os.fsync(file.fileno())
