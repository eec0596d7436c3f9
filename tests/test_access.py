"""How files are reached: gates and tokens, the cache of huggingface_hub, no network at all, and mirrors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCommand
from huggingface_hub import HfApi

from support.checkpoints import LlamaShape, write_random_checkpoint
from support.hub import HubStandIn

GATED = "meta-llama/Llama-2-7b-chat-hf"
PAGE = f"https://huggingface.co/{GATED}"
TOKEN = "hf_ThisIsASecret"
SHAPE = LlamaShape(n_vocab=600, n_embd=64, n_ff=128, n_layer=1, n_head=4, n_head_kv=2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    write_random_checkpoint(directory, SHAPE, n_shards=2, tokenizer=small_tokenizer)
    (directory / "README.md").write_text("# Tiny\n")
    return directory


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> Iterator[HubStandIn]:
    """A Hub with a gated repository that is in the catalogue, and a token that is valid but may not read it."""
    with HubStandIn() as stand_in:
        stand_in.add_repo(GATED, checkpoint, gated=True)
        stand_in.tokens = {TOKEN: set()}
        monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
        yield stand_in


@pytest.mark.parametrize(
    ("gate", "says", "next_step"),
    [
        ("licence", "accept a licence", f"Accept it at {PAGE}"),
        ("reset", "accept a licence", f"Accept it at {PAGE}"),
        ("pending", "still waits for its authors", "https://huggingface.co/settings/gated-repos"),
        ("rejected", "have rejected your request", f"{PAGE}/discussions"),
        ("permission", "may not read gated repositories", "https://huggingface.co/settings/tokens"),
        ("Not today,\x1b[2J {url}" + "!" * 500, '"Not today, [2J', PAGE),
    ],
)
def test_each_cause_of_a_closed_gate(
    gate: str, says: str, next_step: str, hub: HubStandIn, run: RunCommand, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known wordings have their own next step, others are shown; no byte of a file moves, and no token is told."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.gates[TOKEN] = gate
    result = run("pull", "llama-2-7b-chat")
    error, step = result.stderr.splitlines()
    assert result.returncode == 1
    assert says in error
    assert len(error) < 300
    assert error.isprintable()
    assert next_step in step
    assert "llamachat pull NousResearch/Llama-2-7b-chat-hf" in step
    assert TOKEN not in result.stderr
    assert [request.method for request in hub.requests] == ["GET", "HEAD"]
    assert all("NousResearch" not in request.path for request in hub.requests)
    assert not any(TOKEN in path.read_text(errors="replace") for path in home.rglob("*") if path.is_file())


def test_without_a_token(hub: HubStandIn, run: RunCommand) -> None:
    result = run("pull", "llama-2-7b-chat")
    assert "no token was found" in result.stderr
    assert f"{PAGE}, then log in: hf auth login" in result.stderr
    assert [request.method for request in hub.requests] == ["GET", "HEAD"]


def test_a_token_that_is_not_accepted(
    hub: HubStandIn, run: RunCommand, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What to do about it depends on where it comes from."""
    stored = home.with_name("huggingface") / "token"
    stored.parent.mkdir()
    stored.write_text("hf_wrong")
    result = run("pull", "llama-2-7b-chat")
    assert "does not accept your token" in result.stderr
    assert "Next: hf auth login" in result.stderr
    assert "hf_wrong" not in result.stderr
    assert hub.requests[-1].status == 401
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert "Next: Correct HF_TOKEN, or unset it" in run("pull", "llama-2-7b-chat").stderr


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("token", ["hf_wrong", "hf_wröng", "hf_wr\x01ong"])
def test_a_token_of_the_environment_that_is_not_accepted(
    token: str, run: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that no header can carry. Not even a traceback shows it."""
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("LLAMACHAT_DEBUG", "1")
    traced = run("pull", "llama-2-7b-chat")
    assert "Traceback" in traced.stderr
    assert "BadToken: The Hub does not accept your token" in traced.stderr
    assert not any(form in traced.stderr for form in (token, "hf_wr\\x01ong"))


def test_with_access_a_gated_repository_is_pulled(
    hub: HubStandIn, run: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.tokens[TOKEN] = {GATED}
    result = run("pull", "llama-2-7b-chat", "--quant", "q8_0")
    assert result.returncode == 0, result.stderr
    assert TOKEN not in result.stdout + result.stderr


# --- the cache of huggingface_hub, and no network -------------------------------------------------------------

OPEN = "someone/tiny"


@pytest.fixture
def cached(hub: HubStandIn, checkpoint: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of `OPEN` as huggingface_hub itself caches it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
    hub.add_repo(OPEN, checkpoint)
    cache = home.with_name("huggingface") / "hub"
    snapshot = Path(HfApi(endpoint=hub.url, token=False).snapshot_download(OPEN, cache_dir=cache))
    hub.requests.clear()
    return snapshot


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def pull(run: RunCommand, *arguments: object) -> dict[str, Any]:
    done = run("pull", *arguments, "--quant", "q8_0", "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_what_is_in_the_cache_is_used_in_place(
    cached: Path, hub: HubStandIn, run: RunCommand, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is fetched, copied, changed or deleted, and the result is that of a download."""
    before = contents(cached)
    plan = pull(run, OPEN, "--dry-run")
    assert (plan["download_bytes"], plan["temporary_bytes"]) == (0, 0)
    assert plan["needed_bytes"] == plan["output_bytes"]
    hub.requests.clear()
    result = pull(run, OPEN, "--keep-checkpoint")
    assert [request.file_name for request in hub.requests] == [None]
    staged = [path for path in (home / "staging").rglob("*") if path.is_file()]
    assert staged
    assert all(path.is_symlink() for path in staged)
    assert run("rm", OPEN, "--yes").returncode == 0
    pull(run, OPEN)
    assert not list((home / "staging").iterdir())
    assert contents(cached) == before

    assert run("rm", OPEN, "--yes").returncode == 0
    monkeypatch.setenv("HF_HOME", str(home.with_name("empty")))
    assert pull(run, OPEN)["sha256"] == result["sha256"]
    assert any(request.file_name == "config.json" for request in hub.requests)


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00002.safetensors"])
def test_what_is_not_whole_in_the_cache_is_fetched(name: str, cached: Path, hub: HubStandIn, run: RunCommand) -> None:
    blob = (cached / name).resolve()
    blob.write_bytes(blob.read_bytes()[:-1])
    pull(run, OPEN)
    assert [request.file_name for request in hub.requests if request.file_name] == [name] * (
        2 if name.endswith("safetensors") else 1  # large files come from the CDN
    )


def test_a_small_file_that_was_changed_in_the_cache_is_fetched(cached: Path, hub: HubStandIn, run: RunCommand) -> None:
    blob = (cached / "config.json").resolve()
    blob.write_bytes(blob.read_bytes().replace(b"l", b"L", 1))
    pull(run, OPEN)
    assert [request.file_name for request in hub.requests if request.file_name] == ["config.json"]


def test_offline_a_cached_checkpoint_can_be_pulled(
    cached: Path, hub: HubStandIn, run: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = pull(run, OPEN)
    assert (result["revision"], result["already_here"]) == (cached.name, False)
    for revision in ("main", cached.name[:7]):
        assert pull(run, OPEN, "--revision", revision)["already_here"]
    assert f"HF_HUB_OFFLINE is set, and {OPEN} is not in the cache" in run("pull", f"{OPEN}@v9").stderr
    assert not hub.requests


def test_offline_a_stored_model_is_here(
    hub: HubStandIn, checkpoint: Path, run: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.add_repo(OPEN, checkpoint)
    pull(run, OPEN)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert pull(run, OPEN)["already_here"]
    assert pull(run, f"{OPEN}@{commit[:8]}")["already_here"]
    refused = run("pull", OPEN, "--quant", "f16")
    assert refused.returncode == 1
    assert f"HF_HUB_OFFLINE is set, and {OPEN} is not in the cache" in refused.stderr


@pytest.mark.parametrize("name", ["config.json", "model-00002-of-00002.safetensors"])
def test_offline_what_is_missing_is_named(
    name: str, cached: Path, run: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cached / name).unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused = run("pull", OPEN)
    assert refused.returncode == 1
    assert f"{name} of {OPEN} is not in the cache" in refused.stderr
    assert "Unset HF_HUB_OFFLINE" in refused.stderr


def test_a_revision_does_not_lead_out_of_the_cache(cached: Path, run: RunCommand, monkeypatch: Any) -> None:
    (cached.parents[2] / "elsewhere").write_text(cached.name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused = run("pull", OPEN, "--revision", "../../elsewhere")
    assert refused.returncode == 1
    assert "HF_HUB_OFFLINE is set" in refused.stderr


def test_a_mirror_may_be_below_a_path(
    hub: HubStandIn, checkpoint: Path, run: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo(OPEN, checkpoint)
    hub.prefix = "/hugging/face"
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/hugging/face/")
    assert pull(run, OPEN)["repo"] == OPEN
    gated = run("pull", GATED)
    assert "no token was found" in gated.stderr
    assert PAGE in gated.stderr
    assert "has no repository someone/nothing" in run("pull", "someone/nothing").stderr
    assert all("//" not in request.path for request in hub.requests)
