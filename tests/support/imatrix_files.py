"""Importance matrices as llama-imatrix writes them, by code that shares nothing with the reader."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np


def write_gguf_imatrix(
    path: Path,
    entries: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    datasets: Sequence[str] = ("calibration.txt", "more.txt"),
    n_chunks: int = 7,
) -> Path:
    """`entries`: tensor → sums of squares (experts × columns), and counts (experts)."""
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()
    writer.add_type("imatrix")
    writer.add_array(gguf.Keys.IMatrix.DATASETS, list(datasets))
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_COUNT, n_chunks)
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_SIZE, 512)
    for name, (sums, counts) in entries.items():
        writer.add_tensor(f"{name}.in_sum2", np.asarray(sums, np.float32))
        writer.add_tensor(f"{name}.counts", np.asarray(counts, np.float32).reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_legacy_imatrix(
    path: Path,
    entries: Mapping[str | bytes, tuple[np.ndarray, int]],
    *,
    dataset: str | None = "calibration.txt",
    n_chunks: int | None = 11,
    n_entries: int | None = None,
) -> Path:
    """`entries`: tensor → values, and by how many calls they are to be divided."""
    content = struct.pack("<i", len(entries) if n_entries is None else n_entries)
    for name, (values, n_calls) in entries.items():
        encoded = name if isinstance(name, bytes) else name.encode()
        content += struct.pack("<i", len(encoded)) + encoded + struct.pack("<ii", n_calls, np.size(values))
        content += np.asarray(values, "<f4").tobytes()
    if n_chunks is not None:
        content += struct.pack("<i", n_chunks)
    if dataset is not None:
        content += struct.pack("<i", len(dataset.encode())) + dataset.encode()
    path.write_bytes(content)
    return path
