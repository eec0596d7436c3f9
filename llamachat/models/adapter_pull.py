"""An adapter → beside its model in the store: fetched, converted against it, checked with it, and put there."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import quantize
from llamachat.errors import HubUnreachable, UnusableAdapter
from llamachat.models.adapter_source import AdapterReference, AdapterSource, find_source, staged
from llamachat.models.hub import ONE_TRY, download, hub_access, n_missing
from llamachat.models.locks import OnWait
from llamachat.models.manifest import AdapterManifest
from llamachat.models.plan import plan_files
from llamachat.models.progress import Progress
from llamachat.models.staging import fetch, link_cached
from llamachat.models.store import StoredModel
from llamachat.models.stored_adapters import StoredAdapter, file_sha256, put_adapter
from llamachat.models.transfer import Transfer
from llamachat.paths import staging_dir

_RECORDED_PACKAGES = ("llamachat", "gguf")


@dataclass(frozen=True)
class AdapterResult:
    """The stored adapter; `elapsed_s` is 0 and `was_here` true if nothing had to be done."""

    adapter: StoredAdapter
    manifest: AdapterManifest
    elapsed_s: float
    was_here: bool


def find_sources(
    references: Sequence[AdapterReference],
    base_names: Sequence[str],
    stored: StoredModel | None,
    progress: Progress,
    on_wait: OnWait | None,
) -> list[AdapterSource | AdapterReference]:
    """Look all adapters up. One that `stored` has stays a reference where nobody can be asked for a newer one."""
    return [_find_source(reference, base_names, stored, progress, on_wait) for reference in references]


def _find_source(
    reference: AdapterReference,
    base_names: Sequence[str],
    stored: StoredModel | None,
    progress: Progress,
    on_wait: OnWait | None,
) -> AdapterSource | AdapterReference:
    here = _find_unasked(reference, stored) if stored and reference.repo else None
    if here and hub_access().offline:
        return reference
    try:
        return find_source(reference, base_names, progress, on_wait, ONE_TRY if here else None)
    except HubUnreachable as unreachable:
        if here is None:
            raise
        progress.notice(f"Whether there is a newer version of {reference.name} is not known: {unreachable}")
        return reference


def pull_adapter(
    source: AdapterSource | AdapterReference,
    model: StoredModel,
    progress: Progress,
    on_wait: OnWait | None,
    *,
    keep: bool,
) -> AdapterResult:
    """Put an adapter beside `model`, whose lock the caller holds. Raises `LlamachatError` or `QuantizeError`.

    With `keep` what was downloaded stays where it is.
    """
    started = time.monotonic()
    if isinstance(source, AdapterReference):
        if here := _find_unasked(source, model):
            return here
        step = "Unset HF_HUB_OFFLINE" if hub_access().offline else "Run the same command when the Hub can be reached"
        raise UnusableAdapter(f"{source.name} did not fit the new model.", f"{step} to pull it again.")
    with staged(source, on_wait):
        sources = _describe_sources(source)
        if here := _find_here(source, sources, model):
            result = here
        else:
            _fetch(source, model, progress)
            manifest, adapter = _make(source, sources, model, progress)
            result = AdapterResult(adapter, manifest, time.monotonic() - started, was_here=False)
        if source.repository and not keep:
            shutil.rmtree(source.path)
            with suppress(OSError):  # a checkpoint of the same repository
                source.path.parent.rmdir()
    return result


def _find_unasked(reference: AdapterReference, model: StoredModel) -> AdapterResult | None:
    for adapter in model.adapters:
        known = adapter.manifest
        if known is None or known.repo is None or known.repo != reference.repo:
            continue
        if (known.revision or "").startswith(reference.revision or "") and _is_whole(adapter, known):
            return AdapterResult(adapter, known, 0.0, was_here=True)
    return None


def _find_here(source: AdapterSource, sources: Mapping[str, Any], model: StoredModel) -> AdapterResult | None:
    """The adapter, if the model has this very one: of the same commit, or else of the same files."""
    for adapter in model.adapters:
        known = adapter.manifest
        if known is None or known.name != source.name or not _is_whole(adapter, known):
            continue
        if source.repository:
            is_same = (known.repo, known.revision) == (source.repository.repo, source.repository.commit)
        else:
            is_same = known.repo is None and known.sources == sources
        if is_same:
            return AdapterResult(adapter, known, 0.0, was_here=True)
    return None


def _is_whole(adapter: StoredAdapter, known: AdapterManifest) -> bool:
    return adapter.path.stat().st_size == known.size_bytes and file_sha256(adapter.path) == known.sha256


def _describe_sources(source: AdapterSource) -> dict[str, dict[str, Any]]:
    """Sizes and hashes of the files of an adapter that is on this machine; nothing yet of one that is to come."""
    if source.repository:
        return {}
    paths = [source.path]
    if source.path.is_dir():
        paths = [source.path / name for name in (quantize.ADAPTER_CONFIG, *quantize.ADAPTER_WEIGHTS)]
    return {
        path.name: {"size_bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in paths if path.is_file()
    }


def _fetch(source: AdapterSource, model: StoredModel, progress: Progress) -> None:
    """Fetch what is missing of an adapter on the Hub. Whether its matrices fit the model is seen in the first range."""
    repository, weights = source.repository, source.weights
    if repository is None or weights is None:
        return
    fetch(
        repository, [file for file in source.files if file != weights], source.path, Transfer([], source.path, progress)
    )
    link_cached(repository, [weights], source.path)
    plan_files(source.name, [weights], source.path).require_room()
    watch = Transfer([weights], source.path, _FilesOnly(progress))
    if weights.name.endswith(".safetensors") and n_missing(weights, source.path / weights.name):
        download(repository, weights, source.path / weights.name, watch, first_range_only=True)
        quantize.predict_adapter(source.path, model.path, _file_type())
    fetch(repository, [weights], source.path, watch)


def _make(
    source: AdapterSource, sources: Mapping[str, Any], model: StoredModel, progress: Progress
) -> tuple[AdapterManifest, StoredAdapter]:
    """Convert or copy an adapter that is here, and put it into the store."""
    directory = staging_dir() / f"{model.path.parent.name}.adapter"
    shutil.rmtree(directory, ignore_errors=True)  # what a killed one left behind; the lock keeps others out
    directory.mkdir(parents=True)
    made = directory / "adapter.gguf"
    try:
        if source.path.is_dir():
            quantize.convert_adapter(source.path, model.path, made, _file_type())
        else:
            _copy(source.path, made)
        for note in quantize.check_adapter(made, model.path):
            progress.notice(note)
        if source.repository:
            sources = {
                file.name: {"size_bytes": file.size_bytes, "sha256": file_sha256(source.path / file.name)}
                for file in source.files
            }
        manifest = _manifest(source, sources, made)
        return manifest, put_adapter(model.path.parent, made, manifest)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _manifest(source: AdapterSource, sources: Mapping[str, Any], made: Path) -> AdapterManifest:
    facts, repository = quantize.read_adapter_facts(made), source.repository
    return AdapterManifest(
        name=source.name,
        size_bytes=made.stat().st_size,
        sha256=file_sha256(made),
        alpha=facts.alpha,
        ranks=list(facts.ranks),
        base=source.base,
        repo=repository.repo if repository else None,
        revision=repository.commit if repository else None,
        license=repository.license if repository else None,
        created=datetime.now(timezone.utc).isoformat(timespec="microseconds"),
        sources=sources,
        versions={package: importlib.metadata.version(package) for package in _RECORDED_PACKAGES},
    )


def _copy(source: Path, target: Path) -> None:
    try:
        data = source.open("rb")
    except OSError as error:
        raise UnusableAdapter(
            f"{source}: cannot be read ({error.strerror}).", "Check the path and its rights."
        ) from error
    with data, target.open("xb") as copy:
        shutil.copyfileobj(data, copy)
        copy.flush()
        os.fsync(copy.fileno())


def _file_type() -> quantize.FileType:
    """Nothing is lost by it, and adapters are small."""
    return quantize.find_file_type(quantize.ADAPTER_FILE_TYPES[0])


class _FilesOnly:
    """The total is the model's, and must not go backwards: an adapter's progress is that of its file."""

    def __init__(self, progress: Progress) -> None:
        self.file, self.paused, self.arrived = progress.file, progress.paused, progress.arrived
        self.planned, self.notice = progress.planned, progress.notice

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Say nothing."""
