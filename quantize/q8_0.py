"""Q8_0, the one type whose kernel in ggml is worth replacing: NumPy's loops give the same bytes in a third of the time.

ggml compiles its reference kernel for any machine and rounds number by number; NumPy picks vector instructions at
run time. Source: `quantize_row_q8_0_ref` in ggml/src/ggml-quants.c.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_BLOCK_SIZE = 32
_BLOCK_BYTES = 34  # the scale in F16, then 32 signed bytes
_MAX_QUANT = np.float32(127)

_CHUNK_BLOCKS = 2048
"""Blocks worked on at a time: 256 KiB of F32, so that all passes stay in a core's own cache."""

_SIGN = np.uint32(0x80000000)
_NEARLY_HALF = np.float32(0.49999997).view(np.uint32)
"""The largest float below 0.5: added with the sign of x it makes truncation round like C's roundf."""


def quantize(values: npt.NDArray[np.float32], out: npt.NDArray[np.uint8]) -> bool:
    """Quantize finite `values`, whole blocks of 32, into `out` (34 bytes a block).

    Returns False, with `out` half written, where the values are too tiny for the reciprocal of a scale; what ggml
    makes of those depends on the machine, so it must make it.
    """
    blocks, encoded = values.reshape(-1, _BLOCK_SIZE), out.reshape(-1, _BLOCK_BYTES)
    scratch = _Scratch()
    chunks = range(0, len(blocks), _CHUNK_BLOCKS)
    return all(_quantize_chunk(blocks[i : i + _CHUNK_BLOCKS], encoded[i : i + _CHUNK_BLOCKS], scratch) for i in chunks)


class _Scratch:
    """Room for one chunk, reused."""

    def __init__(self) -> None:
        self.floats = np.empty((_CHUNK_BLOCKS, _BLOCK_SIZE), np.float32)
        self.halves = np.empty((_CHUNK_BLOCKS, _BLOCK_SIZE), np.uint32)
        self.starts = np.arange(0, _CHUNK_BLOCKS * _BLOCK_SIZE, _BLOCK_SIZE)


def _quantize_chunk(blocks: npt.NDArray[np.float32], encoded: npt.NDArray[np.uint8], scratch: _Scratch) -> bool:
    n = len(blocks)
    floats, halves = scratch.floats[:n], scratch.halves[:n]
    np.abs(blocks, out=floats)
    # Of numbers that are not negative the largest has the largest bits, and integers are compared without care for NaN.
    largest = np.maximum.reduceat(floats.reshape(-1).view(np.int32), scratch.starts[:n])
    scales = largest.view(np.float32) / _MAX_QUANT
    with np.errstate(divide="ignore", over="ignore"):  # found right below, or refused by who reads the scales
        inverse = np.where(scales == 0, np.float32(0), np.float32(1) / scales)
        stored_scales = scales.astype(np.float16)
    if not np.isfinite(inverse).all():
        return False
    np.multiply(blocks, np.repeat(inverse, _BLOCK_SIZE).reshape(n, _BLOCK_SIZE), out=floats)
    np.bitwise_and(floats.view(np.uint32), _SIGN, out=halves)
    np.bitwise_or(halves, _NEARLY_HALF, out=halves)
    np.add(floats, halves.view(np.float32), out=floats)
    encoded[:, :2] = stored_scales.view(np.uint8).reshape(n, 2)
    np.copyto(encoded[:, 2:].view(np.int8), floats, casting="unsafe")
    return True
