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
    """Plan to fetch files as they are, which then become the model.

    What a link leads to on another file system will be copied, for it cannot be linked into the store.
    """
    n_download = sum(n_missing(file, directory / file.name) for file in files)
    home = home_dir()
    device = _existing(home).stat().st_dev
    elsewhere = [file for file in files if _is_link_from(directory / file.name, device)]
    return PullPlan(
        label=label,
        directory=home,
        download_bytes=n_download,
        temporary_bytes=0,
        output_bytes=sum(file.size_bytes for file in files),
        needed_bytes=n_download + sum(file.size_bytes for file in elsewhere),
        free_bytes=free_bytes(home),
    )


def _is_link_from(path: Path, device: int) -> bool:
    return path.is_symlink() and path.stat().st_dev != device


def free_bytes(directory: Path) -> int:
    """Free space where `directory` is, or will be."""
    return shutil.disk_usage(_existing(directory)).free


def _existing(directory: Path) -> Path:
    while not directory.exists():
        directory = directory.parent
    return directory


def _most_at_a_time(sizes: list[int]) -> int:
    """The largest two neighbours, and the first range of every other file."""
    if len(sizes) < 2:
        return sum(sizes)
    pair = max(map(sum, pairwise(sizes)))
    return pair + RANGE_BYTES * (len(sizes) - 2)
