"""Reference → stored model: look up, check, fetch, convert and quantize (or import what is GGUF already), publish.

Config and tokenizer come first and are checked before the weights move. Downloads are kept under `staging/` until
the model is published, so a second try does not fetch finished files again.
"""

from __future__ import annotations

import importlib.metadata
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import quantize
from llamachat.errors import BadReference, NoRoom, Shortage, UnusableRepository
from llamachat.models import store
from llamachat.models.catalog import load_catalog
from llamachat.models.conversion import conversion_errors
from llamachat.models.gguf_import import GGUFSource, local_source, store_gguf
from llamachat.models.gguf_repository import choose, is_gguf_repository
from llamachat.models.hub import RemoteFile, Repository, check_access, download, find_repository
from llamachat.models.locks import OnWait, locked, writing
from llamachat.models.manifest import Manifest
from llamachat.models.names import is_valid_name
from llamachat.models.reference import (
    CheckpointDirectory,
    LocalName,
    ModelFile,
    NamedModel,
    Reference,
    parse_reference,
    unknown,
)
from llamachat.paths import home_dir, staging_dir
from quantize.checkpoint import INDEX_NAMES, shard_names
from quantize.vocab import TOKENIZER_FILES

_SMALL_FILES = ("config.json", "generation_config.json", *INDEX_NAMES, *TOKENIZER_FILES)

_MAX_SMALL_BYTES = 64 << 20

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total): "download" and "import" count bytes, "quantize" counts weights."""


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


@dataclass(frozen=True)
class _Target:
    """A request with every choice made but one: a quant that nobody named depends on what there is."""

    name: str
    wanted: str | None
    pre_tokenizer: str | None = None
    template: str | None = None
    system: str | None = None
    license: str | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)

    @property
    def file_type(self) -> quantize.FileType:
        """What a checkpoint is converted to; raises `UnknownFileType`."""
        return quantize.find_file_type(self.wanted or quantize.DEFAULT_FILE_TYPE)


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
                    return _convert_and_publish(path, target, None, progress, time.monotonic())
                case _:
                    raise AssertionError("refused by _choose")


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


def _choose(request: PullRequest, reference: Reference) -> _Target:
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
        return _Target(
            name, wanted or spec.quant, request.pre_tokenizer, spec.template, spec.system, spec.license, spec.sampling
        )
    return _Target(name, wanted, request.pre_tokenizer)


def _pull_from_hub(
    request: PullRequest, reference: NamedModel, target: _Target, progress: Progress, on_wait: OnWait | None
) -> PullResult:
    started = time.monotonic()
    mirror = reference.spec.mirror if reference.spec and reference.spec.repo == reference.repo else None
    repository = find_repository(reference.repo, request.revision or reference.revision, mirror=mirror)
    if is_gguf_repository(repository.files):
        return _pull_gguf(request, repository, target, progress, on_wait, started)
    stored = store.find_stored(target.name, target.file_type.name, repository.commit)
    if stored and stored.manifest:
        return PullResult(stored, stored.manifest, 0.0, was_here=True)
    check_access(repository)
    checkpoint = _staging(repository)
    checkpoint.mkdir(parents=True, exist_ok=True)
    with locked(checkpoint.name, on_wait):  # the same checkpoint may be wanted under another name
        _fetch_checkpoint(repository, checkpoint, target, progress)
        result = _convert_and_publish(checkpoint, target, repository, progress, started)
        if not request.keep_checkpoint:
            shutil.rmtree(checkpoint)
    return result


def _fetch_checkpoint(repository: Repository, directory: Path, target: _Target, progress: Progress) -> None:
    """Fetch what converting needs: the small files, which are checked at once, then the weights."""
    if "config.json" not in repository.files:
        raise UnusableRepository(
            f"{repository.repo} holds no config.json, so it is not a Hugging Face checkpoint.",
            "Look for the repository with the original weights (safetensors).",
        )
    small = [repository.files[name] for name in _SMALL_FILES if name in repository.files]
    for file in small:
        if file.size_bytes > _MAX_SMALL_BYTES:
            raise UnusableRepository(
                f"{repository.repo}: {file.name} has {file.size_bytes:,} bytes, far too many for what it should be.",
                "Do not use this repository.",
            )
    _fetch(repository, small, directory, lambda _: None)
    quantize.check(directory, target.pre_tokenizer)
    shards = _shards(repository, directory)
    missing = [file for file in shards if not (directory / file.name).exists()]
    _require_room(sum(file.size_bytes for file in missing), sum(file.size_bytes for file in shards), target)
    _fetch_weights(repository, shards, directory, progress)


def _pull_gguf(
    request: PullRequest,
    repository: Repository,
    target: _Target,
    progress: Progress,
    on_wait: OnWait | None,
    started: float,
) -> PullResult:
    choice = choose(repository, target.wanted)
    stored = store.find_stored(target.name, choice.quant)
    hashes = [file.sha256 for file in choice.files]
    if stored and stored.manifest and [file.sha256 for file in stored.manifest.contents] == hashes:
        return _result(stored, started, was_here=True)
    check_access(repository)
    staged = _staging(repository) / choice.quant
    staged.mkdir(parents=True, exist_ok=True)
    with locked(staged.parent.name, on_wait):
        _require_free(sum(file.size_bytes for file in choice.files if not (staged / file.name).exists()))
        paths = _fetch_weights(repository, choice.files, staged, progress)
        source = GGUFSource(
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
            known={paths[file.name]: file.sha256 for file in choice.files if file.sha256},
        )
        model, _ = store_gguf(source, partial(progress, "import"), replace=True)
        if not request.keep_checkpoint:
            shutil.rmtree(staged)
            with suppress(OSError):  # another quant is on its way
                staged.parent.rmdir()
    return _result(model, started, was_here=False)


def _staging(repository: Repository) -> Path:
    return staging_dir() / f"{repository.repo.replace('/', '--')}@{repository.commit}"


def _fetch_weights(
    repository: Repository, files: Sequence[RemoteFile], directory: Path, progress: Progress
) -> dict[str, Path]:
    """Fetch what is not there yet, and return where each file lies."""
    missing = [file for file in files if not (directory / file.name).exists()]
    n_total = sum(file.size_bytes for file in files)
    n_done = n_total - sum(file.size_bytes for file in missing)

    def advance(n_bytes: int) -> None:
        nonlocal n_done
        n_done += n_bytes
        progress("download", n_done, n_total)

    _fetch(repository, missing, directory, advance)
    return {file.name: directory / file.name for file in files}


def _fetch(repository: Repository, files: list[RemoteFile], directory: Path, advance: Callable[[int], None]) -> None:
    for file in files:
        path = directory / file.name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            download(repository, file, path, advance)


def _shards(repository: Repository, directory: Path) -> list[RemoteFile]:
    names = shard_names(directory, repository.files)
    absent = [name for name in names if name not in repository.files]
    if absent:
        raise UnusableRepository(
            f"{repository.repo} lacks {absent[0]}, which its index names.",
            "Look for another repository of the same model.",
        )
    return [repository.files[name] for name in names]


def _require_room(n_download: int, n_weights: int, target: _Target) -> None:
    """Refuse before the first byte what cannot fit. The output is reckoned from 16-bit weights, headers included."""
    n_output = int(n_weights * target.file_type.bits_per_weight / 16 * 1.05) + (16 << 20)
    _require_free(n_download + n_output)


def _require_free(n_bytes: int) -> None:
    home = home_dir()
    free = shutil.disk_usage(home).free
    if n_bytes > free:
        largest = [(model.label, model.size_bytes) for model in store.largest_stored()]
        raise NoRoom([Shortage(home, n_bytes, free)], largest)


def _convert_and_publish(
    checkpoint: Path, target: _Target, repository: Repository | None, progress: Progress, started: float
) -> PullResult:
    quant = target.file_type.name
    staged = staging_dir() / f"{target.name.replace('/', '--')}--{quant}"
    shutil.rmtree(staged, ignore_errors=True)  # what a killed pull left behind; the lock keeps others out
    staged.mkdir(parents=True)
    try:
        file_name = f"{target.name.rpartition('/')[2]}-{quant}.gguf"
        report = quantize.convert(
            checkpoint,
            staged / file_name,
            target.file_type,
            provenance=_provenance(target, repository),
            pre_tokenizer=target.pre_tokenizer,
            progress=lambda done, total: progress("quantize", done, total),
        )
        manifest = _manifest(checkpoint, target, repository, report)
        model = store.publish(staged, manifest)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return PullResult(model, manifest, time.monotonic() - started, was_here=False)


def _provenance(target: _Target, repository: Repository | None) -> quantize.Provenance:
    if repository is None:
        return quantize.Provenance(target.name)
    return quantize.Provenance(target.name, repository.repo, repository.commit, repository.license or target.license)


def _manifest(
    checkpoint: Path, target: _Target, repository: Repository | None, report: quantize.ConversionReport
) -> Manifest:
    used = {*_SMALL_FILES, *shard_names(checkpoint, repository.files)} if repository else set()
    sources = [file for name, file in repository.files.items() if name in used] if repository else []
    return Manifest(
        name=target.name,
        quant=target.file_type.name,
        file=report.path.name,
        size_bytes=report.size_bytes,
        n_params=report.n_params,
        sha256=report.sha256,
        architecture=report.architecture,
        repo=repository.repo if repository else None,
        revision=repository.commit if repository else None,
        license=(repository.license if repository else None) or target.license,
        template=target.template,
        system=target.system,
        sampling=target.sampling,
        created=datetime.now(timezone.utc).isoformat(timespec="microseconds"),
        sources={f.name: {"size_bytes": f.size_bytes, "sha256": f.sha256} for f in sources},
        versions={package: importlib.metadata.version(package) for package in _RECORDED_PACKAGES},
    )


_RECORDED_PACKAGES = ("llamachat", "gguf", "llama-cpp-python")
