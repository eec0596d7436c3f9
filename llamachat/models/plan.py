"""What a pull will move and keep, known to the byte before the first weight moves, and whether it fits."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from llamachat.errors import NoRoom, Shortage
from llamachat.models import store
from llamachat.models.hub.download import RANGE_BYTES, n_missing
from llamachat.models.hub.repository import RemoteFile
from llamachat.models.leftovers import disk_usage
from llamachat.paths import home_dir
from quantize.checkpoint.shards import SAFETENSORS


@dataclass(frozen=True)
class PullPlan:
    """Sizes in bytes. `temporary` is the most that weight files take at a time while the model is made.

    `label` is what the model will go by, `name:quant`.
    """

    label: str
    directory: Path
    download_bytes: int
    temporary_bytes: int
    output_bytes: int
    needed_bytes: int
    """What has to be free now; less than the sum where an earlier try left something of use."""
    free_bytes: int

    @property
    def fits(self) -> bool:
        """Whether there is room."""
        return self.needed_bytes <= self.free_bytes

    def require_room(self) -> None:
        """Raise `NoRoom` if there is none."""
        if not self.fits:
            raise no_room(self.directory, self.needed_bytes, self.free_bytes)


def no_room(directory: Path, needed_bytes: int, free_bytes: int) -> NoRoom:
    """The refusal, with the numbers and what could go."""
    largest = [(model.label, model.size_bytes) for model in store.largest_stored()]
    return NoRoom([Shortage(directory, needed_bytes, free_bytes)], largest)


def make_plan(
    label: str, shards: list[RemoteFile], checkpoint: Path, output_bytes: int, staged: Path, *, keep: bool
) -> PullPlan:
    """Plan to make a model of `output_bytes` in `staged` from the weight files that are to come to `checkpoint`.

    Links to what lies elsewhere take no room.
    """
    sizes = [shard.size_bytes for shard in shards if not (checkpoint / shard.name).is_symlink()]
    is_whole = keep or not all(shard.name.endswith(SAFETENSORS.suffix) for shard in shards)
    n_temporary = sum(sizes) if is_whole else _most_at_a_time(sizes)
    n_here = sum(disk_usage(checkpoint / shard.name) for shard in shards)
    n_needed = max(0, output_bytes - disk_usage(staged)) + max(0, n_temporary - n_here)
    return PullPlan(
        label=label,
        directory=staged.parent,
        download_bytes=sum(n_missing(shard, checkpoint / shard.name) for shard in shards),
        temporary_bytes=n_temporary,
        output_bytes=output_bytes,
        needed_bytes=n_needed,
        free_bytes=free_bytes(staged.parent),
    )


def plan_files(label: str, files: Sequence[RemoteFile], directory: Path) -> PullPlan:
    """Plan to fetch files as they are, which then become the model."""
    n_download = sum(n_missing(file, directory / file.name) for file in files)
    home = home_dir()
    return PullPlan(label, home, n_download, 0, sum(f.size_bytes for f in files), n_download, free_bytes(home))


def free_bytes(directory: Path) -> int:
    """Free space where `directory` is, or will be."""
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free


def _most_at_a_time(sizes: list[int]) -> int:
    """The largest two neighbours, and the first range of every other file."""
    if len(sizes) < 2:
        return sum(sizes)
    pair = max(map(sum, pairwise(sizes)))
    return pair + RANGE_BYTES * (len(sizes) - 2)
