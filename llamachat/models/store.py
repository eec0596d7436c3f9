"""The models on this machine: one directory each, with the GGUF and a manifest that says where it came from.

A model appears in the store by one rename of its finished directory, so what `list` shows is whole. Names cannot
contain "--" (the Hub does not allow it either), which makes it a safe separator in directory names.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llamachat.models.locks import flat
from llamachat.paths import models_dir

_MANIFEST_NAME = "manifest.json"
_SCHEMA = 1


@dataclass(frozen=True)
class Manifest:
    """What is written beside a stored GGUF. Sizes are bytes, `created` is ISO 8601 in UTC."""

    name: str
    quant: str
    file: str
    size_bytes: int
    n_params: int
    sha256: str
    architecture: str
    repo: str | None
    revision: str | None
    license: str | None
    template: str | None
    system: str | None
    created: str
    sampling: Mapping[str, float] = field(default_factory=dict)
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    schema: int = _SCHEMA


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
        """Size of the GGUF."""
        return self.path.stat().st_size


def list_stored() -> list[StoredModel]:
    """Every model in the store, newest first. Directories without a readable manifest are not models."""
    directory = models_dir()
    if not directory.is_dir():
        return []
    entries = (entry for entry in directory.iterdir() if not entry.name.startswith("."))
    models = [model for entry in entries if (model := _read(entry))]
    return sorted(models, key=lambda model: model.manifest.created if model.manifest else "", reverse=True)


def find_stored(name: str, quant: str | None, revision: str | None = None) -> StoredModel | None:
    """The stored model of that name; without a quant, the newest one."""
    for model in list_stored():
        assert model.manifest is not None
        same_revision = revision is None or (model.manifest.revision or "").startswith(revision)
        if model.name.lower() == name.lower() and quant in (None, model.quant) and same_revision:
            return model
    return None


def model_dir(name: str, quant: str) -> Path:
    """Where the model is, or would be."""
    return models_dir() / _directory_name(name, quant)


def publish(staged: Path, manifest: Manifest) -> StoredModel:
    """Write the manifest into the finished directory `staged` and move it into the store by one rename.

    An older model of the same name and quant is replaced.
    """
    _write_json(staged / _MANIFEST_NAME, asdict(manifest))
    final = model_dir(manifest.name, manifest.quant)
    final.parent.mkdir(parents=True, exist_ok=True)
    replaced = _hide(final) if final.exists() else None
    staged.rename(final)
    _sync(final.parent)
    if replaced:
        shutil.rmtree(replaced)
    model = _read(final)
    assert model is not None
    return model


def remove(model: StoredModel) -> None:
    """Take a model out of the store: out of sight by one rename, then off the disk."""
    shutil.rmtree(_hide(model.path.parent))


def _read(directory: Path) -> StoredModel | None:
    try:
        manifest = Manifest(**json.loads((directory / _MANIFEST_NAME).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    path = directory / manifest.file
    if manifest.schema != _SCHEMA or Path(manifest.file).name != manifest.file or not path.is_file():
        return None
    m = manifest
    return StoredModel(m.name, m.quant, path, m.template, m.system, m.sampling, m)


def _hide(directory: Path) -> Path:
    """Take a model out of sight by one rename; what is left is rubbish under a dotted name."""
    hidden = directory.with_name(f".{directory.name}.{os.getpid()}.removed")
    directory.rename(hidden)
    return hidden


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    _sync(path.parent)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _directory_name(name: str, quant: str) -> str:
    return f"{flat(name)}--{quant}"
