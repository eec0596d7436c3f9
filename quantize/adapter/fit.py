"""Whether a GGUF adapter fits a GGUF model, of any architecture: what llama.cpp checks, and what it would abort over.

Sources: `llama_adapter_lora_init_impl` in src/llama-adapter.cpp, `build_lora_mm` and `build_inp_embd` in
src/llama-graph.cpp of llama.cpp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from gguf import GGUFType, GGUFValueType, Keys

from quantize import ggml
from quantize.checkpoint.tensor import ITEM_SIZES, FileTensor
from quantize.errors import CheckpointError, TensorError, UnsupportedAdapter, shown
from quantize.from_gguf import refuse_split
from quantize.gguf_reader import GGUFContents, open_gguf

_EMBEDDINGS, _OUTPUT = "token_embd.weight", "output.weight"
_OTHER_BASE = "Use the adapter with the model that it was trained on."


@dataclass(frozen=True)
class AdapterFacts:
    """What a GGUF adapter says of itself: llama.cpp adds alpha / rank · B·A; `ranks` are all there are, ascending."""

    alpha: float
    ranks: tuple[int, ...]


def read_adapter_facts(path: Path) -> AdapterFacts:
    """Return alpha and ranks of the GGUF adapter at `path`, which `check_adapter` has accepted."""
    with open_gguf(path) as adapter:
        ranks = {tensor.shape[-1] for name, tensor in adapter.tensors.items() if name.endswith(".lora_b")}
        alpha = adapter.values[Keys.Adapter.LORA_ALPHA]
        assert isinstance(alpha, float), "check_adapter has seen to it"
        return AdapterFacts(alpha, tuple(sorted(ranks)))


def check_adapter(path: Path, base_path: Path) -> tuple[str, ...]:
    """Compare the GGUF adapter at `path` with the GGUF model at `base_path`; return what the user should know.

    Raises `QuantizeError` for an adapter that is damaged, that is for another model or that llama.cpp cannot apply.
    """
    with open_gguf(path) as adapter, open_gguf(base_path) as base:
        refuse_split(base)
        _check_keys(adapter, base)
        halves: dict[str, dict[str, FileTensor]] = {}
        n_norms = 0
        for name, tensor in adapter.tensors.items():
            target, _, letter = name.rpartition(".lora_")
            if target and letter in ("a", "b"):
                halves.setdefault(target, {})[letter] = tensor
            elif name.endswith("_norm.weight"):
                n_norms += 1
            else:
                raise TensorError(path, name, "is neither LoRA's A nor its B")
        if not halves:
            raise CheckpointError(path, "holds no LoRA tensors")
        for target, found in halves.items():
            _check_pair(target, found, adapter, base)
    if n_norms:
        return (f"{path.name} holds {n_norms} trained norms, which llama.cpp leaves out.",)
    return ()


def _check_keys(adapter: GGUFContents, base: GGUFContents) -> None:
    kind = adapter.values.get(Keys.General.TYPE)
    if kind != GGUFType.ADAPTER or adapter.values.get(Keys.Adapter.TYPE) != "lora":
        raise UnsupportedAdapter(
            f"{adapter.path.name} is not a LoRA adapter, but of the kind {shown(kind)}.",
            "Give a GGUF file that was made of an adapter.",
        )
    architectures = [contents.values.get(Keys.General.ARCHITECTURE) for contents in (adapter, base)]
    if architectures[0] != architectures[1]:
        raise UnsupportedAdapter(
            f"{adapter.path.name} is for the architecture {shown(architectures[0])}, but {base.path.name} is "
            f"{shown(architectures[1])}.",
            _OTHER_BASE,
        )
    alpha = adapter.values.get(Keys.Adapter.LORA_ALPHA)
    if not isinstance(alpha, float) or not math.isfinite(alpha) or _kind(adapter) != GGUFValueType.FLOAT32:
        raise CheckpointError(adapter.path, f"the key {Keys.Adapter.LORA_ALPHA} is {shown(alpha)}")
    if Keys.Adapter.ALORA_INVOCATION_TOKENS in adapter.encoded:
        raise UnsupportedAdapter(
            f"{adapter.path.name} is only to act after certain tokens (aLoRA), which is not done here.",
            "Use llama.cpp's server for it.",
        )


def _kind(adapter: GGUFContents) -> int:
    return int.from_bytes(adapter.encoded[Keys.Adapter.LORA_ALPHA][:4], "little")


def _check_pair(target: str, found: dict[str, FileTensor], adapter: GGUFContents, base: GGUFContents) -> None:
    for letter in ("a", "b"):
        if letter not in found:
            raise TensorError(adapter.path, f"{target}.lora_{letter}", "is missing")
        if found[letter].qtype not in ITEM_SIZES and not ggml.can_widen(found[letter].qtype):
            problem = f"is of type {found[letter].qtype.name}, which is none of weights"
            raise TensorError(adapter.path, found[letter].name, problem)
    tensor = base.tensors.get(target)
    if tensor is None:
        raise UnsupportedAdapter(
            f"{adapter.path.name} is for {shown(target)}, which {base.path.name} does not have.", _OTHER_BASE
        )
    if target == _EMBEDDINGS and _OUTPUT not in base.tensors:
        raise UnsupportedAdapter(
            f"{adapter.path.name} is for the embeddings alone, but in {base.path.name} they are the output as well.",
            "Merge the adapter into its base with PEFT (merge_and_unload, save_pretrained), and use that model.",
        )
    a, b = ((1,) * (2 - len(found[letter].shape)) + found[letter].shape for letter in ("a", "b"))
    *experts, n_rows, n_columns = (1,) * (2 - len(tensor.shape)) + tensor.shape
    rank = b[-1]
    fits = (a, b) == ((*experts, rank, n_columns), (*experts, n_rows, rank))
    if target == _EMBEDDINGS:
        fits = (a, b) == ((n_rows, rank), (n_columns, rank))
    if not fits:
        raise UnsupportedAdapter(
            f"{adapter.path.name}: A {list(a)} and B {list(b)} do not fit {target} of {base.path.name}, which has "
            f"shape {list(tensor.shape)}.",
            _OTHER_BASE,
        )
