"""Read the header of a safetensors file and hand out its tensors unread.

Own reader, because the library has no BF16 without torch and no reads of part of a tensor into a given buffer.
The file is hostile until proven otherwise: every offset is checked before anything is believed.
Format: https://huggingface.co/docs/safetensors#format
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType

from quantize.checkpoint.tensor import FileTensor
from quantize.errors import CheckpointError, TensorError, UnsupportedWeights

_MAX_HEADER_BYTES = 100_000_000  # the reference implementation's limit

_QTYPES = {
    "F32": GGMLQuantizationType.F32,
    "F16": GGMLQuantizationType.F16,
    "BF16": GGMLQuantizationType.BF16,
}


def read_safetensors(path: Path, fd: int) -> dict[str, FileTensor]:
    """Return the tensors of an open safetensors file by name.

    Raises `CheckpointError` for a header that is damaged or lies, `UnsupportedWeights` for integer and
    8-bit float formats.
    """
    file_size = os.fstat(fd).st_size
    header, data_start = _read_header(path, fd, file_size)
    tensors: dict[str, FileTensor] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            tensors[name] = _read_entry(path, fd, name, entry, data_start, file_size)
    _refuse_overlaps(path, tensors)
    return tensors


def _read_header(path: Path, fd: int, file_size: int) -> tuple[dict[str, Any], int]:
    n_header = int.from_bytes(os.pread(fd, 8, 0), "little")
    if file_size < 8 or n_header > min(file_size - 8, _MAX_HEADER_BYTES):
        raise CheckpointError(path, "is truncated or not a safetensors file")
    try:
        header = json.loads(os.pread(fd, n_header, 8), object_pairs_hook=_refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, "has a damaged header") from error
    if not isinstance(header, dict):
        raise CheckpointError(path, "has a damaged header")
    return header, 8 + n_header


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name stands twice")
    return entries


def _read_entry(path: Path, fd: int, name: str, entry: Any, data_start: int, file_size: int) -> FileTensor:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            pass
        case _:
            raise TensorError(path, name, "has a damaged entry in the header")
    if not all(type(dimension) is int and dimension > 0 for dimension in shape):
        raise TensorError(path, name, f"has the impossible shape {shape}")
    if dtype not in _QTYPES:
        raise UnsupportedWeights(
            f"{path.name}: tensor {name} is stored as {dtype}; F32, F16 and BF16 can be read.",
            "Look for the repository with the original, unquantized weights.",
        )
    tensor = FileTensor(name, tuple(shape), _QTYPES[dtype], path, fd, data_start + start)
    if start < 0 or end - start != tensor.size_bytes:
        raise TensorError(path, name, f"has shape {shape} and type {dtype}, but {end - start} bytes")
    if data_start + end > file_size:
        raise TensorError(path, name, f"lies past the end of the file ({data_start + end} > {file_size} bytes)")
    return tensor


def _refuse_overlaps(path: Path, tensors: dict[str, FileTensor]) -> None:
    end = 0
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            raise TensorError(path, tensor.name, "overlaps another tensor")
        end = tensor.offset + tensor.size_bytes
