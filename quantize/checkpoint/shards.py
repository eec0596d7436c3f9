"""Which files of a checkpoint hold its weights: safetensors where there are any, else PyTorch's.

The index of a sharded checkpoint names them; a name that could leave the directory is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.checkpoint.files import read_json
from quantize.errors import CheckpointError, UnsupportedWeights, shown


@dataclass(frozen=True)
class WeightFiles:
    """What transformers calls the weight files of one format."""

    index: str
    single: str
    suffix: str

    def is_shard(self, name: str) -> bool:
        """Whether this is the name of one file of several."""
        stem = re.escape(self.single.removesuffix(self.suffix))
        return re.fullmatch(rf"{stem}-\d+-of-\d+{re.escape(self.suffix)}", name) is not None


SAFETENSORS = WeightFiles("model.safetensors.index.json", "model.safetensors", ".safetensors")
TORCH = WeightFiles("pytorch_model.bin.index.json", "pytorch_model.bin", ".bin")

_BY_PREFERENCE = (SAFETENSORS, TORCH)

INDEX_NAMES = tuple(files.index for files in _BY_PREFERENCE)
WEIGHT_NAMES = tuple(name for files in _BY_PREFERENCE for name in (files.index, files.single))
"""Any of these, and a directory has weights."""


def shard_names(directory: Path, available: Collection[str] | None = None) -> list[str]:
    """Names of the weight files of the checkpoint in `directory`, in order; they need not be there yet.

    `available` are the names of all files the checkpoint has where it comes from, which defaults to those that are
    there; an index among them must be.
    """
    if available is None:
        if not directory.is_dir():
            raise CheckpointError(directory, "is not a checkpoint directory")
        available = {path.name for path in directory.iterdir()}
    for files in _BY_PREFERENCE:
        if files.index in available:
            return sorted(set(_weight_map(directory, files).values()))
        if files.single in available:
            return [files.single]
    for files in _BY_PREFERENCE:
        if any(files.is_shard(name) for name in available):
            raise CheckpointError(directory / files.index, "is missing, and would say which shards there are")
    raise UnsupportedWeights(
        "The checkpoint holds no safetensors weights, and no PyTorch weights either.",
        "Look for a repository that has .safetensors files.",
    )


def promised_shards(directory: Path, shards: list[str]) -> dict[str, str]:
    """The shard of each tensor as the index of `shards` has it; empty without an index."""
    for files in _BY_PREFERENCE:
        if shards[0].endswith(files.suffix) and (directory / files.index).exists():
            return _weight_map(directory, files)
    return {}


def _weight_map(directory: Path, files: WeightFiles) -> dict[str, str]:
    path = directory / files.index
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(path, "has no weight_map")
    for name in weight_map.values():
        if not _is_plain_name(name, files.suffix):
            kind = files.suffix.lstrip(".")
            raise CheckpointError(path, f"names the shard {shown(name)}, which is not a plain {kind} file name")
    return weight_map


def _is_plain_name(name: Any, suffix: str) -> bool:
    """Whether `name` stays in its directory on every system and in the terminal."""
    if not isinstance(name, str) or not name.isprintable() or len(name) > 255:
        return False
    return Path(name).name == name and not set(name) & set("\\:") and name.endswith(suffix)
