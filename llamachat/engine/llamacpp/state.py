"""The KV cache in a file: a head with its ids, then slices of the cache, each behind its own checksum.

A slice holds the state of a run of tokens as `llama_state_seq_get_data` writes it. That gives a whole sequence at once,
which may be gigabytes; so the run is first given to a second sequence, by which it is had, and put back, on its own.
Nothing of a file reaches llama.cpp before its checksum was found right.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import llama_cpp

from llamachat.engine.base import EngineOptions
from llamachat.engine.llamacpp.library import build_description

_MAGIC = b"LLCHATK1"
_HEAD = struct.Struct("<8s32sII")  # magic, fingerprint, number of ids, tokens in a slice
_SLICE = struct.Struct("<QQ")  # first token, size in bytes
_ID_BYTES = 4
_DIGEST_BYTES = 32
_SLICE_BYTES = 2**25
"""About the size of a slice: what is in memory besides the cache, and what Ctrl-C waits for."""

_SEQUENCE, _ASIDE = 0, 1
N_SEQUENCES = 2
"""Sequences that a context needs for its cache to be had in slices."""


class UnusableState(Exception):
    """A file that cannot be put into this cache: of another model, library or window, damaged or cut short."""


def has_plain_cache(model: Any) -> bool:
    """Whether the cache is keys and values of every token: no sliding window, nothing recurrent."""
    is_other = llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model)
    return not is_other and llama_cpp.llama_model_n_swa(model) == 0


def fingerprint(model_key: str, options: EngineOptions, stretched_to: int | None) -> bytes:
    """All that decides what the keys and values of given ids are, in 32 bytes.

    The window counts where positions depend on it: `stretched_to`, in tokens.
    """
    adapters = [(_file_key(adapter.path), adapter.scale) for adapter in options.adapters]
    stretched = stretched_to and (options.rope_scaling, stretched_to)
    library = _file_key(Path(llama_cpp.llama_cpp._lib._name))
    facts = (model_key, adapters, options.kv_type, stretched, build_description(), library)
    return hashlib.sha256(repr(facts).encode()).digest()


def _file_key(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def state_bytes(context: Any) -> int:
    """The size of what `write_state` would write, but for ids and checksums."""
    return int(llama_cpp.llama_state_seq_get_size(context, _SEQUENCE))


def write_state(context: Any, ids: Sequence[int], key: bytes, file: BinaryIO, cancel: threading.Event) -> bool:
    """Write the cache, which holds `ids`. False if `cancel` was set meanwhile; raises `OSError`."""
    n_slice = max(1, min(len(ids), _SLICE_BYTES * len(ids) // state_bytes(context)))
    head = _HEAD.pack(_MAGIC, key, len(ids), n_slice) + _pack_ids(ids)
    file.write(head + _digest(head))
    for start, stop in _slices(len(ids), n_slice):
        if cancel.is_set():
            return False
        data = _take(context, start, stop)
        place = _SLICE.pack(start, len(data))
        file.write(place + _digest(place, data))
        file.write(data)
    return True


@dataclass(frozen=True)
class Head:
    """What a file says before its slices."""

    ids: list[int]
    n_slice: int


def read_head(file: BinaryIO, key: bytes, n_ctx: int) -> Head:
    """Read up to the first slice; raise `UnusableState` if this is not for the cache of this context."""
    fixed = _read(file, _HEAD.size)
    magic, found_key, n_ids, n_slice = _HEAD.unpack(fixed)
    if magic != _MAGIC or found_key != key:
        raise UnusableState("it was made by or for something else")
    if not 0 < n_ids <= n_ctx or not 0 < n_slice <= n_ids:
        raise UnusableState("it does not fit the window")
    packed = _read(file, n_ids * _ID_BYTES)
    if _read(file, _DIGEST_BYTES) != _digest(fixed, packed):
        raise UnusableState("its head is damaged")
    return Head(_unpack_ids(packed), n_slice)


def read_slices(context: Any, file: BinaryIO, head: Head, n_wanted: int, cancel: threading.Event) -> int:
    """Fill the empty cache of `context` with at least the first `n_wanted` tokens; return how many are there.

    Raises `UnusableState`, after which the cache holds anything; also if `cancel` was set meanwhile.
    """
    n_there = 0
    with _aside(context) as memory:
        for start, stop in _slices(len(head.ids), head.n_slice):
            if start >= n_wanted:
                break
            if cancel.is_set():
                raise UnusableState("it was not waited for")
            _put(context, memory, _read_slice(file, start), start, stop)
            n_there = stop
    return n_there


def _read_slice(file: BinaryIO, start: int) -> bytearray:
    place = _read(file, _SLICE.size)
    found_start, n_bytes = _SLICE.unpack(place)
    if found_start != start or n_bytes > 2 * _SLICE_BYTES:
        raise UnusableState("it is damaged")
    digest = _read(file, _DIGEST_BYTES)
    data = _read(file, n_bytes)
    if digest != _digest(place, data):
        raise UnusableState("it is damaged")
    return data


@contextmanager
def _aside(context: Any) -> Iterator[Any]:
    """The memory of a context, whose second sequence is empty again afterwards."""
    memory = llama_cpp.llama_get_memory(context)
    try:
        yield memory
    finally:
        llama_cpp.llama_memory_seq_rm(memory, _ASIDE, -1, -1)


def _take(context: Any, start: int, stop: int) -> ctypes.Array[ctypes.c_uint8]:
    with _aside(context) as memory:
        llama_cpp.llama_memory_seq_cp(memory, _SEQUENCE, _ASIDE, start, stop)
        n_bytes = llama_cpp.llama_state_seq_get_size(context, _ASIDE)
        data: ctypes.Array[ctypes.c_uint8] = (ctypes.c_uint8 * n_bytes)()
        if llama_cpp.llama_state_seq_get_data(context, data, n_bytes, _ASIDE) != n_bytes:
            raise OSError("llama.cpp did not give its state")
        return data


def _put(context: Any, memory: Any, data: bytearray, start: int, stop: int) -> None:
    array_type = ctypes.c_uint8 * len(data)
    n_read = llama_cpp.llama_state_seq_set_data(context, array_type.from_buffer(data), len(data), _ASIDE)
    if n_read != len(data) or _places(memory) != (start, stop - 1):
        raise UnusableState("llama.cpp does not take it")
    llama_cpp.llama_memory_seq_cp(memory, _ASIDE, _SEQUENCE, start, stop)


def _places(memory: Any) -> tuple[int, int]:
    return (
        llama_cpp.llama_memory_seq_pos_min(memory, _ASIDE),
        llama_cpp.llama_memory_seq_pos_max(memory, _ASIDE),
    )


def _slices(n_ids: int, n_slice: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + n_slice, n_ids)) for start in range(0, n_ids, n_slice))


def _read(file: BinaryIO, n_bytes: int) -> bytearray:
    left = os.fstat(file.fileno()).st_size - file.tell()
    if n_bytes > left:
        raise UnusableState("it is cut short")
    data = bytearray(n_bytes)
    if file.readinto(data) != n_bytes:  # type: ignore[attr-defined]
        raise UnusableState("it is cut short")
    return data


def _digest(*parts: Any) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def _pack_ids(ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(ids)}i", *ids)


def _unpack_ids(packed: bytearray) -> list[int]:
    return [token_id for (token_id,) in struct.iter_unpack("<i", packed)]
