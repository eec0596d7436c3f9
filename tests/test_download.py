"""Downloads that survive anything: each misbehaviour of a server, what the user reads, and what is sent twice."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import itertools
import json
import os
import random
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

from llamachat.errors import (
    CannotWrite,
    DownloadBroken,
    DownloadDamaged,
    GatedRepository,
    HubOffline,
    HubUnreachable,
    LlamachatError,
)
from llamachat.models.hub import (
    Cancelled,
    RemoteFile,
    Repository,
    download,
    drop_contents,
    find_repository,
    is_complete,
    move_arrived,
    n_missing,
)
from llamachat.models.hub.journal import (
    RANGE_BYTES,
    Journal,
    from_runs,
    journal_path,
    range_count,
    range_span,
    read_journal,
    to_runs,
)
from llamachat.models.hub.retry import Patience, asked_pause_s
from support.hub import (
    Corrupt,
    Fault,
    Hang,
    HubStandIn,
    NoRanges,
    OtherETag,
    Piece,
    Slow,
    Status,
    Truncate,
    WrongLength,
    WrongRange,
)

REPO = "someone/large"
NAME = "model-00001-of-00002.safetensors"
SIZE = 4 * RANGE_BYTES + 12_345
CONFIG = b'{"model_type": "llama"}\n'
N_CONNECTIONS = 4

QUICK = Patience(n_tries=3, first_pause_s=0.01, longest_pause_s=0.02, silence_s=5.0)


class Recorder:
    """A watch that remembers what it was told."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.n_bytes = 0
        self.n_again = 0
        self.notices: list[str] = []

    def advance(self, _file_name: str, n_bytes: int) -> None:
        assert n_bytes > 0
        self.n_bytes += n_bytes

    def restart(self, _file_name: str, n_bytes: int) -> None:
        self.n_again += n_bytes

    def notice(self, text: str) -> None:
        self.notices.append(text)


@pytest.fixture(scope="module")
def repo_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("large")
    (directory / NAME).write_bytes(random.Random(1).randbytes(SIZE))
    (directory / "config.json").write_bytes(CONFIG)
    (directory / "empty.txt").write_bytes(b"")
    return directory


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)  # read from HF_ENDPOINT once, at import
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", url)


@pytest.fixture
def hub(repo_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    module = importlib.import_module("llamachat.models.hub.download")
    monkeypatch.setattr(module, "PATIENCE", QUICK)
    with HubStandIn() as stand_in:
        point_to(stand_in.url, monkeypatch)
        stand_in.add_repo(REPO, repo_dir)
        yield stand_in


@pytest.fixture
def repository(hub: HubStandIn) -> Repository:
    found = find_repository(REPO, None, print)
    hub.requests.clear()
    return found


class Fetch:
    """Downloads the large file, and says afterwards how it went."""

    def __init__(self, repository: Repository, hub: HubStandIn, path: Path, original: Path) -> None:
        self.repository = repository
        self.hub = hub
        self.path = path
        self.original = original
        self.file = repository.files[NAME]

    def __call__(self, *, first_range_only: bool = False, watch: Recorder | None = None) -> Recorder:
        watch = watch or Recorder()
        download(self.repository, self.file, self.path, watch, first_range_only=first_range_only)
        return watch

    def fails(self, kind: type[LlamachatError]) -> str:
        """Download what must fail, and return what the user reads."""
        with pytest.raises(kind) as caught:
            self()
        return f"{caught.value} | {caught.value.next_step}"

    def is_right(self) -> bool:
        """Whether the file is there, complete, and the same to the byte, with nothing beside it."""
        is_alone = [path.name for path in self.path.parent.iterdir()] == [NAME]
        return is_complete(self.path) and is_alone and self.path.read_bytes() == self.original.read_bytes()

    @property
    def n_sent(self) -> int:
        """Bytes of the file that the servers handed out, all in all."""
        bodies = (request for request in self.hub.requests if request.status in (200, 206))
        return sum(request.bytes_sent for request in bodies if request.file_name == NAME)


@pytest.fixture
def fetch(repository: Repository, hub: HubStandIn, tmp_path: Path, repo_dir: Path) -> Fetch:
    (tmp_path / "staging").mkdir()
    return Fetch(repository, hub, tmp_path / "staging" / NAME, repo_dir / NAME)


# --- as it should be ------------------------------------------------------------------------------------------


def test_a_large_file_comes_in_ranges_and_each_byte_once(fetch: Fetch) -> None:
    watch = fetch()
    assert fetch.is_right()
    assert (watch.n_bytes, watch.n_again, watch.notices) == (SIZE, 0, [])
    asked = [request.range for request in fetch.hub.requests if request.path.startswith("/cdn/")]
    spans = (range_span(index, SIZE) for index in range(range_count(SIZE)))
    assert sorted(asked) == sorted(f"bytes={start}-{stop - 1}" for start, stop in spans)
    assert fetch.n_sent == SIZE
    assert [request.status for request in fetch.hub.requests].count(302) == 1, "the Hub is asked once for all ranges"


def test_a_complete_file_is_not_asked_for(fetch: Fetch) -> None:
    fetch()
    fetch.hub.requests.clear()
    assert fetch().n_bytes == 0
    assert fetch.hub.requests == []


@pytest.mark.parametrize(("name", "content"), [("config.json", CONFIG), ("empty.txt", b"")])
def test_small_files_come_from_the_hub_itself(
    repository: Repository, tmp_path: Path, name: str, content: bytes
) -> None:
    watch = Recorder()
    download(repository, repository.files[name], tmp_path / name, watch)
    assert (tmp_path / name).read_bytes() == content
    assert watch.n_bytes == len(content)
    assert is_complete(tmp_path / name)


def test_the_token_goes_to_the_hub_alone(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch.hub.tokens["hf_secretsecret"] = set()
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    fetch.hub.faults[NAME] = Status(503, times=1)
    watch = fetch()
    assert {request.has_token for request in fetch.hub.requests if request.path.startswith("/cdn/")} == {False}
    assert {request.has_token for request in fetch.hub.requests if "/resolve/" in request.path} == {True}
    assert "secret" not in "".join(watch.notices)


def test_a_token_that_cannot_be_sent_is_not_shown(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_sécret\u2028")
    assert "cret" not in fetch.fails(LlamachatError)
    monkeypatch.setenv("HF_TOKEN", "hf_sec\nret")
    assert "ret" not in fetch.fails(LlamachatError).replace("retr", "").replace("Secret", "")


def test_the_first_range_alone(fetch: Fetch) -> None:
    """Enough to read a shard's header; the rest is added later."""
    fetch(first_range_only=True)
    assert not is_complete(fetch.path)
    assert n_missing(fetch.file, fetch.path) == SIZE - RANGE_BYTES
    assert fetch.path.stat().st_size == SIZE
    with fetch.path.open("rb") as data, fetch.original.open("rb") as original:
        assert data.read(RANGE_BYTES) == original.read(RANGE_BYTES)
    assert fetch(first_range_only=True).n_bytes == 0
    assert fetch().n_bytes == SIZE - RANGE_BYTES
    assert fetch.is_right()
    assert fetch.n_sent == SIZE


def test_a_file_of_one_range_is_completed_by_its_first(repository: Repository, tmp_path: Path) -> None:
    download(repository, repository.files["config.json"], tmp_path / "config.json", Recorder(), first_range_only=True)
    assert is_complete(tmp_path / "config.json")


def test_dropping_contents_frees_the_disk_and_keeps_the_header(fetch: Fetch) -> None:
    fetch()
    drop_contents(fetch.file, fetch.path)
    assert n_missing(fetch.file, fetch.path) == SIZE - RANGE_BYTES
    stat = fetch.path.stat()
    assert stat.st_size == SIZE
    assert stat.st_blocks * 512 <= RANGE_BYTES + (1 << 20)
    with fetch.path.open("rb") as data, fetch.original.open("rb") as original:
        assert data.read(RANGE_BYTES) == original.read(RANGE_BYTES)
    drop_contents(fetch.file, fetch.path)
    assert fetch().n_bytes == SIZE - RANGE_BYTES
    assert fetch.is_right()


def test_dropping_that_was_killed_half_way(fetch: Fetch) -> None:
    """The journal is written first: whatever was left of the data, only its first range is believed."""
    fetch()
    drop_contents(fetch.file, fetch.path)
    for n_left in (RANGE_BYTES, RANGE_BYTES - 1, 0):
        os.truncate(fetch.path, n_left)
        assert n_missing(fetch.file, fetch.path) == SIZE - n_left // RANGE_BYTES * RANGE_BYTES
    fetch()
    assert fetch.is_right()


# --- servers and lines that misbehave -------------------------------------------------------------------------


def test_a_dropped_connection_goes_on_where_it_broke(fetch: Fetch) -> None:
    fetch.hub.faults[NAME] = Truncate(RANGE_BYTES + 100_000, times=3)
    watch = fetch()
    assert fetch.is_right()
    assert fetch.n_sent == SIZE
    assert watch.n_bytes == SIZE
    assert f"{NAME}: retry 1 of 3 in 1 s (connection lost)" in watch.notices


def test_a_line_that_stays_broken_ends_in_words_and_the_next_try_goes_on(fetch: Fetch) -> None:
    fetch.hub.faults[NAME] = Truncate(3 * RANGE_BYTES + 1000)
    says = fetch.fails(DownloadBroken)
    assert NAME in says
    assert "connection lost" in says
    assert "the same command again; it continues where it stopped" in says
    fetch.hub.faults.clear()
    assert n_missing(fetch.file, fetch.path) == SIZE - 3 * RANGE_BYTES
    assert fetch().n_bytes == SIZE - 3 * RANGE_BYTES
    assert fetch.is_right()
    assert fetch.n_sent <= SIZE + N_CONNECTIONS * RANGE_BYTES


def test_progress_resets_the_count_of_retries(fetch: Fetch) -> None:
    """Far more drops than retries, but each time some bytes came."""

    class Crumbs(Fault):
        def deliver(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
            return itertools.islice(pieces, 16)

    fetch.hub.faults[NAME] = Crumbs()
    watch = fetch()
    assert fetch.is_right()
    assert len(watch.notices) > QUICK.n_tries
    assert fetch.n_sent == SIZE


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_server_in_trouble_is_asked_again(fetch: Fetch, code: int) -> None:
    fetch.hub.faults[NAME] = Status(code, times=2)
    watch = fetch()
    assert fetch.is_right()
    assert f"{NAME}: retry 1 of 3 in 1 s (HTTP {code})" in watch.notices


def test_retry_after_is_obeyed(fetch: Fetch) -> None:
    fetch.hub.faults[NAME] = Status(429, headers={"Retry-After": "1"}, times=1)
    started = time.monotonic()
    watch = fetch()
    assert time.monotonic() - started >= 1
    assert f"{NAME}: retry 1 of 3 in 1 s (HTTP 429)" in watch.notices


def test_what_servers_ask_for_is_understood() -> None:
    now = datetime(2030, 1, 1, tzinfo=timezone.utc)
    assert asked_pause_s({"Retry-After": "7"}, now) == 7
    assert asked_pause_s({"Retry-After": "Tue, 01 Jan 2030 00:00:09 GMT"}, now) == 9
    assert asked_pause_s({"Retry-After": "Tue, 01 Jan 2019 00:00:09 GMT"}, now) == 0
    assert asked_pause_s({"Retry-After": "soon"}, now) is None
    assert asked_pause_s({"RateLimit": '"api";r=0;t=55'}, now) == 55
    assert asked_pause_s({}, now) is None
    patience = Patience()
    assert patience.pause_s(1, 7.0) == 7
    assert patience.pause_s(1, 1e9) == 300
    assert all(0.5 <= patience.pause_s(1, None) <= 1 for _ in range(50))
    assert all(30 <= patience.pause_s(60, None) <= 60 for _ in range(50))


def test_silence_counts_as_a_dropped_connection(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("llamachat.models.hub.download")
    monkeypatch.setattr(module, "PATIENCE", Patience(3, 0.01, 0.02, silence_s=0.2))
    fetch.hub.faults[NAME] = Hang(RANGE_BYTES + 5000, times=2)
    watch = fetch()
    assert fetch.is_right()
    assert f"{NAME}: retry 1 of 3 in 1 s (no bytes for 0.2 s)" in watch.notices


def test_a_damaged_file_is_fetched_again_once(fetch: Fetch) -> None:
    fetch.hub.faults[NAME] = Corrupt(2 * RANGE_BYTES + 7, times=5)
    watch = fetch()
    assert fetch.is_right()
    assert watch.n_again == SIZE
    assert watch.notices == [
        f"{NAME}: arrived damaged (its hash is not the one the Hub announced); starting this file over"
    ]


def test_a_file_damaged_twice_is_refused(fetch: Fetch) -> None:
    fetch.hub.faults[NAME] = Corrupt(10)
    assert f"{NAME}: arrived damaged" in fetch.fails(DownloadDamaged)
    assert not is_complete(fetch.path)
    assert fetch.n_sent == 2 * SIZE
    assert n_missing(fetch.file, fetch.path) == SIZE, "nothing of it is believed next time"


def test_a_small_file_is_held_against_its_git_blob_id(hub: HubStandIn, repository: Repository, tmp_path: Path) -> None:
    hub.faults["config.json"] = Corrupt(3)
    with pytest.raises(DownloadDamaged, match=r"config\.json: arrived damaged"):
        download(repository, repository.files["config.json"], tmp_path / "config.json", Recorder())


def test_a_server_without_ranges_starts_the_file_over(fetch: Fetch) -> None:
    fetch(first_range_only=True)
    fetch.hub.faults[NAME] = NoRanges()
    watch = fetch()
    assert fetch.is_right(), "nothing was appended"
    assert watch.notices == [f"{NAME}: the server does not send parts of it; starting this file over"]


def test_a_stream_without_ranges_survives_drops(fetch: Fetch) -> None:
    class Dropping(NoRanges):
        n_times = 0

        def deliver(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
            self.n_times += 1
            return Truncate(self.n_times * RANGE_BYTES + 1000).deliver(pieces)

    fetch.hub.faults[NAME] = Dropping()
    watch = fetch()
    assert fetch.is_right()
    assert watch.n_bytes - watch.n_again == SIZE


def test_the_first_range_of_a_server_without_ranges(fetch: Fetch) -> None:
    fetch.hub.faults[NAME] = NoRanges()
    fetch(first_range_only=True)
    assert n_missing(fetch.file, fetch.path) == SIZE - RANGE_BYTES


def test_another_etag_starts_the_file_over(fetch: Fetch) -> None:
    fetch(first_range_only=True)
    fetch.hub.faults[NAME] = OtherETag()
    watch = fetch()
    assert fetch.is_right()
    assert watch.n_again == RANGE_BYTES
    assert watch.notices == [f"{NAME}: the server's copy changed; starting this file over"]


def test_an_etag_that_never_stays_is_refused(fetch: Fetch) -> None:
    class Restless(Fault):
        numbers = itertools.count()

        def etag(self, _honest: str) -> str:
            return f'"{next(self.numbers)}"'

    fetch.hub.faults[NAME] = Restless()
    assert "the server's copy changed, again" in fetch.fails(DownloadDamaged)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (WrongLength(-7, times=1), "the server announced"),
        (WrongLength(+7, times=1), "the server announced"),
        (WrongRange("bytes 5-9/*", times=1), "the server sent other bytes than were asked for"),
        (WrongRange("nonsense", times=1), "the server sent other bytes than were asked for"),
        (Status(416, times=1), "HTTP 416"),
        (Status(204, times=1), "HTTP 204"),
    ],
)
def test_answers_that_make_no_sense_are_not_used(fetch: Fetch, fault: Fault, says: str) -> None:
    fetch.hub.faults[NAME] = fault
    watch = fetch()
    assert fetch.is_right()
    assert len(watch.notices) == 1
    assert says in watch.notices[0]


@pytest.mark.parametrize(
    "fault", [WrongRange(f"bytes 0-{RANGE_BYTES - 1}/77"), Status(416, headers={"Content-Range": "bytes */77"})]
)
def test_a_copy_of_another_size_is_refused(fetch: Fetch, fault: Fault) -> None:
    fetch.hub.faults[NAME] = fault
    assert f"the server's copy has 77 bytes where the Hub lists {SIZE:,}" in fetch.fails(DownloadDamaged)


def test_expired_links_are_renewed_by_the_hub(fetch: Fetch) -> None:
    fetch.hub.link_uses = 1
    watch = fetch()
    assert fetch.is_right()
    assert watch.notices == []
    assert 403 in [request.status for request in fetch.hub.requests]


def test_links_that_never_work_end_in_words(fetch: Fetch) -> None:
    fetch.hub.link_uses = 0
    assert "HTTP 403" in fetch.fails(DownloadBroken)


def test_redirects_in_a_circle_end(fetch: Fetch) -> None:
    fetch.hub.faults[NAME] = Status(302, headers={"Location": "?"})
    assert "more than 10 redirects" in fetch.fails(DownloadBroken)
    assert len(fetch.hub.requests) < 11 * (QUICK.n_tries + 1) * N_CONNECTIONS


@pytest.mark.parametrize("location", ["", "file:///etc/passwd", "http://[", "ftp://there/x", "http://h:99999/"])
def test_redirects_to_nowhere_end(fetch: Fetch, location: str) -> None:
    fetch.hub.faults[NAME] = Status(302, headers={"Location": location})
    fetch.fails(DownloadBroken)


def test_nobody_there(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to("http://127.0.0.1:9", monkeypatch)
    assert "connection refused" in fetch.fails(DownloadBroken)


def test_the_number_of_retries_can_be_set(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMACHAT_RETRIES", "0")
    fetch.hub.faults[NAME] = Status(503, times=1)
    assert "(HTTP 503)" in fetch.fails(DownloadBroken)
    monkeypatch.setenv("LLAMACHAT_RETRIES", "1")
    fetch.hub.faults[NAME] = Status(503, times=9)
    assert "did not recover in 1 retry." in fetch.fails(DownloadBroken)


def test_the_gate_is_the_hubs_own_word(fetch: Fetch) -> None:
    fetch.hub.add_repo(REPO, fetch.original.parent, gated=True)
    fetch.fails(GatedRepository)


def test_offline_asks_nobody(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fetch.fails(HubOffline)
    assert fetch.hub.requests == []


# --- another commit -------------------------------------------------------------------------------------------


@pytest.fixture
def half(fetch: Fetch) -> Fetch:
    """Cut short after a few ranges."""
    fetch.hub.faults[NAME] = Truncate(2 * RANGE_BYTES)
    fetch.fails(DownloadBroken)
    fetch.hub.faults.clear()
    return fetch


def _crash_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End all work at the n-th change of a directory."""
    partial = importlib.import_module("llamachat.models.hub.partial")
    steps = itertools.count()

    def count(original: Callable[..., None]) -> Callable[..., None]:
        def counted(*arguments: object, **options: object) -> None:
            if next(steps) == step:
                raise KeyboardInterrupt
            original(*arguments, **options)

        return counted

    monkeypatch.setattr(partial, "sync_directory", count(partial.sync_directory))
    for name in ("rename", "replace", "unlink"):
        monkeypatch.setattr(Path, name, count(getattr(Path, name)))


def test_what_arrived_moves_to_another_commit(half: Fetch, tmp_path: Path) -> None:
    n_before, target = n_missing(half.file, half.path), tmp_path / NAME
    assert 0 < n_before < SIZE
    assert move_arrived("0" * 40, half.file, half.path, target)
    assert n_missing(half.file, target) == n_before
    assert not list(half.path.parent.iterdir())
    n_sent = half.n_sent
    download(half.repository, half.file, target, Recorder())
    assert half.n_sent - n_sent == n_before
    assert target.read_bytes() == half.original.read_bytes()
    assert move_arrived("1" * 40, half.file, target, half.path)
    assert half.is_right()


@pytest.mark.parametrize("step", range(5))
def test_a_kill_while_it_moves_leaves_nothing_that_lies(
    step: int, half: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_before, target = n_missing(half.file, half.path), tmp_path / NAME
    with monkeypatch.context() as context:
        _crash_at(step, context)
        with pytest.raises(KeyboardInterrupt):
            move_arrived("0" * 40, half.file, half.path, target)
    assert not is_complete(half.path)
    assert not is_complete(target)
    assert min(n_missing(half.file, path) for path in (half.path, target)) == n_before
    if half.path.exists():
        assert move_arrived("0" * 40, half.file, half.path, target)
    assert n_missing(half.file, target) == n_before


def test_other_content_stays_where_it_is(half: Fetch, tmp_path: Path) -> None:
    other = dataclasses.replace(half.file, sha256="0" * 64)
    assert not move_arrived("0" * 40, other, half.path, tmp_path / NAME)
    half()
    assert not move_arrived("0" * 40, other, half.path, tmp_path / NAME)
    assert half.is_right()


# --- ends --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Slow(1_000_000), Hang(1000), Status(503, headers={"Retry-After": "100"})])
def test_cancelling_ends_all_connections_at_once(fetch: Fetch, fault: Fault) -> None:
    fetch.hub.faults[NAME] = fault
    watch = Recorder()
    timer = threading.Timer(0.3, watch.cancelled.set)
    timer.start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        fetch(watch=watch)
    assert time.monotonic() - started < 0.3 + 0.3
    assert not [thread for thread in threading.enumerate() if thread.name.endswith(("(_work)", "(_follow)"))]
    fetch.hub.faults.clear()
    fetch()
    assert fetch.is_right()


CHILD = """
import sys, threading
from pathlib import Path
from llamachat.models.hub import download, find_repository
class Watch:
    cancelled = threading.Event()
    def advance(self, file_name, n_bytes): pass
    def restart(self, file_name, n_bytes): sys.exit("started over")
    def notice(self, text): sys.exit(text)
repository = find_repository(sys.argv[1], None, print)
download(repository, repository.files[sys.argv[2]], Path(sys.argv[3]), Watch())
"""


def test_killed_at_any_moment_little_is_sent_again(fetch: Fetch) -> None:
    """kill -9, several times over one file: each time at most one range a connection comes again."""
    command = [sys.executable, "-c", CHILD, REPO, NAME, str(fetch.path)]
    environment = {**os.environ, "HF_ENDPOINT": fetch.hub.url}
    moments = random.Random(4)
    fetch.hub.faults[NAME] = Slow(8_000_000)
    n_kills = 0
    while n_kills < 4:
        n_sent_before = fetch.n_sent
        with subprocess.Popen(command, env=environment) as child:
            while fetch.n_sent == n_sent_before and child.poll() is None:
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.6))
            child.kill()
        assert not is_complete(fetch.path)
        n_kills += 1
        n_wasted = fetch.n_sent - (SIZE - n_missing(fetch.file, fetch.path))
        assert n_wasted <= n_kills * N_CONNECTIONS * RANGE_BYTES
    fetch.hub.faults.clear()
    fetch()
    assert fetch.is_right()
    assert fetch.n_sent - SIZE <= n_kills * N_CONNECTIONS * RANGE_BYTES


def test_a_full_disk_is_said_and_what_is_there_is_kept(fetch: Fetch, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE + (1 << 20)}", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        (disk / "ballast").write_bytes(bytes(RANGE_BYTES))
        fetch.path = disk / NAME
        fetch(first_range_only=True)
        says = fetch.fails(CannotWrite)
        assert "No space left on device" in says
        assert "Free some space" in says
        n_left = n_missing(fetch.file, fetch.path)
        assert 0 < n_left <= SIZE - RANGE_BYTES
        (disk / "ballast").unlink()
        assert fetch().n_bytes == n_left
        assert fetch.is_right()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --- the journal -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        b'{"schema": 1}',
        b"\xff\xfe",
        b" " * (5 << 20),
    ],
)
def test_a_damaged_journal_starts_the_file_over(fetch: Fetch, text: bytes) -> None:
    fetch(first_range_only=True)
    journal_path(fetch.path).write_bytes(text)
    assert n_missing(fetch.file, fetch.path) == SIZE
    watch = fetch()
    assert fetch.is_right()
    assert watch.notices == [f"{NAME}: the record of what has arrived cannot be used; starting this file over"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("content", "0" * 64),
        ("size_bytes", 10**30),
        ("size_bytes", SIZE - 1),
        ("range_bytes", 1),
        ("finished", [[0, 10**15]]),
        ("finished", [[-1, 2]]),
        ("finished", [[2, 1]]),
        ("finished", [[0, 2], [1, 3]]),
        ("finished", [[0, 1, 2]]),
        ("finished", {"0": 1}),
        ("finished", [[0.0, 1.0]]),
        ("etag", 5),
        ("schema", 2),
    ],
)
def test_a_journal_that_lies_is_not_believed(fetch: Fetch, field: str, value: object) -> None:
    fetch(first_range_only=True)
    place = journal_path(fetch.path)
    place.write_text(json.dumps({**json.loads(place.read_bytes()), field: value}))
    assert read_journal(fetch.path, fetch.file) is None
    assert n_missing(fetch.file, fetch.path) == SIZE


def test_a_journal_that_promises_too_much_is_found_out_by_the_hash(fetch: Fetch) -> None:
    fetch(first_range_only=True)
    place = journal_path(fetch.path)
    place.write_text(json.dumps({**json.loads(place.read_bytes()), "finished": [[0, 3]]}))
    watch = fetch()
    assert fetch.is_right()
    assert "arrived damaged" in watch.notices[0]


def test_data_that_is_a_link_is_not_written_through(fetch: Fetch, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    fetch(first_range_only=True)
    fetch.path.unlink()
    fetch.path.symlink_to(victim)
    fetch.fails(CannotWrite)
    assert victim.read_bytes() == b"mine"


SIZES = st.integers(0, 60 * RANGE_BYTES)


@given(size=SIZES, data=st.data())
def test_finished_and_missing_ranges_tile_the_file(size: int, data: st.DataObject) -> None:
    n_ranges = range_count(size)
    finished = data.draw(st.frozensets(st.integers(0, n_ranges - 1))) if n_ranges else frozenset()
    spans = sorted(range_span(index, size) for index in range(n_ranges))
    assert [stop for _, stop in spans[:-1]] == [start for start, _ in spans[1:]]
    assert not spans or (spans[0][0], spans[-1][1]) == (0, size)
    assert all(0 < stop - start <= RANGE_BYTES for start, stop in spans)
    n_open = sum(stop - start for index, (start, stop) in enumerate(spans) if index not in finished)
    assert Journal("c", "x", size, None, finished).n_finished_bytes == size - n_open
    runs = to_runs(finished)
    assert from_runs(json.loads(json.dumps(runs)), n_ranges) == finished
    assert all(a[1] < b[0] for a, b in itertools.pairwise(runs)), "as few runs as can be"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(runs=JSON | st.lists(st.lists(st.integers(-2, 12), min_size=1, max_size=3)), n_ranges=st.integers(0, 10))
def test_no_runs_lead_outside_the_file(runs: object, n_ranges: int) -> None:
    try:
        indices = from_runs(runs, n_ranges)
    except ValueError:
        return
    assert indices <= frozenset(range(n_ranges))


@given(size=st.integers(1, 3 * RANGE_BYTES), data=st.data())
def test_a_journal_is_read_as_it_was_written(
    size: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "written"
    file = RemoteFile("written", size, "b" * 40, "a" * 64)
    finished = data.draw(st.frozensets(st.integers(0, range_count(size) - 1)))
    journal = Journal("c" * 40, "a" * 64, size, data.draw(st.none() | st.text()), finished)
    with path.open("wb") as out:
        out.truncate(size)
    journal.write(path)
    assert read_journal(path, file) == journal
    n_there = data.draw(st.integers(0, size - 1))
    os.truncate(path, n_there)
    read = read_journal(path, file)
    assert read is not None
    assert read.finished <= finished
    assert all(range_span(index, size)[1] <= n_there for index in read.finished)


# --- the way there ----------------------------------------------------------------------------------------------


def test_the_environments_proxy_is_used(
    hub: HubStandIn, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in serves as its own proxy: the endpoint's name cannot be resolved, but need not be."""
    monkeypatch.setenv("http_proxy", hub.url)
    point_to("http://hub.invalid", monkeypatch)
    file = repository.files["config.json"]
    download(repository, file, tmp_path / "config.json", Recorder())
    assert (tmp_path / "config.json").read_bytes() == CONFIG
    monkeypatch.setenv("no_proxy", "hub.invalid")
    with pytest.raises(DownloadBroken):
        download(repository, file, tmp_path / "again.json", Recorder())
    monkeypatch.setenv("http_proxy", "socks5://user:pass@127.0.0.1:9")
    monkeypatch.delenv("no_proxy")
    with pytest.raises(HubUnreachable, match="socks5://") as caught:
        download(repository, file, tmp_path / "again.json", Recorder())
    assert "pass" not in str(caught.value)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is needed to make a certificate")
    path = tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(path)]
    made = [openssl, "req", "-x509", *key, "-out", f"{path}.crt", "-days", "2", *subject]
    subprocess.run(made, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


@pytest.fixture
def tls_front(hub: HubStandIn, certificate: Path) -> Iterator[Callable[[], str]]:
    """TLS in front of the stand-in: bytes are passed on as they are."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(raw, server_side=True) as client:
                    asked = client.recv(65536)
                    with socket.create_connection(("127.0.0.1", int(hub.url.rpartition(":")[2]))) as server:
                        server.sendall(asked.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
                        while data := server.recv(65536):
                            client.sendall(data)
            except OSError:
                raw.close()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    yield lambda: f"https://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def test_certificates_are_checked(
    tls_front: Callable[[], str],
    repository: Repository,
    certificate: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that nobody vouches for is refused at once; SSL_CERT_FILE vouches for it."""
    line = importlib.import_module("llamachat.models.hub.line")
    point_to(tls_front(), monkeypatch)
    file = repository.files["config.json"]
    line._tls.cache_clear()
    with pytest.raises(HubUnreachable, match="certificate is not trusted"):
        download(repository, file, tmp_path / "config.json", Recorder())
    notices: list[str] = []
    with pytest.raises(HubUnreachable, match="certificate verify failed"):
        find_repository(REPO, None, notices.append)
    assert not notices
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    line._tls.cache_clear()
    watch = Recorder()
    download(repository, file, tmp_path / "config.json", watch)
    line._tls.cache_clear()
    assert (tmp_path / "config.json").read_bytes() == CONFIG
    assert hashlib.sha1(b"blob %d\0" % len(CONFIG) + CONFIG).hexdigest() == file.blob_id
