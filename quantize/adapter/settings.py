"""adapter_config.json: the numbers an adapter is scaled with, and every reason to refuse it that a config can give.

Sources: `LoraConfig` and the `update_layer` methods in peft/tuners/lora of PEFT; `get_scale` in
src/llama-adapter.h of llama.cpp.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.architectures.base import positive
from quantize.checkpoint import read_json
from quantize.errors import CheckpointError, UnsupportedAdapter, shown

CONFIG_NAME = "adapter_config.json"

_INEXPRESSIBLE = {
    "use_dora": "DoRA, which also scales each row of the base",
    "lora_bias": "biases in LoRA's B",
    "alora_invocation_tokens": "activation by a text (aLoRA)",
    "invocation_string": "activation by a text (aLoRA)",
    "layer_replication": "repeated layers",
    "target_parameters": "LoRA on bare parameters",
    "trainable_token_indices": "embeddings of single tokens",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "arrow_config": "Arrow's routing",
    "kasa_config": "KaSA",
}
"""What a config may ask for beyond plain LoRA, in words."""

_PLAIN_SWITCHES = {"use_rslora"}
"""Keys `use_…` that can be expressed; any other one that is on is refused, known here or not."""

_INITIALIZATIONS_OF_A_PLAIN_BASE = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
"""Values of `init_lora_weights` that leave the base's weights as they are."""

_MAX_RANK = 8192
"""The width of a model; any change of a matrix can be written with its smaller dimension."""

_PLAIN_PATTERN = re.compile(r"[\w.\-]+", re.ASCII)


@dataclass(frozen=True)
class AdapterSettings:
    """How PEFT scales B·A: by alpha / rank, or alpha / √rank with `uses_rslora`."""

    path: Path
    ranks: frozenset[int]
    """Ranks that the config speaks of."""
    alpha: float
    alpha_pattern: Mapping[str, float]
    uses_rslora: bool
    base_name: str | None
    """What the trainer called the base: a repository, or a path on its machine."""

    def may_be_for(self, names: Iterable[str]) -> bool:
        """Whether the trainer's base can be what one of `names` is called; True where it says nothing that tells."""
        wanted = _letters((self.base_name or "").replace("\\", "/").rstrip("/").rpartition("/")[2])
        known = [letters for letters in map(_letters, names) if letters]
        return not wanted or any(wanted in letters or letters in wanted for letters in known)

    def llama_cpp_alpha(self, module: str, rank: int) -> float:
        """The alpha with which alpha / rank, llama.cpp's rule, is PEFT's scale of `module`."""
        ends = {module[m.end() :] for m in re.finditer(r"\.", module)} | {module}
        alpha = next((alpha for pattern, alpha in self._patterns_in(ends)), self.alpha)
        return alpha * math.sqrt(rank) if self.uses_rslora else alpha

    def _patterns_in(self, ends: set[str]) -> list[tuple[str, float]]:
        """The patterns among `ends`; PEFT takes the first one that the config has."""
        found = [end for end in ends if end in self.alpha_pattern]
        if len(found) > 1:
            order = list(self.alpha_pattern)
            found.sort(key=order.index)
        return [(pattern, self.alpha_pattern[pattern]) for pattern in found]


def read_settings(directory: Path) -> AdapterSettings:
    """Read the config in `directory`.

    Raises `UnsupportedAdapter` for what llama.cpp cannot apply exactly, `CheckpointError` for a damaged config.
    """
    path = directory / CONFIG_NAME
    config = read_json(path)
    _refuse_inexpressible(config)
    rank_pattern = _object(config, "rank_pattern", path)
    ranks = [_rank(value, path) for value in (config.get("r"), *rank_pattern.values())]
    base_name = config.get("base_model_name_or_path")
    alpha = positive(config.get("lora_alpha"), "lora_alpha", path)
    return AdapterSettings(
        path=path,
        ranks=frozenset(ranks),
        alpha=alpha,
        alpha_pattern=_alpha_pattern(_object(config, "alpha_pattern", path), alpha, path),
        uses_rslora=config.get("use_rslora") is True,
        base_name=base_name if isinstance(base_name, str) and base_name else None,
    )


def _refuse_inexpressible(config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedAdapter(f"The adapter is of the kind {shown(kind)}; only LoRA can be converted.")
    for key, value in config.items():
        is_switch = key.startswith("use_") and key not in _PLAIN_SWITCHES
        if value and (key in _INEXPRESSIBLE or is_switch):
            what = _INEXPRESSIBLE.get(key, "something beyond plain LoRA")
            raise UnsupportedAdapter(f"The adapter uses {what} ({shown(key)}), which llama.cpp cannot apply.")
    start = config.get("init_lora_weights")
    if (start.lower() if isinstance(start, str) else start) not in _INITIALIZATIONS_OF_A_PLAIN_BASE:
        raise UnsupportedAdapter(
            f"The adapter was started with {shown(start)} (init_lora_weights), which also changes the base's weights.",
            "Save it anew with PEFT as a plain LoRA (save_pretrained with path_initial_model_for_weight_conversion), "
            "or merge it into its changed base and convert that model.",
        )


def _object(config: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise CheckpointError(path, f"{key} is {shown(value)}, which is not an object")
    return value


def _rank(value: Any, path: Path) -> int:
    if type(value) is not int or not 0 < value <= _MAX_RANK:
        raise CheckpointError(path, f"a rank is {shown(value)}, which is not a number from 1 to {_MAX_RANK}")
    return value


def _alpha_pattern(pattern: Mapping[str, Any], default: float, path: Path) -> dict[str, float]:
    """Alphas of single modules, by the end of their names."""
    alphas = {key: positive(value, f"alpha_pattern of {shown(key)}", path) for key, value in pattern.items()}
    if set(alphas.values()) <= {default}:
        return {}
    for key in alphas:
        if not _PLAIN_PATTERN.fullmatch(key):
            raise UnsupportedAdapter(
                f"{path.name}: alpha_pattern has the expression {shown(key)}; only ends of modules' names are read."
            )
    return alphas


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))
