"""What `pull --adapter` means: a PEFT adapter on the Hub or in a directory, or a GGUF adapter.

It is looked at before anything large moves: of an adapter on the Hub adapter_config.json is fetched, which says whether
llama.cpp can apply the adapter at all, and what its trainer called the base.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import quantize
from llamachat.errors import BadReference, HubOffline, UnusableAdapter, UnusableRepository
from llamachat.models.catalog import Catalog
from llamachat.models.hub import Patience, RemoteFile, Repository, find_repository
from llamachat.models.locks import OnWait, locked
from llamachat.models.names import is_valid_name
from llamachat.models.progress import Progress
from llamachat.models.reference import CheckpointDirectory, ModelFile, NamedModel, parse_reference
from llamachat.models.staging import checkpoint_dir, fetch, looked_at, require_access, require_small
from llamachat.models.transfer import Transfer

_NO_CATALOG = Catalog({})


@dataclass(frozen=True)
class AdapterReference:
    """What a user has written: a repository with a revision, or a path."""

    name: str
    repo: str | None = None
    revision: str | None = None
    path: Path | None = None


@dataclass(frozen=True)
class AdapterSource:
    """An adapter to be stored as `name`. `path` is its directory, which may be still empty, or its GGUF file.

    `base` is what its trainer called the model. Of an adapter on the Hub, `config` and `weights` are its files.
    """

    name: str
    path: Path
    base: str | None = None
    repository: Repository | None = None
    config: RemoteFile | None = None
    weights: RemoteFile | None = None

    @property
    def files(self) -> list[RemoteFile]:
        """What has to come from the Hub."""
        return [file for file in (self.config, self.weights) if file]


def parse_adapter_reference(text: str) -> AdapterReference:
    """Read ORG/REPO[@REVISION], a directory or a .gguf file; raise `BadReference` for anything else."""
    match parse_reference(text, _NO_CATALOG):
        case NamedModel(repo=repo, revision=revision, quant=None):
            return AdapterReference(repo, repo, revision)
        case CheckpointDirectory(path):
            return _local(path.resolve().name, path)
        case ModelFile(path):
            return _local(path.stem, path)
    raise BadReference(f"{text[:80]!r} is not an adapter.", "Write ORG/REPO, ./directory or a .gguf file.")


def find_source(
    reference: AdapterReference,
    base_names: Sequence[str],
    progress: Progress,
    on_wait: OnWait | None,
    patience: Patience | None = None,
    *,
    is_plan: bool = False,
) -> AdapterSource:
    """Look an adapter up and check its config; say so if it was trained on what none of `base_names` can be.

    `patience` is that of `find_repository`. With `is_plan` nothing is left behind, and there is nothing to go on with.

    Raises `LlamachatError` or `QuantizeError` for an adapter that cannot be had or be used.
    """
    if reference.path is None:
        source, settings = _find_on_hub(reference, progress, on_wait, patience, is_plan=is_plan)
    elif reference.path.is_dir():
        settings = quantize.read_adapter_settings(reference.path)
        source = AdapterSource(reference.name, reference.path, settings.base_name)
    elif reference.path.is_file():
        return AdapterSource(reference.name, reference.path)
    else:
        raise UnusableAdapter(
            f"{reference.path}: No such file.", "Check the path; a Hub repository is written ORG/REPO."
        )
    if not settings.may_be_for(base_names):
        # What a stranger wrote is shown as JSON shows it, and cut.
        trained_on = repr(settings.base_name)[:100]
        progress.notice(f"{source.name} was trained on {trained_on}; make sure that {base_names[0]} is the same model.")
    return source


@contextmanager
def staged(source: AdapterSource, on_wait: OnWait | None) -> Iterator[Path]:
    """Hold the directory that an adapter on the Hub is fetched to; nothing to hold for one that is here."""
    if source.repository is None:
        yield source.path
        return
    with locked(source.path.parent.name, on_wait):
        source.path.mkdir(parents=True, exist_ok=True)
        yield source.path


def _local(name: str, path: Path) -> AdapterReference:
    if not is_valid_name(name):
        raise BadReference(
            f"{name[:80]!r} cannot be an adapter's name.", "Rename it: letters, digits, '.', '_' and '-' are allowed."
        )
    return AdapterReference(name, path=path)


def _find_on_hub(
    reference: AdapterReference,
    progress: Progress,
    on_wait: OnWait | None,
    patience: Patience | None,
    *,
    is_plan: bool,
) -> tuple[AdapterSource, quantize.AdapterSettings]:
    assert reference.repo is not None
    repository = find_repository(reference.repo, reference.revision, progress.notice, patience=patience)
    # Below the repository's own directory, where a checkpoint of the same repository may lie.
    path = checkpoint_dir(repository) / reference.repo.rpartition("/")[2]
    config = _file(repository, (quantize.ADAPTER_CONFIG,))
    source = AdapterSource(reference.name, path, None, repository, config, _file(repository, quantize.ADAPTER_WEIGHTS))
    require_small(repository, [config])
    with looked_at(path, path.parent.name) if is_plan else staged(source, on_wait) as directory:
        fetch(repository, [config], directory, Transfer([], directory, progress))
        settings = quantize.read_adapter_settings(directory)
        require_access(repository, source.files, directory, progress.notice)
    return AdapterSource(source.name, path, settings.base_name, repository, config, source.weights), settings


def _file(repository: Repository, names: Sequence[str]) -> RemoteFile:
    """The first of `names` that the repository has."""
    for name in names:
        if name in repository.files:
            return repository.files[name]
    if repository.is_offline:
        raise HubOffline(repository.repo, names[0])
    raise UnusableRepository(
        f"{repository.repo} holds no {' or '.join(names)}, so it is not a PEFT adapter.",
        "Look for the repository with the adapter's original files.",
    )
