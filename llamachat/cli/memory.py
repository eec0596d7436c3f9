"""What models need, against the memory of this machine."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from llamachat.cli.format import size
from llamachat.engine import hardware
from llamachat.engine.base import DEFAULT_N_CTX, EngineOptions
from llamachat.models.catalog import ModelSpec
from llamachat.models.memory import Fit, Need, fit, need, read_shape, weights_bytes
from llamachat.models.store import StoredModel


@lru_cache(maxsize=1)
def _memory() -> tuple[int | None, int | None]:
    return hardware.total_memory_bytes(), hardware.available_memory_bytes()


def fits(needed: Need | None) -> Fit | None:
    """Whether it fits this machine, as far as both are known."""
    return fit(needed.total_bytes, *_memory()) if needed else None


def need_of_stored(model: StoredModel) -> Need | None:
    """What a model needs with the context window that `chat` would give it; None if its header does not tell."""
    read = read_shape(model.path)
    if read is None:
        return None
    shape, n_ctx_train = read
    return need(model.size_bytes, shape, min(n_ctx_train, DEFAULT_N_CTX))


def need_of_spec(spec: ModelSpec, quant: str) -> Need | None:
    """What a model of the catalogue would need at a quant, about; None if the catalogue has no shape for it."""
    if spec.shape is None:
        return None
    return need(weights_bytes(spec.n_params, quant), spec.shape, min(spec.n_ctx, DEFAULT_N_CTX))


def describe_draft(path: Path, model: StoredModel, options: EngineOptions) -> str:
    """What it costs in memory that the model at `path` drafts for another one: it has a window of its own."""
    read, target = read_shape(path), read_shape(model.path)
    if read is None:
        return f"{path.name} drafts, which takes more memory."
    shape, n_ctx_train = read
    n_ctx = options.n_ctx or min(target[1] if target else DEFAULT_N_CTX, DEFAULT_N_CTX)
    needed = need(path.stat().st_size, shape, min(n_ctx, n_ctx_train), options.kv_type or "f16")
    return f"{path.name} drafts, which takes {size(needed.total_bytes)} more memory."
