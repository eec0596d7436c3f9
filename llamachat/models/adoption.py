"""A repository that changed between two tries: what had arrived at the other commit and is the same, moves over."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from llamachat.errors import StoreBusy
from llamachat.models.hub import RemoteFile, Repository, move_arrived, n_missing
from llamachat.models.locks import flat, locked
from llamachat.models.progress import Progress
from llamachat.models.staging import checkpoint_dir

_N_SHOWN = 7  # digits of a commit, as git shows it
_WORTH_TELLING_BYTES = 100_000_000  # less is hashed at once


def adopt(repository: Repository, files: Iterable[RemoteFile], directory: Path, progress: Progress) -> None:
    """Move what other commits of `repository` have staged of `files` to `directory`, and say so in one line.

    `directory` is in the repository's own, whose lock the caller holds. What another process holds is left to it.
    """
    wanted = [file for file in files if not (directory / file.name).exists()]
    is_first_try = not any(path.is_file() for path in directory.rglob("*"))
    commits, moved = [], []
    for other in _others(repository):
        source = other / directory.relative_to(checkpoint_dir(repository))
        there = [file for file in wanted if (source / file.name).is_file() and file not in moved]
        if not there:
            continue
        with suppress(StoreBusy), locked(other.name):
            adopted = [file for file in there if _move(repository, file, source, directory, progress)]
            _remove_if_empty(source, other)
            if adopted or is_first_try:
                commits.append(other.name.rpartition("@")[2][:_N_SHOWN])
                moved += adopted
    if commits:
        n_bytes = sum(file.size_bytes - n_missing(file, directory / file.name) for file in moved)
        names = f"{len(moved)} file{'s' * (len(moved) != 1)}, {n_bytes:,} bytes"
        progress.notice(
            f"{repository.repo} has changed: an earlier pull was of commit {' and '.join(commits)}, this one is of "
            f"{repository.commit[:_N_SHOWN]}. What is the same is used again: {names if moved else 'nothing'}."
        )


def _others(repository: Repository) -> Iterator[Path]:
    """The directories of the same repository at other commits, those used last first."""
    own = checkpoint_dir(repository)
    name = re.compile(rf"{re.escape(flat(repository.repo))}@[0-9a-f]+")
    found = [path for path in own.parent.iterdir() if name.fullmatch(path.name) and path != own]
    yield from sorted((path for path in found if path.is_dir()), key=lambda path: -path.stat().st_mtime_ns)


def _move(repository: Repository, file: RemoteFile, source: Path, directory: Path, progress: Progress) -> bool:
    def tell(n_bytes: int) -> None:
        if file.size_bytes >= _WORTH_TELLING_BYTES:
            progress("verify", n_bytes, file.size_bytes)

    target = directory / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    return move_arrived(repository.commit, file, source / file.name, target, tell)


def _remove_if_empty(source: Path, top: Path) -> None:
    """Remove `source`, and what is above it, up to `top`; what still holds something stays."""
    with suppress(OSError):
        source.rmdir()
        top.rmdir()
