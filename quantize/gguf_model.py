"""What the header of a GGUF file says about the model in it; of a split model, what those of all shards say.

Nothing is read beyond the headers. Besides this library's reader, ggml's own must be able to read each file.
Keys of split models: llama.cpp, tools/gguf-split/gguf-split.cpp.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from gguf import Keys, LlamaFileType

from quantize import ggml
from quantize.checkpoint.tensor import FileTensor, count_elements
from quantize.errors import CheckpointError, TensorError, UnsupportedWeights, shown
from quantize.gguf_reader import GGUFContents, open_gguf


@dataclass(frozen=True)
class GGUFModel:
    """A model in GGUF: its architecture, its quant in user words (`q4_k_m`), and its number of weights."""

    architecture: str
    quant: str
    n_params: int


def read_gguf_model(paths: Sequence[Path]) -> GGUFModel:
    """Look at the headers of the GGUF file of a model, or of all its shards in order.

    Raises `CheckpointError` for a file that is missing, damaged, or not the shard that its place says, and
    `UnsupportedWeights` for one that holds something else than a model.
    """
    tensors: dict[str, FileTensor] = {}
    with ExitStack() as stack:
        shards = [stack.enter_context(open_gguf(path)) for path in paths]
        first = shards[0]
        _refuse_others(first)
        for number, shard in enumerate(shards):
            _check_place(shard, number, len(shards))
            _check_with_ggml(shard)
            for name, tensor in shard.tensors.items():
                if name in tensors:
                    raise TensorError(shard.path, name, "stands in another shard, too")
                tensors[name] = tensor
    if not tensors:
        raise CheckpointError(first.path, "holds no tensors")
    if len(tensors) != first.values.get(Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT, len(tensors)):
        raise CheckpointError(first.path, f"has another number of tensors than the {len(tensors)} of all shards")
    architecture = first.values.get(Keys.General.ARCHITECTURE)
    if not isinstance(architecture, str) or not architecture:
        raise CheckpointError(first.path, "has no key general.architecture")
    n_params = sum(count_elements(t.shape) for name, t in tensors.items() if not name.startswith("rope_"))
    return GGUFModel(architecture, _quant(first, tensors), n_params)


def _refuse_others(contents: GGUFContents) -> None:
    """Adapters, image encoders and importance matrices are GGUF files as well."""
    kind = contents.values.get(Keys.General.TYPE, "model")
    if contents.values.get(Keys.General.ARCHITECTURE) == "clip":  # before there was the key general.type
        kind = "mmproj"
    if kind != "model":
        raise UnsupportedWeights(
            f"{contents.path.name} holds no model: it says that it is of type {shown(kind)}.",
            "Give the file of the model itself.",
        )


def _check_place(contents: GGUFContents, number: int, n_shards: int) -> None:
    found = contents.values.get(Keys.Split.LLM_KV_SPLIT_COUNT, 1), contents.values.get(Keys.Split.LLM_KV_SPLIT_NO, 0)
    if found != (n_shards, number):
        count, place = found
        said = f"says that it is part {shown(place)} (counted from 0) of {shown(count)}"
        raise CheckpointError(contents.path, f"{said}, where part {number} of {n_shards} is needed")


def _check_with_ggml(contents: GGUFContents) -> None:
    table = {name: (t.qtype, t.offset, t.size_bytes) for name, t in contents.tensors.items()}
    if ggml.read_tensor_table(contents.path) != table:
        raise CheckpointError(contents.path, "is not read by ggml as its header says")


def _quant(first: GGUFContents, tensors: dict[str, FileTensor]) -> str:
    """The file type that the header names; without one, the type of most of the bytes."""
    number = first.values.get(Keys.General.FILE_TYPE)
    if type(number) is int and (number & ~LlamaFileType.GUESSED) in LlamaFileType.__members__.values():
        name = LlamaFileType(number & ~LlamaFileType.GUESSED).name
        return name.removeprefix("MOSTLY_").removeprefix("ALL_").lower()
    n_bytes: Counter[str] = Counter()
    for tensor in tensors.values():
        n_bytes[tensor.qtype.name.lower()] += tensor.size_bytes
    return n_bytes.most_common(1)[0][0]
