"""The file that is being made: its hash while it is written in any order, and the way past the page cache."""

from __future__ import annotations

import errno
import hashlib
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantize import digest, direct
from quantize.digest import OrderedDigest
from quantize.direct import DirectFile
from quantize.ggml import Buffer

CONTENT = np.random.default_rng(0).integers(0, 256, 3_000_001, np.uint8)
PIECES = [CONTENT[start : start + 70_001] for start in range(0, CONTENT.size, 70_001)]
"""At no page's beginning, and one that is smaller than the others."""


@given(st.permutations(range(12)), st.sets(st.integers(0, 11)), st.integers(0, 40), st.integers(0, 3))
def test_hash_of_pieces_in_any_order(order: list[int], there_before: set[int], n_kept: int, n_idle: int) -> None:
    content = CONTENT[:120]
    ordered = OrderedDigest(lambda position, n: content[position : position + min(n, 3)].data)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(digest, "_MAX_KEPT", n_kept)
        for i in there_before:
            ordered.note(i * 10, 10)
        for i in order:
            if i not in there_before:
                scratch = content[i * 10 : i * 10 + 10].copy()
                ordered.add(i * 10, scratch)
                scratch[:] = 0  # the next block's
            if i % 4 == n_idle:
                ordered.go_on(15)
        assert ordered.finish(content.size) == hashlib.sha256(content).hexdigest()


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, Path]:
    monkeypatch.setattr(direct, "_LEAST_SIZE", 0)
    path = tmp_path / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.truncate(fd, CONTENT.size)
    return fd, path


def _write_all(file: DirectFile) -> str:
    """Write `CONTENT` from four threads, and return the hash that was made meanwhile."""
    ordered = OrderedDigest(file.read)

    def write(piece: tuple[int, Buffer]) -> None:
        file.write(piece[1], piece[0] * 70_001)
        ordered.add(piece[0] * 70_001, piece[1])

    pieces = list(enumerate(PIECES))
    random.Random(0).shuffle(pieces)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, pieces))
    return ordered.finish(CONTENT.size)


def test_written_by_several_threads(opened: tuple[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "_MAX_KEPT", 200_000)  # the rest is read back
    file = DirectFile(*opened, CONTENT.size)
    assert _write_all(file) == hashlib.sha256(CONTENT).hexdigest()
    file.close()
    os.close(opened[0])
    assert opened[1].read_bytes() == CONTENT.tobytes()


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="nothing to give up")
@pytest.mark.parametrize("call", ["pwrite", "preadv"])
def test_a_file_system_that_cannot_after_all(
    call: str, opened: tuple[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, original = DirectFile(*opened, CONTENT.size), getattr(os, call)
    if not file.is_direct:
        pytest.skip("the file system knows no direct access")

    def refuse(fd: int, data: object, position: int) -> int:
        if fd != opened[0] and position > 1_000_000:
            raise OSError(errno.EINVAL, "Invalid argument")
        return int(original(fd, data, position))

    monkeypatch.setattr(os, call, refuse)
    monkeypatch.setattr(digest, "_MAX_KEPT", 0)
    assert _write_all(file) == hashlib.sha256(CONTENT).hexdigest()
    assert not file.is_direct
    file.close()
    os.close(opened[0])
    assert opened[1].read_bytes() == CONTENT.tobytes()


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="one way only")
def test_a_full_disk_is_no_reason_to_give_up(opened: tuple[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    file = DirectFile(*opened, CONTENT.size)

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(OSError, match="No space"):
        file.write(CONTENT, 0)
    file.close()
    os.close(opened[0])
