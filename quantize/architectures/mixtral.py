"""Mixtral: a Mistral whose layers have several feed-forward nets, of which a router picks a few for each token.

Sources: `MixtralForCausalLM` of transformers; conversion/llama.py and src/models/llama.cpp of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gguf import GGUFValueType, Keys

from quantize.architectures.base import ExpectedTensor, HeaderValue
from quantize.architectures.llama import Llama
from quantize.errors import CheckpointError
from quantize.recipe import ModelTraits

_MAX_EXPERTS = 1024  # llama.cpp's LLAMA_MAX_EXPERTS: it aborts beyond


class Mixtral(Llama):
    """`MixtralForCausalLM` → `llama` with experts."""

    hf_names = ("MixtralForCausalLM",)

    def __init__(self, config: Mapping[str, Any], config_path: Path) -> None:
        """See `Architecture`."""
        super().__init__(config, config_path)
        self.n_expert = self._integer("num_local_experts", default=8)
        self.n_expert_used = self._integer("num_experts_per_tok", default=2)
        if not 2 <= self.n_expert <= _MAX_EXPERTS or self.n_expert_used > self.n_expert:
            raise CheckpointError(config_path, f"cannot use {self.n_expert_used} of {self.n_expert} experts")

    @property
    def traits(self) -> ModelTraits:
        """See `Architecture`."""
        return ModelTraits(self.n_layer, self.n_head, self.n_head_kv, self.n_expert, self.gguf_name)

    def header(self) -> list[HeaderValue]:
        """See `Architecture`."""
        counts = {Keys.LLM.EXPERT_COUNT: self.n_expert, Keys.LLM.EXPERT_USED_COUNT: self.n_expert_used}
        return super().header() + [
            HeaderValue(key.format(arch=self.gguf_name), n, GGUFValueType.UINT32) for key, n in counts.items()
        ]

    def _feed_forward(self, hf: str, gguf: str) -> Iterable[ExpectedTensor]:
        moe, inner, outer = f"{hf}.block_sparse_moe", (self.n_ff, self.n_embd), (self.n_embd, self.n_ff)
        yield ExpectedTensor(f"{moe}.gate.weight", f"{gguf}.ffn_gate_inp.weight", (self.n_expert, self.n_embd))
        for name, gguf_kind, shape in (("w1", "gate", inner), ("w3", "up", inner), ("w2", "down", outer)):
            yield ExpectedTensor(
                f"{moe}.experts.{{}}.{name}.weight",
                f"{gguf}.ffn_{gguf_kind}_exps.weight",
                shape,
                n_expert=self.n_expert,
            )
