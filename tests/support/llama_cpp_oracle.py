"""What llama.cpp itself makes of the same weights: the reference for every byte."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from gguf import GGMLQuantizationType

from support.checkpoints import LlamaShape

Tensors = dict[str, tuple[GGMLQuantizationType, tuple[int, ...], bytes]]

_OUTSIDE_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "block_sparse_moe.experts.w1": "ffn_gate_exps",
    "block_sparse_moe.experts.w2": "ffn_down_exps",
    "block_sparse_moe.experts.w3": "ffn_up_exps",
}


def write_f32_gguf(
    path: Path, shape: LlamaShape, weights: dict[str, np.ndarray], *, architecture: str = "llama"
) -> None:
    """Write the F32 form of a checkpoint as llama.cpp's converter does, by code that shares nothing with ours."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(shape.n_layer)
    writer.add_context_length(shape.n_ctx)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    if shape.head_dim:
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
    writer.add_vocab_size(shape.n_vocab)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if shape.n_expert:
        writer.add_expert_count(shape.n_expert)
        writer.add_expert_used_count(shape.n_expert_used)
    for name, values in _stack_experts(weights).items():
        writer.add_tensor(_gguf_name(name), _permute(name, values, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize_with_llama_cpp(source: Path, out: Path, ftype: int, **changes: Any) -> None:
    """`llama_model_quantize`, which is what the llama-quantize tool calls; `changes` are fields of its parameters."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = ftype
    params.nthread = 2
    for name, value in changes.items():
        setattr(params, name, value)
    assert llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params)) == 0


def quantize_with_imatrix(
    source: Path, out: Path, ftype: int, rows: Mapping[str, np.ndarray], keys: Mapping[str, str | int], **changes: Any
) -> None:
    """`llama_model_quantize` with an importance matrix: values by tensor, and keys it is to add to the header."""
    kept = {name.encode(): np.ascontiguousarray(values, np.float32) for name, values in rows.items()}
    matrix = (llama_cpp.llama_model_imatrix_data * (len(kept) + 1))()  # a nameless one ends it
    for slot, (name, values) in zip(matrix, kept.items(), strict=False):
        slot.name, slot.size = name, values.size
        slot.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    overrides = (llama_cpp.llama_model_kv_override * (len(keys) + 1))()
    for slot, (key, value) in zip(overrides, keys.items(), strict=False):
        slot.key = key.encode()
        if isinstance(value, int):
            slot.tag, slot.value.val_i64 = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT, value
        else:
            slot.tag, slot.value.val_str = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()
    pointers = {
        "imatrix": ctypes.cast(matrix, ctypes.POINTER(llama_cpp.llama_model_imatrix_data)),
        "kv_overrides": ctypes.cast(overrides, ctypes.POINTER(llama_cpp.llama_model_kv_override)),
    }
    quantize_with_llama_cpp(source, out, ftype, **pointers, **changes)


def read_tensors(path: Path) -> Tensors:
    """Every tensor of a GGUF file: type, shape, bytes."""
    return {
        tensor.name: (tensor.tensor_type, tuple(int(n) for n in tensor.shape), tensor.data.tobytes())
        for tensor in gguf.GGUFReader(path).tensors
    }


def _stack_experts(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One tensor for all experts of a layer, named without their numbers."""
    stacks: dict[str, list[np.ndarray]] = {}
    for name, values in weights.items():
        stacks.setdefault(re.sub(r"\.experts\.\d+\.", ".experts.", name), []).append(values)
    return {name: np.stack(values) if ".experts." in name else values[0] for name, values in stacks.items()}


def _gguf_name(hf_name: str) -> str:
    stem = hf_name.removesuffix(".weight")
    if stem in _OUTSIDE_NAMES:
        return f"{_OUTSIDE_NAMES[stem]}.weight"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{_LAYER_NAMES[rest]}.weight"


def _permute(name: str, values: np.ndarray, shape: LlamaShape) -> np.ndarray:
    """`LlamaModel.permute` of llama.cpp's converter."""
    n_head = shape.n_head if "q_proj" in name else shape.n_head_kv if "k_proj" in name else None
    if n_head is None:
        return values
    halves = values.reshape(n_head, 2, values.shape[0] // n_head // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
