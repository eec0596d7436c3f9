"""Tensors that a model-parallel checkpoint has in pieces, one a shard, read as the whole they were cut from.

The pieces have one shape and one number format; whoever builds these has checked that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from quantize.checkpoint.tensor import FileTensor, PermutedRows, StackedRows, TensorSource
from quantize.ggml import Buffer, is_finite, row_size


@dataclass(frozen=True)
class ConcatenatedRows:
    """Matrices (rows, columns) one below the other; `path` stands for the files of all of them."""

    name: str
    path: Path
    parts: tuple[TensorSource, ...]
    row_group: int = 1

    @property
    def stack(self) -> StackedRows:
        """The same rows in the same order, with the number of parts as a dimension of its own."""
        return StackedRows(self.name, self.parts)

    @property
    def shape(self) -> tuple[int, ...]:
        """See `TensorSource`."""
        n_parts, n_rows, n_columns = self.stack.shape
        return (n_parts * n_rows, n_columns)

    @property
    def qtype(self) -> GGMLQuantizationType:
        """See `TensorSource`."""
        return self.parts[0].qtype

    def read_rows(self, first: int, n_rows: int, out: Buffer) -> None:
        """See `TensorSource`; the rows may belong to several of the parts."""
        self.stack.read_rows(first, n_rows, out)


@dataclass(frozen=True)
class ConcatenatedColumns:
    """Matrices (rows, columns) side by side; `path` stands for the files of all of them."""

    name: str
    path: Path
    parts: tuple[TensorSource, ...]
    row_group: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """See `TensorSource`."""
        n_rows, n_columns = self.parts[0].shape
        return (n_rows, len(self.parts) * n_columns)

    @property
    def qtype(self) -> GGMLQuantizationType:
        """See `TensorSource`."""
        return self.parts[0].qtype

    def read_rows(self, first: int, n_rows: int, out: Buffer) -> None:
        """See `TensorSource`; every part has a piece of every row."""
        n_piece_bytes = row_size(self.qtype, self.parts[0].shape[-1])
        size = n_rows * n_piece_bytes
        rows = out[: size * len(self.parts)].reshape(n_rows, len(self.parts), n_piece_bytes)
        pieces = np.empty(size, np.uint8)
        for i_part, part in enumerate(self.parts):
            part.read_rows(first, n_rows, pieces)
            rows[:, i_part] = pieces.reshape(n_rows, n_piece_bytes)


def origin(source: TensorSource, first: int, n_rows: int) -> tuple[Path, str]:
    """File and name in the checkpoint of what rows of `source` come from, for error messages."""
    parts = [part for part, _, _ in _parts(source, first, n_rows)]
    return (parts[0].path, parts[0].name) if len(parts) == 1 else (source.path, source.name)


def find_not_finite(source: TensorSource, first: int, n_rows: int) -> tuple[Path, str]:
    """As `origin`, but of the one part that has NaN or infinity in those rows, which are known to hold some."""
    for part, first_here, n_here in _parts(source, first, n_rows):
        rows = np.empty(n_here * row_size(part.qtype, part.shape[-1]), np.uint8)
        part.read_rows(first_here, n_here, rows)
        if not is_finite(rows, part.qtype):
            return part.path, part.name
    return source.path, source.name


def _parts(source: TensorSource, first: int, n_rows: int) -> Iterator[tuple[TensorSource, int, int]]:
    """What rows of `source` are read from, with the rows there: first and number."""
    match source:
        case ConcatenatedRows():
            yield from _parts(source.stack, first, n_rows)
        case StackedRows():
            while n_rows:
                i_part, i_row = divmod(first, source.n_part_rows)
                n_here = min(n_rows, source.n_part_rows - i_row)
                yield source.parts[i_part], i_row, n_here
                first, n_rows = first + n_here, n_rows - n_here
        case ConcatenatedColumns():
            yield from ((part, first, n_rows) for part in source.parts)
        case _:
            yield source, first, n_rows


def files_of(source: TensorSource) -> frozenset[Path]:
    """The weight files that rows of `source` are read from."""
    match source:
        case FileTensor():
            return frozenset((source.path,))
        case PermutedRows():
            return files_of(source.source)
        case StackedRows() | ConcatenatedRows() | ConcatenatedColumns():
            return frozenset().union(*map(files_of, source.parts))
        case _:
            return frozenset()
