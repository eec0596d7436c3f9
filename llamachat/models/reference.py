"""What a user means by MODEL: text → one of four kinds of reference. Looks at names only, never at the network.

llama-2-7b-chat            a catalogue name        llama-2-7b-chat:q4_k_m   with a quant
ORG/REPO  ORG/REPO@REV     a Hub checkpoint        ORG/REPO:Q4_K_M          with a quant, or a GGUF file's
./dir  /dir  ~/dir         a checkpoint directory  model.gguf               a file
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from llamachat.errors import BadReference, UnknownModel
from llamachat.models.catalog import Catalog, ModelSpec
from llamachat.models.names import NAME, is_valid_name
from llamachat.paths import expand_user

_QUANT = r"[A-Za-z0-9_]+(?:-[A-Za-z0-9_]+)*"  # UD-Q4_K_XL
_REFERENCE = re.compile(rf"(?P<name>{NAME}(?:/{NAME})?)(?:@(?P<revision>[^:@\s]+))?(?::(?P<quant>{_QUANT}))?")


@dataclass(frozen=True)
class NamedModel:
    """A catalogue name or `ORG/REPO`, with what was said about revision and quant."""

    name: str
    repo: str
    spec: ModelSpec | None = None
    revision: str | None = None
    quant: str | None = None


@dataclass(frozen=True)
class LocalName:
    """A name that is neither in the catalogue nor ORG/REPO: it can only be a stored model (`pull --name`)."""

    name: str
    quant: str | None = None


@dataclass(frozen=True)
class CheckpointDirectory:
    """A checkpoint on disk: Hugging Face's or Meta's."""

    path: Path


@dataclass(frozen=True)
class ModelFile:
    """A GGUF file on disk."""

    path: Path


Reference = NamedModel | LocalName | CheckpointDirectory | ModelFile


def parse_reference(text: str, catalog: Catalog) -> Reference:
    """Read MODEL; raise `BadReference` for text that can be none of the kinds."""
    if text.endswith(".gguf"):
        return ModelFile(expand_user(text))
    if text.startswith((".", "/", "~")) or text.endswith("/"):
        return _directory(text)
    match = _REFERENCE.fullmatch(text)
    if match is None or not is_valid_name(match["name"]):
        raise BadReference(
            f"{text[:80]!r} is not a model name.", "Write a catalogue name, ORG/REPO, ./directory or a .gguf file."
        )
    name, revision = match["name"], match["revision"]
    quant = match["quant"].lower() if match["quant"] else None
    if spec := catalog.find(name):
        return NamedModel(spec.name, spec.repo, spec, revision, quant)
    if "/" in name:
        return NamedModel(name, name, catalog.find_by_repo(name), revision, quant)
    if Path(text).is_dir():
        return _directory(text)
    return LocalName(name, quant)


def unknown(reference: LocalName, catalog: Catalog) -> UnknownModel:
    """The error for a name that is nowhere to be found."""
    return UnknownModel(reference.name, catalog.similar(reference.name))


def _directory(text: str) -> CheckpointDirectory:
    path = expand_user(text)
    if not path.is_dir():
        raise BadReference(f"{text} is not a directory.", "Check the path; a Hub repository is written ORG/REPO.")
    return CheckpointDirectory(path)
