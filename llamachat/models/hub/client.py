"""Look a repository up on the Hub, and fetch files of one commit with their hashes checked.

huggingface_hub is kept for what it knows (tokens, endpoints, listings, typed errors). The bytes are streamed
here, because the library checks no content: a large file is held against its sha256, a small one against its git
blob id, and a file gets its name only when they agree.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read once, when huggingface_hub is imported

import httpx2
from huggingface_hub import HfApi, constants, get_hf_file_metadata, get_token, hf_hub_url
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public, but re-exported without __all__
    build_hf_headers,
    get_session,
    hf_raise_for_status,
)

from llamachat.errors import (
    BadReference,
    DownloadDamaged,
    HubOffline,
    HubUnreachable,
    RevisionNotFound,
    UnusableRepository,
)
from llamachat.models.hub.access import UNGATED_FILES, bad_token, refusal
from llamachat.models.names import is_safe_file

_TIMEOUT_S = 30.0


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

    `is_gated` says that access to the files is granted one by one; the listing is open to everybody. `mirror` is a
    known ungated copy, to be named in errors only.
    """

    repo: str
    commit: str
    files: dict[str, RemoteFile]
    license: str | None
    mirror: str | None = None
    is_gated: bool = False


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
    """Resolve `revision` (default: the main branch) to a commit and list its files."""
    with _plain_errors(repo, revision, mirror):
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
    with _plain_errors(repository.repo, repository.commit, repository.mirror):
        get_hf_file_metadata(hf_hub_url(repository.repo, names[0], revision=repository.commit), timeout=_TIMEOUT_S)


def download(repository: Repository, file: RemoteFile, path: Path, on_bytes: Callable[[int], None]) -> None:
    """Fetch one file to `path`, telling `on_bytes` how many bytes came each time.

    Raises `DownloadDamaged` if it is cut short or its hash is wrong; `path` appears only when all is well.
    """
    partial = path.with_name(f"{path.name}.partial")
    digest = _expected_digest(file)
    n_received = 0
    try:
        with partial.open("wb") as out, _plain_errors(repository.repo, repository.commit, repository.mirror):
            for piece in _stream(repository, file):
                n_received += len(piece)
                if n_received > file.size_bytes:
                    break
                digest.update(piece)
                out.write(piece)
                on_bytes(len(piece))
            out.flush()
            os.fsync(out.fileno())
        if n_received != file.size_bytes:
            raise DownloadDamaged(file.name, f"{n_received:,} of {file.size_bytes:,} bytes arrived")
        if digest.hexdigest() != (file.sha256 or file.blob_id):
            raise DownloadDamaged(file.name, "arrived damaged (its hash is not the one the Hub announced)")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _stream(repository: Repository, file: RemoteFile) -> Iterator[bytes]:
    url = f"{constants.ENDPOINT}/{repository.repo}/resolve/{repository.commit}/{quote(file.name)}"
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    request = get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT_S)
    with request as response:
        hf_raise_for_status(response)
        try:
            yield from response.iter_raw()
        except httpx2.RemoteProtocolError:
            return  # cut short: the caller counts the bytes and says so


def _expected_digest(file: RemoteFile) -> hashlib._Hash:
    if file.sha256:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)  # git's name for a file's content


def _refuse_unsafe(repo: str, name: str) -> None:
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise UnusableRepository(
            f"{repo} holds a file named {name!r}, which could leave its folder.", "Do not use this repository."
        )


@contextmanager
def _plain_errors(repo: str, revision: str | None, mirror: str | None) -> Iterator[None]:
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
