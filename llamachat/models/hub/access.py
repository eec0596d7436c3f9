"""Why the Hub refuses: its answer → the error that says which page to visit or which command to run.

The answer has a status, X-Error-Code and X-Error-Message. A gate answers 401 to strangers and 403 to everybody else,
with the code GatedRepo; a fine-grained token without the permission gets 403 without a code. Which of several reasons
a 403 has stands in the message alone, so what is not recognized is shown as it is.
"""

from __future__ import annotations

import os

from huggingface_hub import errors as hub_errors
from huggingface_hub import get_token

from llamachat.errors import BadToken, GateCause, GatedRepository, LlamachatError, RepositoryNotFound

UNGATED_FILES = frozenset(("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt"))
"""What the Hub hands out even where a gate is; access to it says nothing."""

_WORDINGS = (
    ("awaiting a review", GateCause.PENDING),
    ("has been rejected", GateCause.REJECTED),
    ("fine-grained token", GateCause.PERMISSION),
    ("not in the authorized list", GateCause.LICENCE),
    ("has been reset", GateCause.LICENCE),  # the authors want it accepted once more
)

_MAX_WORDS = 200


def refusal(error: hub_errors.HfHubHTTPError, repo: str, mirror: str | None) -> LlamachatError | None:
    """The error for an answer that says who may have the files of `repo`; None if it failed for another reason."""
    response = error.response
    had_token = any("Authorization" in answer.request.headers for answer in (*response.history, response))
    is_gate = isinstance(error, hub_errors.GatedRepoError)
    if response.status_code == 401:
        if had_token:
            return bad_token()
        return GatedRepository(repo, GateCause.NO_TOKEN, mirror=mirror) if is_gate else RepositoryNotFound(repo, False)
    if isinstance(error, hub_errors.RepositoryNotFoundError) and not is_gate:
        return RepositoryNotFound(repo, had_token)
    message = response.headers.get("X-Error-Message", "")
    if is_gate or (response.status_code == 403 and message):
        lowered = message.lower()
        cause = next((cause for wording, cause in _WORDINGS if wording in lowered), GateCause.OTHER)
        return GatedRepository(repo, cause, mirror=mirror, words=_printable(message) or f"HTTP {response.status_code}")
    return None


def bad_token() -> BadToken:
    """The error for a token that is not accepted, which depends on where the token comes from."""
    names = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")  # as huggingface_hub reads them, before what `hf auth login` wrote
    return BadToken(from_environment=any(os.environ.get(name) for name in names))


def _printable(message: str) -> str:
    """One short line of what a server said, without the token, should it be repeated there."""
    if token := get_token():
        message = message.replace(token, "…")
    line = " ".join("".join(character if character.isprintable() else " " for character in message).split())
    return line if len(line) <= _MAX_WORDS else f"{line[: _MAX_WORDS - 1]}…"
