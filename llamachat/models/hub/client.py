"""Look a repository up on the Hub: its commit, its files, and what stands in the way of reading them.

huggingface_hub is kept for what it knows: tokens, endpoints, listings, typed errors. The bytes come by `download`.
"""

from __future__ import annotations

import itertools
import os
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TypeVar

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read once, when huggingface_hub is imported

import httpx2
from huggingface_hub import HfApi, ModelInfo, constants, get_hf_file_metadata, get_token, hf_hub_url
from huggingface_hub import errors as hub_errors

from llamachat.errors import BadReference, HubOffline, HubUnreachable, RevisionNotFound
from llamachat.models.hub.access import UNGATED_FILES, bad_token, refusal
from llamachat.models.hub.answers import Trouble, may_pass
from llamachat.models.hub.cache import cached_repository
from llamachat.models.hub.listing import read_listing
from llamachat.models.hub.repository import Repository
from llamachat.models.hub.retry import Patience, asked_pause_s

PATIENCE = Patience(n_tries=4)
"""Less than a download has: nothing has been fetched yet that would be lost."""

ONE_TRY = Patience(n_tries=0)

OnNotice = Callable[[str], None]
"""Called with a line for the user: a retry with its count."""

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class HubAccess:
    """How the Hub is reached from here."""

    endpoint: str
    has_token: bool
    offline: bool


def hub_access() -> HubAccess:
    """What environment and stored login say; asks nobody."""
    return HubAccess(constants.ENDPOINT, get_token() is not None, constants.HF_HUB_OFFLINE)


def find_repository(
    repo: str,
    revision: str | None,
    on_notice: OnNotice,
    *,
    mirror: str | None = None,
    patience: Patience | None = None,
) -> Repository:
    """Resolve `revision` (default: the main branch) to a commit and list its files.

    Offline this is what the cache of huggingface_hub holds; raises `HubOffline` if it holds nothing. Trouble that may
    pass is borne for as long as `patience` says (None: as LLAMACHAT_RETRIES says); then raises `HubUnreachable`.
    """
    if constants.HF_HUB_OFFLINE:
        with plain_errors(repo, revision, mirror):
            cached = cached_repository(repo, revision)
        if cached is None:
            raise HubOffline(repo)
        return cached
    patience = patience or PATIENCE.with_environment()
    silence_s = patience.silence_s
    with plain_errors(repo, revision, mirror):
        info = _ask(lambda: _model_info(repo, revision, silence_s), repo, patience, on_notice)
    return read_listing(repo, info, mirror)


def _model_info(repo: str, revision: str | None, silence_s: float) -> ModelInfo:
    """huggingface_hub takes the answer apart unchecked, so one of another shape fails in it anyhow."""
    try:
        return HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=silence_s)
    except (hub_errors.HFValidationError, UnicodeEncodeError):  # about what was asked, not about the answer
        raise
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise HubUnreachable(constants.ENDPOINT, "what answers there is no Hub") from error


def check_access(repository: Repository, on_notice: OnNotice) -> None:
    """Ask for the metadata of one file of a gated repository, so that a refusal comes before anything else is done.

    Raises `GatedRepository` or `BadToken`, and `HubUnreachable` as `find_repository` does; without a gate nothing is
    asked.
    """
    names = sorted(repository.files.keys() - UNGATED_FILES)
    if not repository.is_gated or not names:
        return
    patience = PATIENCE.with_environment()
    with plain_errors(repository.repo, repository.commit, repository.mirror):
        url = hf_hub_url(repository.repo, names[0], revision=repository.commit)
        _ask(lambda: get_hf_file_metadata(url, timeout=patience.silence_s), repository.repo, patience, on_notice)


def _ask(ask: Callable[[], _Answer], repo: str, patience: Patience, on_notice: OnNotice) -> _Answer:
    """The answer to a request, which is made again while there is trouble that may pass."""
    for n_failures in itertools.count(1):
        try:
            with _troubles(patience):
                return ask()
        except Trouble as trouble:
            if n_failures > patience.n_tries:
                raise HubUnreachable(constants.ENDPOINT, str(trouble)) from trouble
            pause_s = patience.pause_s(n_failures, trouble.asked_s)
            on_notice(f"{repo}: {patience.announce(n_failures, pause_s)} ({trouble})")
            time.sleep(pause_s)
    raise AssertionError("counted to the end")


@contextmanager
def _troubles(patience: Patience) -> Iterator[None]:
    """What may be better at the next try becomes `Trouble`, in the words that downloads have for it."""
    try:
        yield
    except hub_errors.HfHubHTTPError as error:
        response = error.response
        if response is None or not may_pass(response.status_code):
            raise
        asked_s = asked_pause_s(response.headers, datetime.now(timezone.utc))
        raise Trouble(f"HTTP {response.status_code}", asked_s) from error
    except httpx2.TimeoutException as error:
        raise Trouble(f"no answer for {patience.silence_s:g} s") from error
    except httpx2.ConnectError as error:
        if _is_about_trust(error):
            raise
        raise Trouble(str(error) or "no connection") from error
    except (httpx2.NetworkError, httpx2.RemoteProtocolError, httpx2.ProxyError) as error:
        raise Trouble("connection lost") from error


def _is_about_trust(error: BaseException | None) -> bool:
    """Whether a certificate was refused somewhere below; asking again will not change that."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


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
