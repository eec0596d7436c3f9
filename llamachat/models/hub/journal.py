"""What of a file has arrived: ranges of 8 MiB, and the small JSON file beside the data that remembers them.

While a file is under way it lies under its final name, at full length from the start (sparse), and `NAME.journal`
lies beside it. A file without a journal is complete and verified. A journal promises only what is safely on disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llamachat.models.hub.repository import RemoteFile

RANGE_BYTES = 8 << 20

_SCHEMA = 1
_MAX_JOURNAL_BYTES = 4 << 20  # far more than the ranges of any file take; a larger one is not ours


def range_count(size_bytes: int) -> int:
    """How many ranges a file of this size has; the last one may be shorter."""
    return -(-size_bytes // RANGE_BYTES)


def range_span(index: int, size_bytes: int) -> tuple[int, int]:
    """First byte of a range, and the byte after its last."""
    return index * RANGE_BYTES, min((index + 1) * RANGE_BYTES, size_bytes)


def to_runs(indices: Iterable[int]) -> list[list[int]]:
    """Sorted runs [first, after the last] of neighbouring indices."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and runs[-1][1] == index:
            runs[-1][1] = index + 1
        else:
            runs.append([index, index + 1])
    return runs


def from_runs(runs: Any, n_ranges: int) -> frozenset[int]:
    """The indices of sorted, disjoint runs below `n_ranges`. Raises `ValueError` for anything else."""
    if not isinstance(runs, list):
        raise ValueError("no list")
    indices: set[int] = set()
    at = 0
    for run in runs:
        match run:
            case [int(first), int(after)] if at <= first < after <= n_ranges:
                indices.update(range(first, after))
                at = after
            case _:
                raise ValueError("not a run of ranges")
    return frozenset(indices)


@dataclass(frozen=True)
class Journal:
    """Which content is being fetched (`content` is its sha256 or git blob id), and which ranges of it are on disk."""

    commit: str
    content: str
    size_bytes: int
    etag: str | None = None
    finished: frozenset[int] = frozenset()

    @property
    def n_finished_bytes(self) -> int:
        """Bytes that need not be fetched again."""
        spans = (range_span(index, self.size_bytes) for index in self.finished)
        return sum(stop - start for start, stop in spans)

    def only(self, n_first: int) -> Journal:
        """The same with no range beyond the first `n_first`."""
        return replace(self, finished=frozenset(index for index in self.finished if index < n_first))

    def write(self, path: Path) -> None:
        """Make this the journal of `path`, at once or not at all.

        After a power failure it may still be the one before, unless the directory is synced, too.
        """
        place, beside = journal_path(path), _beside(path)
        runs = to_runs(self.finished)
        value = {
            "schema": _SCHEMA,
            "commit": self.commit,
            "content": self.content,
            "size_bytes": self.size_bytes,
            "etag": self.etag,
            "range_bytes": RANGE_BYTES,
            "finished": runs,
        }
        try:
            with beside.open("w", encoding="utf-8") as out:
                json.dump(value, out)
                out.flush()
                os.fsync(out.fileno())
            beside.replace(place)
        except OSError:
            beside.unlink(missing_ok=True)
            raise


def read_journal(path: Path, file: RemoteFile) -> Journal | None:
    """The journal of `path`, if it is about this content and can be believed; None if it cannot."""
    try:
        with journal_path(path).open("rb") as source:
            text = source.read(_MAX_JOURNAL_BYTES + 1)
        if len(text) > _MAX_JOURNAL_BYTES:
            return None
        match json.loads(text):
            case {
                "schema": 1,
                "commit": str(commit),
                "content": str(content),
                "size_bytes": int(size_bytes),
                "etag": str() | None as etag,
                "range_bytes": int(range_bytes),
                "finished": runs,
            }:
                if (content, size_bytes, range_bytes) != (content_id(file), file.size_bytes, RANGE_BYTES):
                    return None
                finished = from_runs(runs, range_count(size_bytes))
                return _only_on_disk(Journal(commit, content, size_bytes, etag, finished), path)
    except (OSError, ValueError, RecursionError):
        return None
    return None


def _only_on_disk(journal: Journal, path: Path) -> Journal:
    """Without the ranges beyond the end of the data, which a kill between two steps may have left short."""
    try:
        n_there = path.stat().st_size
    except OSError:
        return journal.only(0)
    if n_there >= journal.size_bytes:
        return journal
    return journal.only(n_there // RANGE_BYTES)


def remove_journal(path: Path) -> None:
    """Remove the journal of a file, and one that a killed process had begun to write in its place."""
    for place in (journal_path(path), _beside(path)):
        place.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.journal.new")


def journal_path(path: Path) -> Path:
    """Where the journal of a file lies."""
    return path.with_name(f"{path.name}.journal")


def content_id(file: RemoteFile) -> str:
    """What names a file's content: sha256 of a large file, git blob id of a small one."""
    return file.sha256 or file.blob_id
