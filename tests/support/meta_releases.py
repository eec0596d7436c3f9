"""Releases in Meta's own form for tests: shards of a model-parallel Llama, params.json, and tiktoken's tokenizer.

Written by hand, after Meta's model.py and fairscale's layers; nothing of the code under test is used.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from support.checkpoints import Dtype, F32Array, LlamaShape, Tensor
from support.torch_files import STORAGES, state_program, tensor_program, write_torch_file, write_zip

Cut = Literal["rows", "columns"]
Shard = dict[str, Tensor]

_NAMES = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER_NAMES = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}
_CUTS: dict[str, Cut] = {
    "wq": "rows", "wk": "rows", "wv": "rows", "w1": "rows", "w3": "rows", "output": "rows",
    "wo": "columns", "w2": "columns",
}  # fmt: skip


def params_of(shape: LlamaShape, **changes: Any) -> dict[str, Any]:
    """The params.json of this model; `n_ff` must be two thirds of four times the width, up to a multiple of 256."""
    params = {
        "dim": shape.n_embd,
        "multiple_of": 256,
        "n_heads": shape.n_head,
        "n_kv_heads": shape.n_head_kv,
        "n_layers": shape.n_layer,
        "norm_eps": shape.rms_eps,
        "vocab_size": shape.n_vocab,
    }
    return params | changes


def meta_tensors(shape: LlamaShape, weights: Mapping[str, F32Array]) -> dict[str, F32Array]:
    """The weights of a Hugging Face checkpoint under Meta's names, Q and K rows in neighbouring pairs."""
    tensors = {}
    for name, values in weights.items():
        meta_name = _NAMES.get(name) or _layer_name(name)
        n_head = {"wq": shape.n_head, "wk": shape.n_head_kv}.get(meta_name.split(".")[-2])
        if n_head:
            halves = values.reshape(n_head, 2, values.shape[0] // n_head // 2, values.shape[1])
            tensors[meta_name] = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
        else:
            tensors[meta_name] = values
    return tensors


def _layer_name(name: str) -> str:
    match = re.fullmatch(r"model\.(layers\.\d+)\.(.*)\.weight", name)
    assert match
    return f"{match[1]}.{_LAYER_NAMES[match[2]]}.weight"


def cut(
    tensors: Mapping[str, F32Array], n_shards: int, dtype: Dtype, *, embeddings: Cut = "columns", rope: bool = True
) -> list[Shard]:
    """Split the tensors as fairscale's layers do."""
    shards: list[Shard] = [{} for _ in range(n_shards)]
    for name, values in tensors.items():
        layer = name.split(".")[-2]
        how = embeddings if layer == "tok_embeddings" else _CUTS.get(layer)
        pieces = [values] * n_shards if how is None else np.split(values, n_shards, axis=0 if how == "rows" else 1)
        for shard, piece in zip(shards, pieces, strict=True):
            shard[name] = Tensor.rounded(np.ascontiguousarray(piece), dtype)
    for shard in shards if rope else ():
        shard["rope.freqs"] = Tensor.rounded(np.ones(4, np.float32), dtype)
    return shards


def write_shards(directory: Path, shards: list[Shard], *, one_storage: bool = False) -> None:
    """Write consolidated.NN.pth; with `one_storage` all tensors are views of the same memory, as in Llama 13B."""
    for number, shard in enumerate(shards):
        write = _write_one_storage if one_storage else write_torch_file
        write(directory / f"consolidated.{number:02}.pth", shard)


def _write_one_storage(path: Path, shard: Shard) -> None:
    dtype = next(iter(shard.values())).dtype
    n_all, offset, programs = sum(tensor.data.size for tensor in shard.values()), 0, {}
    for name, tensor in shard.items():
        programs[name] = tensor_program("0", STORAGES[dtype], n_all, tensor.data.shape, offset=offset)
        offset += tensor.data.size
    storage = b"".join(tensor.data.tobytes() for tensor in shard.values())
    pickle = state_program(programs, module_state=False)
    write_zip(path, [("consolidated/data.pkl", pickle), ("consolidated/data/0", storage)])


def write_meta_release(
    directory: Path, shape: LlamaShape, weights: Mapping[str, F32Array], tokenizer: Path, *,
    n_shards: int = 2, dtype: Dtype = "BF16", embeddings: Cut = "columns", one_storage: bool = False,
    params: Mapping[str, Any] | None = None, damage: Callable[[list[Shard]], object] | None = None,
) -> None:  # fmt: skip
    """Write the whole release; `damage` may tamper with the shards."""
    directory.mkdir(parents=True, exist_ok=True)
    shards = cut(meta_tensors(shape, weights), n_shards, dtype, embeddings=embeddings)
    if damage:
        damage(shards)
    write_shards(directory, shards, one_storage=one_storage)
    (directory / "params.json").write_text(json.dumps(params_of(shape, **(params or {}))))
    shutil.copyfile(tokenizer, directory / "tokenizer.model")


def write_tiktoken(path: Path, tokens: list[bytes]) -> None:
    """Write a tokenizer.model of tiktoken's with these tokens in the order of their ranks."""
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))


def tiktoken_ids(tokens: list[bytes], piece: bytes) -> list[int]:
    """How tiktoken tokenizes a piece of text that is no token: it joins the pair whose token has the lowest rank."""
    ranks, parts = {token: rank for rank, token in enumerate(tokens)}, [bytes([byte]) for byte in piece]
    if piece in ranks:
        return [ranks[piece]]
    while joined := [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]:
        _, i = min(joined)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [ranks[part] for part in parts]
