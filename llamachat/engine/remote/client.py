"""One request at a time, in a thread of its own, so that whoever waits for it can stop waiting at any moment.

A thread that nobody waits for any more ends by itself: its connection is shut down, which also tells the server to
stop generating. Name look-up cannot be ended; the thread then goes away with the process.
"""

from __future__ import annotations

import json
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any

import httpx2

from llamachat import __version__
from llamachat.engine.remote.address import is_loopback
from llamachat.errors import LlamachatError, ServerFailed, ServerLost, ServerUnreachable

CONNECT_S = 10.0
_LOOK_S = 0.05
"""How often a wish to stop is looked for."""
_MOST_WAITING = 64


class Cancelled(LlamachatError):
    """Nobody wants the answer any more. Users do not meet it: they know."""

    def __init__(self) -> None:
        super().__init__("Interrupted.", "Do it again.")


class _Abandoned(Exception):
    """Ends the thread."""


@dataclass(frozen=True)
class Head:
    """The status line and the headers of a reply."""

    status: int
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Client:
    """Who is asked, and with which key.

    The key goes to the address that was given and to no other: redirects are not followed.
    """

    address: str
    key: str | None = None

    def send(self, method: str, url: str, body: Any = None, *, silence_s: float | None = None) -> Exchange:
        """Begin a request; `silence_s` is how long the server may say nothing at all, None for ever."""
        headers = {"User-Agent": f"llamachat/{__version__}", "Accept-Encoding": "identity"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        return Exchange(self.address, method, url, headers, None if body is None else _document(body), silence_s)


def _document(body: Any) -> bytes:
    """JSON for a server. Half a surrogate pair, as which Python reads what is no UTF-8, becomes a question mark."""
    return json.dumps(body, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


class Exchange:
    """A request and its reply. Leaving the context ends it, whatever state it is in."""

    def __init__(
        self,
        address: str,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        silence_s: float | None,
    ) -> None:
        self._address = address
        self._request = (method, url, dict(headers), body)
        self._silence_s = silence_s
        self._arrived: queue.Queue[Head | bytes | BaseException | None] = queue.Queue(_MOST_WAITING)
        self._abandoned = threading.Event()
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        threading.Thread(target=self._run, daemon=True, name="server").start()

    def __enter__(self) -> Exchange:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._abandoned.set()
            if self._socket:
                with suppress(OSError):
                    # The method of an SSLSocket would take the TLS state from under the receiving thread.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def head(self, cancel: threading.Event | None = None, deadline: float | None = None) -> Head:
        """Wait for the beginning of the reply. Raises `ServerUnreachable`, `ServerLost` or `Cancelled`."""
        head = self._next(cancel, deadline)
        assert isinstance(head, Head)
        if head.headers.get("content-encoding", "identity").lower() != "identity":
            raise ServerFailed("sends a compressed reply, which was not asked for")
        return head

    def chunks(self, cancel: threading.Event | None = None, deadline: float | None = None) -> Iterator[bytes]:
        """The body as it arrives, to its end. Raises `ServerLost` where it breaks off, and `Cancelled`."""
        while (chunk := self._next(cancel, deadline)) is not None:
            assert isinstance(chunk, bytes)
            yield chunk

    def body(self, most_bytes: int, cancel: threading.Event | None = None, deadline: float | None = None) -> bytes:
        """The whole body. Raises `ServerFailed` if it is larger than that."""
        body = bytearray()
        for chunk in self.chunks(cancel, deadline):
            body += chunk
            if len(body) > most_bytes:
                raise ServerFailed(f"sends far more than a reply takes (over {most_bytes / 1e6:.0f} MB)")
        return bytes(body)

    def _next(self, cancel: threading.Event | None, deadline: float | None) -> Head | bytes | None:
        while True:
            if cancel and cancel.is_set():
                raise Cancelled
            if deadline is not None and time.monotonic() > deadline:
                raise ServerLost(self._address, "it takes too long to reply")
            with suppress(queue.Empty):
                item = self._arrived.get(timeout=_LOOK_S)
                if isinstance(item, httpx2.HTTPError | httpx2.InvalidURL | OSError):
                    raise _plain_error(item, self._address) from item
                if isinstance(item, BaseException):
                    raise item
                return item

    # --- in the thread of its own --------------------------------------------------------------------------------

    def _run(self) -> None:
        method, url, headers, body = self._request
        timeout = httpx2.Timeout(self._silence_s, connect=CONNECT_S)
        try:
            with (
                httpx2.Client(verify=_tls(), trust_env=not is_loopback(url), timeout=timeout) as client,
                client.stream(
                    method, url, content=body, headers=headers, extensions={"trace": self._trace}
                ) as response,
            ):
                self._put(Head(response.status_code, {k.lower(): v for k, v in response.headers.items()}))
                for chunk in response.iter_raw():
                    self._put(chunk)
            self._put(None)
        except _Abandoned:
            pass
        except Exception as error:  # any: it is raised again where somebody waits
            with suppress(_Abandoned):
                self._put(error)

    def _put(self, item: Head | bytes | BaseException | None) -> None:
        """Hand over what has arrived; a reader who is behind holds the connection up, so little memory is used."""
        while not self._abandoned.is_set():
            with suppress(queue.Full):
                self._arrived.put(item, timeout=_LOOK_S)
                return
        raise _Abandoned

    def _trace(self, name: str, info: Mapping[str, Any]) -> None:
        """httpx2 tells of its connection, which has to be shut down from outside before any reply is there."""
        if name.endswith((".connect_tcp.complete", ".start_tls.complete")):
            with self._lock:
                self._socket = info["return_value"].get_extra_info("socket")
            if self._abandoned.is_set():
                raise _Abandoned


@cache
def _tls() -> ssl.SSLContext:
    return httpx2.create_ssl_context()


def _plain_error(error: BaseException, address: str) -> ServerUnreachable | ServerLost:
    """An error of the network in this program's words."""
    if isinstance(error, httpx2.ConnectTimeout):
        return ServerUnreachable(address, f"no connection within {CONNECT_S:.0f} s")
    if isinstance(error, httpx2.ConnectError | httpx2.ProxyError | httpx2.UnsupportedProtocol | httpx2.InvalidURL):
        cause = _cause(error)
        return ServerUnreachable(
            address,
            _describe(cause) if cause else str(error) or type(error).__name__,
            about_trust=isinstance(cause, ssl.SSLCertVerificationError),
        )
    is_silent = isinstance(error, httpx2.TimeoutException)
    return ServerLost(address, "it says nothing any more" if is_silent else "the connection broke off")


def _cause(error: BaseException | None) -> OSError | None:
    """The system's error below those of the HTTP library."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _describe(error: OSError) -> str:
    match error:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted: {error.verify_message}"
        case ssl.SSLError():
            return "it does not speak TLS, which https needs; perhaps it is http:// there"
    return error.strerror or str(error)
