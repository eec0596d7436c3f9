"""Open a checkpoint directory: its config, and its tensors without reading them.

Hostile input stops in this room. What leaves it has checked sizes, offsets and names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.checkpoint.files import open_file, read_bytes, read_json
from quantize.checkpoint.safetensors import read_safetensors
from quantize.checkpoint.tensor import FileTensor
from quantize.errors import CheckpointError, UnsupportedWeights, shown

__all__ = ["INDEX_NAME", "SINGLE_NAME", "Checkpoint", "open_checkpoint", "read_bytes", "read_json", "shard_names"]

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """An open Hugging Face checkpoint: the directory, its parsed config.json, and its tensors by name."""

    directory: Path
    config: dict[str, Any]
    tensors: dict[str, FileTensor]


@contextmanager
def open_checkpoint(directory: Path) -> Iterator[Checkpoint]:
    """Open the safetensors checkpoint in `directory` for the length of the context."""
    config = read_json(directory / "config.json")
    with ExitStack() as stack:
        tensors: dict[str, FileTensor] = {}
        for name in shard_names(directory):
            path = directory / name
            fd = open_file(path)
            stack.callback(os.close, fd)
            for tensor in read_safetensors(path, fd).values():
                if tensor.name in tensors:
                    raise CheckpointError(path, f"repeats the tensor {tensor.name} of another shard")
                tensors[tensor.name] = tensor
        _check_index(directory, tensors)
        yield Checkpoint(directory, config, tensors)


def shard_names(directory: Path) -> list[str]:
    """Names of the weight files of the checkpoint in `directory`, in order; they need not be there yet."""
    if (directory / INDEX_NAME).exists():
        return sorted(set(_weight_map(directory).values()))
    if (directory / SINGLE_NAME).exists():
        return [SINGLE_NAME]
    if not directory.is_dir():
        raise CheckpointError(directory, "is not a checkpoint directory")
    raise UnsupportedWeights(
        f"{directory.name} holds no safetensors weights.", "Look for a repository that has .safetensors files."
    )


def _weight_map(directory: Path) -> dict[str, str]:
    path = directory / INDEX_NAME
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(path, "has no weight_map")
    for name in weight_map.values():
        if not _is_plain_name(name):
            raise CheckpointError(path, f"names the shard {shown(name)}, which is not a plain safetensors file name")
    return weight_map


def _is_plain_name(name: Any) -> bool:
    """Whether `name` stays in its directory on every system and in the terminal."""
    if not isinstance(name, str) or not name.isprintable() or len(name) > 255:
        return False
    return Path(name).name == name and not set(name) & set("\\:") and name.endswith(".safetensors")


def _check_index(directory: Path, tensors: dict[str, FileTensor]) -> None:
    if not (directory / INDEX_NAME).exists():
        return
    for tensor, shard in _weight_map(directory).items():
        if tensor not in tensors or tensors[tensor].path.name != shard:
            raise CheckpointError(directory / shard, f"lacks the tensor {tensor}, which the index says it holds")
