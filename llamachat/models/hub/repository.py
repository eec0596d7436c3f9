"""A repository of the Hub at one commit, and its files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. Large files have a sha256, all have a git blob id."""

    name: str
    size_bytes: int
    blob_id: str
    sha256: str | None


@dataclass(frozen=True)
class Repository:
    """A repository at one commit.

    `is_gated` says that access to the files is granted one by one; the listing is open to everybody. `is_offline` says
    that it lists only what is in the cache. `mirror` is a known ungated copy, to be named in errors only.
    """

    repo: str
    commit: str
    files: dict[str, RemoteFile]
    license: str | None
    mirror: str | None = None
    is_gated: bool = False
    is_offline: bool = False
