"""What is particular to a mixture of experts: counts in the header, damage told by the expert's own name."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest

from quantize import FILE_TYPES, QuantizeError, convert, parse_choices
from support.checkpoints import (
    LlamaShape,
    Tensor,
    write_random_checkpoint,
    write_safetensors,
)
from support.llama_cpp_oracle import quantize_with_llama_cpp, read_tensors, write_f32_gguf

SHAPE = LlamaShape(n_vocab=600, n_embd=64, n_ff=96, n_layer=2, n_head=4, n_head_kv=2, n_expert=4)
DAMAGED = "model.layers.1.block_sparse_moe.experts.2.w3.weight"


def test_header_of_experts(small_tokenizer: Path, tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, SHAPE, tokenizer=small_tokenizer)
    path = convert(tmp_path, tmp_path / "out.gguf", FILE_TYPES["q8_0"]).path
    reader = gguf.GGUFReader(path)
    header = {key: field.contents() for key, field in reader.fields.items()}
    assert (header["llama.expert_count"], header["llama.expert_used_count"]) == (4, 2)
    assert header["general.size_label"] == "4x139K"
    shapes = {tensor.name: tuple(tensor.shape[::-1]) for tensor in reader.tensors}
    assert shapes["blk.1.ffn_gate_exps.weight"] == shapes["blk.1.ffn_up_exps.weight"] == (4, 96, 64)
    assert shapes["blk.1.ffn_down_exps.weight"] == (4, 64, 96)
    router = next(tensor for tensor in reader.tensors if tensor.name == "blk.0.ffn_gate_inp.weight")
    assert router.tensor_type == gguf.GGMLQuantizationType.F32


def _rewrite(directory: Path, weights: dict[str, np.ndarray], damaged: Tensor | None) -> None:
    tensors = {name: Tensor.rounded(values, "BF16") for name, values in weights.items()}
    del tensors[DAMAGED]
    write_safetensors(directory / "model.safetensors", tensors | ({DAMAGED: damaged} if damaged else {}))


@pytest.mark.parametrize(
    ("damaged", "problem"),
    [
        (None, "is missing"),
        (Tensor.rounded(np.ones((96, 32), np.float32), "BF16"), "has shape"),
        (Tensor.rounded(np.ones((96, 64), np.float32), "F16"), "is stored as F16, but .* as BF16"),
        (Tensor.rounded(np.full((96, 64), np.nan, np.float32), "BF16"), "holds NaN"),
        (Tensor.rounded(np.full((96, 64), 1e38, np.float32), "BF16"), "holds values too large"),
    ],
    ids=["missing", "shape", "format", "NaN", "too large"],
)
def test_damage_is_told_by_the_experts_own_name(
    damaged: Tensor | None, problem: str, small_tokenizer: Path, tmp_path: Path
) -> None:
    weights = write_random_checkpoint(tmp_path, SHAPE, tokenizer=small_tokenizer)
    _rewrite(tmp_path, weights, damaged)
    with pytest.raises(QuantizeError, match=rf"{DAMAGED} {problem}"):
        convert(tmp_path, tmp_path / "out.gguf", FILE_TYPES["q8_0"])


@pytest.mark.parametrize(
    "change",
    [{"num_local_experts": 1}, {"num_local_experts": 2000}, {"num_experts_per_tok": 5}, {"num_local_experts": "8"}],
    ids=str,
)
def test_impossible_numbers_of_experts(change: dict[str, Any], small_tokenizer: Path, tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, SHAPE, tokenizer=small_tokenizer)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(QuantizeError, match=r"config\.json"):
        convert(tmp_path, tmp_path / "out.gguf", FILE_TYPES["q8_0"])


def test_types_chosen_for_some_layers_leave_the_others_theirs(small_tokenizer: Path, tmp_path: Path) -> None:
    """With experts llama.cpp reads the layer from the name, so tensors with a chosen type count as well."""
    shape = LlamaShape(
        n_vocab=600, n_embd=256, n_ff=256, n_layer=16, n_head=4, n_head_kv=1, head_dim=8, n_expert=2, n_expert_used=1
    )
    weights = write_random_checkpoint(tmp_path / "checkpoint", shape, tokenizer=small_tokenizer)
    write_f32_gguf(tmp_path / "f32.gguf", shape, weights)
    choices = parse_choices([r"blk\.[0-2]\.ffn_down=q8_0", r"blk\.5\.attn_v=q5_1"])
    overrides = (llama_cpp.llama_model_tensor_override * (len(choices.overrides) + 1))()
    for slot, (pattern, qtype) in zip(overrides, choices.overrides, strict=False):
        slot.pattern, slot.type = pattern.pattern.encode(), qtype
    changes = {"tt_overrides": ctypes.cast(overrides, ctypes.POINTER(llama_cpp.llama_model_tensor_override))}
    for quant in ("q4_k_s", "q4_k_m"):
        quantize_with_llama_cpp(tmp_path / "f32.gguf", tmp_path / "theirs.gguf", FILE_TYPES[quant].ftype, **changes)
        convert(tmp_path / "checkpoint", tmp_path / "ours.gguf", FILE_TYPES[quant], choices=choices)
        assert read_tensors(tmp_path / "ours.gguf") == read_tensors(tmp_path / "theirs.gguf")
