"""The models on this machine: one directory each, with the GGUF and a manifest that says where it came from.

A model appears in the store by one rename of its finished directory, so what `list` shows is whole. Names cannot
contain "--" (the Hub does not allow it either), which makes it a safe separator in directory names.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llamachat.errors import NameTaken
from llamachat.models.durable import exchange, sync_directory
from llamachat.models.locks import flat
from llamachat.models.manifest import (
    MANIFEST_NAME,
    DamagedManifest,
    Manifest,
    StoredFile,
    read_manifest,
    write_manifest,
)
from llamachat.models.progress import Progress
from llamachat.models.stored_adapters import StoredAdapter, carry_over, list_adapters
from llamachat.paths import models_dir


@dataclass(frozen=True)
class StoredModel:
    """A GGUF that can be loaded: pulled into the store, or lying somewhere else (`manifest` is None then)."""

    name: str
    quant: str
    path: Path
    template: str | None = None
    system: str | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)
    manifest: Manifest | None = None

    @property
    def label(self) -> str:
        """`name:quant`, or the path of a file that is not in the store: what commands accept."""
        return f"{self.name}:{self.quant}" if self.quant else self.name

    @property
    def size_bytes(self) -> int:
        """Size of the GGUF, all its files together."""
        if self.manifest:
            return sum(file.size_bytes for file in self.manifest.contents)
        return self.path.stat().st_size

    @property
    def adapters(self) -> list[StoredAdapter]:
        """GGUF adapters that lie beside a stored model, under `adapters/`."""
        return list_adapters(self.path.parent) if self.manifest else []


@dataclass(frozen=True)
class BrokenEntry:
    """A directory in the store that is no usable model, and why; with its manifest if that can be read."""

    directory: Path
    file: str
    problem: str
    manifest: Manifest | None = None

    @property
    def label(self) -> str:
        """`name:quant`, as the directory's name has it."""
        name, _, quant = self.directory.name.rpartition("--")
        return f"{name.replace('--', '/')}:{quant}" if name else self.directory.name


def scan() -> tuple[list[StoredModel], list[BrokenEntry]]:
    """Every model in the store, newest first, and what else lies there. Nothing is hashed."""
    directory = models_dir()
    models: list[StoredModel] = []
    broken: list[BrokenEntry] = []
    if directory.is_dir():
        for entry in sorted(directory.iterdir()):
            if entry.name.startswith(".") or not entry.is_dir():
                continue
            found = _read(entry)
            if isinstance(found, StoredModel):
                models.append(found)
            elif entry.is_dir():  # else it has just gone
                broken.append(found)
    return sorted(models, key=lambda model: model.manifest.created if model.manifest else "", reverse=True), broken


def list_stored() -> list[StoredModel]:
    """Every model in the store, newest first."""
    return scan()[0]


def largest_stored(n: int = 3) -> list[StoredModel]:
    """The stored models that take most room, largest first."""
    return sorted(list_stored(), key=lambda model: model.size_bytes, reverse=True)[:n]


def find_stored(name: str, quant: str | None, revision: str | None = None) -> StoredModel | None:
    """The stored model of that name; without a quant, the newest one."""
    for model in list_stored():
        assert model.manifest is not None
        same_revision = revision is None or (model.manifest.revision or "").startswith(revision)
        if model.name.lower() == name.lower() and quant in (None, model.quant) and same_revision:
            return model
    return None


def require_name(name: str, quant: str, repo: str | None) -> None:
    """Raise `NameTaken` if there is a model of that name and quant that comes from elsewhere than `repo`."""
    stored = find_stored(name, quant)
    if stored and stored.manifest and stored.manifest.repo != repo:
        raise NameTaken(stored.label)


def model_dir(name: str, quant: str) -> Path:
    """Where the model is, or would be."""
    return models_dir() / _directory_name(name, quant)


def publish(staged: Path, manifest: Manifest, progress: Progress) -> StoredModel:
    """Write the manifest into the finished directory `staged` and move it into the store by one rename.

    An older model of the same name and quant is replaced. Its adapters stay if they fit, and `progress` hears of it.
    """
    write_manifest(staged / MANIFEST_NAME, manifest)
    final = model_dir(manifest.name, manifest.quant)
    carry_over(final, staged, staged / manifest.file, progress)
    sync_directory(staged)
    final.parent.mkdir(parents=True, exist_ok=True)
    replaced = _put_in_place(staged, final)
    sync_directory(final.parent)
    if replaced:
        delete(replaced)
    model = _read(final)
    assert isinstance(model, StoredModel)
    return model


def remove(model: StoredModel) -> None:
    """Take a model out of the store, adapters and all: out of sight by one rename, then off the disk."""
    directory = model.path.parent
    delete(_hide(directory, directory))


def delete(path: Path) -> None:
    """Delete a file or a directory; of a link, only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _read(directory: Path) -> StoredModel | BrokenEntry:
    """The model in a directory of the store, or what is wrong with it."""
    try:
        manifest = read_manifest(directory / MANIFEST_NAME)
    except DamagedManifest as error:
        return BrokenEntry(directory, MANIFEST_NAME, str(error))
    if directory.name != _directory_name(manifest.name, manifest.quant):
        other = f"is that of {manifest.name}:{manifest.quant}, not of this directory"
        return BrokenEntry(directory, MANIFEST_NAME, other)
    for file in manifest.contents:
        if problem := find_size_problem(directory, file):
            return BrokenEntry(directory, file.name, problem, manifest)
    m = manifest
    return StoredModel(m.name, m.quant, directory / m.file, m.template, m.system, m.sampling, m)


def find_size_problem(directory: Path, file: StoredFile) -> str | None:
    """What is wrong with a file of a stored model, without reading it; None if nothing is."""
    path = directory / file.name
    if not path.is_file():
        return "is missing"
    n_bytes = path.stat().st_size
    return None if n_bytes == file.size_bytes else f"has {n_bytes:,} bytes instead of {file.size_bytes:,}"


def _put_in_place(staged: Path, final: Path) -> Path | None:
    """Give `staged` its final name; return what had that name, out of sight now. Where the system can, in one step."""
    if not final.exists():
        staged.rename(final)
        return None
    if exchange(staged, final):
        return _hide(staged, final)
    replaced = _hide(final, final)
    staged.rename(final)
    return replaced


def _hide(directory: Path, place: Path) -> Path:
    """Take the model that has, or had, that place out of sight by one rename: rubbish with a dotted name."""
    hidden = place.with_name(f".{place.name}.{os.getpid()}.removed")
    directory.rename(hidden)
    return hidden


def _directory_name(name: str, quant: str) -> str:
    return f"{flat(name)}--{quant}"
