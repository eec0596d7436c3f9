"""A checkpoint directory → a stored model: convert, describe, publish."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import quantize
from llamachat.models import store
from llamachat.models.hub import RemoteFile, Repository
from llamachat.models.locks import flat
from llamachat.models.manifest import Manifest
from llamachat.models.plan import free_bytes, no_room
from llamachat.models.progress import Progress
from llamachat.paths import staging_dir

_RECORDED_PACKAGES = ("llamachat", "gguf", "llama-cpp-python")


@dataclass(frozen=True)
class Target:
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

    @property
    def file_name(self) -> str:
        """What the GGUF is called."""
        return f"{self.name.rpartition('/')[2]}-{self.file_type.name}.gguf"

    @property
    def staged_dir(self) -> Path:
        """Where it comes into being."""
        return staging_dir() / f"{flat(self.name)}--{self.file_type.name}"

    @property
    def journal_path(self) -> Path:
        """What of it is safely there."""
        return self.staged_dir.with_name(f"{self.staged_dir.name}.journal")

    def provenance(self, repository: Repository | None) -> quantize.Provenance:
        """What the header says about where it comes from."""
        if repository is None:
            return quantize.Provenance(self.name)
        return quantize.Provenance(self.name, repository.repo, repository.commit, repository.license or self.license)


def convert_directory(checkpoint: Path, target: Target, progress: Progress) -> store.StoredModel:
    """Convert a checkpoint that is not ours, and may change: nothing is kept for a second try."""
    shutil.rmtree(target.staged_dir, ignore_errors=True)  # what a killed one left behind; the lock keeps others out
    target.staged_dir.mkdir(parents=True)
    try:
        return convert_and_publish(checkpoint, target, None, [], progress)
    finally:
        shutil.rmtree(target.staged_dir, ignore_errors=True)


def convert_and_publish(
    checkpoint: Path,
    target: Target,
    repository: Repository | None,
    sources: list[RemoteFile],
    progress: Progress,
    supply: quantize.Supply | None = None,
) -> store.StoredModel:
    """Convert into the staged directory and move that into the store; with a `supply`, resumably."""
    try:
        report = quantize.convert(
            checkpoint,
            target.staged_dir / target.file_name,
            target.file_type,
            provenance=target.provenance(repository),
            pre_tokenizer=target.pre_tokenizer,
            progress=lambda done, total: progress("quantize", done, total),
            journal=target.journal_path if supply else None,
            supply=supply,
        )
    except quantize.DiskFull as full:
        raise no_room(staging_dir(), full.needed_bytes, free_bytes(staging_dir())) from full
    return store.publish(target.staged_dir, _manifest(target, repository, sources, report), progress)


def _manifest(
    target: Target, repository: Repository | None, sources: list[RemoteFile], report: quantize.ConversionReport
) -> Manifest:
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
