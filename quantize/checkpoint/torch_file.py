"""Hand out the tensors of a PyTorch file (`.bin`, `.pth`) unread, and without PyTorch.

torch.save writes a zip file of stored entries: `NAME/data.pkl` describes the tensors, `NAME/data/KEY` holds the numbers
of a storage, which several tensors may share. The file is hostile until proven otherwise.
Source: `_save` in torch/serialization.py.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType

from quantize.checkpoint.archive import LOCAL_MAGIC, Entry, read_archive
from quantize.checkpoint.files import reading
from quantize.checkpoint.state_pickle import StoredTensor, read_state
from quantize.checkpoint.tensor import ITEM_SIZES, FileTensor, count_elements
from quantize.errors import CheckpointError, TensorError, UnsupportedWeights, shown

_MAX_PICKLE_BYTES = 16_000_000
_MAX_DIMENSIONS = 4  # ggml's limit

_QTYPES = {
    "FloatStorage": GGMLQuantizationType.F32,
    "HalfStorage": GGMLQuantizationType.F16,
    "BFloat16Storage": GGMLQuantizationType.BF16,
}


def read_torch_file(path: Path, fd: int) -> dict[str, FileTensor]:
    """Return the tensors of an open PyTorch file by name.

    Raises `CheckpointError` for a file that is damaged or lies, `UnsupportedWeights` for other number formats, the
    format before PyTorch 1.6, and pickles that name what no tensor needs.
    """
    with reading(path):
        magic = os.pread(fd, len(LOCAL_MAGIC), 0)
        if magic != LOCAL_MAGIC:
            _refuse_other_formats(path, magic)
        entries = read_archive(path, fd)
        root = _root(path, entries)
        _check_byte_order(path, fd, entries.get(f"{root}/byteorder"))
        program = entries[f"{root}/data.pkl"]
        if program.size_bytes > _MAX_PICKLE_BYTES:
            raise CheckpointError(path, "its pickle is too long to describe a model's tensors")
        state = read_state(path, os.pread(fd, program.size_bytes, program.offset))
    tensors: dict[str, FileTensor] = {}
    for name, value in state.items():
        if type(name) is not str or not isinstance(value, StoredTensor):
            raise CheckpointError(path, f"holds {shown(name)}, which is not a tensor")
        tensors[name] = _locate(path, fd, name, value, entries, root)
    return tensors


def _refuse_other_formats(path: Path, magic: bytes) -> None:
    if magic.startswith(b"\x80"):
        raise UnsupportedWeights(
            f"{path.name} is in the format of PyTorch before 1.6.",
            "Look for .safetensors files, or save it anew with a current PyTorch: "
            "torch.save(torch.load(NAME, weights_only=True), NAME)",
        )
    raise CheckpointError(path, "is truncated or not a PyTorch file")


def _root(path: Path, entries: dict[str, Entry]) -> str:
    """The folder that everything in the archive lies in."""
    roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise CheckpointError(path, "is a zip file, but not one of PyTorch's")
    return roots[0]


def _check_byte_order(path: Path, fd: int, entry: Entry | None) -> None:
    """Files without the entry are from before PyTorch 2.1 and nearly always from little-endian machines."""
    if entry and os.pread(fd, min(entry.size_bytes, 16), entry.offset) != b"little":
        raise UnsupportedWeights(
            f"{path.name} was written on a big-endian machine.", "Look for a repository with .safetensors files."
        )


def _locate(path: Path, fd: int, name: str, tensor: StoredTensor, entries: dict[str, Entry], root: str) -> FileTensor:
    """Check one description against the storage it is a view of."""
    shape = _dimensions(path, name, tensor.shape, "shape", at_least=1)
    strides = _dimensions(path, name, tensor.strides, "strides", at_least=0)
    offset, n_storage = tensor.offset, tensor.n_storage
    if type(offset) is not int or type(n_storage) is not int or offset < 0:
        raise TensorError(path, name, "has a damaged description")
    if tensor.storage_type not in _QTYPES:
        raise UnsupportedWeights(
            f"{path.name}: tensor {shown(name)} is stored as {tensor.storage_type}; F32, F16 and BF16 can be read.",
            "Look for the repository with the original, unquantized weights.",
        )
    if not _is_contiguous(shape, strides):
        raise TensorError(path, name, "is stored transposed or in pieces, which is not read here")
    qtype = _QTYPES[tensor.storage_type]
    entry = entries.get(f"{root}/data/{tensor.key}") if type(tensor.key) is str else None
    if entry is None:
        raise TensorError(path, name, "has no storage in the file")
    if entry.size_bytes != n_storage * ITEM_SIZES[qtype]:
        raise TensorError(path, name, f"has a storage of {entry.size_bytes} bytes, but {shown(n_storage)} elements")
    if offset + count_elements(shape) > n_storage:
        raise TensorError(path, name, f"has the shape {shown(shape)}, which is more than its storage holds")
    return FileTensor(name, shape, qtype, path, fd, entry.offset + offset * ITEM_SIZES[qtype])


def _dimensions(path: Path, name: str, value: Any, what: str, *, at_least: int) -> tuple[int, ...]:
    if type(value) is not tuple or len(value) > _MAX_DIMENSIONS:
        raise TensorError(path, name, f"has the impossible {what} {shown(value)}")
    if not all(type(n) is int and at_least <= n < 2**63 for n in value):
        raise TensorError(path, name, f"has the impossible {what} {shown(value)}")
    return value


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the elements lie one after the other; the stride of a single element does not matter."""
    if len(shape) != len(strides):
        return False
    n_below = 1
    for dimension, stride in zip(reversed(shape), reversed(strides), strict=True):
        if dimension != 1 and stride != n_below:
            return False
        n_below *= dimension
    return True
