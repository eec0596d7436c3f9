"""The Hub: what cannot be reached, had, or trusted."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from llamachat.errors.base import LlamachatError


class HubUnreachable(LlamachatError):
    """No connection to the Hub, or it answered with a server error."""

    def __init__(self, endpoint: str, problem: str) -> None:
        super().__init__(
            f"The Hugging Face Hub at {endpoint} cannot be reached ({problem}).",
            "Check the network, or HF_ENDPOINT if you use a mirror, and run the same command again.",
        )


class HubOffline(LlamachatError):
    """HF_HUB_OFFLINE is set and something is needed from the Hub."""

    def __init__(self, repo: str, file: str | None = None) -> None:
        what = f"{file} of {repo}" if file else repo
        super().__init__(
            f"HF_HUB_OFFLINE is set, and {what} is not in the cache of huggingface_hub.",
            "Unset HF_HUB_OFFLINE to pull.",
        )
        self.repo = repo
        self.file = file


class RepositoryNotFound(LlamachatError):
    """The Hub does not show a repository of this name to this user."""

    def __init__(self, repo: str, has_token: bool) -> None:
        private = "" if has_token else " If it is private, log in first: hf auth login."
        super().__init__(f"The Hub has no repository {repo}.", f"Check the spelling.{private}")
        self.repo = repo


class RevisionNotFound(LlamachatError):
    """The repository has no such branch, tag or commit."""

    def __init__(self, repo: str, revision: str) -> None:
        super().__init__(f"{repo} has no revision {revision!r}.", "Leave --revision out for the newest one.")


class GateCause(Enum):
    """Why the Hub does not hand out a repository that it shows."""

    NO_TOKEN = "no token"
    LICENCE = "licence not accepted"
    PENDING = "request pending"
    REJECTED = "request rejected"
    PERMISSION = "token lacks the permission"
    OTHER = "other"


_TOKENS_PAGE = "https://huggingface.co/settings/tokens"


_REQUESTS_PAGE = "https://huggingface.co/settings/gated-repos"


_GATES = {
    GateCause.NO_TOKEN: (
        "{repo} is gated: its authors ask you to accept a licence, and no token was found.",
        "Accept the licence at {page}, then log in: hf auth login.",
    ),
    GateCause.LICENCE: (
        "Your token has no access to {repo}: its authors ask you to accept a licence first.",
        "Accept it at {page}, then run the same command again.",
    ),
    GateCause.PENDING: (
        "Your request for access to {repo} still waits for its authors' answer.",
        f"Run the same command again when they have granted it; see {_REQUESTS_PAGE}.",
    ),
    GateCause.REJECTED: (
        "The authors of {repo} have rejected your request for access.",
        "Ask them at {page}/discussions, or choose another model: llamachat list --available.",
    ),
    GateCause.PERMISSION: (
        "Your token may not read gated repositories such as {repo}, whatever its owner may.",
        f'Allow it "Read access to contents of all public gated repos you can access" at {_TOKENS_PAGE}.',
    ),
    GateCause.OTHER: (
        'The Hub refuses access to {repo}: "{words}"',
        "See {page}, then run the same command again.",
    ),
}


class GatedRepository(LlamachatError):
    """The Hub does not hand out the files; `cause` says why, `words` are the Hub's own."""

    def __init__(self, repo: str, cause: GateCause, *, mirror: str | None = None, words: str = "") -> None:
        sentence, step = _GATES[cause]
        page = f"https://huggingface.co/{repo}"  # where people go, whatever HF_ENDPOINT says
        known = f" An ungated copy is known: llamachat pull {mirror}" if mirror else ""
        super().__init__(sentence.format(repo=repo, words=words), step.format(page=page) + known)
        self.repo = repo
        self.cause = cause
        self.mirror = mirror
        self.words = words


class BadToken(LlamachatError):
    """The Hub does not accept the token at all."""

    def __init__(self, *, from_environment: bool = False) -> None:
        step = "Correct HF_TOKEN, or unset it and log in: hf auth login" if from_environment else "hf auth login"
        super().__init__("The Hub does not accept your token.", f"{step} (a new token: {_TOKENS_PAGE}).")
        self.from_environment = from_environment


class DownloadBroken(LlamachatError):
    """The network or the server failed so often in a row that going on by itself makes no sense."""

    def __init__(self, file: str, problem: str, n_retries: int) -> None:
        super().__init__(
            f"{file}: the download broke off ({problem}) and did not recover in "
            f"{n_retries} {'retry' if n_retries == 1 else 'retries'}.",
            "Check the network, then run the same command again; it continues where it stopped.",
        )
        self.file = file


class DownloadDamaged(LlamachatError):
    """A file arrived with other content than the Hub announced, and did so again."""

    def __init__(self, file: str, problem: str) -> None:
        super().__init__(f"{file}: {problem}.", "Run the same command again; finished files are not fetched again.")
        self.file = file


class CacheDamaged(LlamachatError):
    """A file in the cache of huggingface_hub whose content is not what it should be."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path}: is damaged (its hash is not the one the Hub announced).",
            "Delete that file, then run the same command again.",
        )
        self.path = path


class UnusableRepository(LlamachatError):
    """A repository without what is needed: no config, missing shards, names that leave the folder."""


class OnOffer(NamedTuple):
    """A model in a repository of GGUF files, and the word to choose it by."""

    quant: str
    size_bytes: int
    n_files: int


class ChooseQuant(LlamachatError):
    """A repository of GGUF files, and nothing said which one, or one that is not there."""

    def __init__(self, repo: str, wanted: str | None, offers: Sequence[OnOffer]) -> None:
        quants = [offer.quant for offer in offers]
        example = "q4_k_m" if "q4_k_m" in quants else quants[0]
        sentence = (
            f"{repo} has no {wanted} that could be meant." if wanted else f"{repo} holds GGUF files to choose from."
        )
        super().__init__(sentence, f"Choose one, for example: llamachat pull {repo}:{example}")
        self.repo = repo
        self.wanted = wanted
        self.offers = tuple(offers)
