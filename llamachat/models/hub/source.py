"""Where the bytes of a file are: an address at the Hub, which sends on to a signed address at a CDN that expires."""

from __future__ import annotations

import threading
from http.client import HTTPResponse
from typing import NamedTuple
from urllib.parse import quote, urljoin

from huggingface_hub import constants
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # as in client.py

from llamachat.models.hub.line import Line, origin_of
from llamachat.models.hub.repository import RemoteFile, Repository

_MAX_REDIRECTS = 10
_MAX_REDIRECT_BODY_BYTES = 1 << 16
_EXPIRED = frozenset({400, 401, 403, 404, 410})
"""What CDNs say to an address whose signature is too old."""


class BadRedirectError(OSError):
    """A redirect that leads nowhere, or too many of them."""


class Answer(NamedTuple):
    """An answer to a request for bytes; `is_hubs` tells the Hub's own from a CDN's."""

    response: HTTPResponse
    is_hubs: bool


class Source:
    """The address of one file at one commit. Shared by the connections, so that the Hub is asked once for all."""

    def __init__(self, repository: Repository, file: RemoteFile) -> None:
        self.url = f"{constants.ENDPOINT}/{repository.repo}/resolve/{repository.commit}/{quote(file.name)}"
        self._hub = origin_of(self.url)
        headers = build_hf_headers()
        self._token = {name: headers.pop(name) for name in list(headers) if name.lower() == "authorization"}
        self._headers = {**headers, "Accept": "*/*", "Accept-Encoding": "identity"}
        self._target: str | None = None
        self._resolving = threading.Lock()

    def get(self, line: Line, headers: dict[str, str]) -> Answer:
        """Ask where the bytes were last; if that address has expired, or at first, ask the Hub for it."""
        if answer := self._ask_target(line, headers):
            return answer
        with self._resolving:
            return self._ask_target(line, headers) or self._resolve(line, headers)

    def _ask_target(self, line: Line, headers: dict[str, str]) -> Answer | None:
        target = self._target
        if target is None:
            return None
        answer = self._ask(line, target, headers)
        if answer.response.status not in _EXPIRED and not _is_redirect(answer.response):
            return answer
        if self._target == target:
            self._target = None
        return None

    def _resolve(self, line: Line, headers: dict[str, str]) -> Answer:
        url = self.url
        for _ in range(_MAX_REDIRECTS):
            answer = self._ask(line, url, headers)
            response = answer.response
            if not _is_redirect(response):
                if response.status in (200, 206):
                    self._target = url
                return answer
            url = _follow(url, response.getheader("Location", ""))
            if len(response.read(_MAX_REDIRECT_BODY_BYTES)) < _MAX_REDIRECT_BODY_BYTES:
                line.keep()
        raise BadRedirectError(f"more than {_MAX_REDIRECTS} redirects")

    def _ask(self, line: Line, url: str, headers: dict[str, str]) -> Answer:
        """The token goes to the Hub's own origin and to no other."""
        is_hubs = origin_of(url) == self._hub
        token = self._token if is_hubs else {}
        return Answer(line.get(url, {**self._headers, **headers, **token}), is_hubs)


def _is_redirect(response: HTTPResponse) -> bool:
    return response.status in (301, 302, 303, 307, 308)


def _follow(url: str, location: str) -> str:
    # Headers are read as Latin-1; what is no ASCII was most likely UTF-8 and is escaped byte by byte.
    escaped = quote(location.encode("latin-1", "replace"), safe="%/:=&?~#+!$,;'@()*[]")
    try:
        target = urljoin(url, escaped)
        origin_of(target)
    except ValueError:
        raise BadRedirectError("redirected to nowhere") from None
    return target
