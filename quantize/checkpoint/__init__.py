"""Open a checkpoint directory: its config, and its tensors without reading them.

Hostile input stops in this room. What leaves it has checked sizes, offsets and names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.checkpoint.safetensors import read_safetensors
from quantize.checkpoint.tensor import FileTensor
from quantize.errors import CheckpointError, UnsupportedWeights

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

_MAX_JSON_BYTES = 200_000_000


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
            try:
                fd = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                raise CheckpointError(path, "is missing") from None
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


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of the checkpoint; raise `CheckpointError` if it is missing, huge, or not an object."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise CheckpointError(path, "is too large to be what its name says")
        parsed = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(path, "is missing") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, "is not valid JSON") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(path, "does not hold a JSON object")
    return parsed


def _weight_map(directory: Path) -> dict[str, str]:
    path = directory / INDEX_NAME
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(path, "has no weight_map")
    for name in set(map(str, weight_map.values())):
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise CheckpointError(path, f"names the shard {name!r}, which is not a plain safetensors file name")
    return weight_map


def _check_index(directory: Path, tensors: dict[str, FileTensor]) -> None:
    if not (directory / INDEX_NAME).exists():
        return
    for tensor, shard in _weight_map(directory).items():
        if tensor not in tensors or tensors[tensor].path.name != shard:
            raise CheckpointError(directory / shard, f"lacks the tensor {tensor}, which the index says it holds")
