"""Pulling a checkpoint whose weights are converted while they arrive: what is moved, kept, and survives."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256 as sha256_of
from pathlib import Path

import pytest
from conftest import RunCommand

from llamachat.models import arrival
from llamachat.models.adoption import adopt
from llamachat.models.hub import RemoteFile, Repository
from llamachat.models.locks import locked
from llamachat.models.transfer import Transfer
from support.checkpoints import LlamaShape, write_random_checkpoint
from support.hub import Fault, HubStandIn, Piece
from support.stored import Silent
from support.terminal import Terminal
from support.torch_files import turn_into_torch

REPO = "demo/three-shards"
RANGE_BYTES = 8 << 20
SHARDS = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]


@dataclass
class SlowTail(Fault):
    """All beyond the first range arrives at about 1 MB/s."""

    def deliver(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        for offset, data in pieces:
            if offset >= RANGE_BYTES:
                time.sleep(len(data) / 1e6)
            yield offset, data


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path) -> Path:
    """Three shards of about 13 MB: two ranges each."""
    directory = tmp_path_factory.mktemp("three") / "model"
    write_random_checkpoint(directory, LlamaShape(600, 512, 1024, 7, 8, 8), n_shards=3, tokenizer=small_tokenizer)
    return directory


@pytest.fixture
def hub(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    with HubStandIn() as stand_in:
        monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
        stand_in.add_repo(REPO, checkpoint)
        yield stand_in


@pytest.fixture(scope="module")
def sha256(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the q8_0 that an undisturbed pull makes."""
    with HubStandIn() as stand_in:
        stand_in.add_repo(REPO, checkpoint)
        home = tmp_path_factory.mktemp("undisturbed")
        environment = {**os.environ, "HF_ENDPOINT": stand_in.url, "LLAMACHAT_HOME": str(home), "HF_HOME": str(home)}
        command = [sys.executable, "-m", "llamachat", "pull", REPO, "--quant", "q8_0", "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return str(json.loads(done.stdout)["sha256"])


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a pull and let it run; whatever is left of it is killed at the end."""
    processes: list[subprocess.Popen[str]] = []

    def start_pull(*options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "llamachat", "pull", REPO, "--quant", "q8_0", "--json", *options]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True
        )
        processes.append(process)
        return process

    yield start_pull
    for process in processes:
        process.kill()
        process.communicate()


def _n_weight_bytes_sent(hub: HubStandIn) -> int:
    """Of the answers that hold the files, which are not the redirects to them."""
    requests = [request for request in hub.requests if request.path.startswith("/cdn/")]
    return sum(request.bytes_sent for request in requests if request.file_name in SHARDS)


def _n_weight_bytes(checkpoint: Path) -> int:
    return sum((checkpoint / name).stat().st_size for name in SHARDS)


def _disk_usage(directory: Path) -> int:
    n_bytes = 0
    for path in directory.rglob("*.safetensors"):
        try:
            n_bytes += path.stat().st_blocks * 512
        except FileNotFoundError:  # removed just now
            continue
    return n_bytes


def _wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_shards_are_converted_while_others_arrive_and_leave_the_disk(
    start: Callable[..., subprocess.Popen[str]], hub: HubStandIn, checkpoint: Path, home: Path, sha256: str
) -> None:
    hub.faults[SHARDS[2]] = SlowTail()
    process = start()
    peak, n_secured = 0, []
    while process.poll() is None:
        peak = max(peak, _disk_usage(home / "staging"))
        n_secured += [path.read_text().count("blk.") for path in (home / "staging").glob("*--q8_0.journal")]
        time.sleep(0.02)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert json.loads(output)["sha256"] == sha256
    # The last shard takes seconds; meanwhile the tensors of the first two are done.
    assert sum(9 < n < 9 * 7 for n in n_secured) > 10
    largest = max((checkpoint / name).stat().st_size for name in SHARDS)
    assert peak <= 2 * largest + RANGE_BYTES + (1 << 20)
    assert _n_weight_bytes_sent(hub) == _n_weight_bytes(checkpoint)
    assert not any((home / "staging").iterdir())


def test_on_a_terminal_only_files_under_way_have_a_bar(hub: HubStandIn) -> None:
    """The first range of all shards comes first, then one shard after the other."""
    hub.faults[SHARDS[1]] = SlowTail()
    with Terminal([sys.executable, "-m", "llamachat", "pull", REPO, "--quant", "q8_0"], columns=120) as terminal:
        terminal.wait_for(f"{SHARDS[0]}: ")
        terminal.wait_for(f"{SHARDS[1]} ")
        assert SHARDS[2] not in terminal.text


def test_killed_at_random_moments(
    start: Callable[..., subprocess.Popen[str]], hub: HubStandIn, checkpoint: Path, sha256: str, run: RunCommand
) -> None:
    """A hundred kills take minutes: benchmarks/kill_pull.py."""
    rng = random.Random(7)
    n_kills = 4
    for _ in range(n_kills):
        process = start()
        try:
            process.wait(rng.uniform(0.3, 2.0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        listed = json.loads(run("list", "--json").stdout)["models"]
        assert all(model["sha256"] == sha256 for model in listed if model["repo"] == REPO)
    pulled = run("pull", REPO, "--quant", "q8_0", "--json")
    assert json.loads(pulled.stdout)["sha256"] == sha256
    n_again = _n_weight_bytes_sent(hub) - _n_weight_bytes(checkpoint)
    assert n_again <= n_kills * 4 * RANGE_BYTES


def test_interrupted_and_resumed(
    start: Callable[..., subprocess.Popen[str]],
    hub: HubStandIn,
    checkpoint: Path,
    home: Path,
    sha256: str,
    run: RunCommand,
) -> None:
    hub.faults[SHARDS[2]] = SlowTail()
    process = start()
    _wait_until(lambda: any((home / "staging").glob("*--q8_0.journal")), process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130, errors
    hub.faults.clear()
    before = sorted(path for path in home.rglob("*") if path.suffix != ".who")
    planned = json.loads(run("pull", REPO, "--quant", "q8_0", "--dry-run", "--json").stdout)
    assert planned["download_bytes"] < _n_weight_bytes(checkpoint)
    assert sorted(path for path in home.rglob("*") if path.suffix != ".who") == before
    n_before = _n_weight_bytes_sent(hub)
    assert json.loads(run("pull", REPO, "--quant", "q8_0", "--json").stdout)["sha256"] == sha256
    n_after = _n_weight_bytes_sent(hub) - n_before
    assert 0 < n_after < _n_weight_bytes(checkpoint) - RANGE_BYTES


def test_the_plan_is_exact_and_moves_no_weights(hub: HubStandIn, checkpoint: Path, home: Path, run: RunCommand) -> None:
    plan = json.loads(run("pull", REPO, "--quant", "q8_0", "--dry-run", "--json").stdout)
    assert not home.exists()
    assert plan["label"] == f"{REPO}:q8_0"
    assert _n_weight_bytes_sent(hub) == 0
    sizes = [(checkpoint / name).stat().st_size for name in SHARDS]
    assert plan["download_bytes"] == sum(sizes)
    assert plan["temporary_bytes"] == max(sizes[0] + sizes[1], sizes[1] + sizes[2]) + RANGE_BYTES
    assert plan["fits"]
    pulled = run("pull", REPO, "--quant", "q8_0", "--json")
    assert plan["output_bytes"] == json.loads(pulled.stdout)["size_bytes"]
    said = pulled.stderr.splitlines()[0]  # before the first byte
    assert said.startswith("Planned: 38 MB to download; 20.2 MB for the model and up to 34.2 MB of weights at a time; ")
    assert re.search(rf" 54\.4 MB needed of [\d.]+ GB free in {home / 'staging'}\.$", said)
    n_megabytes = f"{sum(sizes) / 1e6:.1f}"
    last = rf"^Downloading: {n_megabytes} of {n_megabytes} MB, 100 %, [\d.]+ [kMG]B/s$"
    assert re.search(last, pulled.stderr, re.MULTILINE), pulled.stderr
    for_people = run("pull", REPO, "--quant", "q4_k_m", "--dry-run")
    assert "It fits." in for_people.stderr
    assert for_people.stdout.startswith(f"{REPO}:q4_k_m IN ")
    assert "already here" in run("pull", REPO, "--quant", "q8_0", "--dry-run").stdout


def test_another_quant_of_kept_shards_downloads_nothing(
    hub: HubStandIn, checkpoint: Path, run: RunCommand, home: Path
) -> None:
    assert run("pull", REPO, "--quant", "q8_0", "--keep-checkpoint").returncode == 0
    assert _n_weight_bytes_sent(hub) == _n_weight_bytes(checkpoint)
    assert run("pull", REPO, "--quant", "q4_0").returncode == 0
    assert _n_weight_bytes_sent(hub) == _n_weight_bytes(checkpoint)
    assert not any((home / "staging").iterdir())


def test_kept_shards_are_whole_even_after_a_try_that_did_not_keep_them(
    start: Callable[..., subprocess.Popen[str]], hub: HubStandIn, checkpoint: Path, home: Path, run: RunCommand
) -> None:
    hub.faults[SHARDS[2]] = SlowTail()
    process = start()
    _wait_until(lambda: any((home / "staging").glob(f"*/{SHARDS[0]}.journal")) and _is_used_up(home), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    hub.faults.clear()
    assert run("pull", REPO, "--quant", "q8_0", "--keep-checkpoint").returncode == 0
    (kept,) = (home / "staging").iterdir()
    assert all((kept / name).read_bytes() == (checkpoint / name).read_bytes() for name in SHARDS)
    assert not any(kept.glob("*.journal"))


@pytest.fixture
def changed(checkpoint: Path, tmp_path: Path) -> Path:
    """The next commit: another README, and other weights in the second shard, which is as large as before."""
    directory = tmp_path / "changed"
    shutil.copytree(checkpoint, directory)
    (directory / "README.md").write_text("# Better\n")
    with (directory / SHARDS[1]).open("r+b") as shard:
        shard.seek(-2, os.SEEK_END)
        shard.write(b"\0\0")
    return directory


def test_what_is_the_same_in_a_repository_that_changed_is_used_again(
    start: Callable[..., subprocess.Popen[str]],
    hub: HubStandIn,
    changed: Path,
    home: Path,
    run: RunCommand,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.faults[SHARDS[2]] = SlowTail()
    process = start("--keep-checkpoint")
    _wait_until(lambda: _is_used_up(home) and _has_arrived(home, SHARDS[1]), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    hub.faults.clear()
    (old,) = (home / "staging").glob("*@*")
    assert not (old / f"{SHARDS[0]}.journal").exists()
    n_third = (changed / SHARDS[2]).stat().st_size

    hub.requests.clear()
    commit = hub.add_repo(REPO, changed)
    pulled = run("pull", REPO, "--quant", "q8_0", "--json")
    assert _n_weight_bytes_sent(hub) <= (changed / SHARDS[1]).stat().st_size + n_third - RANGE_BYTES
    (said,) = [line for line in pulled.stderr.splitlines() if "has changed" in line]
    assert f"commit {old.name.rpartition('@')[2][:7]}, this one is of {commit[:7]}. What is the same" in said
    assert "6 files" in said
    assert [path.name for path in old.glob("*.safetensors*")] == [SHARDS[1]]

    monkeypatch.setenv("LLAMACHAT_HOME", str(home.with_name("fresh")))
    fresh = json.loads(run("pull", REPO, "--quant", "q8_0", "--json").stdout)
    assert fresh["sha256"] == json.loads(pulled.stdout)["sha256"]


def test_what_another_process_holds_is_left_to_it(home: Path) -> None:
    """So is a link, whatever it leads to; and a file that is complete moves only if it is the very same."""
    old, new = (home / "staging" / f"demo--tiny@{commit * 40}" for commit in "ab")
    old.mkdir(parents=True)
    new.mkdir()
    contents = {"same.bin": b"same", "other.bin": b"OTHER", "linked.bin": b"linked"}
    files = {name: RemoteFile(name, len(data), "", sha256_of(data).hexdigest()) for name, data in contents.items()}
    (old / "same.bin").write_bytes(b"same")
    (old / "other.bin").write_bytes(b"other")
    (home / "elsewhere").write_bytes(b"linked")
    (old / "linked.bin").symlink_to(home / "elsewhere")
    notes = Notes()
    with locked(old.name):
        adopt(Repository("demo/tiny", "b" * 40, files, None), files.values(), new, notes)
    assert (list(new.iterdir()), notes.texts) == ([], [])
    adopt(Repository("demo/tiny", "b" * 40, files, None), files.values(), new, notes)
    assert [path.name for path in new.iterdir()] == ["same.bin"]
    assert sorted(path.name for path in old.iterdir()) == ["linked.bin", "other.bin"]
    assert "1 file, 4 bytes" in notes.texts[0]
    adopt(Repository("demo/tiny", "b" * 40, files, None), files.values(), new, notes)
    assert len(notes.texts) == 1


class Notes(Silent):
    """Remembers what is said."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def notice(self, text: str) -> None:
        self.texts.append(text)


def _has_arrived(home: Path, shard: str) -> bool:
    """Whether a shard is whole, and the next one on its way: what is still to come of one stands in a journal."""
    staging = home / "staging"
    is_here = any(staging.glob(f"*/{shard}")) and not any(staging.glob(f"*/{shard}.journal"))
    return is_here and any(staging.glob(f"*/{SHARDS[SHARDS.index(shard) + 1]}.journal"))


def _is_used_up(home: Path) -> bool:
    """Whether the tensors of the first shard are done."""
    return any(path.read_text().count("blk.") > 9 for path in (home / "staging").glob("*--q8_0.journal"))


def test_a_name_is_not_taken_from_another_model(
    tmp_path: Path, small_tokenizer: Path, hub: HubStandIn, run: RunCommand
) -> None:
    write_random_checkpoint(tmp_path / "other", LlamaShape(600, 64, 96, 1, 4, 2), tokenizer=small_tokenizer)
    hub.add_repo("demo/other", tmp_path / "other")
    assert run("pull", "demo/other", "--quant", "q8_0", "--name", "mine").returncode == 0
    for source in (REPO, f"{tmp_path / 'other'}/"):
        refused = run("pull", source, "--quant", "q8_0", "--name", "mine")
        assert refused.returncode == 1
        assert "mine:q8_0 is here already, and it is another model." in refused.stderr
    assert _n_weight_bytes_sent(hub) == 0
    assert run("pull", "demo/other", "--quant", "q8_0", "--name", "mine").returncode == 0


def test_torch_checkpoints_come_whole_first(
    tmp_path: Path, small_tokenizer: Path, hub: HubStandIn, run: RunCommand
) -> None:
    write_random_checkpoint(tmp_path / "torch", LlamaShape(600, 64, 96, 2, 4, 2), n_shards=2, tokenizer=small_tokenizer)
    turn_into_torch(tmp_path / "torch")
    hub.add_repo("demo/torch", tmp_path / "torch")
    assert run("pull", "demo/torch", "--quant", "q8_0").returncode == 0


def test_tensors_that_need_many_shards(tmp_path: Path, small_tokenizer: Path, hub: HubStandIn, run: RunCommand) -> None:
    """The experts of a layer are one tensor, here of nearly all shards: far more than lie on the disk otherwise."""
    shape = LlamaShape(600, 64, 96, 1, 4, 2, n_expert=12)
    write_random_checkpoint(tmp_path / "experts", shape, n_shards=8, tokenizer=small_tokenizer)
    hub.add_repo("demo/experts", tmp_path / "experts")
    assert run("pull", "demo/experts", "--quant", "q8_0", timeout_s=30).returncode == 0


def test_waiting_for_shards_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that wait for shards do not wake each other."""
    is_released = threading.Event()
    monkeypatch.setattr(arrival, "download", lambda *_: is_released.wait())
    files = [RemoteFile(name, RANGE_BYTES, "", "0" * 64) for name in SHARDS]
    watch = Transfer(files, tmp_path, Silent())
    supply = arrival.Arrival(Repository(REPO, "main", {}, None), files, tmp_path, watch, keep=False)
    with ThreadPoolExecutor(2) as pool:
        counts = list(pool.map(lambda name: _count_waits(supply, tmp_path / name), SHARDS[1:]))
    is_released.set()
    assert max(counts) < 20


def _count_waits(supply: arrival.Arrival, path: Path) -> int:
    end, n_waits = time.monotonic() + 0.5, 0
    while time.monotonic() < end:
        assert not supply.wait_for(path, 0.1)
        n_waits += 1
    return n_waits


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of 80 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", place], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    monkeypatch.setenv("LLAMACHAT_HOME", str(place))
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_disk_that_fills_up_meanwhile(
    start: Callable[..., subprocess.Popen[str]], hub: HubStandIn, small_disk: Path, sha256: str, run: RunCommand
) -> None:
    hub.faults[SHARDS[1]] = SlowTail()
    process = start()
    _wait_until(lambda: any((small_disk / "staging").glob("*--q8_0.journal")), process)
    ballast = small_disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 16)):
            pass
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert "Traceback" not in errors
    assert "disk is full" in errors or "No space" in errors
    hub.faults.clear()
    refused = run("pull", REPO, "--quant", "q8_0")
    assert refused.returncode == 1
    assert "Not enough room" in refused.stderr
    ballast.unlink()
    assert json.loads(run("pull", REPO, "--quant", "q8_0", "--json").stdout)["sha256"] == sha256


def test_too_large_is_refused_before_any_weight_moves(hub: HubStandIn, small_disk: Path, run: RunCommand) -> None:
    (small_disk / "other").write_bytes(bytes(60_000_000))
    refused = run("pull", REPO, "--quant", "q8_0")
    assert refused.returncode == 1
    assert "Not enough room" in refused.stderr
    assert _n_weight_bytes_sent(hub) == 0
