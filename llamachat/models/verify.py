"""Hash stored models again: what is damaged or missing, and the command that mends it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamachat.errors import BadReference, describe_os_error
from llamachat.models.catalog import Catalog, load_catalog
from llamachat.models.manifest import DamagedManifest, Manifest, StoredFile
from llamachat.models.reference import LocalName, NamedModel, parse_reference
from llamachat.models.resolve import resolve
from llamachat.models.store import BrokenEntry, StoredModel, find_size_problem, scan
from llamachat.models.stored_adapters import ADAPTERS, file_sha256, list_manifests, read_named_manifest

Entry = StoredModel | BrokenEntry


@dataclass(frozen=True)
class Problem:
    """A file of a stored model that is not as its manifest says; the text goes on from the file's name."""

    file: str
    text: str


@dataclass(frozen=True)
class Check:
    """What checking one directory of the store came to; `mend` is the command, or else the advice, that mends it."""

    label: str
    directory: Path
    problems: Sequence[Problem] = ()
    mend: str | None = None


def choose_entries(text: str | None) -> list[Entry]:
    """The directories of the store that MODEL means, usable or not; all of them without one.

    Raises `BadReference` for a model that was not pulled, and what `resolve` raises for one that is not here.
    """
    models, broken = scan()
    entries: list[Entry] = [*models, *broken]
    if text is None:
        return sorted(entries, key=lambda entry: entry.label)
    reference = parse_reference(text, load_catalog())
    if isinstance(reference, NamedModel | LocalName):
        wanted = reference.name.lower(), reference.quant
        if chosen := [entry for entry in entries if _is_meant(entry.label, *wanted)]:
            return chosen
    found = resolve(text)
    if found.manifest:
        return [found]
    raise BadReference(
        f"{found.label} was not pulled by llamachat, so no hash of it was kept.", f"It lies at {found.path}."
    )


def _is_meant(label: str, name: str, quant: str | None) -> bool:
    own_name, _, own_quant = label.rpartition(":")
    return own_name.lower() == name and quant in (None, own_quant)


def count_bytes(entries: Sequence[Entry]) -> int:
    """How many bytes `check` will read."""
    models = [entry for entry in entries if isinstance(entry, StoredModel)]
    adapters = [adapter.path for model in models for adapter in model.adapters if adapter.manifest]
    return sum(model.size_bytes for model in models) + sum(path.stat().st_size for path in adapters)


def check(entry: Entry, on_bytes: Callable[[int], None]) -> Check:
    """Compare a stored model with its manifest, byte for byte; `on_bytes` is told how many were read each time."""
    if isinstance(entry, BrokenEntry):
        problem = Problem(entry.file, entry.problem)
        return Check(entry.label, entry.directory, [problem], _mend_broken(entry, load_catalog()))
    manifest, directory = entry.manifest, entry.path.parent
    assert manifest is not None, "only pulled models are checked"
    found = [(file.name, _find_problem(directory, file, on_bytes)) for file in manifest.contents]
    problems = [Problem(name, text) for name, text in found if text]
    mends = [_mend_damaged(entry, manifest, load_catalog())] if problems else []
    for path in list_manifests(directory):
        if found_there := _find_adapter_problem(directory, path, on_bytes):
            problems.append(found_there)
            mends = mends or [_mend_adapters(entry)]
    return Check(entry.label, directory, problems, "".join(mends) or None)


def _find_problem(directory: Path, file: StoredFile, on_bytes: Callable[[int], None]) -> str | None:
    try:
        text = find_size_problem(directory, file)
        if text is None and file_sha256(directory / file.name, on_bytes) != file.sha256:
            text = "is damaged: its sha256 is not the one in the manifest"
    except OSError as error:
        text = f"cannot be read ({describe_os_error(error)})"
    return text


def _find_adapter_problem(directory: Path, path: Path, on_bytes: Callable[[int], None]) -> Problem | None:
    """What is wrong with an adapter or its manifest at `path`. One that has none is a user's own affair."""
    name = f"{ADAPTERS}/{path.name}"
    try:
        manifest = read_named_manifest(path)
    except DamagedManifest as error:
        return Problem(name, str(error))
    file = StoredFile(f"{ADAPTERS}/{path.stem}.gguf", manifest.size_bytes, manifest.sha256)
    text = _find_problem(directory, file, on_bytes)
    return Problem(file.name, text) if text else None


def _mend_damaged(model: StoredModel, manifest: Manifest, catalog: Catalog) -> str:
    """The model still counts as here, so it has to go before it is pulled again; its adapters go with it."""
    adapters = _adapter_options(model.path.parent)
    return f"llamachat rm {shlex.quote(model.label)} --yes && {_pull_command(manifest, catalog, adapters)}"


def _mend_adapters(model: StoredModel) -> str:
    """What is damaged does not count as here."""
    return shlex.join(["llamachat", "pull", model.label, *_adapter_options(model.path.parent)])


def _adapter_options(directory: Path) -> list[str]:
    """What pulls the adapters in `directory` again; for those made of local files, as far as that is known."""
    options = []
    for path in list_manifests(directory):
        name = path.stem.replace("--", "/")
        try:
            manifest = read_named_manifest(path)
            source = f"{manifest.repo}@{manifest.revision}" if manifest.repo else f"./{name}"
        except DamagedManifest:
            source = name if "/" in name else f"./{name}"
        options += ["--adapter", source]
    return options


def _mend_broken(entry: BrokenEntry, catalog: Catalog) -> str:
    """What is no model is replaced by pulling it again."""
    if entry.manifest:
        return _pull_command(entry.manifest, catalog)
    name, _, quant = entry.label.rpartition(":")
    if "/" in name or catalog.find(name):
        return f"llamachat pull {shlex.quote(name)} --quant {shlex.quote(quant)}"
    return f"Remove the directory {entry.directory}"


def _pull_command(manifest: Manifest, catalog: Catalog, adapters: Sequence[str] = ()) -> str:
    """The command that makes exactly this model again; for one made from local files, as far as that is known."""
    if manifest.repo is None and manifest.versions and "gguf" not in manifest.versions:  # imported, not converted
        return shlex.join(["llamachat", "pull", "./MODEL.gguf", "--name", manifest.name, *adapters])
    spec = catalog.find(manifest.name)
    if manifest.repo is None:
        source = "./CHECKPOINT-DIRECTORY"
    else:
        source = manifest.name if spec and spec.repo == manifest.repo else manifest.repo
    revision = ["--revision", manifest.revision] if manifest.repo and manifest.revision else []
    name = ["--name", manifest.name] if manifest.name != source else []
    return shlex.join(["llamachat", "pull", source, *revision, "--quant", manifest.quant, *name, *adapters])
