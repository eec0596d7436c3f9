"""`manifest.json` beside a stored GGUF: what it is, where it came from, and the hashes to check it by.

An adapter has one of its own, `adapters/NAME.json`, so that adding one leaves the model's as it is.

People edit files and disks tear them, so a manifest is read as if a stranger had written it: every field is checked,
and what is wrong is said by name.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from llamachat.errors import describe_os_error
from llamachat.models.names import is_safe_file, is_valid_name

SCHEMA = 1
MANIFEST_NAME = "manifest.json"
_MAX_BYTES = 4 << 20


class DamagedManifest(Exception):
    """A manifest that cannot be used; the text goes on from the file's name."""


@dataclass(frozen=True)
class StoredFile:
    """One file of a stored model, as its manifest has it."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What is written beside a stored GGUF. Sizes are bytes, `created` is ISO 8601 in UTC.

    Of a model that is split, `file` and `sha256` are the first shard's, `size_bytes` is all of it, and `shards` has the
    size and sha256 of each.
    """

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
    shards: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def contents(self) -> tuple[StoredFile, ...]:
        """Every file that must be there and whole, the one that llama.cpp opens first."""
        whole = StoredFile(self.file, self.size_bytes, self.sha256)
        shards = (StoredFile(name, facts["size_bytes"], facts["sha256"]) for name, facts in self.shards.items())
        return tuple(shards) or (whole,)


@dataclass(frozen=True)
class AdapterManifest:
    """What is written beside a GGUF adapter. `sources` are the files it was made of; units as in `Manifest`.

    `base` is what its trainer called the model, `alpha` and `ranks` are the GGUF's: llama.cpp adds alpha / rank · B·A.
    """

    name: str
    size_bytes: int
    sha256: str
    alpha: float
    ranks: Sequence[int]
    base: str | None
    repo: str | None
    revision: str | None
    license: str | None
    created: str
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA


def read_manifest(path: Path) -> Manifest:
    """Read a model's manifest; raise `DamagedManifest` if there is none or anything in it cannot be used."""
    return _read(Manifest, path)


def read_adapter_manifest(path: Path) -> AdapterManifest:
    """Read an adapter's manifest, as `read_manifest` does."""
    return _read(AdapterManifest, path)


def write_manifest(path: Path, manifest: Manifest | AdapterManifest) -> None:
    """Write a manifest and see it safely on the disk; the caller moves it to its place."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(asdict(manifest), file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


_Kind = TypeVar("_Kind", Manifest, AdapterManifest)


def _read(kind: type[_Kind], path: Path) -> _Kind:
    table = _read_table(path)
    known = {spec.name: str(spec.type) for spec in fields(kind)}
    if (schema := table.get("schema", SCHEMA)) != SCHEMA:
        raise DamagedManifest(f"has schema {_shown(schema)}, which this version does not know")
    if surplus := sorted(table.keys() - known.keys()):
        raise DamagedManifest(f"has an unknown field {_shown(surplus[0])}")
    for name, value in table.items():
        if not _IS_OF_TYPE[known[name]](value) or not _CHECKS.get(name, _anything)(value):
            raise DamagedManifest(f"has {_shown(value)} as {name}, which cannot be used")
    required = [spec.name for spec in fields(kind) if spec.default is spec.default_factory is MISSING]
    if missing := [name for name in required if name not in table]:
        raise DamagedManifest(f"lacks {', '.join(missing)}")
    return kind(**table)


def _read_table(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise DamagedManifest("is missing")
        if path.stat().st_size > _MAX_BYTES:
            raise DamagedManifest("is far too large for what it should be")
        table = json.loads(path.read_bytes())
    except OSError as error:
        raise DamagedManifest(f"cannot be read ({describe_os_error(error)})") from error
    except (ValueError, RecursionError) as error:
        raise DamagedManifest("is not JSON; it may have been cut short") from error
    if not isinstance(table, dict):
        raise DamagedManifest("is not a JSON object")
    return table


def _shown(value: object) -> str:
    """A value for people, cut to a length that leaves the sentence readable."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _anything(_: Any) -> bool:
    return True


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


_IS_OF_TYPE: Mapping[str, Callable[[Any], bool]] = {
    "str": lambda value: type(value) is str,
    "int": lambda value: type(value) is int,
    "float": _is_number,
    "Sequence[int]": lambda value: type(value) is list and all(type(item) is int for item in value),
    "str | None": lambda value: value is None or type(value) is str,
    "Mapping[str, float]": lambda value: type(value) is dict and all(map(_is_number, value.values())),
    "Mapping[str, str]": lambda value: type(value) is dict and all(type(item) is str for item in value.values()),
    "Mapping[str, Mapping[str, Any]]": lambda value: (
        type(value) is dict and all(type(item) is dict for item in value.values())
    ),
}
"""By the field's annotation, so that a new field of a known type needs nothing here."""


def _is_file_name(value: Any) -> bool:
    return is_safe_file(value) and "/" not in value


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_sha256(value: Any) -> bool:
    return type(value) is str and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _are_shards(value: Mapping[str, Mapping[str, Any]]) -> bool:
    return all(
        _is_file_name(name) and facts.keys() == {"size_bytes", "sha256"} and _is_size(facts["size_bytes"])
        and _is_sha256(facts["sha256"])
        for name, facts in value.items()
    )  # fmt: skip


_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "name": is_valid_name,
    "quant": lambda value: re.fullmatch(r"[a-z0-9_]+(?:[.-][a-z0-9_]+)*", value) is not None,
    "file": _is_file_name,
    "size_bytes": _is_size,
    "n_params": _is_size,
    "sha256": _is_sha256,
    "shards": _are_shards,
    "repo": lambda value: value is None or is_valid_name(value),
    "revision": lambda value: value is None or re.fullmatch(r"[^\s:@]+", value) is not None,
}
