"""`llamachat quantize`: what it prints, what it promises beforehand, and what it will not overwrite."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import gguf
import pytest
from conftest import RunCommand

from quantize import FILE_TYPES, convert, predict
from support.checkpoints import LlamaShape, write_random_checkpoint

SHAPE = LlamaShape(n_vocab=600, n_embd=256, n_ff=512, n_layer=2, n_head=4, n_head_kv=2)


@pytest.fixture
def checkpoint(small_tokenizer: Path, tmp_path: Path) -> Path:
    write_random_checkpoint(tmp_path / "tiny", SHAPE, tokenizer=small_tokenizer)
    return tmp_path / "tiny"


def test_the_json_says_what_was_made(checkpoint: Path, tmp_path: Path, run: RunCommand) -> None:
    path = tmp_path / "out.gguf"
    result = run("quantize", checkpoint, "--quant", "Q4_K_M", "-o", path, "--threads", "2", "--json")
    assert result.returncode == 0
    made = json.loads(result.stdout)
    content = path.read_bytes()
    assert made["path"] == str(path)
    assert made["quant"] == "q4_k_m"
    assert made["size_bytes"] == len(content)
    assert made["sha256"] == hashlib.sha256(content).hexdigest()
    assert made["bits_per_weight"] == pytest.approx(len(content) * 8 / made["n_params"], abs=1e-4)
    assert made["elapsed_s"] > 0
    assert "Quantizing: 100 %" in result.stderr


@pytest.mark.parametrize("quant", ["f32", "bf16", "q8_0", "q4_k_m", "iq4_xs", "q2_k"])
def test_the_prediction_is_exact(quant: str, checkpoint: Path, tmp_path: Path) -> None:
    prediction = predict(checkpoint, FILE_TYPES[quant])
    report = convert(checkpoint, tmp_path / "out.gguf", FILE_TYPES[quant])
    assert prediction.size_bytes == report.size_bytes == (tmp_path / "out.gguf").stat().st_size
    assert prediction.n_params == report.n_params
    types = [tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors]
    assert prediction.tensor_types == report.tensor_types == {name: types.count(name) for name in types}


def test_a_dry_run_makes_nothing(checkpoint: Path, tmp_path: Path, run: RunCommand) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = run("quantize", checkpoint, "--quant", "q4_k_m", "-o", tmp_path / "out.gguf", "--dry-run", "--json")
    predicted = json.loads(result.stdout)
    assert predicted["dry_run"] is True
    assert sorted(tmp_path.rglob("*")) == before
    made = json.loads(run("quantize", checkpoint, "--quant", "q4_k_m", "-o", tmp_path / "out.gguf", "--json").stdout)
    assert {key: made[key] for key in predicted if key != "dry_run"} == {
        key: value for key, value in predicted.items() if key != "dry_run"
    }
    in_words = run("quantize", checkpoint, "--quant", "q4_k_m", "--dry-run").stdout
    assert f"{made['size_bytes']:,} bytes" in in_words
    assert "F32\t5" in in_words


def test_a_file_that_is_there_is_not_replaced_unasked(checkpoint: Path, tmp_path: Path, run: RunCommand) -> None:
    path = tmp_path / "out.gguf"
    path.write_bytes(b"precious")
    result = run("quantize", checkpoint, "--quant", "q8_0", "-o", path)
    assert result.returncode == 1
    assert result.stderr.splitlines()[0] == f"Error: {path} is there already, and is not replaced."
    assert path.read_bytes() == b"precious"
    assert run("quantize", checkpoint, "--quant", "q8_0", "-o", path, "--force").returncode == 0
    assert path.read_bytes().startswith(b"GGUF")


def test_the_result_is_named_after_source_and_quant(
    checkpoint: Path, tmp_path: Path, run: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("quantize", checkpoint, "--quant", "Q8_0").returncode == 0
    assert (tmp_path / "tiny-q8_0.gguf").exists()


def test_the_table_of_types(run: RunCommand) -> None:
    result = run("quantize", "--types")
    assert result.returncode == 0
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert lines[0] == ["quant", "bits per weight", "advice"]
    assert [line[0] for line in lines[1:]] == list(FILE_TYPES)
    assert all(0 < float(line[1]) <= 32 and line[2] for line in lines[1:])


@pytest.mark.parametrize("quant", ["q9", "q8_0"])
def test_what_cannot_be_done_is_one_sentence(quant: str, tmp_path: Path, run: RunCommand) -> None:
    result = run("quantize", tmp_path / "missing", "--quant", quant, "-o", tmp_path / "out.gguf")
    assert result.returncode == 1
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["Error", "Next"]
    assert not list(tmp_path.iterdir())


def test_a_gguf_as_the_source(
    checkpoint: Path, tmp_path: Path, run: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    convert(checkpoint, tmp_path / "tiny-f16.gguf", FILE_TYPES["f16"])
    assert run("quantize", "tiny-f16.gguf", "--quant", "q4_k_m").returncode == 0
    assert (tmp_path / "tiny-q4_k_m.gguf").exists()
    again = run("quantize", "tiny-q4_k_m.gguf", "--quant", "q8_0", "-o", "again.gguf")
    assert again.returncode == 1
    assert "is quantized already" in again.stderr
    assert "--requantize" in again.stderr
    assert run("quantize", "tiny-q4_k_m.gguf", "--quant", "q8_0", "-o", "again.gguf", "--requantize").returncode == 0
    itself = run("quantize", "tiny-f16.gguf", "--quant", "q8_0", "-o", "tiny-f16.gguf", "--force")
    assert itself.returncode == 1


def test_types_chosen_on_the_command_line(checkpoint: Path, run: RunCommand) -> None:
    dry = ("quantize", checkpoint, "--quant", "q4_k_m", "--dry-run", "--json")
    chosen = ("--tensor-type", "attn_[kv]=q8_0", "--tensor-type", "ffn=q4_0", "--output-type", "f16")
    made = json.loads(run(*dry, *chosen).stdout)
    assert made["tensor_types"] == {"Q4_0": 6, "F32": 5, "Q4_K": 5, "Q8_0": 4, "F16": 1}
    refused = run(*dry, "--tensor-type", "attn_v=q9")
    assert refused.returncode == 1
    assert "q9" in refused.stderr
