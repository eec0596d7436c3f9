"""The tensors of an adapter file, paired: a LoRA A and B for each module, and nothing else.

What PEFT writes beside them is either a copy of the base or something llama.cpp's adapters have no place for, and then
refused by name. Sources: `get_peft_model_state_dict` of PEFT for the names; `LoraLayer` for the shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from quantize.adapter.base import EMBEDDINGS, OUTPUT, AdapterBase
from quantize.architectures.base import ExpectedTensor
from quantize.checkpoint.tensor import FileTensor
from quantize.errors import TensorError, UnsupportedAdapter, shown

_PREFIXES = re.compile(r"(base_model\.model\.)*")
_LORA_NAME = re.compile(
    r"(?P<module>.+?)\.lora_(?P<embedding>embedding_)?(?P<letter>[AB])(\.default)?(?(embedding)|\.weight)"
)
_COPY = ".base_layer.weight"
_SAVED_WHOLE = re.compile(r"\.modules_to_save(\.default)?\.weight$")

_INEXPRESSIBLE = {
    ".lora_magnitude_vector": "belongs to DoRA",
    ".lora_magnitude_vector.weight": "belongs to DoRA",
    ".trainable_tokens_delta": "holds embeddings of single tokens",
    ".bias": "is a trained bias",
    "norm.weight": "is a trained norm",
}
"""Ends of the names of what llama.cpp has no place for; it would take norms, and leave them out."""

_OTHER_BASE = "Give the model that the adapter was trained on as the base; adapter_config.json may name it."


@dataclass(frozen=True)
class LoraPair:
    """What is added to one tensor of the base, short of a scale: B·A, or for embeddings its transpose."""

    module: str
    """The module's name in the checkpoint."""
    target: ExpectedTensor
    i_expert: int
    a: FileTensor
    """Shape (rank, columns of the target); for embeddings (rank, rows)."""
    b: FileTensor
    """Shape (rows of the target, rank); for embeddings (columns, rank)."""
    is_embedding: bool

    @property
    def rank(self) -> int:
        """Columns of B, which is where llama.cpp takes it from."""
        return self.b.shape[1]


def pair_up(tensors: Mapping[str, FileTensor], base: AdapterBase) -> list[LoraPair]:
    """Pair the tensors of an adapter and compare each with the one of the base that it is for.

    Raises `TensorError` for what does not fit, `UnsupportedAdapter` for what llama.cpp cannot apply.
    """
    halves: dict[tuple[str, bool], dict[str, FileTensor]] = {}
    whole: list[tuple[str, FileTensor]] = []
    for full_name, tensor in tensors.items():
        name = _PREFIXES.sub("", full_name, count=1)
        match = _LORA_NAME.fullmatch(name)
        if not match:
            whole.append((name, tensor))
            continue
        found = halves.setdefault((match["module"], bool(match["embedding"])), {})
        if found.setdefault(match["letter"], tensor) is not tensor:
            raise TensorError(tensor.path, tensor.name, f"stands twice, also as {shown(found[match['letter']].name)}")
    _check_vocabulary(halves, whole, base)
    for name, tensor in whole:
        _refuse_whole(name, tensor, base)
    pairs = [_pair(module, is_embedding, found, base) for (module, is_embedding), found in halves.items()]
    return sorted(pairs, key=lambda pair: (pair.target.gguf_name, pair.i_expert))


def _check_vocabulary(
    halves: Mapping[tuple[str, bool], Mapping[str, FileTensor]], whole: list[tuple[str, FileTensor]], base: AdapterBase
) -> None:
    """Refuse an adapter that was trained with more or fewer tokens than the base has."""
    embeddings, output = EMBEDDINGS.removesuffix(".weight"), OUTPUT.removesuffix(".weight")
    n_vocab = base.architecture.n_vocab
    a = halves.get((embeddings, True), {}).get("A")
    b = halves.get((output, False), {}).get("B")
    sizes = [(a, a.shape[-1])] if a else []
    sizes += [(b, b.shape[0])] if b and b.shape else []
    sizes += [(t, t.shape[0]) for name, t in whole if _module(name) in (embeddings, output) and len(t.shape) == 2]
    for tensor, size in sizes:
        if size != n_vocab:
            raise UnsupportedAdapter(
                f"{tensor.path.name}: the adapter has a vocabulary of {size} tokens, but the base {base.path.name} "
                f"has {n_vocab} (tensor {shown(tensor.name)})."
            )


def _module(name: str) -> str:
    """The module of a tensor that is there whole."""
    return _SAVED_WHOLE.sub(".weight", name).removesuffix(_COPY).removesuffix(".weight")


def _refuse_whole(name: str, tensor: FileTensor, base: AdapterBase) -> None:
    """Refuse a tensor that is no half of a pair, unless it only repeats the base or can be recomputed."""
    copied = base.find(f"{name.removesuffix(_COPY)}.weight") if name.endswith(_COPY) else None
    if (copied and copied[0].shape == tensor.shape) or name.endswith(".rotary_emb.inv_freq"):
        return
    what = next((what for end, what in _INEXPRESSIBLE.items() if name.endswith(end)), None)
    if what is None and base.find(f"{_module(name)}.weight"):
        what = "was saved whole"
    raise UnsupportedAdapter(
        f"{tensor.path.name}: tensor {shown(tensor.name)} {what}, which llama.cpp's adapters have no place for."
        if what
        else f"{tensor.path.name}: tensor {shown(tensor.name)} is neither LoRA's A nor its B."
    )


def _pair(module: str, is_embedding: bool, found: Mapping[str, FileTensor], base: AdapterBase) -> LoraPair:
    known = next(iter(found.values()))
    if missing := {"A", "B"} - found.keys():
        raise TensorError(known.path, known.name, f"has no lora_{missing.pop()} that goes with it")
    if base.is_tied and f"{module}.weight" in (EMBEDDINGS, OUTPUT):
        raise UnsupportedAdapter(
            f"{known.path.name}: tensor {shown(known.name)} cannot be applied: in the base {base.path.name} embeddings "
            "and output are one matrix, and the adapter is for one of them."
        )
    target = base.find(f"{module}.weight")
    if target is None or len(target[0].shape) != 2:
        problem = f"is for a matrix that the base {base.path.name} does not have"
        raise UnsupportedAdapter(f"{known.path.name}: tensor {shown(known.name)} {problem}.", _OTHER_BASE)
    pair = LoraPair(module, *target, found["A"], found["B"], is_embedding)
    _check_shapes(pair, base)
    return pair


def _check_shapes(pair: LoraPair, base: AdapterBase) -> None:
    a, b = pair.a, pair.b
    if pair.is_embedding != (pair.target.hf_name == EMBEDDINGS):
        raise TensorError(a.path, a.name, "is in the form for embeddings, or is not but should be")
    if not len(a.shape) == len(b.shape) == 2 or a.shape[0] != b.shape[1]:
        problem = f"has shape {list(a.shape)}, which has no rank in common with lora_B's {list(b.shape)}"
        raise TensorError(a.path, a.name, problem)
    n_out, n_in = reversed(pair.target.shape) if pair.is_embedding else pair.target.shape
    for tensor, size, wanted in ((a, a.shape[1], n_in), (b, b.shape[0], n_out)):
        if size != wanted:
            raise UnsupportedAdapter(
                f"{tensor.path.name}: tensor {shown(tensor.name)} has shape {list(tensor.shape)}, but "
                f"{pair.target.gguf_name} of the base {base.path.name} has shape {list(pair.target.shape)}.",
                _OTHER_BASE,
            )
