"""A tensor that has not been read yet: where its rows are, and how to get some of them.

Weights are larger than memory, so nothing here holds a whole tensor. A `TensorSource` hands out runs of rows as
raw bytes; wrapping one in another (`PermutedRows`) changes the order of rows without touching the rest.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from quantize.errors import TensorError
from quantize.ggml import Buffer, row_size

ITEM_SIZES = {GGMLQuantizationType.F32: 4, GGMLQuantizationType.F16: 2, GGMLQuantizationType.BF16: 2}


class TensorSource(Protocol):
    """Rows of a tensor, read on demand."""

    @property
    def name(self) -> str:
        """Name in the checkpoint, for error messages."""

    @property
    def path(self) -> Path:
        """The file it comes from, for error messages."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions in NumPy order: the last one is the row length."""

    @property
    def qtype(self) -> GGMLQuantizationType:
        """F32, F16 or BF16; from a GGUF file any other type as well."""

    @property
    def row_group(self) -> int:
        """Rows come only in multiples of this many."""

    def read_rows(self, first: int, n_rows: int, out: Buffer) -> None:
        """Fill `out` (n_rows × row bytes) with the rows from `first` on. Safe from several threads."""


@dataclass(frozen=True)
class FileTensor:
    """A tensor stored contiguously in a file that stays open as `fd`."""

    name: str
    shape: tuple[int, ...]
    qtype: GGMLQuantizationType
    path: Path
    fd: int
    offset: int
    row_group: int = 1

    @property
    def size_bytes(self) -> int:
        """Bytes the tensor takes in its file."""
        block_size, type_size = GGML_QUANT_SIZES[self.qtype]
        return count_elements(self.shape) // block_size * type_size

    def read_rows(self, first: int, n_rows: int, out: Buffer) -> None:
        """See `TensorSource`; a file that has become shorter since it was opened raises `TensorError`."""
        n_row_bytes = row_size(self.qtype, self.shape[-1])
        view = out[: n_rows * n_row_bytes].data
        position = self.offset + first * n_row_bytes
        while view:
            try:
                n_read = os.preadv(self.fd, [view], position)
            except OSError as error:
                raise TensorError(self.path, self.name, f"cannot be read ({error.strerror})") from error
            if n_read == 0:
                raise TensorError(self.path, self.name, "ends early: the file has become shorter")
            view, position = view[n_read:], position + n_read


@dataclass(frozen=True)
class ComputedTensor:
    """A small F32 tensor that the architecture adds, such as `rope_freqs`."""

    name: str
    path: Path
    values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
    qtype: GGMLQuantizationType = GGMLQuantizationType.F32
    row_group: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """See `TensorSource`."""
        return self.values.shape

    def read_rows(self, first: int, n_rows: int, out: Buffer) -> None:
        """See `TensorSource`."""
        rows = self.values.reshape(-1, self.shape[-1])[first : first + n_rows]
        out[: rows.nbytes] = np.ascontiguousarray(rows).view(np.uint8).reshape(-1)


@dataclass(frozen=True)
class PermutedRows:
    """Q or K rows reordered from Hugging Face's RoPE layout to ggml's.

    Hugging Face rotates (x[i], x[i + d/2]) of a head of size d, ggml rotates neighbours (x[2i], x[2i + 1]), so
    within each head the two halves are interleaved. For K the heads are the key-value heads. In a vector, a bias, the
    elements are reordered as the rows of the matrix are.
    Source: `LlamaModel.permute` in llama.cpp's conversion/llama.py.
    """

    source: TensorSource
    n_head: int

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
    def qtype(self) -> GGMLQuantizationType:
        """See `TensorSource`."""
        return self.source.qtype

    @property
    def row_group(self) -> int:
        """A whole head; a vector is one row."""
        return 1 if len(self.shape) == 1 else self._head_size

    @property
    def _head_size(self) -> int:
        return self.shape[0] // self.n_head

    def read_rows(self, first: int, n_rows: int, out: Buffer) -> None:
        """See `TensorSource`; `first` and `n_rows` are whole heads."""
        n_row_bytes = ITEM_SIZES[self.qtype] * count_elements(self.shape[1:])
        n_reordered = self.shape[0] if len(self.shape) == 1 else n_rows
        size, half = n_reordered * n_row_bytes, self._head_size // 2
        halves = np.empty(size, np.uint8)
        self.source.read_rows(first, n_rows, halves)
        grouped = halves.reshape(n_reordered // self._head_size, 2, half, n_row_bytes)
        np.copyto(out[:size].reshape(grouped.shape[0], half, 2, n_row_bytes), grouped.swapaxes(1, 2))


@dataclass(frozen=True)
class StackedRows:
    """Tensors of one shape and format, one behind the other as one tensor with one more dimension: the experts.

    `name` says which ones they are; where there is trouble with one of them, `merged.origin` knows its own.
    """

    name: str
    parts: tuple[TensorSource, ...]

    @property
    def path(self) -> Path:
        """See `TensorSource`."""
        return self.parts[0].path

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of tensors, then the shape of each."""
        return (len(self.parts), *self.parts[0].shape)

    @property
    def qtype(self) -> GGMLQuantizationType:
        """See `TensorSource`."""
        return self.parts[0].qtype

    @property
    def row_group(self) -> int:
        """See `TensorSource`."""
        return 1

    @property
    def n_part_rows(self) -> int:
        """Rows of each tensor."""
        return count_elements(self.parts[0].shape[:-1])

    def read_rows(self, first: int, n_rows: int, out: Buffer) -> None:
        """See `TensorSource`; the rows may belong to several of the tensors."""
        n_row_bytes = row_size(self.qtype, self.shape[-1])
        while n_rows:
            i_part, i_row = divmod(first, self.n_part_rows)
            n_here = min(n_rows, self.n_part_rows - i_row)
            self.parts[i_part].read_rows(i_row, n_here, out[: n_here * n_row_bytes])
            first, n_rows, out = first + n_here, n_rows - n_here, out[n_here * n_row_bytes :]


def count_elements(shape: tuple[int, ...]) -> int:
    """Product of the dimensions, in Python's unbounded integers: shapes come from files."""
    n_elements = 1
    for dimension in shape:
        n_elements *= dimension
    return n_elements
