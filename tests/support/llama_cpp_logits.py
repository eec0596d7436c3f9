"""What llama.cpp computes from a GGUF file at its most precise: F32 weights, F32 cache, no flash attention."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

_GGML_TYPE_F32 = 0
_FLASH_ATTENTION_OFF = 0


@llama_cpp.llama_log_callback
def _no_log(_level: int, _text: bytes, _data: ctypes.c_void_p) -> None:
    pass


def compute_logits(path: Path, token_ids: Sequence[int], adapter: Path | None = None) -> NDArray[np.float64]:
    """Logits (len(token_ids) × n_vocab) after every one of `token_ids`, evaluated in one batch on the CPU.

    `adapter` is a GGUF adapter to apply, at scale 1.
    """
    llama_cpp.llama_log_set(_no_log, None)
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    assert model, "llama.cpp refuses the file"
    try:
        lora = llama_cpp.llama_adapter_lora_init(model, os.fsencode(adapter)) if adapter else None
        assert lora or not adapter, "llama.cpp refuses the adapter"
        context = llama_cpp.llama_init_from_model(model, _context_params(len(token_ids)))
        assert context
        try:
            if lora:
                adapters, scales = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(lora), (ctypes.c_float * 1)(1.0)
                assert llama_cpp.llama_set_adapters_lora(context, adapters, 1, scales) == 0
            n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
            return _evaluate(context, token_ids, n_vocab)
        finally:
            llama_cpp.llama_free(context)
    finally:
        llama_cpp.llama_model_free(model)


def _context_params(n_tokens: int) -> Any:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = n_tokens
    params.n_threads = params.n_threads_batch = 1  # these models are tiny: threads would only wait for each other
    params.type_k = params.type_v = _GGML_TYPE_F32
    params.flash_attn_type = _FLASH_ATTENTION_OFF
    return params


def _evaluate(context: Any, token_ids: Sequence[int], n_vocab: int) -> NDArray[np.float64]:
    batch = llama_cpp.llama_batch_init(len(token_ids), 0, 1)
    try:
        batch.n_tokens = len(token_ids)
        for i, token_id in enumerate(token_ids):
            batch.token[i], batch.pos[i], batch.logits[i] = token_id, i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        assert llama_cpp.llama_decode(context, batch) == 0
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (len(token_ids), n_vocab))
        return logits.astype(np.float64)
    finally:
        llama_cpp.llama_batch_free(batch)
