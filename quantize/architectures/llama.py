"""Llama 1, 2 and 3, and the many fine-tunes that share their shape.

Sources: `LlamaForCausalLM` of transformers for the checkpoint's names and layout; conversion/llama.py and
src/models/llama.cpp of llama.cpp for the GGUF side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType, Keys, RopeScalingType

from quantize.architectures.base import Architecture, ExpectedTensor, HeaderValue, positive
from quantize.checkpoint.tensor import ComputedTensor
from quantize.errors import CheckpointError, shown
from quantize.recipe import ModelTraits


class Llama(Architecture):
    """`LlamaForCausalLM` → `llama`."""

    gguf_name = "llama"
    hf_names = ("LlamaForCausalLM", "LLaMAForCausalLM")

    def __init__(self, config: Mapping[str, Any], config_path: Path) -> None:
        """See `Architecture`."""
        super().__init__(config, config_path)
        self._n_vocab = self._integer("vocab_size")
        self.n_embd = self._integer("hidden_size")
        self.n_ff = self._integer("intermediate_size")
        self.n_layer = self._integer("num_hidden_layers")
        self.n_head = self._integer("num_attention_heads")
        self.n_head_kv = self._integer("num_key_value_heads", default=self.n_head)
        self.n_ctx = self._integer("max_position_embeddings", default=2048)
        self.head_dim = self._integer("head_dim", default=self.n_embd // self.n_head or None)
        self.tied = bool(config.get("tie_word_embeddings", False))
        self._check()

    def _check(self) -> None:
        problem = None
        if self.n_embd % self.n_head and "head_dim" not in self._config:
            problem = f"{self.n_head} attention heads cannot share {self.n_embd} columns"
        elif self.n_head % self.n_head_kv:
            problem = f"{self.n_head} attention heads cannot share {self.n_head_kv} key-value heads"
        elif self.head_dim % 2:
            problem = f"a head size of {self.head_dim} cannot be rotated in pairs"
        elif self.n_layer > 10_000:
            problem = f"{self.n_layer} layers are not believable"
        elif self.n_vocab > 2_000_000:
            problem = f"a vocabulary of {self.n_vocab} is not believable"
        elif self._config.get("hidden_act", "silu") != "silu":
            problem = f"the activation {shown(self._config['hidden_act'])} is not Llama's"
        elif self._config.get("attention_bias") or self._config.get("mlp_bias"):
            problem = "has biases, which Llama does not"
        if problem:
            raise CheckpointError(self._config_path, problem)

    @property
    def n_vocab(self) -> int:
        """See `Architecture`."""
        return self._n_vocab

    @property
    def traits(self) -> ModelTraits:
        """See `Architecture`."""
        return ModelTraits(self.n_layer, self.n_head, self.n_head_kv)

    def header(self) -> list[HeaderValue]:
        """See `Architecture`."""
        integers = {
            Keys.LLM.BLOCK_COUNT: self.n_layer,
            Keys.LLM.CONTEXT_LENGTH: self.n_ctx,
            Keys.LLM.EMBEDDING_LENGTH: self.n_embd,
            Keys.LLM.FEED_FORWARD_LENGTH: self.n_ff,
            Keys.LLM.VOCAB_SIZE: self.n_vocab,
            Keys.Attention.HEAD_COUNT: self.n_head,
            Keys.Attention.HEAD_COUNT_KV: self.n_head_kv,
            Keys.Attention.KEY_LENGTH: self.head_dim,
            Keys.Attention.VALUE_LENGTH: self.head_dim,
            Keys.Rope.DIMENSION_COUNT: self.head_dim,
        }
        floats = {
            Keys.Attention.LAYERNORM_RMS_EPS: self._float("rms_norm_eps", 1e-6),
            Keys.Rope.FREQ_BASE: self._rope_theta,
        }
        values = [HeaderValue(key, value, GGUFValueType.UINT32) for key, value in integers.items()]
        values += [HeaderValue(key, value, GGUFValueType.FLOAT32) for key, value in floats.items()]
        values += self._rope_scaling_header()
        return [HeaderValue(v.key.format(arch=self.gguf_name), v.value, v.vtype) for v in values]

    def expected_tensors(self) -> Sequence[ExpectedTensor]:
        """See `Architecture`."""
        embeddings = (self.n_vocab, self.n_embd)
        tensors = [
            ExpectedTensor("model.embed_tokens.weight", "token_embd.weight", embeddings),
            ExpectedTensor("model.norm.weight", "output_norm.weight", (self.n_embd,)),
        ]
        if not self.tied:
            tensors.append(ExpectedTensor("lm_head.weight", "output.weight", embeddings))
        for i_layer in range(self.n_layer):
            tensors += self._layer(i_layer)
        return tensors

    def _layer(self, i: int) -> list[ExpectedTensor]:
        hf, gguf = f"model.layers.{i}", f"blk.{i}"
        n_q, n_kv = self.n_head * self.head_dim, self.n_head_kv * self.head_dim
        vector = (self.n_embd,)
        return [
            ExpectedTensor(f"{hf}.input_layernorm.weight", f"{gguf}.attn_norm.weight", vector),
            ExpectedTensor(f"{hf}.self_attn.q_proj.weight", f"{gguf}.attn_q.weight", (n_q, self.n_embd), self.n_head),
            ExpectedTensor(
                f"{hf}.self_attn.k_proj.weight", f"{gguf}.attn_k.weight", (n_kv, self.n_embd), self.n_head_kv
            ),
            ExpectedTensor(f"{hf}.self_attn.v_proj.weight", f"{gguf}.attn_v.weight", (n_kv, self.n_embd)),
            ExpectedTensor(f"{hf}.self_attn.o_proj.weight", f"{gguf}.attn_output.weight", (self.n_embd, n_q)),
            ExpectedTensor(f"{hf}.post_attention_layernorm.weight", f"{gguf}.ffn_norm.weight", vector),
            ExpectedTensor(f"{hf}.mlp.gate_proj.weight", f"{gguf}.ffn_gate.weight", (self.n_ff, self.n_embd)),
            ExpectedTensor(f"{hf}.mlp.up_proj.weight", f"{gguf}.ffn_up.weight", (self.n_ff, self.n_embd)),
            ExpectedTensor(f"{hf}.mlp.down_proj.weight", f"{gguf}.ffn_down.weight", (self.n_embd, self.n_ff)),
        ]

    def computed_tensors(self) -> Mapping[str, ComputedTensor]:
        """Llama 3.1's stretched rotation frequencies, as the divisors ggml expects."""
        if self._rope_type != "llama3":
            return {}
        return {"rope_freqs.weight": ComputedTensor("rope_freqs", self._config_path, self._llama3_rope_divisors())}

    def is_redundant(self, hf_name: str) -> bool:
        """Tied checkpoints may still carry a copy of the embeddings as lm_head."""
        return super().is_redundant(hf_name) or (self.tied and hf_name == "lm_head.weight")

    @property
    def _rope_scaling(self) -> Mapping[str, Any]:
        """`rope_scaling`, which newer checkpoints call `rope_parameters`."""
        scaling = self._config.get("rope_parameters") or self._config.get("rope_scaling") or {}
        if not isinstance(scaling, dict):
            raise CheckpointError(self._config_path, "rope_scaling is not an object")
        return scaling

    @property
    def _rope_type(self) -> str:
        return shown(self._rope_scaling.get("rope_type", self._rope_scaling.get("type", "default")))

    @property
    def _rope_theta(self) -> float:
        return self._rope_number("rope_theta", self._float("rope_theta", 10000.0))

    def _rope_number(self, key: str, default: float) -> float:
        return positive(self._rope_scaling.get(key, default), key, self._config_path)

    def _rope_scaling_header(self) -> list[HeaderValue]:
        if self._rope_type in ("default", "llama3"):  # llama3 is expressed by rope_freqs.weight
            return []
        if self._rope_type != "linear":
            raise CheckpointError(self._config_path, f"the rope scaling {self._rope_type} is not supported")
        factor = self._rope_number("factor", 1.0)
        return [
            HeaderValue(Keys.Rope.SCALING_TYPE, RopeScalingType.LINEAR.value, GGUFValueType.STRING),
            HeaderValue(Keys.Rope.SCALING_FACTOR, factor, GGUFValueType.FLOAT32),
        ]

    def _llama3_rope_divisors(self) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """One divisor per frequency (head_dim / 2): 1 for short waves, `factor` for long ones, smooth between.

        Source: `apply_scaling` in meta-llama/llama-models, with the defaults of its Llama 3.1.
        """
        factor = self._rope_number("factor", 8.0)
        low, high = self._rope_number("low_freq_factor", 1.0), self._rope_number("high_freq_factor", 4.0)
        n_ctx_old = self._rope_number("original_max_position_embeddings", 8192)
        if low >= high:
            raise CheckpointError(self._config_path, "low_freq_factor is not below high_freq_factor")
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float32) / np.float32(self.head_dim)
        frequencies = 1.0 / np.power(np.float32(self._rope_theta), exponents)
        turns = n_ctx_old * frequencies.astype(np.float64) / (2 * math.pi)
        smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
        divisors: np.ndarray[tuple[int], np.dtype[np.float32]] = (1 / ((1 - smooth) / factor + smooth)).astype(
            np.float32
        )
        return divisors
