"""One file a model family; this table finds the right one for a config.json. A params.json is always Meta's Llama.

To add a family: write a subclass of `Architecture` in a file of its own and name it in `ARCHITECTURES`. The other
steps are in docs/families.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantize.architectures.base import Architecture
from quantize.architectures.llama import Llama
from quantize.architectures.meta import MetaLlama
from quantize.architectures.mixtral import Mixtral
from quantize.architectures.qwen import Qwen2, Qwen3
from quantize.checkpoint import PARAMS_NAME
from quantize.errors import UnsupportedArchitecture, shown

ARCHITECTURES: tuple[type[Architecture], ...] = (Llama, Mixtral, Qwen2, Qwen3)


def find_architecture(config: Mapping[str, Any], config_path: Path) -> Architecture:
    """Return the architecture that `config` names, with its numbers read; raise `UnsupportedArchitecture`."""
    if config_path.name == PARAMS_NAME:
        return MetaLlama(config, config_path)
    by_name = {name: architecture for architecture in ARCHITECTURES for name in architecture.hf_names}
    names = config.get("architectures")
    wanted = names[0] if isinstance(names, list) and names else config.get("model_type")
    if not isinstance(wanted, str) or wanted not in by_name:
        raise UnsupportedArchitecture(shown(wanted), sorted(by_name))
    return by_name[wanted](config, config_path)
