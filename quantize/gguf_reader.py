"""Read the header of a GGUF file and hand out its tensors unread; its keys stay the bytes they are.

Own reader: gguf-py's maps the file and trusts it, and ggml's gives no bytes to copy. The file is hostile until proven
otherwise: nothing is believed before it was compared with the size of the file. Hostile input stops here.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, and ggml/src/gguf.cpp for what is refused.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from quantize.checkpoint.files import open_file, reading
from quantize.checkpoint.tensor import FileTensor
from quantize.errors import CheckpointError, TensorError, shown

MAGIC = b"GGUF"

_VERSIONS = (2, 3)
_MAX_DIMENSIONS, _MAX_NAME_BYTES = 4, 63  # ggml's limits
_MAX_STRING_BYTES = 16_000_000
_MAX_HEADER_BYTES = 256_000_000
"""Ten times the largest vocabularies known."""
_MAX_KEPT_ITEMS = 10_000
_MAX_ENTRIES = 100_000
"""Of keys, and of tensors: twice the tensors of the largest models with every expert by itself."""
_MAX_COLUMNS = 1 << 24
"""Rows are read whole."""
_DEFAULT_ALIGNMENT = 32
_TOKENS = "tokenizer.ggml.tokens"

_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}

Value = int | float | bool | str | list[int | float | bool]


@dataclass(frozen=True)
class GGUFContents:
    """An open GGUF file.

    `encoded` holds every key's value as in the file, type first; `values` those that are one thing or a short array
    of numbers. Shapes have the row length last, and no leading ones.
    """

    path: Path
    encoded: dict[str, bytes]
    values: dict[str, Value]
    tensors: dict[str, FileTensor]
    alignment: int

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a positive number (of an array, the first one); raise `CheckpointError` for anything else."""
        value = self.values.get(key, default)
        value = value[0] if isinstance(value, list) and value else value
        if type(value) is not int or not 0 < value < 2**31:
            raise CheckpointError(self.path, f"the key {key} is {shown(value)}, which is not a positive number")
        return value

    def first_text(self, key: str) -> str | None:
        """Return the first item of an array of texts; None if the key is anything else, or there is none."""
        encoded = self.encoded.get(key, b"")
        if not encoded.startswith(struct.pack("<II", GGUFValueType.ARRAY, GGUFValueType.STRING)) or len(encoded) < 24:
            return None
        n_bytes = int.from_bytes(encoded[16:24], "little")
        return encoded[24 : 24 + n_bytes].decode(errors="replace")


@contextmanager
def open_gguf(path: Path) -> Iterator[GGUFContents]:
    """Open a GGUF file for the length of the context; raise `CheckpointError` for a damaged or lying one."""
    fd = open_file(path)
    try:
        with open(fd, "rb", closefd=False) as file, reading(path):
            contents = _Reader(path, file, fd).read()
        yield contents
    finally:
        os.close(fd)


def read_hyperparameters(path: Path) -> dict[str, Value]:
    """The keys that stand before the vocabulary, and `tokenizer.ggml.tokens` as the number of tokens; quick.

    Every known converter writes hyperparameters first. Raises `CheckpointError` for a damaged or lying file.
    """
    fd = open_file(path)
    try:
        with open(fd, "rb", closefd=False) as file, reading(path):
            return _Reader(path, file, fd).read_hyperparameters()
    finally:
        os.close(fd)


def is_gguf(path: Path) -> bool:
    """Whether the file starts as a GGUF file does; raise `CheckpointError` if it cannot be read."""
    fd = open_file(path)
    try:
        with reading(path):
            return os.pread(fd, 4, 0) == MAGIC
    finally:
        os.close(fd)


class _Reader:
    """Reads forward through the header, never past the end of the file."""

    def __init__(self, path: Path, file: BinaryIO, fd: int) -> None:
        self._path, self._file, self._fd = path, file, fd
        self._size = os.fstat(fd).st_size
        self._position = 0

    def read_hyperparameters(self) -> dict[str, Value]:
        _, n_keys = self._start()
        values: dict[str, Value] = {}
        for _ in range(n_keys):
            key = self._text(self._string())
            if key == _TOKENS:
                self._take(8)  # an array, of strings
                values[key] = self._number("Q")
                break
            if (value := self._value(key)[1]) is not None:
                values[key] = value
        return values

    def _start(self) -> tuple[int, int]:
        """How many tensors and keys there are said to be."""
        if self._take(4) != MAGIC:
            raise self._error("is not a GGUF file")
        version = self._number("I")
        if version not in _VERSIONS:
            raise self._error(f"is of GGUF version {version}, which is not 2 or 3 in little-endian order")
        n_tensors, n_keys = self._number("Q"), self._number("Q")
        if max(n_tensors, n_keys) > _MAX_ENTRIES:
            raise self._error(f"is damaged: it would have {n_tensors} tensors and {n_keys} keys")
        return n_tensors, n_keys

    def read(self) -> GGUFContents:
        n_tensors, n_keys = self._start()
        encoded: dict[str, bytes] = {}
        values: dict[str, Value] = {}
        for _ in range(n_keys):
            key = self._text(self._string())
            if not key or key in encoded:
                raise self._error(f"has the key {shown(key)} twice" if key else "has a key without a name")
            encoded[key], value = self._value(key)
            if value is not None:
                values[key] = value
        alignment = values.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment.bit_count() != 1 or alignment > 1 << 16:
            raise self._error(f"has the impossible alignment {shown(alignment)}")
        tensors = self._tensors(n_tensors, alignment)
        return GGUFContents(self._path, encoded, values, tensors, alignment)

    def _value(self, key: str) -> tuple[bytes, Value | None]:
        """Return a value's bytes, type first, and the value itself if it is short."""
        head = self._take(4)
        kind = self._kind(head, key)
        if kind == GGUFValueType.STRING:
            data = self._string()
            return head + data, self._text(data)
        if kind != GGUFValueType.ARRAY:
            data, numbers = self._numbers(_SCALARS[kind], 1)
            return head + data, numbers[0]
        head += self._take(4)
        item = self._kind(head[4:], key)
        count = self._take(8)
        n_items = int.from_bytes(count, "little")
        if item == GGUFValueType.ARRAY:
            raise self._error(f"the key {shown(key)} is an array of arrays")
        if item == GGUFValueType.STRING:
            self._require(8 * n_items)
            return head + count + b"".join([self._string() for _ in range(n_items)]), None
        data, numbers = self._numbers(_SCALARS[item], n_items)
        return head + count + data, numbers if n_items <= _MAX_KEPT_ITEMS else None

    def _kind(self, data: bytes, key: str) -> GGUFValueType:
        number = int.from_bytes(data, "little")
        if number not in GGUFValueType.__members__.values():
            raise self._error(f"the key {shown(key)} has the unknown type {number}")
        return GGUFValueType(number)

    def _tensors(self, n_tensors: int, alignment: int) -> dict[str, FileTensor]:
        entries = {}
        for _ in range(n_tensors):
            name, shape, qtype, offset = self._entry()
            if name in entries:
                raise TensorError(self._path, name, "stands twice in the table")
            entries[name] = (shape, qtype, offset)
        data_start = end = -(-self._position // alignment) * alignment
        tensors: dict[str, FileTensor] = {}
        for name, (shape, qtype, offset) in entries.items():
            tensor = FileTensor(name, shape, qtype, self._path, self._fd, data_start + offset)
            if tensor.offset != end:
                raise TensorError(self._path, name, "does not begin where the one before it ends")
            if end + tensor.size_bytes > self._size:
                raise TensorError(self._path, name, "lies past the end of the file")
            tensors[name] = tensor
            end += -(-tensor.size_bytes // alignment) * alignment
        return tensors

    def _entry(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        encoded_name = self._string()
        name = self._text(encoded_name)
        if len(encoded_name) - 8 > _MAX_NAME_BYTES or "\0" in name:
            raise TensorError(self._path, name, "has an impossible name")
        n_dimensions = self._number("I")
        if n_dimensions > _MAX_DIMENSIONS:
            raise TensorError(self._path, name, f"has {n_dimensions} dimensions")
        shape = tuple(reversed([self._number("Q") for _ in range(n_dimensions)])) or (1,)
        if not all(0 < n < 2**63 for n in shape):
            raise TensorError(self._path, name, f"has the impossible shape {shown(list(shape))}")
        if shape[-1] > _MAX_COLUMNS:
            raise TensorError(self._path, name, f"has rows of {shape[-1]} elements, which are not believable")
        while len(shape) > 1 and shape[0] == 1:
            shape = shape[1:]
        number = self._number("I")
        if number not in GGMLQuantizationType.__members__.values():
            raise TensorError(self._path, name, f"has the unknown type {number}")
        qtype = GGMLQuantizationType(number)
        if shape[-1] % GGML_QUANT_SIZES[qtype][0]:
            raise TensorError(self._path, name, f"has {shape[-1]} columns, which are not whole blocks of {qtype.name}")
        return name, shape, qtype, self._number("Q")

    def _string(self) -> bytes:
        """A string with the length before it."""
        length = self._take(8)
        n_bytes = int.from_bytes(length, "little")
        if n_bytes > _MAX_STRING_BYTES:
            raise self._error("is damaged: a text in its header is longer than texts there are")
        return length + self._take(n_bytes)

    def _text(self, string: bytes) -> str:
        try:
            return string[8:].decode()
        except UnicodeDecodeError:
            raise self._error("is damaged: a text in its header is not UTF-8") from None

    def _number(self, letter: str) -> int:
        number: int = struct.unpack(f"<{letter}", self._take(struct.calcsize(f"<{letter}")))[0]
        return number

    def _numbers(self, letter: str, n_items: int) -> tuple[bytes, list[int | float | bool]]:
        self._require(n_items)
        data = self._take(n_items * struct.calcsize(f"<{letter}"))
        kept = min(n_items, _MAX_KEPT_ITEMS)
        return data, list(struct.unpack_from(f"<{kept}{letter}", data))

    def _take(self, n_bytes: int) -> bytes:
        self._require(n_bytes)
        data = self._file.read(n_bytes)
        if len(data) != n_bytes:
            raise self._error("is truncated")
        self._position += n_bytes
        return data

    def _require(self, n_bytes: int) -> None:
        if n_bytes > self._size - self._position:
            raise self._error("is truncated")
        if self._position + n_bytes > _MAX_HEADER_BYTES:
            raise self._error("is damaged: its header does not end")

    def _error(self, problem: str) -> CheckpointError:
        return CheckpointError(self._path, problem)
