"""Qwen2, Qwen2.5 and Qwen3.

Sources: `Qwen2ForCausalLM` and `Qwen3ForCausalLM` of transformers; conversion/qwen.py of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantize.architectures.decoder import Decoder
from quantize.errors import CheckpointError


class Qwen2(Decoder):
    """`Qwen2ForCausalLM` → `qwen2`: biases on Q, K and V."""

    gguf_name = "qwen2"
    hf_names = ("Qwen2ForCausalLM",)
    qkv_bias = True

    def __init__(self, config: Mapping[str, Any], config_path: Path) -> None:
        """See `Architecture`."""
        super().__init__(config, config_path)
        if config.get("use_sliding_window"):
            raise CheckpointError(config_path, "use_sliding_window is on, which llama.cpp does not do for this family")


class Qwen3(Qwen2):
    """`Qwen3ForCausalLM` → `qwen3`: no biases, but norms on Q and K."""

    gguf_name = "qwen3"
    hf_names = ("Qwen3ForCausalLM",)
    qkv_bias = False
    qk_norm = True
