"""A checkpoint on the Hub → a stored model.

Config and tokenizer come first and are checked before the weights move; then the weights are converted while they
arrive. What has arrived and what is done is kept under `staging/` until the model is published, so that a pull that
was cut short goes on where it stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import quantize
from llamachat.errors import HubOffline, UnusableRepository
from llamachat.models import store
from llamachat.models.adoption import adopt
from llamachat.models.arrival import Arrival
from llamachat.models.hub import RemoteFile, Repository
from llamachat.models.locks import OnWait, locked
from llamachat.models.plan import PullPlan, make_plan
from llamachat.models.progress import Progress
from llamachat.models.publishing import Target, convert_and_publish
from llamachat.models.staging import checkpoint_dir, fetch, link_cached, looked_at, require_access, require_small
from llamachat.models.transfer import Transfer
from quantize.checkpoint import INDEX_NAMES, shard_names
from quantize.vocab import TOKENIZER_FILES

_SMALL_FILES = ("config.json", "generation_config.json", *INDEX_NAMES, *TOKENIZER_FILES)


def plan_checkpoint(repository: Repository, target: Target, progress: Progress, *, keep: bool) -> PullPlan:
    """Return what `pull_checkpoint` would do; fetches config and tokenizer, and leaves nothing behind."""
    directory = checkpoint_dir(repository)
    with looked_at(directory, directory.name) as checkpoint:
        _fetch_small(repository, checkpoint, progress)
        return _plan(repository, checkpoint, target, keep=keep)


def pull_checkpoint(
    repository: Repository, target: Target, progress: Progress, on_wait: OnWait | None, *, keep: bool
) -> store.StoredModel:
    """Fetch, convert and publish. Raises `LlamachatError` or `QuantizeError`; the store is then as before."""
    with _staged(repository, on_wait) as checkpoint:
        adopt(repository, repository.files.values(), checkpoint, progress)
        small = _fetch_small(repository, checkpoint, progress)
        shards = _shards(repository, checkpoint)
        require_access(repository, shards, checkpoint, progress.notice)
        plan = _plan(repository, checkpoint, target, keep=keep)
        plan.require_room()
        progress.planned(plan)
        target.staged_dir.mkdir(parents=True, exist_ok=True)
        watch = Transfer(shards, checkpoint, progress)
        with Arrival(repository, shards, checkpoint, watch, keep=keep) as arrival:
            model = convert_and_publish(checkpoint, target, repository, small + shards, progress, arrival)
        target.journal_path.unlink(missing_ok=True)
        if not keep:
            shutil.rmtree(checkpoint)
    return model


@contextmanager
def _staged(repository: Repository, on_wait: OnWait | None) -> Iterator[Path]:
    """The directory of a checkpoint, which may be wanted under another name at the same time."""
    checkpoint = checkpoint_dir(repository)
    with locked(checkpoint.name, on_wait):
        checkpoint.mkdir(parents=True, exist_ok=True)
        yield checkpoint


def _plan(repository: Repository, checkpoint: Path, target: Target, *, keep: bool) -> PullPlan:
    prediction = quantize.predict_from_config(
        checkpoint,
        target.file_type,
        provenance=target.provenance(repository),
        pre_tokenizer=target.pre_tokenizer,
    )
    shards = _shards(repository, checkpoint)
    label = f"{target.name}:{target.file_type.name}"
    return make_plan(label, shards, checkpoint, prediction.size_bytes, target.staged_dir, keep=keep)


def _fetch_small(repository: Repository, directory: Path, progress: Progress) -> list[RemoteFile]:
    """Fetch everything but the weights."""
    if "config.json" not in repository.files:
        if repository.is_offline:
            raise HubOffline(repository.repo, "config.json")
        raise UnusableRepository(
            f"{repository.repo} holds no config.json, so it is not a Hugging Face checkpoint.",
            "Look for the repository with the original weights (safetensors).",
        )
    small = [repository.files[name] for name in _SMALL_FILES if name in repository.files]
    require_small(repository, small)
    fetch(repository, small, directory, Transfer([], directory, progress))
    return small


def _shards(repository: Repository, directory: Path) -> list[RemoteFile]:
    names = shard_names(directory, repository.files)
    absent = [name for name in names if name not in repository.files]
    if absent and repository.is_offline:
        raise HubOffline(repository.repo, absent[0])
    if absent:
        raise UnusableRepository(
            f"{repository.repo} lacks {absent[0]}, which its index names.",
            "Look for another repository of the same model.",
        )
    shards = [repository.files[name] for name in names]
    link_cached(repository, shards, directory)
    return shards
