"""MODEL → a GGUF on this machine, or the error that says how to get one."""

from __future__ import annotations

from pathlib import Path

from llamachat.errors import BadReference, ModelNotHere, NoModel, NotAModelFile, describe_os_error
from llamachat.models.catalog import Catalog, load_catalog
from llamachat.models.embedded import find_embedded
from llamachat.models.names import is_valid_name
from llamachat.models.reference import (
    CheckpointDirectory,
    LocalName,
    ModelFile,
    NamedModel,
    parse_reference,
    unknown,
)
from llamachat.models.store import StoredModel, find_stored, list_stored

_GGUF_MAGIC = b"GGUF"


def resolve(text: str | None) -> StoredModel:
    """Find the model a user means; without one, the newest stored model, else the embedded one."""
    catalog = load_catalog()
    if text is None:
        stored = list_stored()
        model = stored[0] if stored else find_embedded(catalog)
        if model is None:
            raise NoModel
        return model
    reference = parse_reference(text, catalog)
    match reference:
        case ModelFile(path):
            return _from_file(path)
        case CheckpointDirectory(path):
            if is_valid_name(text) and (stored_here := find_stored(text, None)):
                return stored_here
            raise BadReference(f"{path} is a checkpoint, not a GGUF file.", f"Convert it first: llamachat pull {path}")
        case NamedModel(name, quant=quant, revision=revision):
            found = find_stored(name, quant, revision) or _embedded_if(catalog, name, quant)
            if found is None:
                raise ModelNotHere(text, _pull_argument(reference))
            return found
        case LocalName(name, quant):
            found = find_stored(name, quant)
            if found is None:
                raise unknown(reference, catalog)
            return found


def check_is_gguf(path: Path) -> None:
    """Raise `NotAModelFile` unless `path` is a file that starts like GGUF."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise NotAModelFile(path, describe_os_error(error)) from error
    if magic != _GGUF_MAGIC:
        raise NotAModelFile(path, "is not a GGUF file")


def _from_file(path: Path) -> StoredModel:
    check_is_gguf(path)
    return StoredModel(str(path), "", path.absolute())


def _embedded_if(catalog: Catalog, name: str, quant: str | None) -> StoredModel | None:
    embedded = find_embedded(catalog)
    if embedded and embedded.name == name and quant in (None, embedded.quant):
        return embedded
    return None


def _pull_argument(reference: NamedModel) -> str:
    revision = f" --revision {reference.revision}" if reference.revision else ""
    quant = f" --quant {reference.quant}" if reference.quant else ""
    return f"{reference.name}{revision}{quant}"
