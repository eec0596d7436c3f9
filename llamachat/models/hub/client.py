"""Look a repository up on the Hub: its commit, its files, and what stands in the way of reading them.

huggingface_hub is kept for what it knows: tokens, endpoints, listings, typed errors. The bytes come by `download`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read once, when huggingface_hub is imported

import httpx2
from huggingface_hub import HfApi, constants, get_hf_file_metadata, get_token, hf_hub_url
from huggingface_hub import errors as hub_errors

from llamachat.errors import (
    BadReference,
    HubOffline,
    HubUnreachable,
    RevisionNotFound,
    UnusableRepository,
)
from llamachat.models.hub.access import UNGATED_FILES, bad_token, refusal
from llamachat.models.hub.cache import cached_repository
from llamachat.models.hub.repository import RemoteFile, Repository
from llamachat.models.names import is_safe_file


@dataclass(frozen=True)
class HubAccess:
    """How the Hub is reached from here."""

    endpoint: str
    has_token: bool
    offline: bool


def hub_access() -> HubAccess:
    """What environment and stored login say; asks nobody."""
    return HubAccess(constants.ENDPOINT, get_token() is not None, constants.HF_HUB_OFFLINE)


def find_repository(repo: str, revision: str | None, *, mirror: str | None = None) -> Repository:
    """Resolve `revision` (default: the main branch) to a commit and list its files.

    Offline this is what the cache of huggingface_hub holds; raises `HubOffline` if it holds nothing.
    """
    if constants.HF_HUB_OFFLINE:
        with plain_errors(repo, revision, mirror):
            cached = cached_repository(repo, revision)
        if cached is None:
            raise HubOffline(repo)
        return cached
    with plain_errors(repo, revision, mirror):
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    if not info.sha:
        raise UnusableRepository(f"The Hub names no commit for {repo}.", "Try again later.")
    files = {}
    for sibling in info.siblings or []:
        _refuse_unsafe(repo, sibling.rfilename)
        if not is_safe_file(sibling.rfilename):
            continue  # a device on some systems, such as aux.json: not to be fetched, so not there
        sha256 = sibling.lfs.sha256 if sibling.lfs else None
        files[sibling.rfilename] = RemoteFile(sibling.rfilename, sibling.size or 0, sibling.blob_id or "", sha256)
    license_id = getattr(info.card_data, "license", None)
    license_id = license_id if isinstance(license_id, str) else None
    return Repository(repo, info.sha, files, license_id, mirror, is_gated=bool(info.gated))


def check_access(repository: Repository) -> None:
    """Ask for the metadata of one file of a gated repository, so that a refusal comes before anything else is done.

    Raises `GatedRepository` or `BadToken`; without a gate nothing is asked.
    """
    names = sorted(repository.files.keys() - UNGATED_FILES)
    if not repository.is_gated or not names:
        return
    with plain_errors(repository.repo, repository.commit, repository.mirror):
        get_hf_file_metadata(hf_hub_url(repository.repo, names[0], revision=repository.commit), timeout=30.0)


def _refuse_unsafe(repo: str, name: str) -> None:
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise UnusableRepository(
            f"{repo} holds a file named {name!r}, which could leave its folder.", "Do not use this repository."
        )


@contextmanager
def plain_errors(repo: str, revision: str | None, mirror: str | None) -> Iterator[None]:
    """Turn what huggingface_hub and its HTTP library raise into this program's errors."""
    try:
        yield
    except hub_errors.HFValidationError as error:
        raise BadReference(f"{repo!r} is not a repository name.", "A Hub repository is written ORG/REPO.") from error
    except hub_errors.OfflineModeIsEnabled as error:
        raise HubOffline(repo) from error
    except hub_errors.HfHubHTTPError as error:
        if refused := refusal(error, repo, mirror):
            raise refused from error
        if isinstance(error, hub_errors.RevisionNotFoundError):
            raise RevisionNotFound(repo, revision or "main") from error
        status = error.response.status_code if error.response is not None else "no answer"
        raise HubUnreachable(constants.ENDPOINT, f"HTTP {status}") from error
    except (UnicodeEncodeError, httpx2.LocalProtocolError):  # a token that no header can carry; it stands in the error
        raise bad_token() from None
    except httpx2.HTTPError as error:
        raise HubUnreachable(constants.ENDPOINT, str(error) or type(error).__name__) from error
