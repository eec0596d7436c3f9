"""Adapters that users give: which model they belong to, and whether they fit it."""

from __future__ import annotations

import shlex
from pathlib import Path

from llamachat.errors import UnusableAdapter
from llamachat.models.resolve import resolve


def find_base(adapter: Path, base: str | None) -> Path:
    """Return the checkpoint directory or GGUF file of the model that `adapter` is to be converted for.

    `base` is a path, or whatever names a model that is here. Raises `UnusableAdapter` without one.
    """
    if base is None:
        raise UnusableAdapter(
            f"{adapter} is an adapter, and cannot be converted without the model it was trained on.",
            f"llamachat quantize {shlex.quote(str(adapter))} --base MODEL; {adapter / 'adapter_config.json'} names it.",
        )
    path = Path(base)
    return path if path.exists() else resolve(base).path
