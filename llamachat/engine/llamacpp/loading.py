"""GGUF files → llama.cpp's models and adapters, and what their headers say."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import llama_cpp

from llamachat.engine.llamacpp.library import collected_log, init_backend, last_error, read_text, supports_gpu
from llamachat.errors import NotAModelFile, UnusableAdapter

_ALL_LAYERS = -1


def load_model(
    path: Path, n_gpu_layers: int | str, *, vocab_only: bool = False, cancel: threading.Event | None = None
) -> Any:
    """Load a GGUF file, which the caller frees. Raises `NotAModelFile`, also soon after `cancel` is set."""
    init_backend()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = vocab_only
    if cancel is not None:
        params.progress_callback = llama_cpp.llama_progress_callback(lambda _share, _data: not cancel.is_set())
    if n_gpu_layers == "auto":
        params.n_gpu_layers = _ALL_LAYERS if supports_gpu() else 0
    else:
        params.n_gpu_layers = int(n_gpu_layers)
    with collected_log() as log:
        model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise NotAModelFile(path, f"cannot be loaded ({last_error(log)})")
    return model


def load_adapter(model: Any, path: Path) -> Any:
    """Load a GGUF adapter for `model`, which frees it with itself; raise `UnusableAdapter` if it does not fit."""
    with collected_log() as log:
        adapter = llama_cpp.llama_adapter_lora_init(model, os.fsencode(path))
    if not adapter:
        reason = last_error(log).rpartition("lora adapter: ")[2]
        raise UnusableAdapter(
            f"{path}: the adapter cannot be used with this model ({reason}).",
            "Use it with the model that it was trained on.",
        )
    return adapter


def metadata(model: Any) -> dict[str, str]:
    """The header's scalar keys as text (arrays are shortened by llama.cpp)."""
    pairs = {}
    for i in range(llama_cpp.llama_model_meta_count(model)):
        key = read_text(llama_cpp.llama_model_meta_key_by_index, model, i)
        pairs[key] = read_text(llama_cpp.llama_model_meta_val_str_by_index, model, i)
    return pairs


def file_type_name(model: Any) -> str:
    """`q4_k_m`, from the header; `unknown` for what llama.cpp has no name for."""
    return _FILE_TYPES.get(llama_cpp.llama_model_ftype(model), "unknown")


_FTYPE = "LLAMA_FTYPE_"
_FILE_TYPES = {
    getattr(llama_cpp, name): name.removeprefix(_FTYPE).removeprefix("MOSTLY_").lower()
    for name in dir(llama_cpp)
    if name.startswith(_FTYPE)
}
