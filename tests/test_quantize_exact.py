"""Byte for byte what llama.cpp makes of the same weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import gguf
import numpy as np
import pytest

from quantize import FILE_TYPES, convert
from support.checkpoints import LlamaShape, write_random_checkpoint
from support.llama_cpp_oracle import quantize_with_llama_cpp, read_tensors, write_f32_gguf

SHAPES = {
    "multi-head": LlamaShape(n_vocab=600, n_embd=256, n_ff=512, n_layer=6, n_head=4, n_head_kv=4),
    "grouped-query, tied": LlamaShape(n_vocab=600, n_embd=256, n_ff=512, n_layer=4, n_head=8, n_head_kv=2, tied=True),
    "576 columns, tied": LlamaShape(n_vocab=600, n_embd=576, n_ff=768, n_layer=2, n_head=9, n_head_kv=3, tied=True),
    "576 columns": LlamaShape(n_vocab=600, n_embd=576, n_ff=768, n_layer=1, n_head=9, n_head_kv=3),
    "eight experts": LlamaShape(n_vocab=600, n_embd=256, n_ff=256, n_layer=3, n_head=4, n_head_kv=2, n_expert=8),
    "four experts, 96 columns": LlamaShape(
        n_vocab=600, n_embd=96, n_ff=288, n_layer=2, n_head=4, n_head_kv=1, n_expert=4, n_expert_used=3
    ),
    "no multiple of 32": LlamaShape(n_vocab=600, n_embd=144, n_ff=400, n_layer=2, n_head=4, n_head_kv=2),
}
DEEP_SHAPES = {
    "32 layers": LlamaShape(n_vocab=600, n_embd=256, n_ff=256, n_layer=32, n_head=4, n_head_kv=1, head_dim=8),
    "16 layers, experts": LlamaShape(
        n_vocab=600, n_embd=256, n_ff=256, n_layer=16, n_head=4, n_head_kv=1, head_dim=8, n_expert=8
    ),
    "80 layers, the 65B": LlamaShape(n_vocab=600, n_embd=256, n_ff=256, n_layer=80, n_head=2, n_head_kv=2, head_dim=8),
    "80 layers, the 70B": LlamaShape(n_vocab=600, n_embd=256, n_ff=256, n_layer=80, n_head=4, n_head_kv=2, head_dim=8),
}
LAYERED = ("q2_k", "q3_k_m", "q4_k_s", "q4_k_m", "iq4_xs")
"""Mixes whose types depend on the layer."""


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_quant_equals_llama_cpp(shape: LlamaShape, small_tokenizer: Path, tmp_path: Path) -> None:
    assert_equal_to_llama_cpp(shape, FILE_TYPES, small_tokenizer, tmp_path)


@pytest.mark.parametrize("shape", DEEP_SHAPES.values(), ids=DEEP_SHAPES)
def test_mixes_follow_the_layers_of_deep_models(shape: LlamaShape, small_tokenizer: Path, tmp_path: Path) -> None:
    assert_equal_to_llama_cpp(shape, LAYERED, small_tokenizer, tmp_path)


def assert_equal_to_llama_cpp(shape: LlamaShape, quants: Iterable[str], tokenizer: Path, directory: Path) -> None:
    weights = write_random_checkpoint(directory / "checkpoint", shape, dtype="BF16", n_shards=2, tokenizer=tokenizer)
    write_f32_gguf(directory / "f32.gguf", shape, weights)
    for quant in quants:
        file_type = FILE_TYPES[quant]
        quantize_with_llama_cpp(directory / "f32.gguf", directory / "theirs.gguf", file_type.ftype)
        convert(directory / "checkpoint", directory / "ours.gguf", file_type)
        ours, theirs = read_tensors(directory / "ours.gguf"), read_tensors(directory / "theirs.gguf")
        assert ours.keys() == theirs.keys()
        for name, (qtype, dimensions, data) in theirs.items():
            assert ours[name][:2] == (qtype, dimensions), f"{name} as {quant}"
            assert ours[name][2] == data, f"bytes of {name} as {quant}"


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_every_number_format_is_read_exactly(dtype: str, small_tokenizer: Path, tmp_path: Path) -> None:
    shape = SHAPES["576 columns"]
    weights = write_random_checkpoint(
        tmp_path / "checkpoint", shape, dtype=dtype, n_shards=3, tokenizer=small_tokenizer
    )
    write_f32_gguf(tmp_path / "f32.gguf", shape, weights)
    for name in ("f16", "q8_0"):
        quantize_with_llama_cpp(tmp_path / "f32.gguf", tmp_path / "theirs.gguf", FILE_TYPES[name].ftype)
        convert(tmp_path / "checkpoint", tmp_path / "ours.gguf", FILE_TYPES[name])
        assert read_tensors(tmp_path / "ours.gguf") == read_tensors(tmp_path / "theirs.gguf")


def test_the_number_of_threads_changes_nothing(small_tokenizer: Path, tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "checkpoint", SHAPES["576 columns"], tokenizer=small_tokenizer)
    digests = {
        convert(tmp_path / "checkpoint", tmp_path / f"{n}.gguf", FILE_TYPES["q4_k_m"], n_threads=n).sha256
        for n in (1, 2, 7)
    }
    assert len(digests) == 1


def test_llama_3_rope_scaling_becomes_divisors(small_tokenizer: Path, tmp_path: Path) -> None:
    """The figures of Llama 3.1: short waves as they are, long ones stretched by the factor."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}  # fmt: skip
    shape = LlamaShape(n_vocab=600, n_embd=256, n_ff=256, n_layer=1, n_head=2, n_head_kv=1,
                       rope_theta=500000.0, rope_scaling=scaling)  # fmt: skip
    write_random_checkpoint(tmp_path / "checkpoint", shape, tokenizer=small_tokenizer)
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
