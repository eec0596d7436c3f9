"""Servers of models."""

from __future__ import annotations

from collections.abc import Sequence

from llamachat.errors.base import LlamachatError


class BadServer(LlamachatError):
    """Text that is no server's address. It is not repeated: it may hold a password."""

    exit_status = 2

    def __init__(self, sentence: str) -> None:
        super().__init__(
            sentence,
            "Write --server http://localhost:8080 or --server https://HOST/v1; a key goes into LLAMACHAT_API_KEY.",
        )


class ServerUnreachable(LlamachatError):
    """No connection to a server of chat completions."""

    def __init__(self, address: str, problem: str, *, about_trust: bool = False) -> None:
        step = "Set SSL_CERT_FILE to the certificate of who signed it." if about_trust else "Check that it runs there."
        super().__init__(f"The server at {address} cannot be reached ({problem}).", step)
        self.address = address


class ServerLost(LlamachatError):
    """A server that was there has gone away in the middle of something."""

    def __init__(self, address: str, problem: str) -> None:
        super().__init__(
            f"The server at {address} left off in the middle ({problem}).",
            "What had come is kept. Check that the server still runs, then ask again: /retry in a chat.",
        )


class ServerFailed(LlamachatError):
    """A server that answers, and not as chat completions are; `problem` goes on from "The server"."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"The server {problem}.",
            "Check that --server is the address of an OpenAI-compatible server, up to its /v1.",
        )


class ServerRefused(LlamachatError):
    """A server's own refusal; `status` is that of HTTP, `words` are the server's."""

    def __init__(self, sentence: str, next_step: str, *, status: int = 0, words: str = "") -> None:
        super().__init__(f"{sentence}: {words}" if words else f"{sentence}.", next_step)
        self.status = status
        self.words = words


class NoServedModel(LlamachatError):
    """A server without the model that is wanted, or with several and nothing that says which; or one without a need."""


class TokensUnknown(LlamachatError):
    """Only the server could count tokens, and it does not."""

    def __init__(self) -> None:
        super().__init__("This server does not count tokens.", "The figures after an answer tell those of the prompt.")


class OnlyLocal(LlamachatError):
    """Settings that belong to a model that runs here, asked of one that a server runs."""

    exit_status = 2

    def __init__(self, names: Sequence[str]) -> None:
        one = len(names) == 1
        super().__init__(
            f"{', '.join(names)} {'has' if one else 'have'} no meaning with a server, which loads its models itself.",
            f"Leave {'it' if one else 'them'} out, or start the server with what it has for that.",
        )
        self.names = tuple(names)
