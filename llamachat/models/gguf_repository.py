"""Repositories of GGUF files: which models are in one by their file names, and which of them is meant.

Publishers differ in layout: one file a quant beside the others, split models in folders of their own or not, and beside
the models image encoders (mmproj) and importance matrices. What is in a file is checked when it is here.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from llamachat.errors import ChooseQuant, HubOffline, OnOffer, UnusableRepository
from llamachat.models.gguf_names import base_name, quant_of, shard_name, shard_of, without_prefix
from llamachat.models.hub import RemoteFile, Repository
from quantize.checkpoint import WEIGHT_NAMES

_CONFIG = "config.json"


@dataclass(frozen=True)
class GGUFChoice:
    """A model to choose: the word to choose it by, and its file, or all its shards in order.

    The word is the quant of the file's name, in lower case; where several files have the same or none, it is made
    of the whole name. `missing` are names of shards that should be there.
    """

    quant: str
    files: tuple[RemoteFile, ...]
    missing: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Size of all its files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def sources(self) -> dict[str, dict[str, str | int | None]]:
        """Size and sha256 of each file, as a manifest has them."""
        return {file.name: {"size_bytes": file.size_bytes, "sha256": file.sha256} for file in self.files}


def is_gguf_repository(files: Mapping[str, RemoteFile]) -> bool:
    """Whether a repository has models as GGUF, and no checkpoint: where there is one, that is what is converted."""
    has_checkpoint = _CONFIG in files and not files.keys().isdisjoint(WEIGHT_NAMES)
    return not has_checkpoint and bool(list_choices(files))


def list_choices(files: Mapping[str, RemoteFile]) -> list[GGUFChoice]:
    """The models among the files of a repository, smallest first."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(files):
        if _may_be_model(name):
            shard = shard_of(name)
            groups[f"{shard.base}-{shard.n_shards}" if shard else name].append(name)
    quants = {key: quant_of(names[0]) for key, names in groups.items()}
    n_same = Counter(quants.values())
    choices = []
    for key, names in groups.items():
        quant = quants[key]
        word = quant if quant and n_same[quant] == 1 else _word(names[0])
        wanted = _all_shards(names[0])
        present = tuple(files[name] for name in wanted if name in files)
        choices.append(GGUFChoice(word, present, tuple(name for name in wanted if name not in files)))
    return sorted(choices, key=lambda choice: choice.size_bytes)


def choose(repository: Repository, quant: str | None) -> GGUFChoice:
    """The model meant by `quant`, in any case, with or without a publisher's prefix such as `UD-`.

    Raises `ChooseQuant` if it is not there or nothing was named, and `UnusableRepository` if shards are missing.
    """
    choices = list_choices(repository.files)
    wanted = quant.lower() if quant else None
    found = [choice for choice in choices if choice.quant == wanted] or [
        choice for choice in choices if without_prefix(choice.quant) == wanted
    ]
    if len(found) != 1:
        offers = [OnOffer(choice.quant, choice.size_bytes, len(choice.files)) for choice in choices]
        raise ChooseQuant(repository.repo, quant, offers)
    if found[0].missing and repository.is_offline:
        raise HubOffline(repository.repo, found[0].missing[0])
    if found[0].missing:
        raise UnusableRepository(
            f"{repository.repo} lacks {found[0].missing[0]}, a shard of {found[0].quant}.",
            "Choose another quant, or look for another repository of the same model.",
        )
    return found[0]


def _may_be_model(name: str) -> bool:
    base = base_name(name).lower()
    is_matrix = "imatrix" in base and quant_of(base) is None
    return name.lower().endswith(".gguf") and "mmproj" not in base and not is_matrix


def _all_shards(name: str) -> list[str]:
    shard = shard_of(name)
    if shard is None:
        return [name]
    return [shard_name(shard.base, number, shard.n_shards) for number in range(1, shard.n_shards + 1)]


def _word(name: str) -> str:
    path = PurePosixPath(name).with_name(base_name(name)).as_posix()
    return re.sub(r"[^a-z0-9_]+", "-", path.lower()).strip("-")
