"""Reference → stored model: what is meant, what is here already, and who makes the rest."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llamachat.errors import BadReference
from llamachat.models import store
from llamachat.models.catalog import load_catalog
from llamachat.models.conversion import conversion_errors
from llamachat.models.gguf_import import local_source, store_gguf
from llamachat.models.gguf_repository import is_gguf_repository
from llamachat.models.hub import Repository, cached_commit, find_repository, hub_access
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


@dataclass(frozen=True)
class PullResult:
    """The stored model; `elapsed_s` is 0 and `was_here` true if nothing had to be done."""

    model: store.StoredModel
    manifest: Manifest
    elapsed_s: float
    was_here: bool


def pull(request: PullRequest, progress: Progress, on_wait: OnWait | None = None) -> PullResult:
    """Pull a model into the store. Raises `LlamachatError`; the store is then as before.

    While another process is at work on the same model: wait, after telling `on_wait`; without it, raise `StoreBusy`.
    """
    reference = parse_reference(request.model, load_catalog())
    with conversion_errors():
        if isinstance(reference, ModelFile):
            return _import_file(request, reference.path, progress, on_wait)
        target = _choose(request, reference)
        with locked(target.name, on_wait), writing():
            match reference:
                case NamedModel():
                    return _pull_from_hub(request, reference, target, progress, on_wait)
                case CheckpointDirectory(path):
                    started = time.monotonic()
                    return _result(convert_directory(path, target, progress), started, was_here=False)
                case _:
                    raise AssertionError("refused by _choose")


def plan(request: PullRequest, progress: Progress) -> PullPlan | PullResult:
    """Return what `pull` would do, or the model that is here already; fetches config and tokenizer only."""
    reference = parse_reference(request.model, load_catalog())
    if not isinstance(reference, NamedModel):
        raise BadReference("What is on this machine needs no download.", "Leave --dry-run out.")
    with conversion_errors(), writing():
        target = _choose(request, reference)
        repository = _find_repository(request, reference)
        if (stored := _find_here(repository, target)) is not None:
            return _result(stored, time.monotonic(), was_here=True)
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
        model, was_here = store_gguf(source, partial(progress, "import"), replace=False)
    return _result(model, started, was_here=was_here)


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
    if (stored := _find_offline(request, reference, target)) is not None:
        return _result(stored, started, was_here=True)
    repository = _find_repository(request, reference)
    if (stored := _find_here(repository, target)) is not None:
        return _result(stored, started, was_here=True)
    puller = pull_gguf if is_gguf_repository(repository.files) else pull_checkpoint
    model = puller(repository, target, progress, on_wait, keep=request.keep_checkpoint)
    return _result(model, started, was_here=False)


def _find_repository(request: PullRequest, reference: NamedModel) -> Repository:
    mirror = reference.spec.mirror if reference.spec and reference.spec.repo == reference.repo else None
    return find_repository(reference.repo, request.revision or reference.revision, mirror=mirror)


def _find_offline(request: PullRequest, reference: NamedModel, target: Target) -> store.StoredModel | None:
    """The stored model that is meant, where nobody can be asked whether there is a newer one."""
    if not hub_access().offline:
        return None
    revision = request.revision or reference.revision
    commit = revision and (cached_commit(reference.repo, revision) or revision)
    stored = store.find_stored(target.name, target.wanted, commit)
    return stored if stored and stored.manifest and stored.manifest.repo == reference.repo else None


def _find_here(repository: Repository, target: Target) -> store.StoredModel | None:
    if is_gguf_repository(repository.files):
        return find_here(repository, target)
    return store.find_stored(target.name, target.file_type.name, repository.commit)
