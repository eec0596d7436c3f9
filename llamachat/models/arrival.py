"""The weight files of a checkpoint on the Hub, arriving in order while they are being converted.

A thread fetches one file after the other; the converter waits for the one it needs and gives back the ones it has
used up, whose contents then leave the disk. So at most two files lie here at a time, unless they are to be kept or
one tensor needs more of them.
"""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

from llamachat.models.hub.download import download, drop_contents, is_complete
from llamachat.models.hub.repository import RemoteFile, Repository
from llamachat.models.transfer import Transfer
from quantize.checkpoint.shards import SAFETENSORS

_N_AT_ONCE = 2


class Arrival:
    """A `quantize.Supply` of weight files; use as a context manager."""

    def __init__(
        self, repository: Repository, files: list[RemoteFile], directory: Path, watch: Transfer, *, keep: bool
    ) -> None:
        """`keep` leaves the files where they are when they have been used."""
        self._repository, self._watch, self._keep = repository, watch, keep
        self._files = {directory / file.name: file for file in files}
        self._places = {path: place for place, path in enumerate(self._files)}
        self._changed = threading.Condition()
        self._here = {path for path in self._files if is_complete(path)}
        self._used: set[Path] = set()
        self._last_wanted = -1  # the place of the last file that was waited for: all before it have to come first
        self._error: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._fetch_all, name="download", daemon=True)

    def __enter__(self) -> Arrival:
        """Fetch what the converter has to see before it starts: headers, or the whole of files that have none."""
        for path, file in self._files.items():
            download(self._repository, file, path, self._watch, first_range_only=path.suffix == SAFETENSORS.suffix)
            self._watch.paused(file.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop fetching."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._watch.cancelled.set()
        if self._thread.ident is not None:
            self._thread.join()

    def wait_for(self, path: Path, timeout_s: float) -> bool:
        """See `quantize.Supply`; the first call starts the thread, which knows by then what was used before."""
        with self._changed:
            if path not in self._here and self._thread.ident is None:
                self._thread.start()
            if self._places[path] > self._last_wanted:
                self._last_wanted = self._places[path]
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._error or path in self._here, timeout_s)
            if self._error:
                raise self._error
            return path in self._here

    def release(self, path: Path) -> None:
        """See `quantize.Supply`. To be kept, a file has to come even if an earlier try has used it up."""
        if self._keep and not is_complete(path):
            return
        self._watch.skip(path.name)
        if not self._keep and not path.is_symlink():
            drop_contents(self._files[path], path)
        with self._changed:
            self._used.add(path)
            self._here.discard(path)
            self._changed.notify_all()

    def _fetch_all(self) -> None:
        try:
            for path, file in self._files.items():
                if self._wait_for_turn(path):
                    download(self._repository, file, path, self._watch)
                    self._watch.arrived(file.name)
                    with self._changed:
                        self._here.add(path)
                        self._changed.notify_all()
        except BaseException as error:  # whatever it is, the converter's threads must hear of it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _wait_for_turn(self, path: Path) -> bool:
        """Wait until there is room for a file; False if it is not needed, or nothing is any more."""
        with self._changed:
            while not (self._closed or path in self._used or path in self._here):
                if self._keep or len(self._here) < _N_AT_ONCE or self._places[path] <= self._last_wanted:
                    return True
                self._changed.wait()
            return False
