"""PyTorch files for tests, written by hand as torch.save does it: a zip of stored entries around one pickle.

Real PyTorch 2.13 loads them with `weights_only=True`. Pieces can be replaced to make files that lie.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from support.checkpoints import STORAGE, Dtype, Tensor

STORAGES: dict[Dtype, str] = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage"}


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def integer(value: int) -> bytes:
    if 0 <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    encoded = value.to_bytes(16, "little", signed=True)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def integers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def tensor_program(
    key: str, storage: str, n_storage: int, shape: tuple[int, ...], *, offset: int = 0,
    strides: tuple[int, ...] | None = None, parameter: bool = False,
) -> bytes:  # fmt: skip
    """The instructions that make a tensor."""
    if strides is None:
        below = [1]
        for dimension in reversed(shape[1:]):
            below.append(below[-1] * dimension)
        strides = tuple(reversed(below)) if shape else ()
    no_hooks = name("collections", "OrderedDict") + b")R"
    persistent = b"(" + text("storage") + name("torch", storage) + text(key) + text("cpu") + integer(n_storage) + b"tQ"
    body = persistent + integer(offset) + integers(shape) + integers(strides) + b"\x89" + no_hooks
    program = name("torch._utils", "_rebuild_tensor_v2") + b"(" + body + b"tR"
    if parameter:
        program = name("torch._utils", "_rebuild_parameter") + b"(" + program + b"\x88" + no_hooks + b"tR"
    return program


def state_program(entries: Mapping[str, bytes], *, module_state: bool = True) -> bytes:
    """A whole pickle: as `module.state_dict()` is saved (an OrderedDict with `_metadata`), or as a plain dict."""
    items = b"(" + b"".join(text(key) + program for key, program in entries.items()) + b"u"
    if not module_state:
        return b"\x80\x02}" + items + b"."
    ordered = name("collections", "OrderedDict") + b")R"
    version = b"}(" + text("version") + b"K\x01u"
    metadata = b"}(" + text("_metadata") + ordered + b"(" + text("") + version + b"uu"
    return b"\x80\x02" + ordered + items + metadata + b"b."


def write_zip(path: Path, entries: list[tuple[str, bytes]], *, zip64: bool = True) -> None:
    """A zip as PyTorch's writer lays it out: data at multiples of 64, and a zip64 end record."""
    out, table = bytearray(), bytearray()
    for entry, data in entries:
        encoded, crc, offset = entry.encode(), zlib.crc32(data), len(out)
        n_padding = -(offset + 34 + len(encoded)) % 64
        extra = b"FB" + struct.pack("<H", n_padding) + b"Z" * n_padding
        out += struct.pack(
            "<4s5H3I2H", b"PK\3\4", 0, 0x800, 0, 0, 0, crc, len(data), len(data), len(encoded), len(extra)
        )
        out += encoded + extra + data
        table += struct.pack("<4s6H3I5H2I", b"PK\1\2", 0, 0, 0x800, 0, 0, 0, crc, len(data), len(data),
                             len(encoded), 0, 0, 0, 0, 0, offset) + encoded  # fmt: skip
    start, n = len(out), len(entries)
    out += table
    if zip64:
        end = len(out)
        out += struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 0x31E, 45, 0, 0, n, n, len(table), start)
        out += struct.pack("<4sIQI", b"PK\6\7", 0, end, 1)
    out += struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, n, n, len(table), start, 0)
    path.write_bytes(out)


def write_torch_file(
    path: Path, tensors: Mapping[str, Tensor], *, parameter: bool = False,
    change: Callable[[bytes], bytes] = lambda program: program,
) -> None:  # fmt: skip
    """Write `tensors` as torch.save would; `change` may tamper with the pickle."""
    programs: dict[str, bytes] = {}
    storages: list[tuple[str, bytes]] = []
    for number, (key, tensor) in enumerate(tensors.items()):
        data = tensor.data
        programs[key] = tensor_program(str(number), STORAGES[tensor.dtype], data.size, data.shape, parameter=parameter)
        storages.append((f"archive/data/{number}", data.tobytes()))
    pickle = ("archive/data.pkl", change(state_program(programs)))
    write_zip(path, [pickle, ("archive/byteorder", b"little"), *storages, ("archive/version", b"3\n")])


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file that the test support wrote."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8:start])
    header.pop("__metadata__")
    tensors = {}
    for key, entry in header.items():
        first, end = (start + offset for offset in entry["data_offsets"])
        data = np.frombuffer(content[first:end], STORAGE[entry["dtype"]]).reshape(entry["shape"])
        tensors[key] = Tensor(entry["dtype"], data)
    return tensors


def turn_into_torch(directory: Path, *, parameter: bool = False) -> None:
    """Replace the safetensors weights in `directory` by the same in PyTorch's form, index included."""
    for path in sorted(directory.glob("model*.safetensors")):
        write_torch_file(_torch_path(path), read_safetensors(path), parameter=parameter)
        path.unlink()
    index = directory / "model.safetensors.index.json"
    if index.exists():
        parsed = json.loads(index.read_text())
        parsed["weight_map"] = {key: _torch_path(Path(shard)).name for key, shard in parsed["weight_map"].items()}
        (directory / "pytorch_model.bin.index.json").write_text(json.dumps(parsed))
        index.unlink()


def _torch_path(path: Path) -> Path:
    return path.with_name(path.name.replace("model", "pytorch_model", 1)).with_suffix(".bin")
