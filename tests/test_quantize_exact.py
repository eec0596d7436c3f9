"""Byte for byte what llama.cpp makes of the same weights."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from quantize import FILE_TYPES, convert
from support.checkpoints import LlamaShape, train_sentencepiece, write_random_checkpoint
from support.llama_cpp_oracle import quantize_with_llama_cpp, read_tensors, write_f32_gguf

SHAPES = {
    "multi-head": LlamaShape(n_vocab=600, n_embd=256, n_ff=512, n_layer=8, n_head=4, n_head_kv=4),
    "grouped-query, tied": LlamaShape(n_vocab=600, n_embd=256, n_ff=768, n_layer=5, n_head=8, n_head_kv=2, tied=True),
    "576 columns, tied": LlamaShape(n_vocab=600, n_embd=576, n_ff=1536, n_layer=3, n_head=9, n_head_kv=3, tied=True),
    "576 columns": LlamaShape(n_vocab=600, n_embd=576, n_ff=1536, n_layer=2, n_head=9, n_head_kv=3),
    "no multiple of 32": LlamaShape(n_vocab=600, n_embd=144, n_ff=400, n_layer=2, n_head=4, n_head_kv=2),
    "32 layers": LlamaShape(n_vocab=600, n_embd=256, n_ff=256, n_layer=32, n_head=4, n_head_kv=1),
    "80 layers, the 65B": LlamaShape(n_vocab=600, n_embd=256, n_ff=256, n_layer=80, n_head=2, n_head_kv=2),
    "80 layers, the 70B": LlamaShape(n_vocab=600, n_embd=256, n_ff=256, n_layer=80, n_head=4, n_head_kv=2),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocab") / "tokenizer.model"
    train_sentencepiece(path, n_vocab=600)
    return path


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_quant_equals_llama_cpp(shape: LlamaShape, tokenizer: Path, tmp_path: Path) -> None:
    weights = write_random_checkpoint(tmp_path / "checkpoint", shape, dtype="BF16", n_shards=2, tokenizer=tokenizer)
    write_f32_gguf(tmp_path / "f32.gguf", shape, weights)
    for file_type in FILE_TYPES.values():
        quantize_with_llama_cpp(tmp_path / "f32.gguf", tmp_path / "theirs.gguf", file_type.ftype)
        convert(tmp_path / "checkpoint", tmp_path / "ours.gguf", file_type)
        ours, theirs = read_tensors(tmp_path / "ours.gguf"), read_tensors(tmp_path / "theirs.gguf")
        assert ours.keys() == theirs.keys()
        for name, (qtype, dimensions, data) in theirs.items():
            assert ours[name][:2] == (qtype, dimensions), f"{name} as {file_type.name}"
            assert ours[name][2] == data, f"bytes of {name} as {file_type.name}"


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_every_number_format_is_read_exactly(dtype: str, tokenizer: Path, tmp_path: Path) -> None:
    shape = SHAPES["576 columns"]
    weights = write_random_checkpoint(tmp_path / "checkpoint", shape, dtype=dtype, n_shards=3, tokenizer=tokenizer)
    write_f32_gguf(tmp_path / "f32.gguf", shape, weights)
    for name in ("f16", "q8_0"):
        quantize_with_llama_cpp(tmp_path / "f32.gguf", tmp_path / "theirs.gguf", FILE_TYPES[name].ftype)
        convert(tmp_path / "checkpoint", tmp_path / "ours.gguf", FILE_TYPES[name])
        assert read_tensors(tmp_path / "ours.gguf") == read_tensors(tmp_path / "theirs.gguf")


def test_the_number_of_threads_changes_nothing(tokenizer: Path, tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "checkpoint", SHAPES["576 columns"], tokenizer=tokenizer)
    digests = {
        convert(tmp_path / "checkpoint", tmp_path / f"{n}.gguf", FILE_TYPES["q4_k_m"], n_threads=n).sha256
        for n in (1, 2, 7)
    }
    assert len(digests) == 1


def test_llama_3_rope_scaling_becomes_divisors(tokenizer: Path, tmp_path: Path) -> None:
    """The figures of Llama 3.1: short waves as they are, long ones stretched by the factor."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}  # fmt: skip
    shape = LlamaShape(n_vocab=600, n_embd=256, n_ff=256, n_layer=1, n_head=2, n_head_kv=1,
                       rope_theta=500000.0, rope_scaling=scaling)  # fmt: skip
    write_random_checkpoint(tmp_path / "checkpoint", shape, tokenizer=tokenizer)
    convert(tmp_path / "checkpoint", tmp_path / "out.gguf", FILE_TYPES["q8_0"])
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    divisors = np.asarray(tensors["rope_freqs.weight"])
    assert divisors.shape == (64,)
    assert divisors[0] == 1.0
    assert divisors[-1] == 8.0
    assert np.all(np.diff(divisors) >= 0)
    frequencies = 1 / 500000.0 ** (np.arange(0, 128, 2) / 128)
    middle = 32  # between the wave lengths 8192 / 4 and 8192 / 1
    smooth = (8192 * frequencies[middle] / (2 * np.pi) - 1.0) / 3.0
    assert 0 < smooth < 1
    assert divisors[middle] == pytest.approx(1 / ((1 - smooth) / 8 + smooth), rel=1e-5)
