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

from quantize.checkpoint.files import reading
from quantize.checkpoint.tensor import FileTensor
from quantize.errors import CheckpointError, TensorError, UnsupportedWeights, shown

_MAX_HEADER_BYTES = 16_000_000
"""Room for 100,000 tensors. The reference implementation allows 100 MB, which parses into gigabytes."""

_MAX_DIMENSIONS = 4  # ggml's limit

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
    with reading(path):
        file_size = os.fstat(fd).st_size
        header, data_start = _read_header(path, fd, file_size)
    tensors: dict[str, FileTensor] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            tensors[name] = _read_entry(path, fd, name, entry, data_start, file_size)
    _check_layout(path, tensors, data_start, file_size)
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
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [start, end]} if (
            type(start) is type(end) is int
        ):
            pass
        case _:
            raise TensorError(path, name, "has a damaged entry in the header")
    if len(shape) > _MAX_DIMENSIONS or not all(type(n) is int and 0 < n < 2**63 for n in shape):
        raise TensorError(path, name, f"has the impossible shape {shown(shape)}")
    if dtype not in _QTYPES:
        raise UnsupportedWeights(
            f"{path.name}: tensor {shown(name)} is stored as {shown(dtype)}; F32, F16 and BF16 can be read.",
            "Look for the repository with the original, unquantized weights.",
        )
    tensor = FileTensor(name, tuple(shape), _QTYPES[dtype], path, fd, data_start + start)
    if start < 0 or end - start != tensor.size_bytes:
        raise TensorError(path, name, f"has shape {shape} and type {dtype}, but bytes {shown(start)} to {shown(end)}")
    if data_start + end > file_size:
        raise TensorError(path, name, "lies past the end of the file")
    return tensor


def _check_layout(path: Path, tensors: dict[str, FileTensor], data_start: int, file_size: int) -> None:
    """Refuse overlaps and gaps, as the reference implementation does: the tensors are the whole file."""
    end = data_start
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
        if tensor.offset != end:
            problem = "overlaps another tensor" if tensor.offset < end else "has bytes of no tensor before it"
            raise TensorError(path, tensor.name, problem)
        end = tensor.offset + tensor.size_bytes
    if end != file_size:
        raise CheckpointError(path, "has bytes of no tensor at its end")
