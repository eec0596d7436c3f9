"""What huggingface_hub's own cache holds: files that need no download, and repositories that can be listed offline.

Layout: HF_HUB_CACHE/models--ORG--REPO with refs/REVISION (a commit), snapshots/COMMIT/NAME (links), and blobs, each
named by the hash that the Hub gives its content. Nothing in there is changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name

from llamachat.models.hub.digest import has_content
from llamachat.models.hub.repository import RemoteFile, Repository

_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOB_ID = re.compile(r"[0-9a-f]{40}")


def cached_file(repository: Repository, file: RemoteFile) -> Path | None:
    """The content of `file` at the repository's commit, where the cache has it; None if it has not, or not whole.

    Size and hash must be the Hub's. A large file's hash is believed to be the one that the cache names it by; without
    such a name, and for small files, the content is hashed.
    """
    found = try_to_load_from_cache(repository.repo, file.name, revision=repository.commit)
    if not isinstance(found, str):
        return None
    path = Path(found).resolve()
    try:
        return path if path.stat().st_size == file.size_bytes and _has_hash(path, file) else None
    except OSError:  # it has just gone, or may not be read
        return None


def is_cached(repository: Repository, files: Iterable[RemoteFile]) -> bool:
    """Whether the cache has all of `files`, such as those of a whole checkpoint."""
    return all(cached_file(repository, file) for file in files)


def cached_commit(repo: str, revision: str | None) -> str | None:
    """The commit that `revision` (a branch, a tag, or the beginning of a commit) was when it was cached last."""
    directory = _directory(repo)
    revision = revision or constants.DEFAULT_REVISION
    if any(part in ("", ".", "..") for part in revision.split("/")):
        return None
    try:
        return (directory / "refs" / revision).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        snapshots = directory / "snapshots"
        commits = [path.name for path in snapshots.iterdir()] if snapshots.is_dir() else []
        found = [commit for commit in commits if commit.startswith(revision)]
        return found[0] if len(found) == 1 else None


def cached_repository(repo: str, revision: str | None) -> Repository | None:
    """A repository as the cache has it: not all files may be there, and what is not there is not listed."""
    commit = cached_commit(repo, revision)
    snapshot = _directory(repo) / "snapshots" / commit if commit else None
    if commit is None or snapshot is None or not snapshot.is_dir():
        return None
    paths = (path for path in sorted(snapshot.rglob("*")) if path.is_file())
    files = [_describe(path.relative_to(snapshot).as_posix(), path.resolve()) for path in paths]
    return Repository(repo, commit, {file.name: file for file in files}, license=None, is_offline=True)


def _directory(repo: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")


def _describe(name: str, blob: Path) -> RemoteFile:
    sha256 = blob.name if _SHA256.fullmatch(blob.name) else None
    blob_id = blob.name if _BLOB_ID.fullmatch(blob.name) else ""
    return RemoteFile(name, blob.stat().st_size, blob_id, sha256)


def _has_hash(path: Path, file: RemoteFile) -> bool:
    if not file.sha256 and not file.blob_id:
        return True  # listed offline from a cache without links: the size is all that is known
    return path.name == file.sha256 or has_content(file, path)
