"""Plan the quantization of a GGUF file: its keys are copied as they are, its tensors get the types of the mix.

The result is the file that llama-quantize makes, byte for byte (`tests/test_quantize_options.py`): keys in their
order with the two that speak of quantization at the end, tensors in the order of llama.cpp's loader.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gguf import GGML_QUANT_SIZES, GGML_QUANT_VERSION, GGUFValue, GGUFValueType, GGUFWriter, Keys

from quantize import ggml
from quantize.checkpoint.tensor import ITEM_SIZES, count_elements
from quantize.choices import Choices
from quantize.errors import CheckpointError, TensorError, UnsupportedWeights, shown
from quantize.gguf_reader import GGUFContents
from quantize.plan import Outline, Plan
from quantize.recipe import FileType, ModelTraits, QType, is_covered, llama_cpp_order, tensor_types

_SPLIT_KEYS = (Keys.Split.LLM_KV_SPLIT_NO, Keys.Split.LLM_KV_SPLIT_COUNT, Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT)


def plan_from_gguf(
    contents: GGUFContents,
    file_type: FileType,
    *,
    requantize: bool = False,
    choices: Choices | None = None,
    has_imatrix: bool = False,
) -> Plan:
    """Decide what becomes of each tensor; raise `QuantizeError` for a file that cannot be quantized."""
    architecture = contents.values.get(Keys.General.ARCHITECTURE)
    if not isinstance(architecture, str) or not architecture:
        raise CheckpointError(contents.path, "has no key general.architecture")
    if not contents.tensors:
        raise CheckpointError(contents.path, "holds no tensors")
    refuse_split(contents)
    sources = {name: contents.tensors[name] for name in sorted(contents.tensors, key=llama_cpp_order)}
    if not requantize:
        _refuse_quantized(contents)
    stored = {name: source.qtype for name, source in sources.items()}
    shapes = {name: source.shape for name, source in sources.items()}
    if file_type.is_quantized:
        _refuse_uncovered(contents, shapes, architecture)
        traits = _traits(contents, architecture)
    else:
        traits = ModelTraits(1, 1, 1)  # not looked at
    types = tensor_types(shapes, file_type, traits, stored=stored, choices=choices, has_imatrix=has_imatrix)
    _refuse_unreadable(contents, types)
    n_params = sum(count_elements(shape) for name, shape in shapes.items() if not name.startswith("rope_"))
    return Plan(Outline(architecture, _copy_header(contents, file_type), shapes, types, n_params), dict(sources))


def refuse_split(contents: GGUFContents) -> None:
    """Raise `UnsupportedWeights` for one file of several."""
    if contents.values.get(Keys.Split.LLM_KV_SPLIT_COUNT, 1) != 1:
        raise UnsupportedWeights(
            f"{contents.path.name} is one part of a model that was split.",
            "Join the parts first: llama-gguf-split --merge FIRST-PART OUT.gguf",
        )


def _refuse_quantized(contents: GGUFContents) -> None:
    for tensor in contents.tensors.values():
        if GGML_QUANT_SIZES[tensor.qtype][0] > 1:
            raise UnsupportedWeights(
                f"{contents.path.name} is quantized already: tensor {shown(tensor.name)} is {tensor.qtype.name}.",
                "Start from the original weights; to quantize twice and lose twice: --requantize.",
            )


def _refuse_uncovered(contents: GGUFContents, shapes: dict[str, tuple[int, ...]], architecture: str) -> None:
    for name, shape in shapes.items():
        if not is_covered(name, shape):
            raise UnsupportedWeights(
                f"{contents.path.name}: no rule is known for tensor {shown(name)} of {shown(architecture)}.",
                "Use llama-quantize, or a quant without a mix: f16, bf16, f32.",
            )


def _refuse_unreadable(contents: GGUFContents, types: dict[str, QType]) -> None:
    for name, qtype in types.items():
        stored = contents.tensors[name].qtype
        if stored != qtype and stored not in ITEM_SIZES and not ggml.can_widen(stored):
            raise TensorError(contents.path, name, f"is stored as {stored.name}, which cannot be converted")


def _traits(contents: GGUFContents, architecture: str) -> ModelTraits:
    def key(pattern: str) -> str:
        return pattern.format(arch=architecture)

    n_head = contents.integer(key(Keys.Attention.HEAD_COUNT))
    return ModelTraits(
        n_layer=contents.integer(key(Keys.LLM.BLOCK_COUNT)),
        n_head=n_head,
        n_head_kv=contents.integer(key(Keys.Attention.HEAD_COUNT_KV), default=n_head),
        architecture=architecture,
    )


@dataclass(frozen=True)
class _Copied:
    """A value as the bytes it had, type first."""

    encoded: bytes


class _CopyingWriter(GGUFWriter):
    """Writes copied values as they are."""

    def _pack_val(
        self, val: Any, vtype: GGUFValueType, add_vtype: bool, sub_type: GGUFValueType | None = None
    ) -> bytes:
        if isinstance(val, _Copied):
            return val.encoded
        return bytes(super()._pack_val(val, vtype, add_vtype, sub_type))


def _copy_header(contents: GGUFContents, file_type: FileType) -> GGUFWriter:
    writer = _CopyingWriter(None, "")
    rewritten = {Keys.General.QUANTIZATION_VERSION, Keys.General.FILE_TYPE, *_SPLIT_KEYS}
    writer.kv_data = [
        {
            key: GGUFValue(_Copied(encoded), GGUFValueType.STRING)
            for key, encoded in contents.encoded.items()
            if key not in rewritten
        }
    ]
    writer.data_alignment = contents.alignment
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_file_type(file_type.ftype)
    return writer
