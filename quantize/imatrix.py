"""Importance matrices: how much each input column of a tensor counts, as llama-imatrix measured it on some text.

Both formats: GGUF (sums of squared activations and how many, by tensor) and the older one, usually `.dat` (their
means, times a number of calls). Values are read when a tensor of the model asks for them, after their number was
compared with its shape; so memory is bounded by the model. The file is hostile until proven otherwise.
Source: common/imatrix-loader.cpp, and `load_imatrix` and the keys in tools/quantize/quantize.cpp of llama.cpp.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUFValueType, GGUFWriter, Keys

from quantize.checkpoint.files import open_file, reading
from quantize.checkpoint.tensor import FileTensor, count_elements
from quantize.errors import CheckpointError, ImatrixError, shown
from quantize.ggml import Floats
from quantize.gguf_reader import GGUFContents, is_gguf, open_gguf
from quantize.plan import Plan
from quantize.recipe import QType

_SUMS, _COUNTS = ".in_sum2", ".counts"
_MAX_ENTRIES, _MAX_NAME_BYTES = 100_000, 1000
_MAX_HEADER_TEXT_BYTES = 127
"""What llama-quantize keeps of a text: a field of 128 bytes, with its end."""

_OTHER_MODEL = "Use an importance matrix of this very model: llama-imatrix makes one from its F16 or Q8_0 GGUF."


@dataclass(frozen=True)
class Entry:
    """What is known of one tensor: `counts` in a GGUF file, `n_calls` in an older one."""

    sums: FileTensor
    counts: FileTensor | None
    n_calls: int = 0

    @property
    def n_values(self) -> int:
        """Columns of the tensor, times its experts."""
        return count_elements(self.sums.shape)


@dataclass(frozen=True)
class Imatrix:
    """An open importance matrix: entries by the GGUF name of the tensor, and where they come from."""

    path: Path
    entries: Mapping[str, Entry]
    dataset: str | None
    n_chunks: int

    def rows(self, name: str, shape: tuple[int, ...]) -> Floats:
        """Return one row of importances for each matrix of a tensor that has an entry (matrices × columns).

        Raises `ImatrixError` if the entry is of another shape, or holds what cannot be a mean of squares.
        """
        entry, n_matrices = self.entries[name], count_elements(shape[:-2])
        if entry.n_values != n_matrices * shape[-1]:
            problem = f"has {entry.n_values} values for tensor {shown(name)}, which takes {n_matrices * shape[-1]}"
            raise ImatrixError(self.path, problem, _OTHER_MODEL)
        with _refusing(self.path):
            sums = _read(entry.sums)
            if not np.isfinite(sums).all() or (sums < 0).any():
                raise ImatrixError(self.path, f"holds NaN, infinite or negative values for tensor {shown(name)}")
            if entry.counts is None:
                means = sums / np.float32(max(1, entry.n_calls))
            else:
                means = _divide(sums, self._read_counts(name, entry.counts, sums.size))
        return means.reshape(n_matrices, shape[-1])

    def _read_counts(self, name: str, stored: FileTensor, n_sums: int) -> Floats:
        """How often each expert was used; a tensor may also have one count for all."""
        if n_sums % count_elements(stored.shape) == 0:
            counts = _read(stored)
            if ((counts >= 0) & (counts < 2**63)).all():
                return np.floor(counts.astype(np.float64) + 0.5).astype(np.float32)
        raise ImatrixError(self.path, f"has impossible counts for tensor {shown(name)}")


def _divide(sums: Floats, counts: Floats) -> Floats:
    """Sums → means, expert by expert; one that was never used gets 1 for every column."""
    by_expert, divisors = sums.reshape(counts.size, -1), counts.reshape(-1, 1)
    return np.divide(by_expert, divisors, out=np.ones_like(by_expert), where=divisors > 0)


def _read(tensor: FileTensor) -> Floats:
    out = np.empty(tensor.size_bytes, np.uint8)
    tensor.read_rows(0, count_elements(tensor.shape[:-1]), out)
    return out.view(np.float32)


@contextmanager
def open_imatrix(path: Path) -> Iterator[Imatrix]:
    """Open an importance matrix for the length of the context; raise `ImatrixError` for what is none or is damaged."""
    with ExitStack() as stack:
        with _refusing(path):
            if is_gguf(path):
                imatrix = _from_gguf(stack.enter_context(open_gguf(path)))
            else:
                fd = open_file(path)
                stack.callback(os.close, fd)
                with open(fd, "rb", closefd=False) as file, reading(path):
                    imatrix = _LegacyReader(path, file, fd).read()
        yield imatrix


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Whatever is wrong with a file is wrong with the importance matrix here, not with the checkpoint."""
    try:
        yield
    except CheckpointError as error:
        raise ImatrixError(path, error.problem) from error


def _from_gguf(contents: GGUFContents) -> Imatrix:
    for key in (Keys.IMatrix.DATASETS, Keys.IMatrix.CHUNK_COUNT, Keys.IMatrix.CHUNK_SIZE):
        if key not in contents.encoded:
            raise ImatrixError(contents.path, f"is a GGUF file, but no importance matrix: it has no key {key}")
    n_chunks = contents.values.get(Keys.IMatrix.CHUNK_COUNT)
    if type(n_chunks) is not int:
        raise ImatrixError(contents.path, f"the key {Keys.IMatrix.CHUNK_COUNT} is {shown(n_chunks)}, not a number")
    sums, counts = _by_tensor(contents, _SUMS), _by_tensor(contents, _COUNTS)
    for name in sorted(sums.keys() ^ counts.keys()):
        raise ImatrixError(contents.path, f"has only one of {_SUMS} and {_COUNTS} for tensor {shown(name)}")
    if not sums:
        raise ImatrixError(contents.path, "holds nothing about any tensor")
    for tensor in (*sums.values(), *counts.values()):
        if tensor.qtype != QType.F32:
            raise ImatrixError(contents.path, f"{shown(tensor.name)} is stored as {tensor.qtype.name}, not as F32")
    entries = {name: Entry(sums[name], counts[name]) for name in sums}
    return Imatrix(contents.path, entries, contents.first_text(Keys.IMatrix.DATASETS), n_chunks)


def _by_tensor(contents: GGUFContents, suffix: str) -> dict[str, FileTensor]:
    stored = contents.tensors
    return {name.removesuffix(suffix): stored[name] for name in stored if name.endswith(suffix)}


class _LegacyReader:
    """Reads forward through an older file: a number of entries, each a name, calls and values; chunks and dataset."""

    def __init__(self, path: Path, file: BinaryIO, fd: int) -> None:
        self._path, self._file, self._fd = path, file, fd
        self._size = os.fstat(fd).st_size
        self._position = 0

    def read(self) -> Imatrix:
        n_entries = self._number()
        if not 0 < n_entries <= _MAX_ENTRIES:
            raise ImatrixError(self._path, f"is no importance matrix: it would have {n_entries} entries")
        # A name that comes twice counts as it comes last, as in llama.cpp.
        entries = dict(self._entry() for _ in range(n_entries))
        n_chunks = self._number() if self._n_left else 0
        n_bytes = self._number() if self._n_left else 0
        dataset = self._text(n_bytes).decode(errors="replace") if n_bytes > 0 else None
        return Imatrix(self._path, entries, dataset, n_chunks)

    def _entry(self) -> tuple[str, Entry]:
        n_bytes = self._number()
        if not 0 <= n_bytes <= _MAX_NAME_BYTES:
            raise ImatrixError(self._path, f"is no importance matrix, or damaged: a name would have {n_bytes} bytes")
        try:
            name = self._text(n_bytes).decode()
        except UnicodeDecodeError:
            raise ImatrixError(self._path, "is no importance matrix, or damaged: a name is not UTF-8") from None
        n_calls, n_values = self._number(), self._number()
        if n_calls < 0 or n_values < 1:
            problem = f"is damaged: {n_calls} calls and {n_values} values for tensor {shown(name)}"
            raise ImatrixError(self._path, problem)
        sums = FileTensor(name, (n_values,), QType.F32, self._path, self._fd, self._position)
        self._skip(sums.size_bytes)
        return name, Entry(sums, None, n_calls)

    @property
    def _n_left(self) -> int:
        return self._size - self._position

    def _number(self) -> int:
        number: int = struct.unpack("<i", self._take(4))[0]
        return number

    def _text(self, n_bytes: int) -> bytes:
        """A text, which ends at a zero as in C, of which no more is read than is of use."""
        kept = min(n_bytes, _MAX_NAME_BYTES)
        text = self._take(kept)
        self._skip(n_bytes - kept)
        return text.partition(b"\0")[0]

    def _take(self, n_bytes: int) -> bytes:
        self._require(n_bytes)
        data = self._file.read(n_bytes)
        if len(data) != n_bytes:
            self._require(self._size + 1)
        self._position += n_bytes
        return data

    def _skip(self, n_bytes: int) -> None:
        self._require(n_bytes)
        self._position += n_bytes
        self._file.seek(self._position)

    def _require(self, n_bytes: int) -> None:
        if n_bytes > self._n_left:
            raise ImatrixError(self._path, "is no importance matrix, or truncated")


def with_importance(plan: Plan, imatrix: Imatrix) -> Plan:
    """Give the tensors of a plan their importances, and its header the keys that say so.

    Tensors without an entry are quantized without one, and so are embeddings that have one of another size; any
    other wrong size raises `ImatrixError`, as does a matrix that knows none of the tensors.
    """
    if not plan.sources.keys() & imatrix.entries.keys():
        problem = f"knows none of this model's tensors, but {shown(min(imatrix.entries))}"
        raise ImatrixError(imatrix.path, problem, _OTHER_MODEL)
    importance = {}
    for name, source in plan.sources.items():
        entry, qtype = imatrix.entries.get(name), plan.outline.types[name]
        if entry is None or qtype == source.qtype:
            continue
        if name == "token_embd.weight" and entry.n_values != source.shape[-1]:
            continue
        rows = imatrix.rows(name, source.shape)
        if _heeds_importance(qtype):
            importance[name] = rows
    _write_keys(plan.outline.header, imatrix)
    return replace(plan, importance=importance)


def _heeds_importance(qtype: QType) -> bool:
    return GGML_QUANT_SIZES[qtype][0] > 1 and qtype != QType.Q8_0


def _write_keys(writer: GGUFWriter, imatrix: Imatrix) -> None:
    """As llama-quantize does: at the end of the header, and only what is known."""
    text, number = GGUFValueType.STRING, GGUFValueType.UINT32
    values: dict[str, tuple[str | int, GGUFValueType]] = {"file": (_shorten(str(imatrix.path)), text)}
    if imatrix.dataset is not None:
        values["dataset"] = (_shorten(imatrix.dataset), text)
    values["entries_count"] = (len(imatrix.entries), number)
    if 0 < imatrix.n_chunks < 2**31:
        values["chunks_count"] = (imatrix.n_chunks, number)
    for name, (value, kind) in values.items():
        writer.kv_data[0].pop(f"quantize.imatrix.{name}", None)
        writer.add_key_value(f"quantize.imatrix.{name}", value, kind)


def _shorten(text: str) -> str:
    """The bytes that llama-quantize keeps of a text, but no half character: a GGUF string is Unicode."""
    encoded = text.partition("\0")[0].encode(errors="replace")
    return encoded[:_MAX_HEADER_TEXT_BYTES].decode(errors="ignore")
