"""The whole way, from checkpoint to logits: llama.cpp on our F32 file against transformers on the checkpoint.

One small random checkpoint a family, written by transformers itself, so that names, shapes and settings are those of
the reference. Needs the `oracle` extra; without it these tests are skipped.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quantize import FILE_TYPES, convert
from support.llama_cpp_logits import compute_logits

_WITHOUT = 'needs the "oracle" extra: pip install -e ".[oracle]"'
torch = pytest.importorskip("torch", reason=_WITHOUT)
transformers = pytest.importorskip("transformers", reason=_WITHOUT)

pytestmark = pytest.mark.filterwarnings("default")  # other people's code, which is only the reference here

N_VOCAB = 600
N_TOKENS = 100
SIZES: dict[str, Any] = {
    "vocab_size": N_VOCAB,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 1": ("Llama", {"num_key_value_heads": 4, "rms_norm_eps": 1e-6}),
    "Llama 2": ("Llama", {"rms_norm_eps": 1e-5}),
    "Llama 3.1": ("Llama", {"rope_theta": 500000.0, "rope_scaling": LLAMA_3_ROPE}),
    "Llama 3.2, tied": ("Llama", {"rope_theta": 500000.0, "rope_scaling": LLAMA_3_ROPE, "tie_word_embeddings": True}),
    "Code Llama": ("Llama", {"rope_theta": 1000000.0}),
    "linear scaling": ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "YaRN": ("Llama", {"rope_scaling": YARN}),
    "biases": ("Llama", {"attention_bias": True}),
    "wide heads, tied": ("Llama", {"head_dim": 32, "tie_word_embeddings": True}),
    "Mistral": ("Mistral", {"sliding_window": 4096}),
    "Mixtral": ("Mixtral", {"num_local_experts": 8, "num_experts_per_tok": 2}),
    "Mixtral, 3 of 4": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 3, "rope_theta": 1000000.0}),
    "Qwen2": ("Qwen2", {"rope_theta": 1000000.0}),
    "Qwen2, YaRN": ("Qwen2", {"rope_theta": 1000000.0, "rope_scaling": YARN}),
    "Qwen2, tied": ("Qwen2", {"tie_word_embeddings": True}),
    "Qwen3": ("Qwen3", {"head_dim": 32, "rope_theta": 1000000.0}),
}


@pytest.mark.parametrize(("family", "settings"), FAMILIES.values(), ids=FAMILIES)
def test_logits_equal_transformers(
    family: str, settings: dict[str, Any], small_tokenizer: Path, tmp_path: Path
) -> None:
    model = _random_model(family, settings)
    checkpoint = tmp_path / "checkpoint"
    model.save_pretrained(checkpoint)
    shutil.copy(small_tokenizer, checkpoint / "tokenizer.model")
    path = convert(checkpoint, tmp_path / "f32.gguf", FILE_TYPES["f32"], n_threads=1).path
    token_ids = np.random.default_rng(1).integers(3, N_VOCAB, N_TOKENS).tolist()
    with torch.no_grad():
        reference = _log_softmax(model(torch.tensor([token_ids])).logits[0].double().numpy())
    ours = _log_softmax(compute_logits(path, token_ids))
    assert (ours.argmax(-1) == reference.argmax(-1)).all()
    divergence = (np.exp(reference) * (reference - ours)).sum(-1)
    assert np.abs(divergence).max() < 1e-6


def _random_model(family: str, settings: dict[str, Any]) -> Any:
    """A model whose every tensor, norms and biases too, is random: zeros and ones would hide what is left out."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**(SIZES | settings))
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
