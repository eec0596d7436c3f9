"""What a conversion is going to do, decided before the first weight is read."""

from __future__ import annotations

from dataclasses import dataclass

from gguf import GGUFWriter

from quantize.checkpoint.tensor import TensorSource
from quantize.recipe import QType


@dataclass(frozen=True)
class Plan:
    """The header, and where each tensor of the finished file comes from and what it becomes, by GGUF name in order."""

    architecture: str
    header: GGUFWriter
    sources: dict[str, TensorSource]
    types: dict[str, QType]
    n_params: int
    """Elements of the tensors that were trained."""
    notes: tuple[str, ...] = ()
    """What the user should know, a sentence each."""

    @property
    def tensors(self) -> dict[str, tuple[QType, tuple[int, ...]]]:
        """Type and shape of each tensor, as the writer wants them."""
        return {name: (self.types[name], source.shape) for name, source in self.sources.items()}
