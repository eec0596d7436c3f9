"""LoRA's matrices as llama.cpp wants them, where that is not how PEFT stores them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from quantize import ggml
from quantize.checkpoint.tensor import ITEM_SIZES, FileTensor, TensorSource, count_elements
from quantize.ggml import Buffer


@dataclass(frozen=True)
class TransposedRows:
    """The A of embeddings, of which llama.cpp looks up one row a token.

    Source: `build_inp_embd` in src/llama-graph.cpp.
    """

    source: FileTensor
    row_group: int = 1

    @property
    def name(self) -> str:
        """See `TensorSource`."""
        return self.source.name

    @property
    def path(self) -> Path:
        """See `TensorSource`."""
        return self.source.path

    @property
    def shape(self) -> tuple[int, ...]:
        """The two dimensions of the source, changed round."""
        return self.source.shape[::-1]

    @property
    def qtype(self) -> GGMLQuantizationType:
        """See `TensorSource`."""
        return self.source.qtype

    def read_rows(self, first: int, n_rows: int, out: Buffer) -> None:
        """See `TensorSource`; reads a piece of every row of the source."""
        n_columns, n_source_rows = self.source.shape[1], self.source.shape[0]
        item_size = ITEM_SIZES[self.qtype]
        elements = replace(self.source, shape=(count_elements(self.source.shape), 1))
        pieces = np.empty((n_source_rows, n_rows, item_size), np.uint8)
        for i_row in range(n_source_rows):
            elements.read_rows(i_row * n_columns + first, n_rows, pieces[i_row].reshape(-1))
        target = out[: pieces.size].reshape(n_rows, n_source_rows, item_size)
        np.copyto(target, pieces.swapaxes(0, 1))


@dataclass(frozen=True)
class ScaledRows:
    """A tensor times a power of two, as F32: every product is exact."""

    source: TensorSource
    factor: float
    qtype: GGMLQuantizationType = GGMLQuantizationType.F32

    @property
    def name(self) -> str:
        """See `TensorSource`."""
        return self.source.name

    @property
    def path(self) -> Path:
        """See `TensorSource`."""
        return self.source.path

    @property
    def shape(self) -> tuple[int, ...]:
        """See `TensorSource`."""
        return self.source.shape

    @property
    def row_group(self) -> int:
        """See `TensorSource`."""
        return self.source.row_group

    def read_rows(self, first: int, n_rows: int, out: Buffer) -> None:
        """See `TensorSource`."""
        n_elements = n_rows * self.shape[-1]
        values = out[: n_elements * 4].view(np.float32)
        raw = out if self.source.qtype == self.qtype else np.empty(n_elements * ITEM_SIZES[self.source.qtype], np.uint8)
        self.source.read_rows(first, n_rows, raw)
        if raw is not out:
            ggml.to_f32(raw, self.source.qtype, values)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused by whoever reads this
            np.multiply(values, np.float32(self.factor), out=values)
