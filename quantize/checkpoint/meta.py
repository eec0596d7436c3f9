"""Releases of Meta's own: consolidated.NN.pth, one for each GPU the model was split over, and params.json.

Each shard has a piece of every matrix under the same name. Which way a matrix is cut follows from the layer it belongs
to: by rows where each GPU computes some of the outputs, by columns where each has some of the inputs.
Sources: meta-llama/llama, meta-llama/llama3 and meta-llama/llama-models, model.py, for names and layers; fairscale,
nn/model_parallel/layers.py, for the cuts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from quantize.checkpoint.files import reading
from quantize.checkpoint.merged import ConcatenatedColumns, ConcatenatedRows
from quantize.checkpoint.tensor import FileTensor, TensorSource, count_elements
from quantize.errors import CheckpointError, TensorError
from quantize.ggml import row_size

PARAMS_NAME = "params.json"

_SHARD = re.compile(r"consolidated\.(\d\d)\.pth")
_FIRST_SHARD = "consolidated.00.pth"
_ALL_SHARDS = "consolidated.*.pth"
"""Named in errors about a tensor that is in all of them."""

_CUTS: dict[str, type[ConcatenatedRows] | type[ConcatenatedColumns]] = {
    "wq": ConcatenatedRows,
    "wk": ConcatenatedRows,
    "wv": ConcatenatedRows,
    "wo": ConcatenatedColumns,
    "w1": ConcatenatedRows,
    "w2": ConcatenatedColumns,
    "w3": ConcatenatedRows,
    "output": ConcatenatedRows,
}
"""How a matrix is put together, by the layer's name; see `_cut` for the embeddings. All else is whole in each shard."""

_ROPE = "rope.freqs"
"""Rotation frequencies, which follow from params.json; in some releases, and not in others."""

_COMPARED_BYTES = 1 << 20


def is_meta_release(directory: Path) -> bool:
    """Whether `directory` has weights in Meta's form, and not in Hugging Face's."""
    return not _has(directory, "config.json") and (_has(directory, PARAMS_NAME) or _has(directory, _FIRST_SHARD))


def _has(directory: Path, name: str) -> bool:
    try:
        return (directory / name).exists()
    except OSError:  # the directory may not be searched; whoever reads in it says so
        return False


def meta_shard_names(directory: Path) -> list[str]:
    """Names of the shards in `directory`, in order; raise `CheckpointError` if one before the last is missing."""
    with reading(directory):
        found = {path.name for path in directory.iterdir() if _SHARD.fullmatch(path.name)}
    names = [f"consolidated.{i:02}.pth" for i in range(len(found) or 1)]
    for name in names:
        if name not in found:
            raise CheckpointError(directory / name, "is missing")
    return names


def merge(directory: Path, shards: list[dict[str, FileTensor]]) -> dict[str, TensorSource]:
    """Return the whole tensors, under Meta's names; raise `TensorError` where the shards do not fit together."""
    first, *others = ({name: tensor for name, tensor in shard.items() if name != _ROPE} for shard in shards)
    for other in others:
        _compare_names(directory, first, other)
        _compare_names(directory, other, first)
    return {name: _merge(directory, name, [first, *others]) for name in first}


def _compare_names(directory: Path, one: dict[str, FileTensor], other: dict[str, FileTensor]) -> None:
    for name, tensor in one.items():
        if name not in other:
            path = next((tensor.path for tensor in other.values()), directory)
            raise TensorError(path, name, f"is missing, but is in {tensor.path.name}")


def _merge(directory: Path, name: str, shards: list[dict[str, FileTensor]]) -> TensorSource:
    first, *others = parts = tuple(shard[name] for shard in shards)
    if not others:
        return first
    for part in others:
        if (part.shape, part.qtype) != (first.shape, first.qtype):
            raise TensorError(part.path, name, f"is {_describe(part)}, but {_describe(first)} in {first.path.name}")
    cut = _cut(name, shards[0])
    if cut and len(first.shape) == 2:
        return cut(name, directory / _ALL_SHARDS, parts)
    for part in others:
        if not _hold_the_same(first, part):
            raise TensorError(part.path, name, f"differs from the one in {first.path.name}")
    return first


def _cut(name: str, shard: dict[str, FileTensor]) -> type[ConcatenatedRows] | type[ConcatenatedColumns] | None:
    """How the pieces of a tensor go together; None if there are none.

    The embeddings of Llama 1 and 2 are cut by columns, those of Llama 3 by rows, so that they are as wide as the pieces
    of the output matrix, which are whole rows in all of them.
    """
    layer = name.removesuffix(".weight").rpartition(".")[2]
    if layer != "tok_embeddings":
        return _CUTS.get(layer)
    widths = [shard[matrix].shape[-1:] for matrix in (name, "output.weight") if matrix in shard]
    return ConcatenatedRows if len(set(widths)) == 1 else ConcatenatedColumns


def _describe(tensor: FileTensor) -> str:
    return f"{tensor.qtype.name} of shape {list(tensor.shape)}"


def are_equal(tensors: Mapping[str, TensorSource], name: str, other_name: str) -> bool:
    """Whether both tensors are there and hold the same; tells two matrices apart by reading their first rows."""
    one, other = tensors.get(name), tensors.get(other_name)
    return one is not None and other is not None and _hold_the_same(one, other)


def _hold_the_same(one: TensorSource, other: TensorSource) -> bool:
    if (one.shape, one.qtype) != (other.shape, other.qtype) or not one.shape:
        return False
    n_row_bytes = row_size(one.qtype, one.shape[-1])
    if n_row_bytes > _COMPARED_BYTES:  # no model is as wide as that, and rows are read whole
        return False
    n_rows = count_elements(one.shape[:-1])
    step = _COMPARED_BYTES // n_row_bytes
    rows, other_rows = np.empty((2, step * n_row_bytes), np.uint8)
    for first in range(0, n_rows, step):
        n_here = min(step, n_rows - first)
        one.read_rows(first, n_here, rows)
        other.read_rows(first, n_here, other_rows)
        size = n_here * n_row_bytes
        if not np.array_equal(rows[:size], other_rows[:size]):
            return False
    return True
