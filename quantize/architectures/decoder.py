"""What the Llama-like families have in common: numbers, tensor names, rope scaling.

A decoder with RMS norms, grouped-query attention and a gated feed-forward net. A family says in class attributes
how it differs. Sources: the models of transformers for names and layout, conversion/ and src/models/ of llama.cpp
for the GGUF side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFValueType, Keys, RopeScalingType

from quantize.architectures.base import Architecture, ExpectedTensor, HeaderValue, positive
from quantize.errors import CheckpointError, shown
from quantize.recipe import ModelTraits

_MAX_COLUMNS = 1_000_000
"""Twenty times what the largest models have. A row is read whole, and a file of zeros takes no room on a disk."""
_YARN_SETTINGS = ("type", "rope_type", "rope_theta", "factor", "original_max_position_embeddings", "finetuned")
_YARN_DEFAULTS = {"beta_fast": 32, "beta_slow": 1, "truncate": True, "partial_rotary_factor": 1}
_OTHER_SCALING = "Look for a version of the model with linear, llama3 or plain yarn scaling, or with none."
_NEXT_STEPS = {"dynamic": "Take rope_scaling out of config.json: below max_position_embeddings it changes nothing."}


class Decoder(Architecture):
    """A Llama-like model. Subclasses name themselves and set what differs."""

    permutes = False
    """Whether Q and K rows are interleaved for ggml's first kind of RoPE (`PermutedRows`)."""
    qkv_bias = False
    """Whether Q, K and V always have biases."""
    takes_attention_bias = False
    """Whether all four projections of the attention have biases where config.json says `attention_bias`."""
    qk_norm = False
    """Whether Q and K are normalized head by head."""
    rope_types: tuple[str, ...] = ("default", "linear", "yarn")
    """The kinds of rope scaling that can be expressed."""

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
        self.attention_bias = bool(config.get("attention_bias", False))
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
        elif max(self.n_embd, self.n_ff, self.n_head * self.head_dim) > _MAX_COLUMNS:
            problem = f"matrices of more than {_MAX_COLUMNS} columns are not believable"
        elif self.n_vocab > 2_000_000:
            problem = f"a vocabulary of {self.n_vocab} is not believable"
        elif self._config.get("hidden_act", "silu") != "silu":
            problem = f"the activation {shown(self._config['hidden_act'])} is not silu"
        elif (self.attention_bias and not self.takes_attention_bias) or self._config.get("mlp_bias"):
            problem = "has biases where this architecture has none"
        if problem:
            raise CheckpointError(self._config_path, problem)

    @property
    def n_vocab(self) -> int:
        """See `Architecture`."""
        return self._n_vocab

    @property
    def traits(self) -> ModelTraits:
        """See `Architecture`."""
        return ModelTraits(self.n_layer, self.n_head, self.n_head_kv, architecture=self.gguf_name)

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
        vector = (self.n_embd,)
        return [
            ExpectedTensor(f"{hf}.input_layernorm.weight", f"{gguf}.attn_norm.weight", vector),
            *self._attention(f"{hf}.self_attn", gguf),
            ExpectedTensor(f"{hf}.post_attention_layernorm.weight", f"{gguf}.ffn_norm.weight", vector),
            *self._feed_forward(hf, gguf),
        ]

    def _feed_forward(self, hf: str, gguf: str) -> Iterable[ExpectedTensor]:
        """The feed-forward net of one layer, whose tensors' names start with `hf` and `gguf`."""
        return (
            ExpectedTensor(f"{hf}.mlp.gate_proj.weight", f"{gguf}.ffn_gate.weight", (self.n_ff, self.n_embd)),
            ExpectedTensor(f"{hf}.mlp.up_proj.weight", f"{gguf}.ffn_up.weight", (self.n_ff, self.n_embd)),
            ExpectedTensor(f"{hf}.mlp.down_proj.weight", f"{gguf}.ffn_down.weight", (self.n_embd, self.n_ff)),
        )

    def _attention(self, hf: str, gguf: str) -> Iterator[ExpectedTensor]:
        n_q, n_kv = self.n_head * self.head_dim, self.n_head_kv * self.head_dim
        for letter, n_rows, n_head in (("q", n_q, self.n_head), ("k", n_kv, self.n_head_kv), ("v", n_kv, None)):
            heads = n_head if self.permutes else None
            yield ExpectedTensor(
                f"{hf}.{letter}_proj.weight", f"{gguf}.attn_{letter}.weight", (n_rows, self.n_embd), heads
            )
            if self.qkv_bias or self.attention_bias:
                yield ExpectedTensor(f"{hf}.{letter}_proj.bias", f"{gguf}.attn_{letter}.bias", (n_rows,), heads)
            if self.qk_norm and n_head:
                yield ExpectedTensor(
                    f"{hf}.{letter}_norm.weight", f"{gguf}.attn_{letter}_norm.weight", (self.head_dim,)
                )
        yield ExpectedTensor(f"{hf}.o_proj.weight", f"{gguf}.attn_output.weight", (self.n_embd, n_q))
        if self.attention_bias:
            yield ExpectedTensor(f"{hf}.o_proj.bias", f"{gguf}.attn_output.bias", (self.n_embd,))

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
        if self._rope_type not in self.rope_types:
            problem = f"the rope scaling {self._rope_type} is not supported"
            raise CheckpointError(self._config_path, problem, _NEXT_STEPS.get(self._rope_type, _OTHER_SCALING))
        if self._rope_type not in ("linear", "yarn"):
            return []
        values = [
            HeaderValue(Keys.Rope.SCALING_TYPE, RopeScalingType(self._rope_type).value, GGUFValueType.STRING),
            HeaderValue(Keys.Rope.SCALING_FACTOR, self._rope_number("factor", 1.0), GGUFValueType.FLOAT32),
        ]
        if self._rope_type == "yarn":
            values.append(HeaderValue(Keys.Rope.SCALING_ORIG_CTX_LEN, self._yarn_context(), GGUFValueType.UINT32))
        return values

    def _yarn_context(self) -> int:
        """The context of the model before it was stretched; llama.cpp has YaRN's other settings at their defaults."""
        scaling = self._rope_scaling
        for key, value in scaling.items():
            if key not in _YARN_SETTINGS and value not in (None, _YARN_DEFAULTS.get(key)):
                problem = f"yarn with {shown(key)} {shown(value)} is not supported"
                raise CheckpointError(self._config_path, problem, _OTHER_SCALING)
        n_ctx = scaling.get("original_max_position_embeddings")
        if type(n_ctx) is not int or not 0 < n_ctx < 2**31:
            raise CheckpointError(self._config_path, f"original_max_position_embeddings is {shown(n_ctx)}")
        return n_ctx
