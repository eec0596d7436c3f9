"""Where the files of a repository lie until a model is made of them, and how they get there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from llamachat.errors import HubOffline, UnusableRepository
from llamachat.models.hub import OnNotice, RemoteFile, Repository, cached_file, check_access, download, is_complete
from llamachat.models.locks import flat, locked
from llamachat.models.transfer import Transfer
from llamachat.paths import staging_dir

_MAX_SMALL_BYTES = 64 << 20


def checkpoint_dir(repository: Repository) -> Path:
    """The directory for a repository at its commit."""
    return staging_dir() / f"{flat(repository.repo)}@{repository.commit}"


@contextmanager
def looked_at(directory: Path, lock: str) -> Iterator[Path]:
    """A directory for those who only want to know what would be done.

    It is `directory`, held by `lock`, if a pull has begun there; else one that is gone afterwards.
    """
    if directory.is_dir():
        with locked(lock):
            yield directory
    else:
        with TemporaryDirectory(prefix="llamachat-") as passing:
            yield Path(passing)


def fetch(repository: Repository, files: Sequence[RemoteFile], directory: Path, watch: Transfer) -> None:
    """Bring files to `directory`: from the cache of huggingface_hub, or from the Hub where they are missing there."""
    link_cached(repository, files, directory)
    require_access(repository, files, directory, watch.notice)
    for file in files:
        path = directory / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        download(repository, file, path, watch)
        watch.arrived(file.name)


def link_cached(repository: Repository, files: Sequence[RemoteFile], directory: Path) -> None:
    """Let what the cache of huggingface_hub has appear in `directory`; deleting it there deletes the link alone."""
    for file in files:
        path = directory / file.name
        if path.is_symlink() and not path.exists():  # to what the cache had once
            path.unlink()
        if not path.exists() and (cached := cached_file(repository, file)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(cached)


def require_access(repository: Repository, files: Sequence[RemoteFile], directory: Path, on_notice: OnNotice) -> None:
    """Raise what would keep files that are not here yet from coming, before any of them moves."""
    missing = [file for file in files if not is_complete(directory / file.name)]
    if missing and repository.is_offline:
        raise HubOffline(repository.repo, missing[0].name)
    if missing:
        check_access(repository, on_notice)


def require_small(repository: Repository, files: Sequence[RemoteFile]) -> None:
    """Raise `UnusableRepository` for configs and tokenizers of a size that only weights have."""
    for file in files:
        if file.size_bytes > _MAX_SMALL_BYTES:
            raise UnusableRepository(
                f"{repository.repo}: {file.name} has {file.size_bytes:,} bytes, far too many for what it should be.",
                "Do not use this repository.",
            )
