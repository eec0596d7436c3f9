"""Open a checkpoint directory: its config, and its tensors without reading them.

Hostile input stops in this room. What leaves it has checked sizes, offsets and names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.checkpoint.files import open_file, read_bytes, read_json
from quantize.checkpoint.meta import PARAMS_NAME, are_equal, is_meta_release, merge, meta_shard_names
from quantize.checkpoint.safetensors import read_safetensors
from quantize.checkpoint.shards import INDEX_NAMES, SAFETENSORS, WEIGHT_NAMES, promised_shards, shard_names
from quantize.checkpoint.tensor import FileTensor, TensorSource
from quantize.checkpoint.torch_file import read_torch_file
from quantize.errors import CheckpointError

__all__ = [
    "INDEX_NAMES",
    "PARAMS_NAME",
    "WEIGHT_NAMES",
    "Checkpoint",
    "is_meta_release",
    "open_checkpoint",
    "read_bytes",
    "read_config",
    "read_json",
    "shard_names",
]


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint: the directory, its parsed config and where that stands, and its tensors by name."""

    directory: Path
    config: dict[str, Any]
    config_path: Path
    tensors: Mapping[str, TensorSource]


def read_config(directory: Path) -> tuple[dict[str, Any], Path]:
    """Read the numbers of the checkpoint in `directory`: a config.json, or the params.json of Meta's."""
    if not is_meta_release(directory):
        path = directory / "config.json"
        return read_json(path), path
    path = directory / PARAMS_NAME
    params = read_json(path)
    inner = params.get("model")  # some have all of it one level down
    return inner if isinstance(inner, dict) else params, path


@contextmanager
def open_checkpoint(directory: Path) -> Iterator[Checkpoint]:
    """Open the checkpoint in `directory` for the length of the context."""
    config, config_path = read_config(directory)
    tensors: Mapping[str, TensorSource]
    with ExitStack() as stack:
        if is_meta_release(directory):
            shards = [_open_shard(directory / name, stack) for name in meta_shard_names(directory)]
            tensors = merge(directory, shards)
            # No number says so, but where it is so the output matrix is left out, as in the Hugging Face form.
            config |= {"tie_word_embeddings": are_equal(tensors, "tok_embeddings.weight", "output.weight")}
        else:
            tensors = _open_shards(directory, stack)
        yield Checkpoint(directory, config, config_path, tensors)


def _open_shards(directory: Path, stack: ExitStack) -> dict[str, FileTensor]:
    tensors: dict[str, FileTensor] = {}
    shards = shard_names(directory)
    for name in shards:
        for tensor in _open_shard(directory / name, stack).values():
            if tensor.name in tensors:
                raise CheckpointError(directory / name, f"repeats the tensor {tensor.name} of another shard")
            tensors[tensor.name] = tensor
    _check_index(directory, shards, tensors)
    return tensors


def _open_shard(path: Path, stack: ExitStack) -> dict[str, FileTensor]:
    fd = open_file(path)
    stack.callback(os.close, fd)
    return read_safetensors(path, fd) if path.suffix == SAFETENSORS.suffix else read_torch_file(path, fd)


def _check_index(directory: Path, shards: list[str], tensors: dict[str, FileTensor]) -> None:
    for tensor, shard in promised_shards(directory, shards).items():
        if tensor not in tensors or tensors[tensor].path.name != shard:
            raise CheckpointError(directory / shard, f"lacks the tensor {tensor}, which the index says it holds")
