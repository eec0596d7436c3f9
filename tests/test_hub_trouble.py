"""A Hub in trouble while a repository is looked up: asked again, in plain words, and not needed for what is here."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import RunCommand
from huggingface_hub import close_session

from llamachat.errors import GatedRepository, HubUnreachable, UnusableRepository
from llamachat.models.hub import check_access, find_repository
from llamachat.models.hub.retry import Patience
from support.adapters import random_lora, write_adapter
from support.checkpoints import LlamaShape, write_random_checkpoint
from support.hub import Fault, HubStandIn, Reply, Status

REPO = "someone/tiny"
LISTING = f"/api/models/{REPO}"
SHAPE = LlamaShape(600, 64, 96, 1, 4, 2)
QUICK = Patience(n_tries=3, first_pause_s=0.01, longest_pause_s=0.02, silence_s=0.3)


@dataclass
class Dropped(Fault):
    """The connection is closed without an answer."""

    def applies_to(self, _method: str) -> bool:
        return True

    def refuse(self) -> Reply | None:
        raise ConnectionResetError


@dataclass
class Silent(Fault):
    """The answer takes longer than anybody waits."""

    def refuse(self) -> Reply | None:
        time.sleep(2 * QUICK.silence_s)
        raise ConnectionResetError


@dataclass
class LoginPage(Fault):
    """What a hotel's network says in place of the Hub."""

    def refuse(self) -> Reply | None:
        return Reply(200, {"Content-Type": "text/html"}, b"<html>Welcome!")


@dataclass
class Says(Fault):
    """A listing of one's own."""

    value: object

    def refuse(self) -> Reply | None:
        return Reply(200, {"Content-Type": "application/json"}, json.dumps(self.value).encode())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    write_random_checkpoint(directory, SHAPE, tokenizer=small_tokenizer)
    return directory


@pytest.fixture
def hub(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    monkeypatch.setattr(importlib.import_module("llamachat.models.hub.client"), "PATIENCE", QUICK)
    with HubStandIn() as stand_in:
        template = f"{stand_in.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", stand_in.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
        stand_in.add_repo(REPO, checkpoint)
        yield stand_in
    close_session()  # its connections are to a port that may be another test's next


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Status(429, times=2), "HTTP 429"),
        (Status(503, times=2), "HTTP 503"),
        (Dropped(times=2), "connection lost"),
        (Silent(times=1), "no answer for 0.3 s"),
    ],
)
def test_a_listing_is_asked_for_again(fault: Fault, says: str, hub: HubStandIn) -> None:
    hub.faults[LISTING] = fault
    n_faults = fault.times
    notices: list[str] = []
    assert "config.json" in find_repository(REPO, None, notices.append).files
    assert notices == [f"{REPO}: retry {n + 1} of 3 in 1 s ({says})" for n in range(n_faults or 0)]


def test_so_is_whether_a_gate_is_open(hub: HubStandIn, checkpoint: Path) -> None:
    hub.add_repo(REPO, checkpoint, gated=True)
    notices: list[str] = []
    repository = find_repository(REPO, None, notices.append)
    hub.faults["config.json"] = Status(500, method="HEAD", times=2)
    with pytest.raises(GatedRepository):
        check_access(repository, notices.append)
    assert notices == [f"{REPO}: retry {n} of 3 in 1 s (HTTP 500)" for n in (1, 2)]


def test_retry_after_is_obeyed(hub: HubStandIn) -> None:
    hub.faults[LISTING] = Status(429, headers={"Retry-After": "1"}, times=1)
    started = time.monotonic()
    find_repository(REPO, None, print)
    assert time.monotonic() - started >= 1


@pytest.mark.parametrize(
    ("fault", "says"), [(Status(502), r"\(HTTP 502\)"), (Dropped(), "connection lost"), (LoginPage(), "no Hub")]
)
def test_what_stays_broken_ends_in_words(fault: Fault, says: str, hub: HubStandIn) -> None:
    hub.faults[LISTING] = fault
    notices: list[str] = []
    with pytest.raises(HubUnreachable, match=says):
        find_repository(REPO, None, notices.append)
    n_tries = 1 if isinstance(fault, LoginPage) else 1 + QUICK.n_tries
    assert len(hub.requests) == n_tries
    assert len(notices) == n_tries - 1


@pytest.mark.parametrize("answer", [[1], None, "hello", {}, {"id": REPO, "sha": "0" * 40, "siblings": [{"x": 1}]}])
def test_json_of_another_shape_is_no_hubs(answer: object, hub: HubStandIn) -> None:
    hub.faults[LISTING] = Says(answer)
    with pytest.raises(HubUnreachable, match="no Hub"):
        find_repository(REPO, None, print)


@pytest.mark.parametrize(
    ("changes", "file", "says"),
    [
        ({"sha": "a/../../../evil"}, {}, "no usable commit"),
        ({"sha": ".."}, {}, "no usable commit"),
        ({"sha": 5}, {}, "no usable commit"),
        ({}, {"rfilename": 7}, "no usable file name"),
        ({}, {"rfilename": "../evil"}, "could leave its folder"),
        ({}, {"size": -5}, "no usable size of config.json"),
        ({}, {"size": "5"}, "no usable size of config.json"),
        ({}, {"size": 0.5}, "no usable size of config.json"),
        ({}, {"blobId": 7}, "no usable hash of config.json"),
        ({}, {"lfs": {"sha256": "../x", "size": 5, "pointerSize": 1}}, "no usable hash of config.json"),
    ],
)
def test_a_listing_is_not_believed(
    changes: dict[str, object], file: dict[str, object], says: str, hub: HubStandIn
) -> None:
    sibling = {"rfilename": "config.json", "size": 5, "blobId": "0" * 40, **file}
    hub.faults[LISTING] = Says({"id": REPO, "sha": "0" * 40, "siblings": [sibling], **changes})
    with pytest.raises(UnusableRepository, match=says):
        find_repository(REPO, None, print)


@pytest.mark.parametrize("license_id", ["x" * 5_000_000, "\x1b[31mred", ["mit"], 7])
def test_what_is_no_licence_is_not_kept(license_id: object, hub: HubStandIn) -> None:
    hub.faults[LISTING] = Says({"id": REPO, "sha": "0" * 40, "siblings": [], "cardData": {"license": license_id}})
    assert find_repository(REPO, None, print).license is None


@pytest.fixture
def start(hub: HubStandIn) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Start a pull; whatever is left of it is killed at the end."""
    assert hub.url
    processes: list[subprocess.Popen[str]] = []

    def start_pull() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "llamachat", "pull", REPO]
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8"))
        return processes[-1]

    yield start_pull
    for process in processes:
        process.kill()
        process.communicate()


def test_ctrl_c_ends_the_wait(start: Callable[[], subprocess.Popen[str]], hub: HubStandIn) -> None:
    hub.faults[LISTING] = Status(429, headers={"Retry-After": "100"})
    process = start()
    assert process.stderr
    assert process.stderr.readline() == f"{REPO}: retry 1 of 4 in 100 s (HTTP 429)\n"
    process.send_signal(signal.SIGINT)
    _, talk = process.communicate(timeout=10)
    assert process.returncode == 130, talk
    assert "Traceback" not in talk


# --- what is here already -----------------------------------------------------------------------------------------


def test_a_stored_model_needs_no_hub(hub: HubStandIn, run: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever keeps it away; and another quant, which is not here, is missing as before."""
    assert run("pull", REPO, "--quant", "q8_0").returncode == 0
    commit = find_repository(REPO, None, print).commit
    hub.faults[LISTING] = Status(503)
    again = run("pull", REPO, "--quant", "q8_0")
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith(f"{REPO}:q8_0")
    assert "already here" in again.stdout
    assert again.stderr.splitlines()[0].endswith(f"The Hugging Face Hub at {hub.url} cannot be reached (HTTP 503).")
    assert "retry" not in again.stderr
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("LLAMACHAT_RETRIES", "1")
    dry = run("pull", f"{REPO}@{commit[:8]}", "--quant", "q8_0", "--dry-run", "--json")
    assert json.loads(dry.stdout)["already_here"]
    refused = run("pull", REPO, "--quant", "f16")
    assert refused.returncode == 1
    assert refused.stderr.count("retry 1 of 1") == 1
    assert "cannot be reached" in refused.stderr


def test_nor_does_its_adapter(hub: HubStandIn, run: RunCommand, tmp_path: Path) -> None:
    tensors = random_lora(SHAPE.tensor_shapes(), {"model.layers.0.self_attn.k_proj": 4}, seed=0)
    write_adapter(tmp_path / "lora", tensors, base_model_name_or_path=REPO)
    hub.add_repo("alice/lora", tmp_path / "lora")
    command = ["pull", REPO, "--quant", "q8_0", "--adapter", "alice/lora"]
    assert run(*command).returncode == 0
    hub.faults[LISTING] = hub.faults["/api/models/alice/lora"] = Dropped()
    again = run(*command)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("already here") == 2
    assert "a newer version of alice/lora is not known" in again.stderr
