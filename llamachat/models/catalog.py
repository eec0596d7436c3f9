"""models.toml → ModelSpec: the names users can pull without knowing where the weights are.

The catalogue ships with the package; `LLAMACHAT_HOME/models.toml` overlays it key by key.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from llamachat.errors import DamagedCatalogue
from llamachat.models.memory import Shape
from llamachat.models.names import is_valid_name
from llamachat.paths import user_catalog_path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_SCHEMA = 1


@dataclass(frozen=True)
class ModelSpec:
    """One catalogue line."""

    name: str
    repo: str
    template: str
    n_params: int
    n_ctx: int
    license: str
    gated: bool
    quant: str
    mirror: str | None = None
    system: str | None = None
    aliases: tuple[str, ...] = ()
    sampling: Mapping[str, float] = field(default_factory=dict)
    shape: Shape | None = None


@dataclass(frozen=True)
class Catalog:
    """All known models by name."""

    specs: Mapping[str, ModelSpec]

    def find(self, name: str) -> ModelSpec | None:
        """The model of that name or alias, in any case."""
        wanted = name.lower()
        if wanted in self.specs:
            return self.specs[wanted]
        return next((spec for spec in self.specs.values() if wanted in spec.aliases), None)

    def find_by_repo(self, repo: str) -> ModelSpec | None:
        """The model whose weights are in that Hub repository, or in its known mirror."""
        return next((spec for spec in self.specs.values() if repo in (spec.repo, spec.mirror)), None)

    def similar(self, name: str) -> list[str]:
        """Up to three names that look like `name`, best first."""
        return difflib.get_close_matches(name.lower(), self.specs, n=3, cutoff=0.6)


def load_catalog() -> Catalog:
    """Read the shipped catalogue and the user's own; raise `DamagedCatalogue` if the user's cannot be used."""
    tables: dict[str, dict[str, Any]] = {name: dict(table) for name, table in _shipped_tables().items()}
    user_path = user_catalog_path()
    if user_path.exists():
        for name, table in _read_tables(user_path).items():
            tables.setdefault(name.lower(), {}).update(table)
        return Catalog({name: _spec(user_path, name, table) for name, table in tables.items()})
    return Catalog({name: _spec(_shipped_path(), name, table) for name, table in tables.items()})


def _shipped_path() -> Path:
    """Inside the installed package; beside it in a source checkout."""
    package = Path(__file__).parents[1]
    installed = package / "models.toml"
    return installed if installed.exists() else package.parent / "models.toml"


@lru_cache(maxsize=1)
def _shipped_tables() -> dict[str, dict[str, Any]]:
    return _read_tables(_shipped_path())


def _read_tables(path: Path) -> dict[str, dict[str, Any]]:
    try:
        parsed = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedCatalogue(path, f"cannot be read ({error})") from error
    if parsed.get("schema", _SCHEMA) != _SCHEMA:
        raise DamagedCatalogue(path, f"has schema {parsed['schema']}, this version reads {_SCHEMA}")
    tables = parsed.get("models", {})
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise DamagedCatalogue(path, "has entries that are not tables")
    return tables


_KEY_TYPES: dict[str, type] = {
    "repo": str,
    "template": str,
    "n_params": int,
    "n_ctx": int,
    "license": str,
    "gated": bool,
    "quant": str,
    "mirror": str,
    "system": str,
    "aliases": list,
    "sampling": dict,
    "shape": dict,
}
_OPTIONAL = {"mirror", "system", "aliases", "sampling", "shape"}
_SHAPE_KEYS = {part.name for part in fields(Shape)}
_SAMPLING_KEYS = {"temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty"}


def _spec(path: Path, name: str, table: Mapping[str, Any]) -> ModelSpec:
    if not is_valid_name(name):
        raise DamagedCatalogue(path, f"{name!r} cannot be a model's name")
    for key, value in table.items():
        if key not in _KEY_TYPES:
            raise DamagedCatalogue(path, f"{name} has an unknown key {key!r}")
        if type(value) is not _KEY_TYPES[key] or (type(value) is int and value <= 0):
            raise DamagedCatalogue(path, f"{name}: {key} is not a usable {_KEY_TYPES[key].__name__}")
    if missing := sorted(_KEY_TYPES.keys() - _OPTIONAL - table.keys()):
        raise DamagedCatalogue(path, f"{name} lacks {', '.join(missing)}")
    aliases = table.get("aliases", ())
    if not all(isinstance(alias, str) and is_valid_name(alias) for alias in aliases):
        raise DamagedCatalogue(path, f"{name}: aliases are not all names")
    for key, value in table.get("sampling", {}).items():
        if key not in _SAMPLING_KEYS or type(value) not in (int, float) or not 0 <= value < 1e6:
            raise DamagedCatalogue(path, f"{name}: sampling has {key} = {value!r}, which cannot be used")
    shape = table.get("shape")
    if shape is not None and (
        shape.keys() != _SHAPE_KEYS or not all(type(n) is int and 0 < n < 2**31 for n in shape.values())
    ):
        raise DamagedCatalogue(path, f"{name}: shape is not made of {', '.join(sorted(_SHAPE_KEYS))}, all above 0")
    made = {"aliases": tuple(alias.lower() for alias in aliases), "shape": Shape(**shape) if shape else None}
    return ModelSpec(name=name, **{**table, **made})
