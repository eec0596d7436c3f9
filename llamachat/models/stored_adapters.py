"""GGUF adapters beside a stored model, `adapters/NAME.gguf`, each with a manifest, `NAME.json`.

A file without a manifest is one that a user has put there. The manifest is the last thing to appear and the first to
go, so that there is never one beside an adapter that it does not speak of.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llamachat.models.durable import sync_directory
from llamachat.models.locks import flat
from llamachat.models.manifest import AdapterManifest, DamagedManifest, read_adapter_manifest, write_manifest
from llamachat.models.progress import Progress

ADAPTERS = "adapters"
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter that can be used with the model it lies beside; `manifest` is None if nothing is known of it."""

    name: str
    path: Path
    manifest: AdapterManifest | None = None


def list_adapters(directory: Path) -> list[StoredAdapter]:
    """The adapters of the model in `directory`, by name."""
    paths = sorted((directory / ADAPTERS).glob("*.gguf"))
    return [StoredAdapter(path.stem.replace("--", "/"), path, _manifest(path)) for path in paths if path.is_file()]


def manifest_path(path: Path) -> Path:
    """Where the manifest of the adapter at `path` is, or would be."""
    return path.with_suffix(".json")


def list_manifests(directory: Path) -> list[Path]:
    """The manifests of the adapters in `directory`, whether their adapters are there or not."""
    return sorted((directory / ADAPTERS).glob("*.json"))


def read_named_manifest(path: Path) -> AdapterManifest:
    """Read an adapter's manifest; raise `DamagedManifest` as `read_adapter_manifest` does, or for another adapter's."""
    manifest = read_adapter_manifest(path)
    if path.stem != flat(manifest.name):
        raise DamagedManifest(f"is that of {manifest.name}")
    return manifest


def put_adapter(directory: Path, made: Path, manifest: AdapterManifest) -> StoredAdapter:
    """Move the finished adapter `made`, which is on the same file system, to its place in the model's `directory`.

    An older one of that name is replaced. The caller holds the model's lock.
    """
    path = directory / ADAPTERS / f"{flat(manifest.name)}.gguf"
    path.parent.mkdir(exist_ok=True)
    staged = manifest_path(made)
    write_manifest(staged, manifest)
    manifest_path(path).unlink(missing_ok=True)
    made.replace(path)
    staged.replace(manifest_path(path))
    sync_directory(path.parent)
    sync_directory(directory)
    return StoredAdapter(manifest.name, path, manifest)


def remove_adapter(adapter: StoredAdapter) -> None:
    """Take an adapter away from its model, whose lock the caller holds."""
    directory = adapter.path.parent
    manifest_path(adapter.path).unlink(missing_ok=True)
    adapter.path.unlink(missing_ok=True)
    sync_directory(directory)
    with suppress(OSError):  # others are there
        directory.rmdir()


def carry_over(old: Path, new: Path, model_path: Path, progress: Progress) -> None:
    """Give the model at `model_path`, in `new`, the adapters in `old` that fit it; say what becomes of each.

    They are linked, or copied, so that `old` stays as it is until `new` has taken its place.
    """
    import quantize  # slow to import, and listing models needs none of it

    shutil.rmtree(new / ADAPTERS, ignore_errors=True)  # of an attempt that was cut short
    for adapter in list_adapters(old):
        try:
            quantize.check_adapter(adapter.path, model_path)
        except quantize.QuantizeError as error:
            progress.notice(f"The adapter {adapter.name} does not fit the new model and is gone: {error}")
            continue
        (new / ADAPTERS).mkdir(exist_ok=True)
        for path in (adapter.path, manifest_path(adapter.path)):
            if path.is_file():
                _link(path, new / ADAPTERS / path.name)
        sync_directory(new / ADAPTERS)
        progress.notice(f"The adapter {adapter.name} fits the new model as well and is kept.")


def file_sha256(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """Hash a file; `on_bytes` is told how many bytes were read each time."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            if on_bytes:
                on_bytes(len(piece))
    return digest.hexdigest()


def _manifest(path: Path) -> AdapterManifest | None:
    with suppress(DamagedManifest):  # `verify` says what is wrong with it
        return read_named_manifest(manifest_path(path))
    return None


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:
        with source.open("rb") as data, target.open("xb") as copy:
            shutil.copyfileobj(data, copy)
            copy.flush()
            os.fsync(copy.fileno())
