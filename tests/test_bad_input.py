"""Whatever goes wrong: one clear sentence, a next step, exit status 1, and nothing half-made in the store."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import RunCommand

from support.checkpoints import LlamaShape, write_random_checkpoint
from support.hub import Corrupt, HubStandIn, Slow, Status, Truncate
from support.stored import add_model
from support.torch_files import turn_into_torch

REPO = "someone/tiny"
SHAPE = LlamaShape(n_vocab=600, n_embd=64, n_ff=128, n_layer=2, n_head=4, n_head_kv=2)


@pytest.fixture
def checkpoint(tmp_path: Path, small_tokenizer: Path) -> Path:
    directory = tmp_path / "tiny"
    write_random_checkpoint(directory, SHAPE, n_shards=2, tokenizer=small_tokenizer)
    return directory


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    with HubStandIn() as stand_in:
        monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
        yield stand_in


class Refusal:
    """Runs a command that must fail the right way."""

    def __init__(self, run: RunCommand, home: Path) -> None:
        self._run = run
        self._home = home

    def __call__(
        self, *arguments: object, says: str, next_step: str, text: str | None = None, starts_over: str | None = None
    ) -> None:
        result = self._run(*arguments, text=text)
        progress = ("Planned", "Downloading", "Quantizing", "  model-")
        talk = [line for line in result.stderr.splitlines() if not line.startswith(progress)]
        if starts_over:
            notice = talk.pop(0)
            assert notice.startswith(f"{starts_over}: ")
            assert notice.endswith("; starting this file over")
        assert result.returncode == 1, result.stderr
        assert len(talk) == 2, result.stderr
        assert talk[0].startswith("Error: ")
        assert says in talk[0]
        assert talk[1].startswith("Next: ")
        assert next_step in talk[1]
        assert result.stdout == ""
        models = self._home / "models"
        assert not models.exists() or not list(models.iterdir())
        assert not list(self._home.rglob("*.gguf*"))
        assert not list(self._home.rglob("*.partial"))


@pytest.fixture
def refused(run: RunCommand, home: Path) -> Refusal:
    return Refusal(run, home)


def test_no_network(refused: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMACHAT_RETRIES", "0")
    refused("pull", "llama-2-7b", says="cannot be reached", next_step="HF_ENDPOINT")


def test_server_error(refused: Refusal, hub: HubStandIn, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo(REPO, checkpoint)
    hub.faults["model-00001-of-00002.safetensors"] = Status(503)
    monkeypatch.setenv("LLAMACHAT_RETRIES", "0")
    refused("pull", REPO, says="HTTP 503", next_step="run the same command again; it continues where it stopped")


def test_offline(refused: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused("pull", REPO, says="HF_HUB_OFFLINE", next_step="Unset HF_HUB_OFFLINE")


def test_wrong_name(refused: Refusal) -> None:
    refused("pull", "llama-2-7b-caht", says="Did you mean llama-2-7b-chat", next_step="list --available")
    refused("chat", "llama-2-7b-caht", "-p", "Hi", says="Did you mean llama-2-7b-chat", next_step="list --available")


def test_no_such_repository(refused: Refusal, hub: HubStandIn) -> None:
    assert hub.url
    refused("pull", "someone/nothing", says="no repository someone/nothing", next_step="hf auth login")


def test_no_such_revision(refused: Refusal, hub: HubStandIn, checkpoint: Path) -> None:
    hub.add_repo(REPO, checkpoint)
    refused("pull", REPO, "--revision", "v9", says="no revision 'v9'", next_step="--revision")


def test_gated_without_token(refused: Refusal, hub: HubStandIn, checkpoint: Path) -> None:
    """The catalogue's mirror is named, and nothing is fetched from it."""
    hub.add_repo("meta-llama/Llama-2-7b-chat-hf", checkpoint, gated=True)
    refused("pull", "llama-2-7b-chat", says="no token was found", next_step="hf auth login")
    refused("pull", "llama-2-7b-chat", says="gated", next_step="llamachat pull NousResearch/Llama-2-7b-chat-hf")
    assert not any("NousResearch" in request.path for request in hub.requests)


def test_token_without_access(
    refused: Refusal, hub: HubStandIn, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("meta-llama/Llama-2-7b-chat-hf", checkpoint, gated=True)
    hub.tokens["hf_secretsecret"] = set()
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    page = "https://huggingface.co/meta-llama/Llama-2-7b-chat-hf"
    refused("pull", "llama-2-7b-chat", says="no access", next_step=page)


def test_bad_token(refused: Refusal, hub: HubStandIn, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo(REPO, checkpoint)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused("pull", REPO, says="does not accept your token", next_step="hf auth login")


def test_truncated_download(
    refused: Refusal, hub: HubStandIn, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMACHAT_RETRIES", "0")
    hub.add_repo(REPO, checkpoint)
    hub.faults["model-00002-of-00002.safetensors"] = Truncate(1000)
    says = "model-00002-of-00002.safetensors: the download broke off (connection lost)"
    refused("pull", REPO, says=says, next_step="again")


def test_damaged_download(refused: Refusal, hub: HubStandIn, checkpoint: Path) -> None:
    hub.add_repo(REPO, checkpoint)
    hub.faults["model-00001-of-00002.safetensors"] = Corrupt(5000)
    refused(
        "pull",
        REPO,
        says="model-00001-of-00002.safetensors: arrived damaged",
        next_step="again",
        starts_over="model-00001-of-00002.safetensors",
    )


def test_damaged_small_file(refused: Refusal, hub: HubStandIn, checkpoint: Path) -> None:
    hub.add_repo(REPO, checkpoint)
    hub.faults["config.json"] = Corrupt(10)
    refused("pull", REPO, says="config.json: arrived damaged", next_step="again", starts_over="config.json")


def test_finished_files_are_not_fetched_again(
    refused: Refusal, run: RunCommand, hub: HubStandIn, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMACHAT_RETRIES", "0")
    hub.add_repo(REPO, checkpoint)
    hub.faults["model-00002-of-00002.safetensors"] = Truncate(1000, times=1)
    refused("pull", REPO, says="model-00002", next_step="continues where it stopped")
    hub.requests.clear()
    assert run("pull", REPO).returncode == 0
    fetched = {request.file_name for request in hub.requests if request.file_name}
    assert fetched == {"model-00002-of-00002.safetensors"}


def test_truncated_shard(refused: Refusal, checkpoint: Path) -> None:
    shard = checkpoint / "model-00002-of-00002.safetensors"
    os.truncate(shard, shard.stat().st_size - 10)
    refused("pull", checkpoint, says="past the end of the file", next_step="Download the checkpoint again")


def test_missing_tensor(refused: Refusal, checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    says = "model.layers.2.input_layernorm.weight is missing"
    refused("pull", checkpoint, says=says, next_step="Download the checkpoint again")


def test_unknown_architecture(refused: Refusal, hub: HubStandIn, checkpoint: Path) -> None:
    """Said before the weights are downloaded."""
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "architectures": ["FalconForCausalLM"]}))
    refused("pull", checkpoint, says="FalconForCausalLM", next_step="LlamaForCausalLM")
    hub.add_repo(REPO, checkpoint)
    refused("pull", REPO, says="FalconForCausalLM", next_step="LlamaForCausalLM")
    assert not any("safetensors" in request.path and "index" not in request.path for request in hub.requests)


def test_unknown_tokenizer(refused: Refusal, checkpoint: Path) -> None:
    (checkpoint / "tokenizer.model").unlink()
    refused("pull", checkpoint, says="tokenizer", next_step="original tokenizer files")
    tokenizer = {"model": {"type": "Unigram", "vocab": []}}
    (checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused("pull", checkpoint, says="tokenizer", next_step="original tokenizer files")


def test_weights_that_are_neither_safetensors_nor_torch(refused: Refusal, hub: HubStandIn, checkpoint: Path) -> None:
    for path in checkpoint.glob("model*"):
        path.unlink()
    (checkpoint / "tf_model.h5").write_bytes(b"HDF")
    hub.add_repo(REPO, checkpoint)
    refused("pull", REPO, says="no safetensors weights", next_step=".safetensors files")
    refused("pull", checkpoint, says="no safetensors weights", next_step=".safetensors files")


def test_torch_weights_can_be_pulled(run: RunCommand, hub: HubStandIn, checkpoint: Path) -> None:
    """Not bad input, but its neighbour above: the same checkpoint as PyTorch shards."""
    turn_into_torch(checkpoint)
    hub.add_repo(REPO, checkpoint)
    done = run("pull", REPO, "--quant", "q8_0", "--json")
    assert done.returncode == 0, done.stderr
    assert any("pytorch_model-00002-of-00002.bin" in request.path for request in hub.requests)


def test_unknown_quant(refused: Refusal, checkpoint: Path) -> None:
    refused("pull", checkpoint, "--quant", "q3_x", says="no quant named 'q3_x'", next_step="q4_k_m")


def test_not_a_gguf_file(refused: Refusal, tmp_path: Path, run: RunCommand) -> None:
    path = tmp_path / "model.gguf"
    refused("chat", path, "-p", "Hi", says="No such file", next_step=".gguf")
    path.write_bytes(b"Not a model at all")
    refused("chat", path, "-p", "Hi", says="is not a GGUF file", next_step=".gguf")
    path.write_bytes(b"GGUF" + bytes(100))
    refused("chat", path, "-p", "Hi", says="cannot be loaded", next_step=".gguf")
    assert run("show", path).returncode == 1


def test_prompt_longer_than_the_context(refused: Refusal) -> None:
    refused("chat", "--ctx", "256", "-p", "word " * 400, says="tokens. The context window holds", next_step="--ctx")


def test_nothing_was_pulled(refused: Refusal) -> None:
    refused(
        "chat", "llama-2-7b-chat", "-p", "Hi", says="not on this machine", next_step="llamachat pull llama-2-7b-chat"
    )
    refused("chat", "a/b:q8_0", "-p", "Hi", says="not on this machine", next_step="llamachat pull a/b --quant q8_0")


def test_bad_messages(refused: Refusal) -> None:
    refused("prompt", "smollm2-135m-instruct", text="{", says="not valid JSON", next_step="role")
    answered = json.dumps([{"role": "user", "content": "Hi"}, {"role": "user", "content": "Hi"}])
    refused("prompt", "smollm2-135m-instruct", text=answered, says="assistant's turn", next_step="take turns")


def test_a_damaged_catalogue_of_the_user(refused: Refusal, home: Path) -> None:
    home.mkdir()
    (home / "models.toml").write_text("[models.mine]\nrepo = 3\n")
    refused("list", says="models.toml: mine: repo is not a usable str", next_step="Correct the file")


def test_a_token_that_no_header_can_carry(
    refused: Refusal, hub: HubStandIn, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo(REPO, checkpoint)
    monkeypatch.setenv("HF_TOKEN", "bad é")
    refused("pull", REPO, says="does not accept your token", next_step="hf auth login")


@pytest.mark.parametrize("name", ["my model (v2)", ".hidden", "a--b", "x\nevil\x1b[31m", "weird.gguf"])
def test_a_directory_whose_name_no_model_can_have(name: str, refused: Refusal, checkpoint: Path) -> None:
    checkpoint.rename(checkpoint.with_name(name))
    refused("pull", f"{checkpoint.with_name(name)}/", says="cannot be a model's name", next_step="--name")


def test_contradictions(refused: Refusal, checkpoint: Path) -> None:
    refused("pull", "a/b:q4_0", "--quant", "q8_0", says="contradict", next_step="one of them")
    refused("pull", checkpoint, "--revision", "v1", says="no revisions", next_step="Leave --revision out")
    refused("pull", f"a/{'b' * 300}", says="not a model name", next_step="ORG/REPO")


def test_paths_that_cannot_be(refused: Refusal) -> None:
    refused("show", "~nobody.at.all/x.gguf", says="~nobody.at.all/x.gguf", next_step="Give a .gguf file")
    refused("show", f"./{'x' * 300}", says="File name too long", next_step="Check the path")


def test_a_home_that_cannot_be_written(
    run: RunCommand, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for home in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        monkeypatch.setenv("LLAMACHAT_HOME", str(home))
        result = run("pull", checkpoint)
        assert result.returncode == 1
        assert "cannot be written" in result.stderr
        assert "LLAMACHAT_HOME" in result.stderr
        assert "Traceback" not in result.stderr
    monkeypatch.setenv("LLAMACHAT_HOME", str(tmp_path / "file"))
    assert "cannot be written to" in run("doctor").stdout


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of 600 kB as LLAMACHAT_HOME."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(directory)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    monkeypatch.setenv("LLAMACHAT_HOME", str(directory))
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def test_no_room_on_disk(small_disk: Path, run: RunCommand, hub: HubStandIn, checkpoint: Path) -> None:
    """Refused before the weights move, with the numbers."""
    hub.add_repo(REPO, checkpoint)
    (small_disk / "something").write_bytes(bytes(250_000))
    Refusal(run, small_disk)("pull", REPO, says="Not enough room", next_step="LLAMACHAT_HOME")
    assert not any("safetensors" in request.path and "index" not in request.path for request in hub.requests)


def test_no_room_names_the_largest_models_that_could_go(
    small_disk: Path, run: RunCommand, hub: HubStandIn, checkpoint: Path
) -> None:
    assert small_disk
    add_model("mine", "q4_0", filler_bytes=200_000)
    add_model("other", "q8_0", filler_bytes=250_000)
    hub.add_repo(REPO, checkpoint)
    result = run("pull", REPO)
    assert result.returncode == 1
    assert "MB are needed, 0.1 MB are free." in result.stderr
    assert "Free some space: llamachat rm other:q8_0 (0.3 MB), llamachat rm mine:q4_0 (0.2 MB), " in result.stderr


def test_no_room_for_what_a_directory_becomes(small_disk: Path, run: RunCommand, checkpoint: Path) -> None:
    """Refused before any weight is read, with the numbers and what could go."""
    assert small_disk
    add_model("mine", "q4_0", filler_bytes=500_000)
    refused = run("pull", checkpoint, "--quant", "f16")
    assert refused.returncode == 1
    assert "MB are needed, 0.1 MB are free." in refused.stderr
    assert "Free some space: llamachat rm mine:q4_0 (0.5 MB), " in refused.stderr
    assert not list((small_disk / "staging").iterdir())


def test_a_disk_that_fills_up_while_downloading(
    small_disk: Path, hub: HubStandIn, tmp_path: Path, small_tokenizer: Path
) -> None:
    """Somebody else takes the room after it was found sufficient; what was fetched whole is kept."""
    shape = LlamaShape(n_vocab=600, n_embd=64, n_ff=128, n_layer=1, n_head=4, n_head_kv=2)
    write_random_checkpoint(tmp_path / "tiny", shape, tokenizer=small_tokenizer)
    hub.add_repo(REPO, tmp_path / "tiny")
    hub.faults["config.json"] = Slow(2000)
    process = subprocess.Popen(
        [sys.executable, "-m", "llamachat", "pull", REPO], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    while not (small_disk / "staging").exists():
        time.sleep(0.01)
    with contextlib.suppress(OSError):
        (small_disk / "ballast").write_bytes(bytes(700_000))
    _, talk = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in talk
    assert "cannot be written (No space left on device)" in talk
    assert "Free some space" in talk
