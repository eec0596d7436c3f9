"""What a conversion is going to do, decided before the first weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gguf import GGUFWriter

from quantize.checkpoint.tensor import TensorSource
from quantize.ggml import Floats
from quantize.recipe import QType


@dataclass(frozen=True)
class Outline:
    """The finished file: its header, and the shape and type of each tensor by GGUF name, in order."""

    architecture: str
    header: GGUFWriter
    shapes: dict[str, tuple[int, ...]]
    types: dict[str, QType]
    n_params: int
    """Elements of the tensors that were trained."""
    notes: tuple[str, ...] = ()
    """What the user should know, a sentence each."""

    @property
    def tensors(self) -> dict[str, tuple[QType, tuple[int, ...]]]:
        """Type and shape of each tensor, as the writer wants them."""
        return {name: (self.types[name], shape) for name, shape in self.shapes.items()}


@dataclass(frozen=True)
class Plan:
    """An outline, and where each of its tensors comes from."""

    outline: Outline
    sources: dict[str, TensorSource]
    importance: Mapping[str, Floats] = field(default_factory=dict)
    """How much each column counts (matrices × columns), for tensors that are quantized with an importance matrix."""
