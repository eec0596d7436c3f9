"""What an architecture has to say about itself so that its checkpoints can be converted.

An architecture reads config.json into numbers, lists the tensors those numbers promise, and writes the numbers
as GGUF keys. It never touches weights: the pipeline compares the list with what the checkpoint holds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFValueType

from quantize.checkpoint.tensor import ComputedTensor
from quantize.errors import CheckpointError, shown
from quantize.recipe import ModelTraits


@dataclass(frozen=True)
class HeaderValue:
    """One key of the GGUF header."""

    key: str
    value: Any
    vtype: GGUFValueType


@dataclass(frozen=True)
class ExpectedTensor:
    """A tensor the config promises: its name there, its name in GGUF, its shape, and how its rows are ordered.

    Where the checkpoint has one tensor an expert and GGUF one for all, this is the promise of all of them: `hf_name`
    has `{}` in place of the expert's number, and `shape` is that of each.
    """

    hf_name: str
    gguf_name: str
    shape: tuple[int, ...]
    permute_heads: int | None = None
    """Number of heads whose rows are interleaved for ggml's RoPE; None leaves the rows as they are."""
    n_expert: int | None = None
    """Number of tensors in the checkpoint that are stacked into this one; None if it is one there, too."""

    @property
    def gguf_shape(self) -> tuple[int, ...]:
        """The shape in GGUF: stacked tensors have one more dimension, their number."""
        return self.shape if self.n_expert is None else (self.n_expert, *self.shape)

    @property
    def hf_names(self) -> list[str]:
        """The names in the checkpoint: one, or one an expert."""
        return [self.hf_name] if self.n_expert is None else [self.hf_name.format(i) for i in range(self.n_expert)]


class Architecture(ABC):
    """One model family, made from its config.json."""

    gguf_name: str
    hf_names: tuple[str, ...]

    def __init__(self, config: Mapping[str, Any], config_path: Path) -> None:
        """Read and check the numbers; raise `CheckpointError` for missing or impossible ones."""
        self._config = config
        self._config_path = config_path

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of how llama.cpp runs this model, a sentence each."""
        return ()

    @property
    @abstractmethod
    def n_vocab(self) -> int:
        """Rows of the embedding matrix; the tokenizer is padded up to it."""

    @property
    @abstractmethod
    def traits(self) -> ModelTraits:
        """What the choice of tensor types depends on."""

    @abstractmethod
    def header(self) -> list[HeaderValue]:
        """The hyperparameters as GGUF keys."""

    @abstractmethod
    def expected_tensors(self) -> Sequence[ExpectedTensor]:
        """Every tensor the checkpoint must hold."""

    def computed_tensors(self) -> Mapping[str, ComputedTensor]:
        """Tensors the GGUF needs that no checkpoint holds, by GGUF name."""
        return {}

    def is_redundant(self, hf_name: str) -> bool:
        """Whether a surplus tensor of the checkpoint may be left out because it can be recomputed."""
        return hf_name.endswith((".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias"))

    def _integer(self, key: str, default: int | None = None) -> int:
        value = self._config.get(key)
        value = default if value is None else value
        if type(value) is not int or not 0 < value < 2**31:
            raise CheckpointError(self._config_path, f"{key} is {shown(value)}, which is not a positive number")
        return value

    def _float(self, key: str, default: float) -> float:
        return positive(self._config.get(key, default), key, self._config_path)


def positive(value: Any, key: str, path: Path) -> float:
    """Return `value` as a float if it is a positive, finite number; raise `CheckpointError` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-30 < value < 1e30:
        raise CheckpointError(path, f"{key} is {shown(value)}, which is not a positive number")
    return float(value)
