"""A stand-in for the Hugging Face Hub: a real HTTP server on loopback that the real client can talk to.

It speaks what reading a model repository needs: who am I, model info, file tree, file metadata, files with
ranges, and the refusals of the real Hub. It misbehaves on request (`HubStandIn.faults`) and remembers every
request. It does not do uploads, search, data sets, private repositories, pagination or Xet.

As on the real Hub, LFS files are not served by the Hub but by a CDN, which is another origin (here: another
port). The client depends on that: it follows a redirect within one origin, and would then look for the commit
in the CDN's answer; and it never sends its token to another origin.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseServer
from typing import Any, ClassVar, Literal, Protocol
from urllib.parse import parse_qs, quote, unquote, urlsplit
from weakref import WeakSet

LFS_SUFFIXES = frozenset({".safetensors", ".bin", ".gguf", ".model"})
PIECE_BYTES = 1 << 16
SPAN_BYTES = 1 << 20
EPOCH = "2024-01-01T00:00:00.000Z"
PAGE_NOT_FOUND = "Sorry, we can't find the page you are looking for."

UNGATED_FILES = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt")
GATES = {
    "licence": "Access to model {repo} is restricted and you are not in the authorized list. Visit {url}/{repo} to ask "
    "for access.",
    "pending": "Your request to access model {repo} is awaiting a review from the repo authors.",
    "rejected": "Your request to access model {repo} has been rejected by the repo's authors.",
    "reset": "Your request to access model {repo} has been reset by the repo's authors. Visit {url}/{repo} to submit a "
    "new request.",
    "permission": "Please enable access to public gated repositories in your fine-grained token settings to view this "
    "repository.",
}
"""What the Hub tells a known token that may not read a gated repository; all but the last have the code GatedRepo."""

Json = dict[str, Any]
Piece = tuple[int, bytes]
"""Bytes of a file and the place in the file where they belong."""


# --- what is served -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RepoFile:
    """One file of a repository as the Hub knows it; `blob_id` is git's, which for LFS is the pointer's."""

    name: str
    path: Path
    size_bytes: int
    is_lfs: bool
    blob_id: str
    sha256: str

    @property
    def etag(self) -> str:
        """What identifies the content to a client: the SHA-256 of an LFS file, else git's blob id."""
        return self.sha256 if self.is_lfs else self.blob_id

    @property
    def pointer_size_bytes(self) -> int:
        """Size of the LFS pointer that git stores in place of the file."""
        return len(_lfs_pointer(self.sha256, self.size_bytes))


@dataclass(frozen=True)
class Snapshot:
    """The files of one commit, by name."""

    commit: str
    files: dict[str, RepoFile]


@dataclass
class Repo:
    """A model repository: its snapshots by commit, and the commit that each branch or tag names."""

    repo_id: str
    gated: bool
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)


def _read_snapshot(directory: Path, lfs_threshold_bytes: int) -> Snapshot:
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    files = {}
    for path in paths:
        name = path.relative_to(directory).as_posix()
        files[name] = _describe(name, path, lfs_threshold_bytes)
    listing = "".join(f"{file.name}\0{file.sha256}\n" for file in files.values())
    return Snapshot(hashlib.sha1(listing.encode()).hexdigest(), files)


def _describe(name: str, path: Path, lfs_threshold_bytes: int) -> RepoFile:
    stat = path.stat()
    size_bytes = stat.st_size
    is_lfs = size_bytes > lfs_threshold_bytes or path.suffix in LFS_SUFFIXES
    blob_id, sha256 = _digests(path, size_bytes, stat.st_mtime_ns)
    if is_lfs:
        pointer = _lfs_pointer(sha256, size_bytes)
        blob_id = _start_blob(len(pointer), pointer).hexdigest()
    return RepoFile(name, path, size_bytes, is_lfs, blob_id, sha256)


@cache
def _digests(path: Path, size_bytes: int, _mtime_ns: int) -> tuple[str, str]:
    """Git's blob id and the SHA-256 of a file, which is read once however many stand-ins serve it."""
    blob, sha256 = _start_blob(size_bytes), hashlib.sha256()
    for _, data in _read_pieces(path, 0, size_bytes):
        blob.update(data)
        sha256.update(data)
    return blob.hexdigest(), sha256.hexdigest()


def _start_blob(size_bytes: int, data: bytes = b"") -> hashlib._Hash:
    return hashlib.sha1(b"blob %d\0" % size_bytes + data)


def _lfs_pointer(sha256: str, size_bytes: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size_bytes}\n".encode()


def _read_pieces(path: Path, start: int, end: int) -> Iterator[Piece]:
    with path.open("rb") as file:
        file.seek(start)
        while start < end and (data := file.read(min(PIECE_BYTES, end - start))):
            yield start, data
            start += len(data)


# --- misbehaviour -------------------------------------------------------------------------------------------


@dataclass
class Fault:
    """One way to misbehave, `times` times (None: always).

    A subclass overrides `refuse` to answer something else, `announce` to change the headers, or `deliver` to
    change the bytes of the body on their way out; the declared Content-Length stays that of the honest body.
    """

    times: int | None = field(default=None, kw_only=True)

    honours_ranges: ClassVar[bool] = True

    def applies_to(self, method: str) -> bool:
        """Whether a request of this method is affected at all; a request that is not uses up no `times`."""
        return method == "GET"

    def refuse(self) -> Reply | None:
        """An answer in place of the honest one."""
        return None

    def etag(self, honest: str) -> str:
        """What the content goes by."""
        return honest

    def announce(self, headers: dict[str, str]) -> None:
        """Change the headers of the honest answer, Content-Length and Content-Range among them."""

    def deliver(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """The pieces that are sent in place of `pieces`."""
        return pieces

    def use_up(self) -> bool:
        """Count one use; False when there is none left."""
        if self.times is None:
            return True
        if self.times == 0:
            return False
        self.times -= 1
        return True


@dataclass
class Truncate(Fault):
    """No byte at or after `after_bytes` of the file ever arrives: the connection is closed there."""

    after_bytes: int

    def deliver(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """Stop at `after_bytes`."""
        for offset, data in pieces:
            yield offset, data[: max(0, self.after_bytes - offset)]
            if offset + len(data) >= self.after_bytes:
                return


@dataclass
class Hang(Fault):
    """No byte at or after `after_bytes` of the file ever arrives, and the connection stays open, for a minute."""

    after_bytes: int

    def deliver(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """Fall silent at `after_bytes`."""
        yield from Truncate(self.after_bytes).deliver(pieces)
        time.sleep(60)


@dataclass
class NoRanges(Fault):
    """The whole file, whatever part was asked for."""

    honours_ranges: ClassVar[bool] = False


@dataclass
class OtherETag(Fault):
    """The file goes by another ETag, as if its content had changed."""

    other: str = "changed"

    def etag(self, _honest: str) -> str:
        """Give that one out."""
        return f'"{self.other}"'


@dataclass
class WrongLength(Fault):
    """The Content-Length is off by `n_bytes`; the body is the honest one."""

    n_bytes: int

    def announce(self, headers: dict[str, str]) -> None:
        """Lie about it."""
        headers["Content-Length"] = str(int(headers["Content-Length"]) + self.n_bytes)


@dataclass
class WrongRange(Fault):
    """The Content-Range is not the one that was asked for."""

    content_range: str

    def announce(self, headers: dict[str, str]) -> None:
        """Lie about it."""
        if "Content-Range" in headers:
            headers["Content-Range"] = self.content_range


@dataclass
class Corrupt(Fault):
    """The byte at `at_byte` of the file arrives with its bits flipped."""

    at_byte: int

    def deliver(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """Flip that byte in the piece that holds it."""
        for offset, data in pieces:
            place = self.at_byte - offset
            if 0 <= place < len(data):
                yield offset, data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
            else:
                yield offset, data


@dataclass
class Slow(Fault):
    """The file arrives at about `bytes_per_s`."""

    bytes_per_s: int

    def deliver(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """Send small pieces with pauses between them, about twenty a second."""
        step = max(1, self.bytes_per_s // 20)
        for offset, data in pieces:
            for start in range(0, len(data), step):
                part = data[start : start + step]
                time.sleep(len(part) / self.bytes_per_s)
                yield offset + start, part


@dataclass
class Status(Fault):
    """An HTTP status in place of the file; `method` says whether its bytes or its metadata are refused."""

    code: int
    method: Literal["GET", "HEAD"] = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)

    def applies_to(self, method: str) -> bool:
        """Only the chosen method."""
        return method == self.method

    def refuse(self) -> Reply | None:
        """The bare status, as a gateway in trouble sends it."""
        error = {"error": f"stand-in says {self.code}"}
        return _json_reply(error, status=self.code, headers=dict(self.headers))


# --- answers ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """An answer whose body is at hand."""

    status: int
    headers: dict[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class FileReply:
    """An answer whose body is a file, or the range of it that was asked for."""

    file: RepoFile
    headers: dict[str, str]


class RefusalError(Exception):
    """An error answer of the Hub; `code` becomes X-Error-Code, by which the client tells errors apart."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None) -> None:
        super().__init__(message)
        headers = {"X-Error-Message": message}
        if code is not None:
            headers["X-Error-Code"] = code
        if commit is not None:
            headers["X-Repo-Commit"] = commit
        if status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="Authentication required", charset="UTF-8"'
        self.reply = _json_reply({"error": message}, status=status, headers=headers)


def _json_reply(value: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    content_type = {"Content-Type": "application/json; charset=utf-8"}
    return Reply(status, content_type | (headers or {}), json.dumps(value).encode())


@dataclass
class Request:
    """One request as it was answered; `bytes_sent` counts the body bytes handed to the socket."""

    method: str
    path: str
    query: str
    range: str | None
    has_token: bool
    file_name: str | None = None
    status: int = 0
    bytes_sent: int = 0


# --- the Hub ------------------------------------------------------------------------------------------------


class HubStandIn:
    """The stand-in Hub: a context manager that serves the repositories added to it at `url`.

    `tokens` maps each valid token to the gated repositories it may read; `gates` says why one may not read the others:
    a key of `GATES` ("licence" unless it is said), or any other text as the Hub's message. `faults` maps a file name
    (as in its repository), or the path of an API request, to a misbehaviour. `link_uses` is how often an address at
    the CDN may be used before it has expired (None: always). All may be changed at any time. `prefix` is the path that
    a mirror is at ("/mirror"). `requests` lists what was asked, in the order of arrival.

    """

    def __init__(self, *, lfs_threshold_bytes: int = 1_000_000) -> None:
        self.tokens: dict[str, set[str]] = {}
        self.gates: dict[str, str] = {}
        self.prefix = ""
        self.faults: dict[str, Fault] = {}
        self.requests: list[Request] = []
        self.link_uses: int | None = None
        self._links: dict[str, int] = {}
        self._lfs_threshold_bytes = lfs_threshold_bytes
        self._repos: dict[str, Repo] = {}
        self._lfs_objects: dict[str, RepoFile] = {}
        self._lock = threading.Lock()
        self._servers = [_Server(partial(_Handler, self, self._answer_hub))]
        self._servers.append(_Server(partial(_Handler, self, self._answer_cdn)))
        self.url, self.cdn_url = (server.url for server in self._servers)

    def __enter__(self) -> HubStandIn:
        for server in self._servers:
            server.start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.stop()

    def add_repo(self, repo_id: str, directory: Path, *, gated: bool = False, revision: str = "main") -> str:
        """Serve `directory` as one commit of `repo_id` and let `revision` name it; return the commit.

        The commit depends on names and contents only. Adding again moves `revision`; earlier commits stay.
        The files are read when they are asked for, so they must not change after this.
        """
        snapshot = _read_snapshot(directory, self._lfs_threshold_bytes)
        repo = self._repos.setdefault(repo_id, Repo(repo_id, gated))
        repo.gated = gated
        repo.snapshots[snapshot.commit] = snapshot
        repo.refs[revision] = snapshot.commit
        self._lfs_objects |= {file.sha256: file for file in snapshot.files.values() if file.is_lfs}
        return snapshot.commit

    def take_refusal(self, key: str, method: str) -> Reply | None:
        """The answer of a due misbehaviour that refuses, for requests whose body is not a file's."""
        fault = self.take_fault(key, method)
        return None if fault is None else fault.refuse()

    def take_fault(self, key: str, method: str) -> Fault | None:
        """The misbehaviour that is due for a file or an API path, counted as used."""
        with self._lock:
            fault = self.faults.get(key)
            is_due = fault is not None and fault.applies_to(method) and fault.use_up()
            return fault if is_due else None

    def _answer_cdn(self, request: Request, _token: str | None) -> Reply | FileReply:
        """GET and HEAD /cdn/{sha256}: the address is the permission, so no token is asked for."""
        sha256 = request.path.removeprefix("/cdn/")
        file = self._lfs_objects.get(sha256)
        self._use_link(parse_qs(request.query).get("Signature", [""])[0])
        if file is None:
            raise RefusalError(404, "No such object")
        return FileReply(file, {"ETag": f'"{sha256}"', "Content-Disposition": _disposition(file)})

    def _use_link(self, signature: str) -> None:
        with self._lock:
            self._links[signature] = self._links.get(signature, 0) + 1
            if self.link_uses is not None and self._links[signature] > self.link_uses:
                raise RefusalError(403, "Request has expired")

    def _answer_hub(self, request: Request, token: str | None) -> Reply | FileReply:
        if not request.path.startswith(f"{self.prefix}/"):
            raise RefusalError(404, PAGE_NOT_FOUND)
        segments = _split_path(request.path.removeprefix(self.prefix))
        if token is not None and token not in self.tokens:
            raise RefusalError(401, "Invalid credentials in Authorization header")
        match segments:
            case ["api", "whoami-v2"]:
                return self._whoami(token)
            case ["api", "models", *rest]:
                refusal = self.take_refusal(request.path, request.method)
                return refusal or self._answer_models(rest, parse_qs(request.query), token)
            case [*repo, "resolve", revision, name] if 1 <= len(repo) <= 2:
                request.file_name = name
                # A GET has its misbehaviour where the bytes are, which for LFS files is the CDN.
                refusal = self.take_refusal(name, "HEAD") if request.method == "HEAD" else None
                return refusal or self._resolve("/".join(repo), revision, name, token)
        raise RefusalError(404, PAGE_NOT_FOUND)

    def _whoami(self, token: str | None) -> Reply:
        if token is None:
            raise RefusalError(401, "Invalid username or password.")
        access = {"type": "access_token", "accessToken": {"displayName": "test", "role": "read"}}
        return _json_reply({"type": "user", "id": "0", "name": "tester", "orgs": [], "auth": access})

    def _answer_models(self, segments: list[str], query: dict[str, list[str]], token: str | None) -> Reply:
        """/api/models/{repo}[/revision/{revision} or /tree/{revision}[/{folder}]]: open even where gated."""
        marks = [place for place, segment in enumerate(segments) if segment in ("revision", "tree")]
        place = marks[0] if marks else len(segments)
        match segments[place:]:
            case []:
                kind, revision, folders = "revision", "main", list[str]()
            case [kind, revision, *folders]:
                pass
            case _:
                raise RefusalError(404, PAGE_NOT_FOUND)
        repo = self._find_repo("/".join(segments[:place]), token)
        snapshot = _find_snapshot(repo, revision)
        if kind == "tree":
            return _json_reply(_tree(snapshot, "/".join(folders), is_recursive=_is_true(query, "recursive")))
        return _json_reply(_model_info(repo, snapshot, with_blobs=_is_true(query, "blobs")))

    def _resolve(self, repo_id: str, revision: str, name: str, token: str | None) -> Reply | FileReply:
        """/{repo}/resolve/{revision}/{file}: small files here, LFS files by redirect to the CDN."""
        repo = self._find_repo(repo_id, token)
        if name not in UNGATED_FILES:
            self._check_gate(repo, token)
        snapshot = _find_snapshot(repo, revision)
        file = snapshot.files.get(name)
        if file is None:
            raise RefusalError(404, "Entry not found", "EntryNotFound", snapshot.commit)
        headers = {"X-Repo-Commit": snapshot.commit, "ETag": f'"{file.etag}"'}
        if not file.is_lfs:
            return FileReply(file, headers | {"Content-Disposition": _disposition(file)})
        location = f"{self.cdn_url}/cdn/{file.sha256}?Signature={len(self.requests)}"
        headers |= {
            "Location": location,
            "X-Linked-Size": str(file.size_bytes),
            "X-Linked-Etag": f'"{file.sha256}"',
            "Content-Type": "text/plain; charset=utf-8",
        }
        return Reply(302, headers, f"Found. Redirecting to {location}".encode())

    def _find_repo(self, repo_id: str, token: str | None) -> Repo:
        repo = self._repos.get(repo_id)
        if repo is not None:
            return repo
        if token is None:
            # It might be private: to a stranger the Hub does not say which repositories exist.
            raise RefusalError(401, "Invalid username or password.", "RepoNotFound")
        raise RefusalError(404, "Repository not found", "RepoNotFound")

    def _check_gate(self, repo: Repo, token: str | None) -> None:
        if not repo.gated:
            return
        if token is None:
            reason = "You must have access to it and be authenticated to access it. Please log in."
            raise RefusalError(401, f"Access to model {repo.repo_id} is restricted. {reason}", "GatedRepo")
        if repo.repo_id not in self.tokens[token]:
            gate = self.gates.get(token, "licence")
            message = GATES.get(gate, gate).format(repo=repo.repo_id, url=self.url)
            raise RefusalError(403, message, None if gate == "permission" else "GatedRepo")


def _split_path(path: str) -> list[str]:
    """The decoded segments of a request's path; of a `resolve` path the file's name is one segment."""
    segments = [unquote(segment) for segment in path.removeprefix("/").split("/")]
    if any(part in ("", ".", "..") for segment in segments for part in segment.split("/")):
        raise RefusalError(400, "Invalid path")
    for place in (1, 2):
        if segments[0] != "api" and segments[place : place + 1] == ["resolve"]:
            return [*segments[: place + 2], "/".join(segments[place + 2 :])]
    return segments


def _is_true(query: dict[str, list[str]], name: str) -> bool:
    return query.get(name, [""])[-1].lower() in ("1", "true")


def _disposition(file: RepoFile) -> str:
    base = file.name.rsplit("/", 1)[-1]
    return f"inline; filename*=UTF-8''{quote(base)};"


def _find_snapshot(repo: Repo, revision: str) -> Snapshot:
    snapshot = repo.snapshots.get(repo.refs.get(revision, revision))
    if snapshot is None:
        raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return snapshot


def _model_info(repo: Repo, snapshot: Snapshot, *, with_blobs: bool) -> Json:
    files = snapshot.files.values()
    return {
        "_id": "0" * 24,
        "id": repo.repo_id,
        "modelId": repo.repo_id,
        "author": repo.repo_id.split("/")[0],
        "sha": snapshot.commit,
        "createdAt": EPOCH,
        "lastModified": EPOCH,
        "private": False,
        "disabled": False,
        "gated": "manual" if repo.gated else False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": [_sibling(file) if with_blobs else {"rfilename": file.name} for file in files],
        "usedStorage": sum(file.size_bytes for file in files),
    }


def _sibling(file: RepoFile) -> Json:
    sibling: Json = {"rfilename": file.name, "blobId": file.blob_id, "size": file.size_bytes}
    if file.is_lfs:
        sibling["lfs"] = {
            "sha256": file.sha256,
            "size": file.size_bytes,
            "pointerSize": file.pointer_size_bytes,
        }
    return sibling


def _tree(snapshot: Snapshot, folder: str, *, is_recursive: bool) -> list[Json]:
    """The entries under `folder` ("" for the root): folders first, as in git they have no size."""
    prefix = f"{folder}/" if folder else ""
    inside = [file for file in snapshot.files.values() if file.name.startswith(prefix)]
    if folder and not inside:
        raise RefusalError(404, f"{folder} does not exist on this revision", "EntryNotFound", snapshot.commit)
    parents = {parent for file in inside for parent in _parents(file.name) if parent.startswith(prefix)}
    folders = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": parent} for parent in sorted(parents)]
    entries = [*folders, *(_tree_file(file) for file in inside)]
    return entries if is_recursive else [e for e in entries if "/" not in e["path"].removeprefix(prefix)]


def _parents(name: str) -> Iterator[str]:
    while "/" in name:
        name = name.rsplit("/", 1)[0]
        yield name


def _tree_file(file: RepoFile) -> Json:
    entry: Json = {"type": "file", "oid": file.blob_id, "size": file.size_bytes, "path": file.name}
    if file.is_lfs:
        entry["lfs"] = {"oid": file.sha256, "size": file.size_bytes, "pointerSize": file.pointer_size_bytes}
    return entry


# --- HTTP ---------------------------------------------------------------------------------------------------


class _Answer(Protocol):
    def __call__(self, request: Request, token: str | None, /) -> Reply | FileReply: ...


class _Server(ThreadingHTTPServer):
    """One origin. Stopping it also cuts the connections that a client keeps alive, so that it is gone."""

    def __init__(self, handler: Callable[..., BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._connections: WeakSet[socket.socket] = WeakSet()
        # The default poll of half a second would be the time that every stop takes.
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
        for connection in list(self._connections):
            # Only a shutdown wakes the thread that waits on this connection; it then closes it by itself.
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._connections.add(connection)
        return connection, address


class _Handler(BaseHTTPRequestHandler):
    """Turns requests into calls of `answer`, and its answers into bytes on the wire."""

    protocol_version = "HTTP/1.1"
    # Headers and body are written apart: with Nagle's algorithm the body would wait for an acknowledgement.
    disable_nagle_algorithm = True

    def __init__(
        self, hub: HubStandIn, answer: _Answer, request: socket.socket, client: object, server: BaseServer
    ) -> None:
        self._hub = hub
        self._answer = answer
        super().__init__(request, client, server)

    def handle(self) -> None:
        """Serve one connection; a client may hang up when it likes."""
        with suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        """Answer one request and write it down."""
        url = urlsplit(self.path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        record = Request(self.command, url.path, url.query, self.headers.get("Range"), token is not None)
        # Written down before the answer, so that a client that has its answer also finds the record.
        self._hub.requests.append(record)
        try:
            reply = self._answer(record, token)
        except RefusalError as refusal:
            reply = refusal.reply
        self._send(reply, record)

    def do_HEAD(self) -> None:
        """As GET, but `_send_body` leaves the body out."""
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Stay quiet: `HubStandIn.requests` is the log."""

    def _send(self, reply: Reply | FileReply, record: Request) -> None:
        if isinstance(reply, FileReply):
            self._send_file(reply, record)
        else:
            self._send_reply(reply, record)

    def _send_file(self, reply: FileReply, record: Request) -> None:
        file = reply.file
        record.file_name = file.name
        fault = (self._hub.take_fault(file.name, "GET") if self.command == "GET" else None) or Fault()
        if (refusal := fault.refuse()) is not None:
            self._send(refusal, record)
            return
        total = file.size_bytes
        headers = reply.headers | {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        headers["ETag"] = fault.etag(headers["ETag"])
        is_asked = fault.honours_ranges and self.headers.get("If-Range") in (None, headers["ETag"])
        span = _parse_range(record.range, total) if is_asked else None
        if span is None:
            status, start, end = 200, 0, total
        elif span[0] >= span[1]:
            self._send(Reply(416, {"Content-Range": f"bytes */{total}"}), record)
            return
        else:
            status, (start, end) = 206, span
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{total}"
        headers["Content-Length"] = str(end - start)
        fault.announce(headers)
        self._send_head(status, headers, record)
        if self.command == "HEAD":
            return
        if type(fault).deliver is Fault.deliver:
            self._send_span(file.path, start, end, record)
        else:
            self._send_pieces(fault.deliver(_read_pieces(file.path, start, end)), record)
        self.close_connection |= record.bytes_sent != int(headers["Content-Length"])

    def _send_reply(self, reply: Reply, record: Request) -> None:
        self._send_head(reply.status, reply.headers | {"Content-Length": str(len(reply.body))}, record)
        if self.command != "HEAD":
            self._send_pieces(iter([(0, reply.body)]), record)

    def _send_head(self, status: int, headers: dict[str, str], record: Request) -> None:
        record.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_pieces(self, pieces: Iterator[Piece], record: Request) -> None:
        for _, data in pieces:
            # Counted first, for the same reason as the record itself.
            record.bytes_sent += len(data)
            self.wfile.write(data)

    def _send_span(self, path: Path, start: int, end: int, record: Request) -> None:
        """Send a part of a file as fast as the system can, without touching the bytes."""
        with path.open("rb") as file:
            while start < end:
                n_asked = min(end - start, SPAN_BYTES)
                record.bytes_sent += n_asked
                try:
                    n_sent = os.sendfile(self.connection.fileno(), file.fileno(), start, n_asked)
                except OSError:
                    record.bytes_sent -= n_asked
                    raise
                record.bytes_sent -= n_asked - n_sent
                start += n_sent


def _parse_range(header: str | None, total: int) -> tuple[int, int] | None:
    """Start and end (exclusive) of a `bytes=` range; None for the whole file, an empty span if outside."""
    unit, _, span = (header or "").partition("=")
    first, dash, last = span.partition("-")
    if unit != "bytes" or not dash or not (first + last).isdigit():
        return None
    if not first:
        return max(0, total - int(last)), total
    return int(first), min(total, int(last) + 1 if last else total)
