"""Fetch a file of a repository so that nothing is fetched twice: ranges, several connections, a journal, a hash.

    download(repository, file, path, watch)

What has arrived is written at its place in `path` at once, remembered in `NAME.journal` (see `partial`), and hashed as
far as it is contiguous (see `digest`). Whatever ends a download, the next one goes on from the journal; killed at any
moment, it fetches at most one range a connection again.

`Connections` is one go at what is missing; when the server's copy turns out to be another one, or to be damaged, all
connections end, the file starts over, and there is another go.
"""

from __future__ import annotations

import http.client
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

import httpx2
from huggingface_hub import constants
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]  # as in client.py

from llamachat.errors import CannotWrite, DownloadBroken, DownloadDamaged, HubUnreachable
from llamachat.models.hub.answers import PASSING, StartOver, Trouble, Wanted, check_answer
from llamachat.models.hub.client import plain_errors
from llamachat.models.hub.digest import PrefixDigest
from llamachat.models.hub.journal import RANGE_BYTES, range_count, range_span
from llamachat.models.hub.line import Line, read_some
from llamachat.models.hub.partial import Partial, drop_contents, is_complete, n_missing, open_partial
from llamachat.models.hub.repository import RemoteFile, Repository
from llamachat.models.hub.retry import Patience
from llamachat.models.hub.source import Answer, Source

__all__ = ["RANGE_BYTES", "Cancelled", "Watch", "download", "drop_contents", "is_complete", "n_missing"]

N_CONNECTIONS = 4
PATIENCE = Patience()

_BUFFER_BYTES = 1 << 20
_TICK_S = 0.1
_MAX_REFUSAL_BYTES = 1 << 16
_MAX_STARTS = {"changed": 2, "no ranges": 1, "damaged": 1}
"""How often a file may start over in one download, by cause."""


class Cancelled(Exception):
    """The watch asked for an end. What has arrived is kept."""


class Watch(Protocol):
    """Who looks on. All calls come from the thread that called `download`."""

    cancelled: threading.Event
    """Set from any thread, it ends the download within a fraction of a second, with `Cancelled`."""

    def advance(self, file_name: str, n_bytes: int) -> None:
        """So many more bytes of a file have arrived, never fewer than none; what was there before is not reported."""

    def restart(self, file_name: str, n_bytes: int) -> None:
        """So many bytes of a file that were there, or were reported, have to be fetched once more.

        A display that must not go backwards adds them to what there is to do.
        """

    def notice(self, text: str) -> None:
        """A line for the user: a retry with its count, a file that starts over."""


def download(
    repository: Repository, file: RemoteFile, path: Path, watch: Watch, *, first_range_only: bool = False
) -> None:
    """Fetch what is still missing of `file` into `path`, whose directory exists, and verify it.

    Returns with `path` complete, verified and durable, and no journal. With `first_range_only` just the first
    `RANGE_BYTES` are fetched and the journal stays (a file of one range is completed). A path has one download at a
    time; the caller sees to that.

    Raises `DownloadBroken` (the network or the server failed too often), `DownloadDamaged` (wrong content, twice),
    `CannotWrite`, what `plain_errors` makes of the Hub's refusals, and `Cancelled`.
    """
    if is_complete(path):
        return
    with _writing(path), plain_errors(repository.repo, repository.commit, repository.mirror):
        if constants.HF_HUB_OFFLINE:
            raise hub_errors.OfflineModeIsEnabled
        partial, was_useless = open_partial(repository.commit, file, path)
        try:
            if was_useless:
                watch.notice(f"{file.name}: the record of what has arrived cannot be used; starting this file over")
            _complete(repository, file, partial, watch, first_range_only and file.size_bytes > RANGE_BYTES)
        finally:
            partial.close()


def _complete(repository: Repository, file: RemoteFile, partial: Partial, watch: Watch, first_range_only: bool) -> None:
    """Make one go after another, until the file is whole and right."""
    starts = dict.fromkeys(_MAX_STARTS, 0)
    while True:
        connections = Connections(repository, file, partial, watch, is_stream=starts["no ranges"] > 0)
        try:
            with connections:
                connections.run(1 if first_range_only else range_count(file.size_bytes))
                if not first_range_only:
                    connections.verify()
                    partial.publish()
                return
        except StartOver as start:
            partial.start_over()
            starts[start.cause] += 1
            if starts[start.cause] > _MAX_STARTS[start.cause]:
                raise DownloadDamaged(file.name, f"{start}, again after starting over") from None
            watch.restart(file.name, connections.n_known)
            watch.notice(f"{file.name}: {start}; starting this file over")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # the network's own are `Trouble` by now
        raise CannotWrite(path, error) from error


class _Stopped(Exception):
    """Another connection, or the caller, ended this go."""


@dataclass
class _Claim:
    """Bytes that one connection fetches, [at, stop): a range, or all of a file that comes as one stream."""

    at: int
    stop: int


class Connections:
    """One go at a file's missing ranges: a few threads, each with a line of its own, and one that looks on."""

    def __init__(
        self, repository: Repository, file: RemoteFile, partial: Partial, watch: Watch, *, is_stream: bool
    ) -> None:
        self._file = file
        self._partial = partial
        self._watch = watch
        self._is_stream = is_stream
        self._source = Source(repository, file)
        self._patience = PATIENCE.with_environment()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._n_working = 0
        self._threads: list[tuple[threading.Thread, Line]] = []
        self._claims: Iterator[_Claim] = iter(())
        self._failure: BaseException | None = None
        self._digest: PrefixDigest | None = None
        self._notices: list[str] = []
        self._n_arrived = self._n_told = 0
        self._n_before = sum(stop - start for start, stop in map(self._span, partial.finished))
        self._failures = 0
        self._n_arrived_at_failure = 0
        self._quiet_until = 0.0

    def __enter__(self) -> Connections:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def n_known(self) -> int:
        """Bytes that the watch knows of: those that were there before, and those it was told of."""
        return self._n_before + self._n_told

    def run(self, n_wanted: int) -> None:
        """Fetch what is missing of the first `n_wanted` ranges. Raises what ended it, or `Cancelled`."""
        n_ranges = range_count(self._file.size_bytes)
        if n_wanted == n_ranges:
            self._digest = PrefixDigest(self._file, self._partial.path, self._partial.finished)
        finished = self._partial.finished
        missing = (index for index in range(n_wanted) if index not in finished)
        self._claims = (_Claim(*self._span(index)) for index in missing)
        n_lines = min(N_CONNECTIONS, n_wanted - sum(index < n_wanted for index in finished))
        if self._is_stream:
            self._claims, n_lines = iter([_Claim(0, self._span(n_wanted - 1)[1])]), 1
        self._n_working = n_lines
        for _ in range(n_lines):
            line = Line(self._patience.silence_s)
            thread = threading.Thread(target=self._work, args=(line,), daemon=True)
            self._threads.append((thread, line))
            thread.start()
        while self._n_working and not self._ended.wait(_TICK_S):
            self._look()
        self._look()

    def verify(self) -> None:
        """Raise `StartOver` if the content is not what the Hub announced."""
        assert self._digest is not None
        while (is_right := self._digest.matches(_TICK_S)) is None:
            self._look()
        if not is_right:
            raise StartOver("damaged", "arrived damaged (its hash is not the one the Hub announced)")

    def stop(self) -> None:
        """End all connections; returns when nothing touches the file any more. What arrived is told to the watch.

        A thread that is still connecting is left behind: it has nothing to write, and ends when it finds its line cut.
        """
        self._stopping.set()
        for _, line in self._threads:
            line.cut()
        for thread, line in self._threads:
            while thread.is_alive() and not line.is_connecting:
                thread.join(0.02)
        if self._digest:
            self._digest.stop()

    def _look(self) -> None:
        """In the caller's thread: tell the watch what happened, and end if there is a reason."""
        with self._lock:
            n_new, self._n_told = self._n_arrived - self._n_told, self._n_arrived
            notices, self._notices = self._notices, []
            failure = self._failure
        if n_new:
            self._watch.advance(self._file.name, n_new)
        for text in notices:
            self._watch.notice(text)
        if failure:
            raise failure
        if self._watch.cancelled.is_set():
            raise Cancelled

    # --- in the connections' threads ---

    def _work(self, line: Line) -> None:
        buffer = memoryview(bytearray(min(_BUFFER_BYTES, self._file.size_bytes)))
        try:
            while (claim := self._next_claim()) is not None:
                self._fetch(line, claim, buffer)
        except _Stopped:
            pass
        except BaseException as error:
            with self._lock:
                self._failure = self._failure or error
            self._stopping.set()
        finally:
            line.close()
            with self._lock:
                self._n_working -= 1
                if self._failure or not self._n_working:
                    self._ended.set()

    def _next_claim(self) -> _Claim | None:
        with self._lock:
            return next(self._claims, None)

    def _fetch(self, line: Line, claim: _Claim, buffer: memoryview) -> None:
        """Get all bytes of a claim, over as many answers as it takes."""
        while claim.at < claim.stop:
            try:
                answer, n_skipped = self._ask(line, claim)
                self._discard(answer.response, n_skipped, buffer)
                while claim.at < claim.stop:
                    self._receive(answer.response, claim, buffer)
                self._expect_end(line, answer.response, claim)
            except Trouble as trouble:
                line.drop()
                self._bear(trouble)

    def _ask(self, line: Line, claim: _Claim) -> tuple[Answer, int]:
        """An answer that holds the claim's bytes, and how many of its bytes come before them."""
        wanted = Wanted(claim.at, claim.stop, self._file.size_bytes, self._is_stream or self._is_all(claim))
        with _network(self._patience):
            answer = self._source.get(line, wanted.headers(self._partial.etag))
            self._stop_if_told()
            refusal = answer.response.read(_MAX_REFUSAL_BYTES) if answer.response.status >= 400 else b""
        status, headers = answer.response.status, httpx2.Headers(answer.response.getheaders())
        if answer.is_hubs and 400 <= status < 500 and status not in PASSING:
            _raise_refusal(status, headers, refusal, self._source.url)
        etag = self._partial.adopt_etag(headers.get("ETag") if status in (200, 206) else None)
        check_answer(status, headers, wanted, etag)
        return answer, claim.at if status == 200 else 0

    def _is_all(self, claim: _Claim) -> bool:
        return (claim.at, claim.stop) == (0, self._file.size_bytes)

    def _discard(self, response: http.client.HTTPResponse, n_bytes: int, buffer: memoryview) -> None:
        """Pass by the beginning of a stream that came in an earlier answer."""
        while n_bytes:
            n_read, trouble = self._fill(response, buffer[: min(n_bytes, len(buffer))], is_new=False)
            n_bytes -= n_read
            if trouble:
                raise trouble

    def _receive(self, response: http.client.HTTPResponse, claim: _Claim, buffer: memoryview) -> None:
        """Take one buffer's worth of bytes, up to the end of a range, and put them on disk."""
        index = claim.at // RANGE_BYTES
        end_of_range = min(self._span(index)[1], claim.stop)
        n_read, trouble = self._fill(response, buffer[: min(len(buffer), end_of_range - claim.at)], is_new=True)
        self._partial.write(buffer[:n_read], claim.at)
        claim.at += n_read
        if claim.at == end_of_range:
            if self._digest:
                self._digest.add(index)
            self._partial.finish(index)
        if trouble:
            raise trouble

    def _fill(
        self, response: http.client.HTTPResponse, buffer: memoryview, *, is_new: bool
    ) -> tuple[int, Trouble | None]:
        """Fill `buffer` as far as bytes come, and say what ended them."""
        n_filled = 0
        while n_filled < len(buffer):
            try:
                with _network(self._patience):
                    n_read = read_some(response, buffer[n_filled:])
            except Trouble as trouble:
                return n_filled, trouble
            self._stop_if_told()
            if not n_read:
                return n_filled, Trouble("connection lost")
            n_filled += n_read
            if is_new:
                with self._lock:
                    self._n_arrived += n_read
        return n_filled, None

    def _expect_end(self, line: Line, response: http.client.HTTPResponse, claim: _Claim) -> None:
        """A body that ends where it should leaves its connection usable; one that goes on is not believed again."""
        is_cut_short = self._is_stream and claim.stop < self._file.size_bytes
        if response.chunked and not is_cut_short:
            with _network(self._patience):
                if response.read1(1):
                    line.drop()
                    return
        if is_cut_short:
            line.drop()
        else:
            line.keep()

    def _stop_if_told(self) -> None:
        if self._stopping.is_set():
            raise _Stopped

    def _bear(self, trouble: Trouble) -> None:
        """Wait before the next try. Connections that fail together wait together, and count once."""
        self._stop_if_told()
        with self._lock:
            now = time.monotonic()
            if now >= self._quiet_until:
                has_progressed = self._n_arrived > self._n_arrived_at_failure
                self._failures = 1 if has_progressed else self._failures + 1
                self._n_arrived_at_failure = self._n_arrived
                n_tries = self._patience.n_tries
                if self._failures > n_tries:
                    raise DownloadBroken(self._file.name, str(trouble), n_tries)
                pause_s = self._patience.pause_s(self._failures, trouble.asked_s)
                self._quiet_until = now + pause_s
                count = self._patience.announce(self._failures, pause_s)
                self._notices.append(f"{self._file.name}: {count} ({trouble})")
            pause_s = self._quiet_until - now
        if self._stopping.wait(pause_s):
            raise _Stopped

    def _span(self, index: int) -> tuple[int, int]:
        return range_span(index, self._file.size_bytes)


@contextmanager
def _network(patience: Patience) -> Iterator[None]:
    """What goes wrong on the way to the server and back becomes `Trouble`, except what no retry can mend."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise HubUnreachable(constants.ENDPOINT, f"its certificate is not trusted: {error.verify_message}") from error
    except TimeoutError as error:
        raise Trouble(f"no bytes for {patience.silence_s:g} s") from error
    except ConnectionRefusedError as error:
        raise Trouble("connection refused") from error
    except (ConnectionError, http.client.IncompleteRead) as error:
        raise Trouble("connection lost") from error
    except OSError as error:
        raise Trouble(error.strerror or str(error)) from error
    except http.client.HTTPException as error:
        raise Trouble(f"no proper HTTP: {type(error).__name__}") from error
    except ValueError:  # of putheader, and the message would show the token
        raise httpx2.LocalProtocolError("a header, perhaps the token, holds characters that cannot be sent") from None


def _raise_refusal(status: int, headers: httpx2.Headers, body: bytes, url: str) -> NoReturn:
    """Let huggingface_hub name what the Hub refuses."""
    known = {name: value for name, value in headers.items() if name.startswith(("x-", "www-", "content-type"))}
    request = httpx2.Request("GET", url)
    hf_raise_for_status(httpx2.Response(status, headers=known, content=body, request=request))
    raise AssertionError("only called for refusals")
