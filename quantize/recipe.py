"""Which tensor gets which type: the mix behind a file type such as Q4_K_M.

The rules are llama.cpp's (`llama_tensor_get_type_impl` and `tensor_type_fallback` in src/llama-quant.cpp), for
the architectures handled here; `tests/test_quantize_exact.py` holds them to it byte for byte.
Pure functions over names and shapes: no weights, no files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from quantize.errors import UnknownFileType

QType = GGMLQuantizationType

DEFAULT_FILE_TYPE = "q4_k_m"


@dataclass(frozen=True)
class FileType:
    """A mix users can ask for: its name in lower case, llama.cpp's number for it, and its main tensor type."""

    name: str
    ftype: LlamaFileType
    default: QType
    advice: str

    @property
    def is_quantized(self) -> bool:
        """Whether the main type is a block format (as opposed to F16)."""
        return GGML_QUANT_SIZES[self.default][0] > 1


FILE_TYPES: dict[str, FileType] = {
    file_type.name: file_type
    for file_type in (
        FileType("f16", LlamaFileType.MOSTLY_F16, QType.F16, "the weights as published; four times the size of 4 bit"),
        FileType("q8_0", LlamaFileType.MOSTLY_Q8_0, QType.Q8_0, "8 bit: not told apart from f16 in use"),
        FileType("q4_0", LlamaFileType.MOSTLY_Q4_0, QType.Q4_0, "plain 4 bit: fastest on some machines, coarser"),
        FileType("q4_k_m", LlamaFileType.MOSTLY_Q4_K_M, QType.Q4_K, "4 bit where it does no harm: the default"),
    )
}


def find_file_type(name: str) -> FileType:
    """Look a file type up by name, in any case; raise `UnknownFileType` with the known names otherwise."""
    try:
        return FILE_TYPES[name.lower()]
    except KeyError:
        raise UnknownFileType(name, list(FILE_TYPES)) from None


@dataclass(frozen=True)
class ModelTraits:
    """What the rules need to know of a model besides its tensors."""

    n_layer: int
    n_head: int
    n_head_kv: int

    @property
    def is_70b(self) -> bool:
        """llama.cpp's LLM_TYPE_70B: 80 layers with grouped-query attention."""
        return self.n_layer == 80 and self.n_head != self.n_head_kv


def tensor_types(shapes: Mapping[str, Sequence[int]], file_type: FileType, traits: ModelTraits) -> dict[str, QType]:
    """Choose the type of every tensor.

    `shapes` maps GGUF tensor names to shapes with the row length last (NumPy order). Tensors that llama.cpp
    never quantizes (vectors, norms, routers) stay F32.
    """
    tied = "output.weight" not in shapes
    n_attn_v = sum("attn_v.weight" in name for name in shapes)
    types: dict[str, QType] = {}
    i_attn_v = 0
    for name in sorted(shapes, key=llama_cpp_order):
        shape = shapes[name]
        if not _may_quantize(name, shape):
            types[name] = QType.F32
            continue
        chosen = file_type.default
        if file_type.is_quantized:
            chosen = _mixed_type(name, shape[-1], file_type, traits, tied, i_attn_v, n_attn_v)
            chosen = _fit_columns(chosen, shape[-1])
        i_attn_v += "attn_v.weight" in name
        types[name] = chosen
    return types


def llama_cpp_order(name: str) -> tuple[int, str]:
    """Sort key of llama.cpp's loader: tensors outside the layers first, then layer by layer, by name."""
    match = re.match(r"blk\.(\d+)\.", name)
    return (int(match[1]) if match else -1, name)


def _may_quantize(name: str, shape: Sequence[int]) -> bool:
    return len(shape) >= 2 and name.endswith("weight") and "_norm.weight" not in name


def _mixed_type(
    name: str, n_columns: int, file_type: FileType, traits: ModelTraits, tied: bool, i_attn_v: int, n_attn_v: int
) -> QType:
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return _output_type(file_type.default, n_columns)
    if file_type.ftype != LlamaFileType.MOSTLY_Q4_K_M:
        return file_type.default
    if "attn_v.weight" in name:
        if _use_more_bits(i_attn_v, n_attn_v):
            return QType.Q6_K
        return QType.Q5_K if traits.is_70b else QType.Q4_K
    if "ffn_down" in name and _use_more_bits(llama_cpp_order(name)[0], traits.n_layer):
        return QType.Q6_K
    return file_type.default


def _output_type(default: QType, n_columns: int) -> QType:
    """The output matrix (or the embeddings, when they serve as such) is worth more bits."""
    if default == QType.Q8_0 or n_columns % GGML_QUANT_SIZES[default][0]:
        return QType.Q8_0
    return QType.Q6_K


def _use_more_bits(i_layer: int, n_layer: int) -> bool:
    """The first and last eighth of the layers, and every third one between."""
    return i_layer < n_layer // 8 or i_layer >= 7 * n_layer // 8 or (i_layer - n_layer // 8) % 3 == 2


_NARROWER = {QType.Q4_K: QType.Q5_0, QType.Q5_K: QType.Q5_1, QType.Q6_K: QType.Q8_0}


def _fit_columns(qtype: QType, n_columns: int) -> QType:
    """Fall back to a type whose block divides the row length: 256 → 32 columns, and F16 if even that fails."""
    if n_columns % GGML_QUANT_SIZES[qtype][0] == 0:
        return qtype
    narrower = _NARROWER.get(qtype, qtype)
    return narrower if n_columns % GGML_QUANT_SIZES[narrower][0] == 0 else QType.F16
