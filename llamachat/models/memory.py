"""How much memory a model needs: weights, KV cache, and llama.cpp's buffers for computing.

Weights and KV cache are exact for the architectures that are converted here; the buffers are an estimate. What is
needed is compared with main memory: where a GPU with memory of its own takes part, less of that is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

KV_TYPES: Mapping[str, float] = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
"""Bytes a value of the KV cache takes: ggml's blocks of 32 have a scale of two bytes each."""

Fit = Literal["yes", "tight", "no"]
"""`tight`: only if other programs give memory back, or the weights are partly read from the disk again and again."""

_ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Those that keep keys and values of every token in every layer."""

_N_CTX_STEP = 256
_N_UBATCH = 512
_SHARE_FOR_MODELS = 0.75


@dataclass(frozen=True)
class Shape:
    """The sizes that memory depends on. `head_dim` is the width of keys and of values, for one head."""

    n_vocab: int
    n_embd: int
    n_ff: int
    n_layer: int
    n_head: int
    n_head_kv: int
    head_dim: int


@dataclass(frozen=True)
class Need:
    """Bytes of memory for a model with a context window of `n_ctx` tokens."""

    n_ctx: int
    weights_bytes: int
    kv_cache_bytes: int
    compute_bytes: int
    """An estimate."""

    @property
    def total_bytes(self) -> int:
        """All of it; the program itself takes some 100 MB more."""
        return self.weights_bytes + self.kv_cache_bytes + self.compute_bytes


def need(weights_bytes: int, shape: Shape, n_ctx: int, kv_type: str = "f16") -> Need:
    """What a model of this shape needs with a context window of `n_ctx` tokens."""
    return Need(n_ctx, weights_bytes, kv_cache_bytes(shape, n_ctx, kv_type), compute_bytes(shape, n_ctx))


def kv_bytes_per_token(shape: Shape, kv_type: str = "f16", *, n_head_kv: int | None = None) -> int:
    """Keys and values of one token in all layers; with `n_head_kv`, as if there were so many KV heads."""
    n_values = 2 * shape.n_layer * (n_head_kv or shape.n_head_kv) * shape.head_dim
    return int(n_values * KV_TYPES[kv_type])


def kv_cache_bytes(shape: Shape, n_ctx: int, kv_type: str = "f16", *, n_head_kv: int | None = None) -> int:
    """The KV cache of a context window, which llama.cpp rounds up to 256 tokens (llama-context.cpp)."""
    n_cells = -(-n_ctx // _N_CTX_STEP) * _N_CTX_STEP
    return n_cells * kv_bytes_per_token(shape, kv_type, n_head_kv=n_head_kv)


def compute_bytes(shape: Shape, n_ctx: int) -> int:
    """About what llama.cpp sets aside for a batch of 512 tokens with flash attention on the CPU.

    Its allocator shares one buffer among all steps; so it is as large as the largest: the logits, or a layer with its
    attention mask. The factors were measured (docs/log.md).
    """
    logits = 4 * (shape.n_vocab + 2 * shape.n_embd)
    layer = 4 * (4 * shape.n_embd + 3 * shape.n_ff) + 2 * n_ctx
    return _N_UBATCH * max(logits, layer)


def weights_bytes(n_params: int, quant: str) -> int:
    """About what the weights come to at a quant. Models below 0.5B take up to a third more: rows that fit no block."""
    from quantize import find_file_type

    return int(n_params * find_file_type(quant).bits_per_weight / 8)


def fit(needed_bytes: int, total_bytes: int | None, available_bytes: int | None) -> Fit | None:
    """Whether that fits this machine's memory; None where the system does not tell how much it has.

    Where it does not tell how much is available either, a quarter of all is left to others.
    """
    if total_bytes is None:
        return None
    if available_bytes is None:
        available_bytes = int(total_bytes * _SHARE_FOR_MODELS)
    if needed_bytes <= available_bytes:
        return "yes"
    return "tight" if needed_bytes <= total_bytes else "no"


def read_shape(path: Path) -> tuple[Shape, int] | None:
    """The shape in a GGUF file's header, and the context length it was trained for.

    None for a file that cannot be read, or whose architecture keeps its cache in another way.
    """
    import quantize

    try:
        values = quantize.read_hyperparameters(path)
    except quantize.QuantizeError:
        return None
    architecture = values.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        return None
    own = {key.removeprefix(f"{architecture}."): value for key, value in values.items()}
    try:
        n_embd, n_head = _positive(own["embedding_length"]), _positive(own["attention.head_count"])
        head_dim = _positive(own.get("attention.key_length", n_embd // n_head))
        if head_dim != _positive(own.get("attention.value_length", head_dim)):
            return None
        shape = Shape(
            n_vocab=_positive(own["tokenizer.ggml.tokens"]),
            n_embd=n_embd,
            n_ff=_positive(own["feed_forward_length"]),
            n_layer=_positive(own["block_count"]),
            n_head=n_head,
            n_head_kv=_positive(own.get("attention.head_count_kv", n_head)),
            head_dim=head_dim,
        )
        return shape, _positive(own["context_length"])
    except (KeyError, ValueError):
        return None


def _positive(value: Any) -> int:
    """A number above 0; of an array with one for each layer, the one that they all have."""
    if isinstance(value, list) and len(set(value)) == 1:
        value = value[0]
    if type(value) is not int or not 0 < value < 2**31:
        raise ValueError
    return value
