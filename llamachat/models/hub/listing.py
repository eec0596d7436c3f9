"""What the Hub says a repository holds → `Repository`. Whoever answers is not trusted: a mirror may say anything.

Commit and file names become paths, sizes and hashes decide what is believed, the licence goes into headers; so each of
them has to look like what it should be.
"""

from __future__ import annotations

import re

from huggingface_hub import ModelInfo

from llamachat.errors import UnusableRepository
from llamachat.models.hub.repository import RemoteFile, Repository
from llamachat.models.names import is_safe_file

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_MAX_LICENSE_CHARACTERS = 200


def read_listing(repo: str, info: ModelInfo, mirror: str | None) -> Repository:
    """The repository at the commit that the Hub names. Raises `UnusableRepository`."""
    if not info.sha:
        raise UnusableRepository(f"The Hub names no commit for {repo}.", "Try again later.")
    if not _is(_COMMIT, info.sha):
        raise _unusable(repo, "commit")
    files = {}
    for sibling in info.siblings or []:
        name = sibling.rfilename
        _refuse_unsafe(repo, name)
        if not is_safe_file(name):
            continue  # a device on some systems, such as aux.json: not to be fetched, so not there
        file = RemoteFile(name, sibling.size or 0, sibling.blob_id or "", sibling.lfs.sha256 if sibling.lfs else None)
        if type(file.size_bytes) is not int or file.size_bytes < 0:
            raise _unusable(repo, f"size of {name}")
        if not all(_is(_HASH, text) for text in (file.blob_id, file.sha256) if text):
            raise _unusable(repo, f"hash of {name}")
        files[name] = file
    license_id = getattr(info.card_data, "license", None)
    return Repository(repo, info.sha, files, _plain(license_id), mirror, is_gated=bool(info.gated))


def _is(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _plain(license_id: object) -> str | None:
    is_plain = isinstance(license_id, str) and license_id.isprintable() and len(license_id) <= _MAX_LICENSE_CHARACTERS
    return str(license_id) if is_plain else None


def _unusable(repo: str, what: str) -> UnusableRepository:
    return UnusableRepository(
        f"The Hub's listing of {repo} gives no usable {what}.", "Do not use this repository, or check HF_ENDPOINT."
    )


def _refuse_unsafe(repo: str, name: object) -> None:
    if not isinstance(name, str):
        raise _unusable(repo, "file name")
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise UnusableRepository(
            f"{repo} holds a file named {name!r}, which could leave its folder.", "Do not use this repository."
        )
