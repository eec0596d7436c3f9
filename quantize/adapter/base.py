"""The model an adapter was trained for: which tensors it has, read from a config.json or the header of a GGUF file.

No weights are read. A GGUF file's hyperparameters are put back under their names in config.json, so that the
architectures promise the same tensors for both, with their names in the checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFType, Keys

from quantize.architectures import ARCHITECTURES, find_architecture
from quantize.architectures.base import Architecture, ExpectedTensor
from quantize.architectures.mixtral import Mixtral
from quantize.checkpoint import read_json
from quantize.errors import CheckpointError, TensorError, UnsupportedArchitecture, shown
from quantize.from_gguf import refuse_split
from quantize.gguf_reader import GGUFContents, open_gguf

EMBEDDINGS, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"

_CONFIG_KEYS = {
    "hidden_size": Keys.LLM.EMBEDDING_LENGTH,
    "intermediate_size": Keys.LLM.FEED_FORWARD_LENGTH,
    "num_hidden_layers": Keys.LLM.BLOCK_COUNT,
    "num_attention_heads": Keys.Attention.HEAD_COUNT,
    "num_key_value_heads": Keys.Attention.HEAD_COUNT_KV,
    "head_dim": Keys.Attention.KEY_LENGTH,
    "num_local_experts": Keys.LLM.EXPERT_COUNT,
    "num_experts_per_tok": Keys.LLM.EXPERT_USED_COUNT,
}
"""config.json → GGUF."""

_EXPERT = re.compile(r"\.experts\.(\d{1,6})\.", re.ASCII)


@dataclass(frozen=True)
class AdapterBase:
    """The base, and its tensors by their names in the checkpoint (with `{}` for an expert's number)."""

    path: Path
    names: tuple[str, ...]
    """What it is called: its path's last part, and what it says itself."""
    architecture: Architecture
    tensors: Mapping[str, ExpectedTensor]

    @property
    def is_tied(self) -> bool:
        """Whether one matrix is both embeddings and output."""
        return OUTPUT not in self.tensors

    def find(self, hf_name: str) -> tuple[ExpectedTensor, int] | None:
        """The tensor that `hf_name` is or is stacked into, and its place there (0 if it is alone)."""
        match = _EXPERT.search(hf_name)
        number = int(match[1]) if match else 0
        name = f"{hf_name[: match.start(1)]}{{}}{hf_name[match.end(1) :]}" if match else hf_name
        tensor = self.tensors.get(name)
        if tensor is None or (match and (number >= (tensor.n_expert or 0) or match[1] != str(number))):
            return None
        return tensor, number


def open_base(path: Path) -> AdapterBase:
    """Read the base at `path`: a checkpoint directory, of which only config.json is needed, or a GGUF file.

    Raises `CheckpointError` or `UnsupportedArchitecture` for one that is damaged or not known here.
    """
    if path.is_dir():
        config_path = path / "config.json"
        config = read_json(config_path)
        architecture = find_architecture(config, config_path)
        names = (path.resolve().name, config.get("_name_or_path"))
        return _base(path, names, architecture)
    with open_gguf(path) as contents:
        architecture = _gguf_architecture(contents)
        base = _base(path, (path.stem, contents.values.get(Keys.General.NAME)), architecture)
        for tensor in base.tensors.values():
            _check_table(contents, tensor)
        return base


def _base(path: Path, names: tuple[Any, ...], architecture: Architecture) -> AdapterBase:
    tensors = {tensor.hf_name: tensor for tensor in architecture.expected_tensors()}
    return AdapterBase(path, tuple(n for n in names if isinstance(n, str) and n), architecture, tensors)


def _gguf_architecture(contents: GGUFContents) -> Architecture:
    if contents.values.get(Keys.General.TYPE, GGUFType.MODEL) != GGUFType.MODEL:
        raise CheckpointError(contents.path, "is not a model")
    refuse_split(contents)
    name = contents.values.get(Keys.General.ARCHITECTURE)
    by_key = {key: contents.values.get(gguf_key.format(arch=name)) for key, gguf_key in _CONFIG_KEYS.items()}
    config: dict[str, Any] = {key: value for key, value in by_key.items() if value}
    embeddings = contents.tensors.get("token_embd.weight")
    if embeddings is None:
        raise TensorError(contents.path, "token_embd.weight", "is missing")
    config |= {"vocab_size": embeddings.shape[0], "tie_word_embeddings": "output.weight" not in contents.tensors}
    for architecture in ARCHITECTURES:
        if architecture.gguf_name == name and issubclass(architecture, Mixtral) == ("num_local_experts" in config):
            return architecture(config, contents.path)
    raise UnsupportedArchitecture(shown(name), sorted({architecture.gguf_name for architecture in ARCHITECTURES}))


def _check_table(contents: GGUFContents, expected: ExpectedTensor) -> None:
    tensor = contents.tensors.get(expected.gguf_name)
    if tensor is None:
        raise TensorError(contents.path, expected.gguf_name, "is missing")
    shape = expected.shape if expected.n_expert is None else (expected.n_expert, *expected.shape)
    if tensor.shape != shape:
        problem = f"has shape {list(tensor.shape)}, but the header promises {list(shape)}"
        raise TensorError(contents.path, tensor.name, problem)
