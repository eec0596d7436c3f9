"""One thread's connections: HTTP/1.1 by the standard library, received into buffers that are used again.

Why not the Hub's own HTTP library: httpx2's `iter_raw` hands out new `bytes` of at most 64 KiB, parsed in Python, which
costs twice the processor time of `http.client` with `readinto1` and holds the GIL while other connections and the
hash want it; `benchmarks/download.py` shows the difference. Certificates are those that httpx2 takes (SSL_CERT_FILE,
SSL_CERT_DIR, else the system's), proxies those of the environment.
"""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from llamachat.errors import HubUnreachable

Origin = tuple[str, str, int]
"""Scheme, host and port."""

_PORTS = {"http": 80, "https": 443}


def origin_of(url: str) -> Origin:
    """Who is asked for a URL. Raises `ValueError` if it is none of http or https."""
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("not an http address")
    return parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme]


class Line:
    """At most one kept-alive connection an origin, for one request at a time. Only `cut` may come from other threads.

    `get` and `read_some` raise `OSError` and `http.client.HTTPException`.
    """

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._connections: dict[Origin, http.client.HTTPConnection] = {}
        self._sockets: dict[Origin, socket.socket] = {}  # http.client forgets its socket before the last answer is read
        self._asked: Origin | None = None
        self._response: http.client.HTTPResponse | None = None
        self._is_cut = False
        self.is_connecting = False

    def get(self, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """Ask for `url` and return the answer, whose body has yet to be read. Redirects are not followed."""
        self.drop()
        origin = origin_of(url)
        is_reused = origin in self._connections
        try:
            return self._ask(origin, url, headers)
        except (ConnectionError, http.client.BadStatusLine):
            if not is_reused or self._is_cut:
                raise
        # The server closed the connection while it was idle, which it may do at any time.
        self.drop()
        return self._ask(origin, url, headers)

    def keep(self) -> None:
        """The last answer was read to its end, so its connection can be used again."""
        if self._response and not self._response.will_close:
            self._response.close()
            self._asked = self._response = None
        self.drop()

    def drop(self) -> None:
        """Close the connection that was asked last, unless its answer was read to its end."""
        if self._response:
            self._response.close()
        if self._asked and (connection := self._connections.pop(self._asked, None)):
            connection.close()
            self._sockets.pop(self._asked, None)
        self._asked = self._response = None

    def cut(self) -> None:
        """End everything at once, from another thread: whoever is receiving finds the connection closed."""
        self._is_cut = True
        for sock in list(self._sockets.values()):
            with suppress(OSError):
                # The method of an SSLSocket would take the TLS state from under the receiving thread.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close everything; for the line's own thread."""
        self.drop()
        for connection in self._connections.values():
            connection.close()

    def _ask(self, origin: Origin, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        proxy = _proxy_for(origin)
        self._asked = origin
        if origin not in self._connections:
            self._connect(origin, proxy)
        parts = urlsplit(url)
        target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        if proxy and origin[0] == "http":
            target, headers = url, {**headers, **_proxy_headers(proxy)}
        self._connections[origin].request("GET", target, headers=dict(headers))
        self._response = self._connections[origin].getresponse()
        return self._response

    def _connect(self, origin: Origin, proxy: SplitResult | None) -> None:
        connection = self._connections[origin] = _connection(origin, proxy, self._silence_s)
        self.is_connecting = True
        try:
            connection.connect()
        finally:
            self.is_connecting = False
        self._sockets[origin] = connection.sock
        if self._is_cut:
            raise ConnectionAbortedError
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def read_some(response: http.client.HTTPResponse, buffer: memoryview) -> int:
    """Receive once into `buffer`; 0 at the end of the body."""
    if response.chunked:
        data = response.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)
    return response.fp.readinto1(buffer) if response.fp else 0


def _connection(origin: Origin, proxy: SplitResult | None, timeout_s: float) -> http.client.HTTPConnection:
    scheme, host, port = origin
    if proxy is None and scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=timeout_s)
    if proxy is None:
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=_tls())
    through = proxy.hostname or "", proxy.port or _PORTS["http"]
    if scheme == "http":
        return http.client.HTTPConnection(*through, timeout=timeout_s)
    tunnel = http.client.HTTPSConnection(*through, timeout=timeout_s, context=_tls())
    tunnel.set_tunnel(host, port, headers=_proxy_headers(proxy))
    return tunnel


def _proxy_for(origin: Origin) -> SplitResult | None:
    scheme, host, port = origin
    proxies = getproxies()
    url = proxies.get(scheme) or proxies.get("all")
    if not url or proxy_bypass(f"{host}:{port}"):
        return None
    proxy = urlsplit(url if "://" in url else f"http://{url}")
    if proxy.scheme != "http":
        raise HubUnreachable(f"{scheme}://{host}", f"downloads cannot go through a proxy of the kind {proxy.scheme}://")
    return proxy


def _proxy_headers(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": "Basic " + base64.b64encode(login.encode()).decode()}


@cache
def _tls() -> ssl.SSLContext:
    context = httpx2.create_ssl_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
