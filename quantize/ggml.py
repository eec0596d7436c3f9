"""The one door to ggml's own conversion and quantization kernels.

They live in `libggml-base`, which llama-cpp-python ships; calling them instead of porting them is what makes
every byte equal to llama.cpp's. They are reached through ctypes, which releases the GIL for the length of a
call, so threads run them in parallel. Not here: which tensor gets which type (`recipe`), files (`writer`).

Source: ggml/include/ggml.h (`ggml_quantize_chunk`, `ggml_validate_row_data`, the `*_to_fp32_row` converters).
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from quantize import q8_0

Buffer = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_LIBRARY_NAMES = {"darwin": "libggml-base.dylib", "win32": "ggml-base.dll"}

_TO_F32 = {
    GGMLQuantizationType.F16: "ggml_fp16_to_fp32_row",
    GGMLQuantizationType.BF16: "ggml_bf16_to_fp32_row",
}


def row_size(qtype: GGMLQuantizationType, n_columns: int) -> int:
    """Bytes of one row of `n_columns` elements; the columns must be whole blocks."""
    block_size, type_size = GGML_QUANT_SIZES[qtype]
    if n_columns % block_size:
        raise ValueError(f"{n_columns} columns are not whole blocks of {qtype.name} ({block_size})")
    return n_columns // block_size * type_size


def to_f32(source: Buffer, qtype: GGMLQuantizationType, out: Floats) -> None:
    """Widen the values in `source`, of a type that `can_widen`, into `out` (as many elements as `out` has)."""
    convert = getattr(_library(), _TO_F32[qtype]) if qtype in _TO_F32 else _type_traits(qtype).to_float
    convert(source.ctypes.data, out.ctypes.data, out.size)


def bf16_to_f16(source: Buffer, out: Buffer) -> None:
    """Turn the BF16 numbers in `source` into F16, as `to_f32` and then `quantize_rows` would."""
    np.take(_f16_of_bf16(), source.view(np.uint16), out=out.view(np.uint16), mode="clip")


@lru_cache(maxsize=1)
def _f16_of_bf16() -> npt.NDArray[np.uint16]:
    """The F16 bits of every BF16 number (65,536), from ggml's own conversions."""
    every = np.arange(1 << 16, dtype=np.uint16)
    floats, halves = np.empty(every.size, np.float32), np.empty(every.size, np.uint16)
    to_f32(every.view(np.uint8), GGMLQuantizationType.BF16, floats)
    quantize_rows(floats.reshape(1, -1), GGMLQuantizationType.F16, halves.view(np.uint8))
    return halves


def can_widen(qtype: GGMLQuantizationType) -> bool:
    """Whether values of this type can be turned into F32."""
    traits = _type_traits(qtype)
    return qtype in _TO_F32 or bool(traits.is_quantized and traits.to_float)


def quantize_rows(rows: Floats, qtype: GGMLQuantizationType, out: Buffer, importance: Floats | None = None) -> None:
    """Quantize `rows` (n_rows × n_columns, C order) into `out` (n_rows × row_size bytes).

    `importance` (n_columns, C order) weighs the error of each column, the same for all rows. Every row is quantized
    by itself, so any split of a tensor into runs of rows gives the same bytes.
    """
    n_rows, n_columns = rows.shape
    if importance is not None and importance.shape != (n_columns,):
        raise ValueError(f"importances of shape {importance.shape} for {n_columns} columns")
    if qtype == GGMLQuantizationType.Q8_0 and q8_0.quantize(rows, out):
        return
    weights = None if importance is None else importance.ctypes.data
    n_bytes = _library().ggml_quantize_chunk(qtype, rows.ctypes.data, out.ctypes.data, 0, n_rows, n_columns, weights)
    if n_bytes != n_rows * row_size(qtype, n_columns):
        raise RuntimeError(f"ggml wrote {n_bytes} bytes of {qtype.name} for {n_rows}×{n_columns} values")


_INFINITY: dict[GGMLQuantizationType, np.unsignedinteger[Any]] = {
    GGMLQuantizationType.F32: np.uint32(0x7F800000),
    GGMLQuantizationType.F16: np.uint16(0x7C00),
    GGMLQuantizationType.BF16: np.uint16(0x7F80),
}
"""The bits of infinity; those of NaN, without the sign, are above."""


def is_finite(data: Buffer | Floats, qtype: GGMLQuantizationType) -> bool:
    """Whether no value (or block scale) in `data` is NaN or infinite."""
    if (infinity := _INFINITY.get(qtype)) is not None:
        magnitudes = data.reshape(-1).view(infinity.dtype) & np.iinfo(infinity.dtype).max // 2
        return bool(magnitudes.max(initial=0) < infinity)
    return bool(_library().ggml_validate_row_data(qtype, data.ctypes.data, data.nbytes))


def read_tensor_table(path: Path) -> dict[str, tuple[GGMLQuantizationType, int, int]]:
    """Read a GGUF file's tensor table with ggml's own reader: name → (type, offset in the file, size), in bytes.

    A file that ggml refuses gives an empty table.
    """
    library = _library()
    context = library.gguf_init_from_file(os.fsencode(path), _InitParams(no_alloc=True, context=None))
    if not context:
        return {}
    try:
        data_start = library.gguf_get_data_offset(context)
        return {
            library.gguf_get_tensor_name(context, i).decode(): (
                GGMLQuantizationType(library.gguf_get_tensor_type(context, i)),
                data_start + library.gguf_get_tensor_offset(context, i),
                library.gguf_get_tensor_size(context, i),
            )
            for i in range(library.gguf_get_n_tensors(context))
        }
    finally:
        library.gguf_free(context)


class _TypeTraits(ctypes.Structure):
    """`struct ggml_type_traits`."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    )


def _type_traits(qtype: GGMLQuantizationType) -> Any:
    return _library().ggml_get_type_traits(qtype).contents


class _InitParams(ctypes.Structure):
    """`struct gguf_init_params`."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


_INT, _INT64, _SIZE, _POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_size_t, ctypes.c_void_p

_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "ggml_quantize_chunk": (_SIZE, [_INT, _POINTER, _POINTER, _INT64, _INT64, _INT64, _POINTER]),
    "ggml_get_type_traits": (ctypes.POINTER(_TypeTraits), [_INT]),
    "ggml_validate_row_data": (ctypes.c_bool, [_INT, _POINTER, _SIZE]),
    "ggml_fp16_to_fp32_row": (None, [_POINTER, _POINTER, _INT64]),
    "ggml_bf16_to_fp32_row": (None, [_POINTER, _POINTER, _INT64]),
    "gguf_init_from_file": (_POINTER, [ctypes.c_char_p, _InitParams]),
    "gguf_free": (None, [_POINTER]),
    "gguf_get_data_offset": (_SIZE, [_POINTER]),
    "gguf_get_n_tensors": (_INT64, [_POINTER]),
    "gguf_get_tensor_name": (ctypes.c_char_p, [_POINTER, _INT64]),
    "gguf_get_tensor_type": (_INT, [_POINTER, _INT64]),
    "gguf_get_tensor_offset": (_SIZE, [_POINTER, _INT64]),
    "gguf_get_tensor_size": (_SIZE, [_POINTER, _INT64]),
}


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    """Load libggml-base from the installed llama_cpp, without importing that package (it loads all of llama.cpp)."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("llama-cpp-python is not installed")
    name = _LIBRARY_NAMES.get(sys.platform, "libggml-base.so")
    library = ctypes.CDLL(str(Path(spec.submodule_search_locations[0]) / "lib" / name))
    for function_name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(library, function_name)
        function.restype, function.argtypes = result, arguments
    return library
