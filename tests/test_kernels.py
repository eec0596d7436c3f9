"""The two kernels that are not ggml's own give ggml's bytes."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType as QType
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantize import ggml, q8_0

_N = 256


def _by_ggml(rows: np.ndarray, qtype: QType) -> np.ndarray:
    out = np.empty(len(rows) * ggml.row_size(qtype, rows.shape[1]), np.uint8)
    ggml._library().ggml_quantize_chunk(qtype, rows.ctypes.data, out.ctypes.data, 0, *rows.shape, None)
    return out


def _check_q8_0(rows: np.ndarray) -> bool:
    out = np.empty(len(rows) * ggml.row_size(QType.Q8_0, rows.shape[1]), np.uint8)
    done = q8_0.quantize(rows, out)
    if done:
        np.testing.assert_array_equal(out, _by_ggml(rows, QType.Q8_0))
    return done


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(np.float32, (3, _N), elements=st.floats(-1, 1, width=16)),
    st.floats(1e-30, 1e4),
    st.booleans(),
)
def test_q8_0_is_ggmls_for_any_scale(rows: np.ndarray, scale: float, is_bf16: bool) -> None:
    rows = rows * np.float32(scale)
    if is_bf16:
        rows = (rows.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    _check_q8_0(np.ascontiguousarray(rows))


def test_q8_0_rounds_halves_away_from_zero_as_ggml_does() -> None:
    halves = np.arange(-127, 127.5, 0.5, dtype=np.float32)
    rows = np.resize(halves, (1, 17 * 32))
    rows[:, ::32] = 127  # so that the scale of each block is exactly 1
    assert _check_q8_0(rows)


@pytest.mark.parametrize("step", [-1, 1])
def test_q8_0_next_to_halves(step: int) -> None:
    beside = np.nextafter(np.arange(-126.5, 127, 1, dtype=np.float32), np.float32(step * np.inf))
    rows = np.resize(beside, (1, 9 * 32))
    rows[:, ::32] = 127
    assert _check_q8_0(rows)


def test_q8_0_leaves_what_has_no_reciprocal_to_ggml() -> None:
    rows = np.full((1, 32), 1e-38, np.float32)
    assert not _check_q8_0(rows)
    out = np.empty(34, np.uint8)
    ggml.quantize_rows(rows, QType.Q8_0, out)
    np.testing.assert_array_equal(out, _by_ggml(rows, QType.Q8_0))


def test_q8_0_of_zeros_and_of_more_than_one_chunk() -> None:
    rows = np.random.default_rng(0).standard_normal((300, 512)).astype(np.float32)
    rows[7] = 0
    assert _check_q8_0(rows)


def test_every_bf16_number_becomes_ggmls_f16() -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    floats, out = np.empty(every.size, np.float32), np.empty(every.size * 2, np.uint8)
    ggml.to_f32(every.view(np.uint8), QType.BF16, floats)
    ggml.bf16_to_f16(every.view(np.uint8), out)
    np.testing.assert_array_equal(out, _by_ggml(floats.reshape(1, -1), QType.F16))


@pytest.mark.parametrize("qtype", [QType.F32, QType.F16, QType.BF16])
def test_only_nan_and_infinity_are_not_finite(qtype: QType) -> None:
    n_bytes = ggml.row_size(qtype, 1)
    kind = {4: np.uint32, 2: np.uint16}[n_bytes]
    bits = np.arange(0, 1 << 32, 65_521, np.uint64).astype(kind) if n_bytes == 4 else np.arange(1 << 16).astype(kind)
    rows = np.empty(len(bits), np.float32)
    if qtype == QType.F32:
        rows = bits.view(np.float32)
    else:
        ggml.to_f32(bits.view(np.uint8), qtype, rows)
    finite = np.isfinite(rows)
    assert ggml.is_finite(bits[finite].view(np.uint8), qtype)
    for bad in bits[~finite][::97]:
        assert not ggml.is_finite(np.append(bits[finite][:9], bad).view(np.uint8), qtype)
