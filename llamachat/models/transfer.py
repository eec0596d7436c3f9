"""Adds up what several connections fetch of several files, for those who watch."""

from __future__ import annotations

import threading
from pathlib import Path

from llamachat.models.hub.download import n_missing
from llamachat.models.hub.repository import RemoteFile
from llamachat.models.progress import Progress


class Transfer:
    """A `hub.download.Watch` over all files of a pull. The figures it reports never go backwards."""

    def __init__(self, files: list[RemoteFile], directory: Path, progress: Progress) -> None:
        """Count what of `files` is in `directory` already; other files than these are not counted."""
        self.cancelled = threading.Event()
        self._progress = progress
        self._lock = threading.Lock()
        self._sizes = {file.name: file.size_bytes for file in files}
        self._totals = dict(self._sizes)
        self._done = {file.name: file.size_bytes - n_missing(file, directory / file.name) for file in files}

    def advance(self, file_name: str, n_bytes: int) -> None:
        """See `Watch`."""
        if file_name not in self._done:
            return
        with self._lock:
            self._done[file_name] += n_bytes
            done, total = self._done[file_name], self._totals[file_name]
            all_done, all_total = sum(self._done.values()), sum(self._totals.values())
        self._progress.file(file_name, done, total)
        self._progress("download", all_done, all_total)

    def paused(self, file_name: str) -> None:
        """No more of a file is fetched for now."""
        self._progress.paused(file_name)

    def arrived(self, file_name: str) -> None:
        """A file is here, and is what it should be."""
        if file_name in self._totals:
            self._progress.arrived(file_name, self._sizes[file_name])

    def restart(self, file_name: str, n_bytes: int) -> None:
        """See `Watch`: there is more to do than it seemed, so nothing has to go backwards."""
        if file_name in self._done:
            with self._lock:
                self._totals[file_name] += n_bytes

    def skip(self, file_name: str) -> None:
        """A file is not needed after all."""
        with self._lock:
            self._totals[file_name] = self._done[file_name]

    def notice(self, text: str) -> None:
        """See `Watch`."""
        self._progress.notice(text)
