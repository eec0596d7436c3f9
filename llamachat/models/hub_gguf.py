"""GGUF files of a repository → a stored model: fetched as they are."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llamachat.models import store
from llamachat.models.adoption import adopt
from llamachat.models.gguf_import import GGUFSource, store_gguf
from llamachat.models.gguf_repository import GGUFChoice, choose
from llamachat.models.hub import Repository
from llamachat.models.locks import OnWait, locked
from llamachat.models.plan import PullPlan, plan_files
from llamachat.models.progress import Progress
from llamachat.models.publishing import Target
from llamachat.models.staging import checkpoint_dir, fetch, link_cached, looked_at
from llamachat.models.transfer import Transfer


def find_here(repository: Repository, target: Target) -> store.StoredModel | None:
    """The stored model that `pull_gguf` would make; raises `ChooseQuant` where a quant has to be named.

    Raises `NameTaken` where that name is another model's.
    """
    choice = choose(repository, target.wanted)
    store.require_name(target.name, choice.quant, repository.repo)
    stored = store.find_stored(target.name, choice.quant)
    hashes = [file.sha256 for file in choice.files]
    if stored and stored.manifest and [file.sha256 for file in stored.manifest.contents] == hashes:
        return stored
    return None


def plan_gguf(repository: Repository, target: Target, _progress: Progress, *, keep: bool) -> PullPlan:
    """Return what `pull_gguf` would do; leaves nothing behind."""
    del keep  # the files are linked into the store: kept or not, they take their room once
    choice = choose(repository, target.wanted)
    directory = checkpoint_dir(repository)
    with looked_at(directory / choice.quant, directory.name) as staged:
        link_cached(repository, choice.files, staged)
        return _plan(target, choice, staged)


def pull_gguf(
    repository: Repository, target: Target, progress: Progress, on_wait: OnWait | None, *, keep: bool
) -> store.StoredModel:
    """Fetch the files of one quant, and put them into the store. Raises `LlamachatError` or `QuantizeError`."""
    choice = choose(repository, target.wanted)
    with _staged(repository, choice, on_wait) as staged:
        link_cached(repository, choice.files, staged)
        adopt(repository, choice.files, staged, progress)
        plan = _plan(target, choice, staged)
        plan.require_room()
        progress.planned(plan)
        fetch(repository, choice.files, staged, Transfer(list(choice.files), staged, progress))
        model, _ = store_gguf(_source(repository, target, choice, staged), progress, replace=True)
        if not keep:
            shutil.rmtree(staged)
            with suppress(OSError):  # another quant is on its way
                staged.parent.rmdir()
    return model


def _plan(target: Target, choice: GGUFChoice, staged: Path) -> PullPlan:
    return plan_files(f"{target.name}:{choice.quant}", choice.files, staged)


@contextmanager
def _staged(repository: Repository, choice: GGUFChoice, on_wait: OnWait | None) -> Iterator[Path]:
    staged = checkpoint_dir(repository) / choice.quant
    with locked(staged.parent.name, on_wait):
        staged.mkdir(parents=True, exist_ok=True)
        yield staged


def _source(repository: Repository, target: Target, choice: GGUFChoice, staged: Path) -> GGUFSource:
    paths = {file.name: staged / file.name for file in choice.files}
    hashes = {paths[file.name]: file.sha256 for file in choice.files if file.sha256}
    return GGUFSource(
        target.name,
        list(paths.values()),
        choice.quant,
        repository.repo,
        repository.commit,
        repository.license or target.license,
        target.template,
        target.system,
        target.sampling,
        choice.sources,
        known={path: sha256 for path, sha256 in hashes.items() if not path.is_symlink()},
        expected=hashes,
    )
