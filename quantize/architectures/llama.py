"""Llama 1, 2 and 3, Mistral, and the many fine-tunes that share their shape.

Sources: `LlamaForCausalLM` and `MistralForCausalLM` of transformers; conversion/llama.py and src/models/llama.cpp of
llama.cpp, which runs Mistral 7B as a Llama and does not narrow its attention to a sliding window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from quantize.architectures.decoder import Decoder
from quantize.checkpoint.tensor import ComputedTensor
from quantize.errors import CheckpointError


class Llama(Decoder):
    """`LlamaForCausalLM`, `MistralForCausalLM` → `llama`."""

    gguf_name = "llama"
    hf_names: tuple[str, ...] = ("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM")
    permutes = True
    takes_attention_bias = True
    rope_types = (*Decoder.rope_types, "llama3")

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Architecture`."""
        window = self._config.get("sliding_window")
        if type(window) is not int or window >= self.n_ctx:
            return ()
        return (
            f"llama.cpp does not narrow this model's attention to its sliding window of {window:,} tokens; "
            "beyond so many its answers may differ from the original's.",
        )

    def computed_tensors(self) -> Mapping[str, ComputedTensor]:
        """Llama 3.1's stretched rotation frequencies, as the divisors ggml expects."""
        if self._rope_type != "llama3":
            return {}
        return {"rope_freqs.weight": ComputedTensor("rope_freqs", self._config_path, self._llama3_rope_divisors())}

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
