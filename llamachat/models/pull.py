"""Reference → stored model: what is meant, what is here already, and who makes the rest."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llamachat.errors import BadReference, HubUnreachable
from llamachat.models import store
from llamachat.models.adapter_pull import AdapterResult, find_sources, pull_adapter
from llamachat.models.adapter_source import find_source, parse_adapter_reference
from llamachat.models.catalog import load_catalog
from llamachat.models.conversion import conversion_errors
from llamachat.models.gguf_import import local_source, store_gguf
from llamachat.models.gguf_repository import is_gguf_repository
from llamachat.models.hub import ONE_TRY, Repository, cached_commit, find_repository, hub_access
from llamachat.models.hub_checkpoint import plan_checkpoint, pull_checkpoint
from llamachat.models.hub_gguf import find_here, plan_gguf, pull_gguf
from llamachat.models.locks import OnWait, locked, writing
from llamachat.models.manifest import Manifest
from llamachat.models.names import is_valid_name
from llamachat.models.plan import PullPlan
from llamachat.models.progress import Progress
from llamachat.models.publishing import Target, convert_directory
from llamachat.models.reference import (
    CheckpointDirectory,
    LocalName,
    ModelFile,
    NamedModel,
    Reference,
    parse_reference,
    unknown,
)


@dataclass(frozen=True)
class PullRequest:
    """What to pull and how to keep it. Empty fields mean the catalogue's choice."""

    model: str
    quant: str | None = None
    revision: str | None = None
    name: str | None = None
    keep_checkpoint: bool = False
    pre_tokenizer: str | None = None
    adapters: Sequence[str] = ()
    """ORG/REPO[@REVISION], directories of PEFT adapters, or GGUF adapters; to be stored with the model."""


@dataclass(frozen=True)
class PullResult:
    """The stored model; `elapsed_s` is 0 and `was_here` true if nothing had to be done."""

    model: store.StoredModel
    manifest: Manifest
    elapsed_s: float
    was_here: bool
    adapters: Sequence[AdapterResult] = ()


def pull(request: PullRequest, progress: Progress, on_wait: OnWait | None = None) -> PullResult:
    """Pull a model into the store. Raises `LlamachatError`; the store is then as before.

    While another process is at work on the same model: wait, after telling `on_wait`; without it, raise `StoreBusy`.
    Adapters are looked up, and their configs checked, before the model is pulled.
    """
    reference = parse_reference(request.model, load_catalog())
    adapters = [parse_adapter_reference(text) for text in request.adapters]
    with conversion_errors():
        if not adapters:
            return _pull_model(request, reference, progress, on_wait)
        with writing():
            stored = _find_base(request, reference)
            if not isinstance(reference, ModelFile) and not (stored and isinstance(reference, LocalName)):
                _choose(request, reference)  # what cannot be pulled is said first
            sources = find_sources(adapters, _base_names(request, reference), stored, progress, on_wait)
        if stored:
            result = _result(stored, time.monotonic(), was_here=True)
        else:
            result = _pull_model(request, reference, progress, on_wait)
        with locked(result.model.name, on_wait), writing():
            keep = request.keep_checkpoint
            added = [pull_adapter(source, result.model, progress, on_wait, keep=keep) for source in sources]
        return replace(result, adapters=added)


def _pull_model(request: PullRequest, reference: Reference, progress: Progress, on_wait: OnWait | None) -> PullResult:
    if isinstance(reference, ModelFile):
        return _import_file(request, reference.path, progress, on_wait)
    target = _choose(request, reference)
    with locked(target.name, on_wait), writing():
        match reference:
            case NamedModel():
                return _pull_from_hub(request, reference, target, progress, on_wait)
            case CheckpointDirectory(path):
                started = time.monotonic()
                store.require_name(target.name, target.file_type.name, None)
                return _result(convert_directory(path, target, progress), started, was_here=False)
            case _:
                raise AssertionError("refused by _choose")


def plan(request: PullRequest, progress: Progress) -> PullPlan | PullResult:
    """Return what `pull` would do, or the model that is here already; fetches configs and tokenizer, and keeps none."""
    reference = parse_reference(request.model, load_catalog())
    with conversion_errors(), writing():
        for text in request.adapters:
            source = find_source(
                parse_adapter_reference(text), _base_names(request, reference), progress, None, is_plan=True
            )
            n_bytes = sum(file.size_bytes for file in source.files)
            progress.notice(f"The adapter {source.name}: {n_bytes:,} bytes to download.")
    if request.adapters and (stored := _find_base(request, reference)):
        return _result(stored, time.monotonic(), was_here=True)
    if not isinstance(reference, NamedModel):
        raise BadReference("What is on this machine needs no download.", "Leave --dry-run out.")
    with conversion_errors(), writing():
        target = _choose(request, reference)
        repository = _look_up(request, reference, target, progress)
        if isinstance(repository, store.StoredModel):
            return _result(repository, time.monotonic(), was_here=True)
        planner = plan_gguf if is_gguf_repository(repository.files) else plan_checkpoint
        return planner(repository, target, progress, keep=request.keep_checkpoint)


def _import_file(request: PullRequest, path: Path, progress: Progress, on_wait: OnWait | None) -> PullResult:
    if request.quant:
        command = f"llamachat quantize {shlex.quote(str(path))} --quant {request.quant}"
        raise BadReference(f"{path} is a GGUF file, which is imported as it is.", f"Make another one of it: {command}")
    if request.revision:
        raise BadReference(f"{path} is a file and has no revisions.", "Leave --revision out.")
    started = time.monotonic()
    source = local_source(path, request.name)
    with locked(source.name, on_wait), writing():
        model, was_here = store_gguf(source, progress, replace=False)
    return _result(model, started, was_here=was_here)


def _find_base(request: PullRequest, reference: Reference) -> store.StoredModel | None:
    """The stored model that adapters are for, if it is here: of any quant and commit unless one is named."""
    if not isinstance(reference, NamedModel | LocalName):
        return None
    revision = request.revision or (reference.revision if isinstance(reference, NamedModel) else None)
    quant = (request.quant or reference.quant or "").lower() or None
    return store.find_stored(request.name or reference.name, quant, revision)


def _base_names(request: PullRequest, reference: Reference) -> list[str]:
    """What the base is called, for comparing it with what an adapter was trained on."""
    match reference:
        case NamedModel(name, repo):
            names = [request.name or name, repo.rpartition("/")[2]]
        case LocalName(name):
            names = [name]
        case CheckpointDirectory(path) | ModelFile(path):
            names = [request.name or path.resolve().name, path.resolve().name]
    stored = _find_base(request, reference)
    if stored and stored.manifest and stored.manifest.repo:
        names.append(stored.manifest.repo.rpartition("/")[2])
    return names


def _result(model: store.StoredModel, started: float, *, was_here: bool) -> PullResult:
    assert model.manifest is not None
    elapsed_s = 0.0 if was_here else time.monotonic() - started
    return PullResult(model, model.manifest, elapsed_s, was_here)


def _choose(request: PullRequest, reference: Reference) -> Target:
    match reference:
        case ModelFile():
            raise AssertionError("imported by pull")
        case LocalName():
            raise unknown(reference, load_catalog())
        case CheckpointDirectory(path) if request.revision:
            raise BadReference(f"{path} is a directory and has no revisions.", "Leave --revision out.")
        case CheckpointDirectory(path):
            name, spec, quant = path.resolve().name, None, None
        case NamedModel(name, _, spec, _, quant):
            pass
    name = request.name or name
    if not is_valid_name(name):
        raise BadReference(
            f"{name[:80]!r} cannot be a model's name.", "Give one of letters, digits, '.', '_' and '-' with --name."
        )
    if request.quant and quant and request.quant.lower() != quant:
        raise BadReference(f"{request.model} and --quant {request.quant} contradict each other.", "Give one of them.")
    wanted = request.quant or quant
    if spec:
        return Target(
            name, wanted or spec.quant, request.pre_tokenizer, spec.template, spec.system, spec.license, spec.sampling
        )
    return Target(name, wanted, request.pre_tokenizer)


def _pull_from_hub(
    request: PullRequest, reference: NamedModel, target: Target, progress: Progress, on_wait: OnWait | None
) -> PullResult:
    started = time.monotonic()
    repository = _look_up(request, reference, target, progress)
    if isinstance(repository, store.StoredModel):
        return _result(repository, started, was_here=True)
    puller = pull_gguf if is_gguf_repository(repository.files) else pull_checkpoint
    model = puller(repository, target, progress, on_wait, keep=request.keep_checkpoint)
    return _result(model, started, was_here=False)


def _look_up(
    request: PullRequest, reference: NamedModel, target: Target, progress: Progress
) -> Repository | store.StoredModel:
    """The repository that is meant, or the model if nothing has to be fetched.

    A model that is here needs no Hub: where that cannot be reached, all that is left open is whether there is a newer
    one. Without it, trouble is borne for a while.
    """
    stored = _find_unasked(request, reference, target)
    if stored and hub_access().offline:
        return stored
    mirror = reference.spec.mirror if reference.spec and reference.spec.repo == reference.repo else None
    revision, patience = request.revision or reference.revision, ONE_TRY if stored else None
    try:
        repository = find_repository(reference.repo, revision, progress.notice, mirror=mirror, patience=patience)
    except HubUnreachable as unreachable:
        if stored is None:
            raise
        progress.notice(f"Whether there is a newer version is not known: {unreachable}")
        return stored
    return _find_here(repository, target) or repository


def _find_unasked(request: PullRequest, reference: NamedModel, target: Target) -> store.StoredModel | None:
    """The stored model that is meant, where nobody can be asked whether there is a newer one."""
    revision = request.revision or reference.revision
    commit = revision and (cached_commit(reference.repo, revision) or revision)
    stored = store.find_stored(target.name, target.wanted, commit)
    return stored if stored and stored.manifest and stored.manifest.repo == reference.repo else None


def _find_here(repository: Repository, target: Target) -> store.StoredModel | None:
    if is_gguf_repository(repository.files):
        return find_here(repository, target)
    store.require_name(target.name, target.file_type.name, repository.repo)
    return store.find_stored(target.name, target.file_type.name, repository.commit)
