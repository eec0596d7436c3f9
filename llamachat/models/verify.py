"""Hash stored models again: what is damaged or missing, and the command that mends it."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamachat.errors import BadReference, describe_os_error
from llamachat.models.catalog import Catalog, load_catalog
from llamachat.models.manifest import Manifest
from llamachat.models.reference import LocalName, NamedModel, parse_reference
from llamachat.models.resolve import resolve
from llamachat.models.store import BrokenEntry, StoredModel, find_size_problem, scan

_PIECE_BYTES = 4 << 20

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
    return sum(entry.size_bytes for entry in entries if isinstance(entry, StoredModel))


def check(entry: Entry, on_bytes: Callable[[int], None]) -> Check:
    """Compare a stored model with its manifest, byte for byte; `on_bytes` is told how many were read each time."""
    if isinstance(entry, BrokenEntry):
        problem = Problem(entry.file, entry.problem)
        return Check(entry.label, entry.directory, [problem], _mend_broken(entry, load_catalog()))
    manifest, directory = entry.manifest, entry.path.parent
    assert manifest is not None, "only pulled models are checked"
    problems = []
    for file in manifest.contents:
        try:
            text = find_size_problem(directory, file)
            if text is None and _sha256(directory / file.name, on_bytes) != file.sha256:
                text = "is damaged: its sha256 is not the one in the manifest"
        except OSError as error:
            text = f"cannot be read ({describe_os_error(error)})"
        if text:
            problems.append(Problem(file.name, text))
    mend = _mend_damaged(entry.label, manifest, load_catalog()) if problems else None
    return Check(entry.label, directory, problems, mend)


def _sha256(path: Path, on_bytes: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            on_bytes(len(piece))
    return digest.hexdigest()


def _mend_damaged(label: str, manifest: Manifest, catalog: Catalog) -> str:
    """The model still counts as here, so it has to go before it is pulled again."""
    return f"llamachat rm {shlex.quote(label)} --yes && {_pull_command(manifest, catalog)}"


def _mend_broken(entry: BrokenEntry, catalog: Catalog) -> str:
    """What is no model is replaced by pulling it again."""
    if entry.manifest:
        return _pull_command(entry.manifest, catalog)
    name, _, quant = entry.label.rpartition(":")
    if "/" in name or catalog.find(name):
        return f"llamachat pull {shlex.quote(name)} --quant {shlex.quote(quant)}"
    return f"Remove the directory {entry.directory}"


def _pull_command(manifest: Manifest, catalog: Catalog) -> str:
    """The command that makes exactly this model again; for one made from a directory, as far as that is known."""
    spec = catalog.find(manifest.name)
    if manifest.repo is None:
        source = "./CHECKPOINT-DIRECTORY"
    else:
        source = manifest.name if spec and spec.repo == manifest.repo else manifest.repo
    revision = ["--revision", manifest.revision] if manifest.repo and manifest.revision else []
    name = ["--name", manifest.name] if manifest.name != source else []
    return shlex.join(["llamachat", "pull", source, *revision, "--quant", manifest.quant, *name])
