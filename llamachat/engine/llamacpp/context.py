"""A model's context: its window, its threads, and how much is evaluated before anybody can interrupt it."""

from __future__ import annotations

from typing import Any

import llama_cpp

from llamachat.engine.base import DEFAULT_N_CTX, EngineOptions
from llamachat.engine.hardware import default_threads
from llamachat.engine.llamacpp.library import collected_log, last_error, supports_gpu
from llamachat.engine.llamacpp.loading import metadata
from llamachat.engine.llamacpp.state import N_SEQUENCES, has_plain_cache
from llamachat.errors import EngineFailed, WindowTooLong

_N_BATCH = 512
_LEAST_BATCH = 64
_NOT_HEARD_S = 0.1
"""Ctrl-C is heard between the operations of a batch; the longest of them should take no longer than this."""
_CORE_FLOPS = 15e9
"""What a core does of a matrix in a second, and slow ones do, too."""

_ROPE_SCALING = {
    "linear": llama_cpp.LLAMA_ROPE_SCALING_TYPE_LINEAR,
    "yarn": llama_cpp.LLAMA_ROPE_SCALING_TYPE_YARN,
}
_KV_TYPES = {"f16": llama_cpp.GGML_TYPE_F16, "q8_0": llama_cpp.GGML_TYPE_Q8_0, "q4_0": llama_cpp.GGML_TYPE_Q4_0}


def open_context(model: Any, options: EngineOptions) -> tuple[Any, int]:
    """Return a context for a model, and how many threads it uses. Raises `WindowTooLong` or `EngineFailed`."""
    params = llama_cpp.llama_context_default_params()
    n_ctx_train = llama_cpp.llama_model_n_ctx_train(model)
    n_threads = options.n_threads or default_threads()
    params.n_ctx = options.n_ctx or min(n_ctx_train or DEFAULT_N_CTX, DEFAULT_N_CTX)
    params.n_batch = params.n_ubatch = _n_batch(model, n_threads, options.n_gpu_layers)
    params.n_threads = params.n_threads_batch = n_threads
    params.type_k = params.type_v = _KV_TYPES[options.kv_type or "f16"]
    params.no_perf = True
    if has_plain_cache(model):
        params.n_seq_max, params.kv_unified = N_SEQUENCES, True  # one cache for both, of which one is used
    if n_ctx_train and params.n_ctx > n_ctx_train:
        if options.rope_scaling is None:
            raise WindowTooLong(params.n_ctx, n_ctx_train)
        params.rope_scaling_type = _ROPE_SCALING[options.rope_scaling]
        own_scale = llama_cpp.llama_model_rope_freq_scale_train(model)  # some are stretched already
        params.rope_freq_scale = min(own_scale, n_ctx_train / params.n_ctx)
    with collected_log() as log:
        context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise EngineFailed(f"no context of {params.n_ctx:,} tokens could be made ({last_error(log)})")
    return context, n_threads


def offloads(n_gpu_layers: int | str) -> bool:
    """Whether layers go to a GPU."""
    return supports_gpu() and n_gpu_layers != 0


def _n_batch(model: Any, n_threads: int, n_gpu_layers: int | str) -> int:
    """Tokens that are evaluated at once: on a CPU as many as take the largest matrix no longer than one may wait.

    It is a matter of sizes alone, not of what was measured, so that the same prompt is always cut the same way: how a
    batch is cut can change its rounding.
    """
    if offloads(n_gpu_layers):
        return _N_BATCH
    flops = 2 * llama_cpp.llama_model_n_embd(model) * _n_ff(model)
    n_most = int(_NOT_HEARD_S * n_threads * _CORE_FLOPS / flops) if flops else _N_BATCH
    return max(_LEAST_BATCH, min(_N_BATCH, 1 << max(0, n_most.bit_length() - 1)))


def _n_ff(model: Any) -> int:
    """The width of the widest layer."""
    widths = [text for key, text in metadata(model).items() if key.endswith(".feed_forward_length")]
    return max((int(text) for text in widths if text.isdecimal()), default=0)
