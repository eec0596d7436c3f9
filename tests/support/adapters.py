"""PEFT adapter directories for tests, written by hand with the names and the config that PEFT 0.21 writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support.checkpoints import Dtype, LlamaShape, Tensor, write_safetensors
from support.torch_files import write_torch_file

F32Array = NDArray[np.float32]
PREFIX = "base_model.model."
EMBED, HEAD = "model.embed_tokens", "lm_head"


def lora_names(module: str) -> tuple[str, str]:
    """What PEFT calls A and B of `module`."""
    if module == EMBED:
        return f"{PREFIX}{module}.lora_embedding_A", f"{PREFIX}{module}.lora_embedding_B"
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def random_lora(
    shapes: Mapping[str, tuple[int, ...]], ranks: Mapping[str, int], *, dtype: Dtype = "F32", seed: int = 0
) -> dict[str, Tensor]:
    """A and B for each module of `ranks`; `shapes` are those of the base's tensors."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for module, rank in ranks.items():
        n_out, n_in = shapes[f"{module}.weight"]
        if module == EMBED:
            n_out, n_in = n_in, n_out
        for name, shape in zip(lora_names(module), ((rank, n_in), (n_out, rank)), strict=True):
            values = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.1)
            tensors[name] = Tensor.rounded(values, dtype)
    return tensors


def delta(tensors: Mapping[str, Tensor], module: str, scale: float) -> NDArray[np.float64]:
    """What PEFT adds to the module's weight: scale · B·A, for embeddings its transpose."""
    a, b = (tensors[name].to_f32().astype(np.float64) for name in lora_names(module))
    product = scale * (b @ a)
    return product.T if module == EMBED else product


def adapter_config(**changes: Any) -> dict[str, Any]:
    """adapter_config.json of a plain adapter of rank 4, with `changes`."""
    return {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "arrow_config": None,
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "bias": "none",
        "corda_config": None,
        "ensure_weight_tying": False,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 16,
        "lora_bias": False,
        "lora_dropout": 0.05,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": 4,
        "rank_pattern": {},
        "revision": None,
        "target_modules": ["q_proj", "v_proj"],
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_bdlora": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
    } | changes


def write_adapter(directory: Path, tensors: Mapping[str, Tensor], *, as_torch: bool = False, **changes: Any) -> Path:
    """Write an adapter directory; `changes` go into its config."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(adapter_config(**changes), indent=2))
    if as_torch:
        write_torch_file(directory / "adapter_model.bin", tensors)
    else:
        write_safetensors(directory / "adapter_model.safetensors", dict(tensors))
    return directory


def modules(shape: LlamaShape) -> dict[str, int]:
    """Every matrix of a model, at rank 4."""
    return {name.removesuffix(".weight"): 4 for name, size in shape.tensor_shapes().items() if len(size) == 2}
