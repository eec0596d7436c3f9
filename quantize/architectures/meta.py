"""Llama as Meta releases it: the numbers in params.json, names of Meta's, and Q and K rows as ggml has them.

Sources: `ModelArgs` in meta-llama/llama and meta-llama/llama-models, model.py and args.py; for what params.json leaves
out, convert_llama_weights_to_hf.py of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantize.architectures.base import Architecture, ExpectedTensor
from quantize.architectures.llama import Llama
from quantize.errors import CheckpointError
from quantize.vocab import count_tokens

_NAMES = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}

_IN_LAYER = re.compile(r"^model\.(layers\.\d+\.)")

_NOT_READ = ("quantization_args", "lora_args", "vision_model", "moe_args", "moe", "head_dim", "hidden_dim")
"""Keys of releases that hold something else than a plain Llama: quantized, with images or experts, or Mistral's."""

_ROPE_3_1 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 8192}  # fmt: skip


class MetaLlama(Llama):
    """Llama 1, 2, 3, 3.1, 3.2 and 3.3 and Code Llama from params.json → `llama`.

    params.json has no context length, and of the rope scaling only whether there is one. Both follow from what tells
    the families apart; the first that fits is taken:

    ==================================  ===========================  ==============  ==================
    says                                which is                     context length  rope scaling
    ==================================  ===========================  ==============  ==================
    use_scaled_rope, dim below 4096     Llama 3.2 1B and 3B          131072          `llama3`, 32 times
    use_scaled_rope                     Llama 3.1, 3.3               131072          `llama3`, 8 times
    rope_theta 500000                   Llama 3                      8192
    any other rope_theta but 10000      Code Llama                   16384
    norm_eps 1e-6                       Llama 1 7B to 30B            2048
    dim 8192 without n_kv_heads         Llama 1 65B                  2048
    nothing of these                    Llama 2                      4096
    ==================================  ===========================  ==============  ==================

    The first params.json of Llama 2 7B had norm_eps 1e-6 by mistake; such a copy passes for Llama 1. A vocab_size of -1
    means: as many as the tokenizer has.
    """

    permutes = False

    def __init__(self, config: Mapping[str, Any], config_path: Path) -> None:
        """See `Architecture`; `tie_word_embeddings` is no key of Meta's, but found by looking at the weights."""
        Architecture.__init__(self, config, config_path)
        for key in _NOT_READ:
            if config.get(key) is not None:
                raise CheckpointError(config_path, f"has {key}, which no plain Llama of Meta's has")
        super().__init__(self._in_words_of_hugging_face(), config_path)

    def expected_tensors(self) -> Sequence[ExpectedTensor]:
        """See `Architecture`."""
        return [replace(tensor, hf_name=_meta_name(tensor.hf_name)) for tensor in super().expected_tensors()]

    def is_redundant(self, hf_name: str) -> bool:
        """See `Architecture`; in Meta's form tied models have the output matrix all the same."""
        return self.tied and hf_name == "output.weight"

    def _in_words_of_hugging_face(self) -> dict[str, Any]:
        n_context, rope_scaling = self._inferred()
        n_head = self._integer("n_heads")
        return {
            "vocab_size": self._count_vocabulary(),
            "hidden_size": self._integer("dim"),
            "intermediate_size": self._feed_forward_width(),
            "num_hidden_layers": self._integer("n_layers"),
            "num_attention_heads": n_head,
            "num_key_value_heads": self._integer("n_kv_heads", default=n_head),
            "rms_norm_eps": self._float("norm_eps", 1e-5),
            "rope_theta": self._float("rope_theta", 10000.0),
            "max_position_embeddings": n_context,
            "rope_scaling": rope_scaling,
            "tie_word_embeddings": self._config.get("tie_word_embeddings"),
        }

    def _inferred(self) -> tuple[int, dict[str, Any] | None]:
        """Context length and rope scaling, by the table above."""
        dim, rope_theta = self._integer("dim"), self._float("rope_theta", 10000.0)
        table: tuple[tuple[bool, int, float | None], ...] = (
            (self._scales_rope and dim < 4096, 131072, 32.0),
            (self._scales_rope, 131072, 8.0),
            (rope_theta == 500000.0, 8192, None),
            (rope_theta != 10000.0, 16384, None),
            (self._float("norm_eps", 1e-5) < 5e-6, 2048, None),
            (dim == 8192 and self._config.get("n_kv_heads") is None, 2048, None),
            (True, 4096, None),
        )
        n_context, factor = next((n_context, factor) for fits, n_context, factor in table if fits)
        return n_context, {**_ROPE_3_1, "factor": factor} if factor else None

    @property
    def _scales_rope(self) -> bool:
        return self._config.get("use_scaled_rope") is True

    def _count_vocabulary(self) -> int:
        if self._config.get("vocab_size") in (None, -1):
            return count_tokens(self._config_path.parent)
        return self._integer("vocab_size")

    def _feed_forward_width(self) -> int:
        """Two thirds of four times the width, times a factor, rounded up; as `FeedForward` in Meta's model.py."""
        multiple_of, factor = self._integer("multiple_of", default=256), self._config.get("ffn_dim_multiplier")
        width = int(2 * 4 * self._integer("dim") / 3)
        if factor is not None:
            width = int(self._float("ffn_dim_multiplier", 1.0) * width)
        return multiple_of * -(-width // multiple_of)


def _meta_name(hf_name: str) -> str:
    _, layer, name = _IN_LAYER.split(hf_name) if _IN_LAYER.match(hf_name) else ("", "", hf_name)
    return f"{layer}{_NAMES[name.removesuffix('.weight')]}.weight"
