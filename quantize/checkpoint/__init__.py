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
from quantize.checkpoint.safetensors import read_safetensors
from quantize.checkpoint.shards import INDEX_NAMES, TORCH, promised_shards, shard_names
from quantize.checkpoint.tensor import FileTensor, TensorSource
from quantize.checkpoint.torch_file import read_torch_file
from quantize.errors import CheckpointError

__all__ = ["INDEX_NAMES", "Checkpoint", "open_checkpoint", "read_bytes", "read_json", "shard_names"]


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint: the directory, its parsed config, and its tensors by name."""

    directory: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorSource]


@contextmanager
def open_checkpoint(directory: Path) -> Iterator[Checkpoint]:
    """Open the checkpoint in `directory` for the length of the context."""
    config = read_json(directory / "config.json")
    with ExitStack() as stack:
        tensors: dict[str, FileTensor] = {}
        shards = shard_names(directory)
        for name in shards:
            path = directory / name
            fd = open_file(path)
            stack.callback(os.close, fd)
            read = read_torch_file if name.endswith(TORCH.suffix) else read_safetensors
            for tensor in read(path, fd).values():
                if tensor.name in tensors:
                    raise CheckpointError(path, f"repeats the tensor {tensor.name} of another shard")
                tensors[tensor.name] = tensor
        _check_index(directory, shards, tensors)
        yield Checkpoint(directory, config, tensors)


def _check_index(directory: Path, shards: list[str], tensors: dict[str, FileTensor]) -> None:
    for tensor, shard in promised_shards(directory, shards).items():
        if tensor not in tensors or tensors[tensor].path.name != shard:
            raise CheckpointError(directory / shard, f"lacks the tensor {tensor}, which the index says it holds")
