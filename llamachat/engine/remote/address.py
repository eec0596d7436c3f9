"""What a user gives as a server → where its API may begin."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

from llamachat.errors import BadServer

_LONGEST = 2000
_VERSION = re.compile(r"/v\d[a-z0-9]*$")
_ENDPOINTS = ("/chat/completions", "/completions", "/models")


def parse_address(text: str) -> str:
    """An http address without a slash at its end; raise `BadServer`, which shows nothing that may be a secret.

    Without a scheme, a name on the internet is asked by https, and a port, this machine or an IP address by http.
    """
    text = text.strip()
    if not text or len(text) > _LONGEST or not text.isprintable() or " " in text:
        raise BadServer("The server's address cannot be read.")
    parts = _split(text if "://" in text else f"//{text}")
    if parts.username is not None or parts.password is not None:
        raise BadServer("The server's address holds a user name or password, which would be kept in the history.")
    if parts.query or parts.fragment:
        raise BadServer("The server's address goes on after its path (with ? or #).")
    scheme = parts.scheme or ("http" if parts.port or is_near(parts.hostname or "") else "https")
    path = parts.path.rstrip("/")
    for endpoint in _ENDPOINTS:
        path = path.removesuffix(endpoint)
    return f"{scheme}://{parts.netloc}{path}"


def bases(address: str) -> list[str]:
    """Where the API may begin, the likelier place first: people leave `/v1` out."""
    return [address] if _VERSION.search(urlsplit(address).path) else [f"{address}/v1", address]


def root(base: str) -> str:
    """Where a server has what is its own rather than OpenAI's: beside `/v1`."""
    return _VERSION.sub("", base)


def is_near(host: str) -> bool:
    """Whether this is a machine's own name for itself, or an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith((".localhost", ".local"))
    return True


def is_loopback(address: str) -> bool:
    """Whether what is sent there never leaves this machine."""
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _split(text: str) -> SplitResult:
    try:
        parts = urlsplit(text)
        if parts.scheme not in ("", "http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError
    except ValueError:
        raise BadServer("The server's address is not one of http or https.") from None
    return parts
