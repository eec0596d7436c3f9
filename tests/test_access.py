"""Who may have which files: each refusal of the Hub with its own next step, said before anything large moves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import RunCommand

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


def test_a_token_that_is_not_accepted(hub: HubStandIn, run: RunCommand, home: Path) -> None:
    """What to do about it depends on where it comes from."""
    stored = home.with_name("huggingface") / "token"
    stored.parent.mkdir()
    stored.write_text("hf_wrong")
    result = run("pull", "llama-2-7b-chat")
    assert "does not accept your token" in result.stderr
    assert "Next: hf auth login" in result.stderr
    assert "hf_wrong" not in result.stderr
    assert hub.requests[-1].status == 401


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("token", ["hf_wrong", "hf_wröng", "hf_wr\x01ong"])
def test_a_token_of_the_environment_that_is_not_accepted(
    token: str, run: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that no header can carry. Not even a traceback shows it."""
    monkeypatch.setenv("HF_TOKEN", token)
    result = run("pull", "llama-2-7b-chat")
    assert "does not accept your token" in result.stderr
    assert "Correct HF_TOKEN" in result.stderr
    monkeypatch.setenv("LLAMACHAT_DEBUG", "1")
    traced = run("pull", "llama-2-7b-chat")
    assert "Traceback" in traced.stderr
    assert not any(form in traced.stderr + result.stderr for form in (token, "hf_wr\\x01ong"))


def test_with_access_a_gated_repository_is_pulled(
    hub: HubStandIn, run: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.tokens[TOKEN] = {GATED}
    result = run("pull", "llama-2-7b-chat", "--quant", "q8_0")
    assert result.returncode == 0, result.stderr
    assert TOKEN not in result.stdout + result.stderr
