"""The SHA-256 of a file whose pieces are written in nearly the right order."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

from quantize.ggml import Buffer

_MAX_KEPT = 16 << 20
"""Bytes in memory whose turn has not come; what does not fit is read back."""

_AT_ONCE = 128 << 20
"""Bytes; about a tenth of a second."""


class OrderedDigest:
    """Hashes pieces while they are in memory; only what is written long before its turn is read back from the file."""

    def __init__(self, read: Callable[[int, int], memoryview]) -> None:
        """Take what reads the file: `read(position, n)` returns at least one byte from there, and at most n."""
        self._read = read
        self._sha256, self._n_hashed = hashlib.sha256(), 0
        self._pieces: dict[int, Buffer | int] = {}  # by position; those that are not kept have their size only
        self._n_kept = 0
        self._lock, self._is_hashing = threading.Lock(), False

    def note(self, position: int, n_bytes: int) -> None:
        """Take note of a piece that the file has from before."""
        if n_bytes:
            self._pieces[position] = n_bytes

    def add(self, position: int, data: Buffer) -> None:
        """Hash a piece that was written if it is its turn, else keep it for then. Safe from several threads."""
        with self._lock:
            is_its_turn = position == self._n_hashed and not self._is_hashing
            if is_its_turn:
                self._is_hashing = True
            elif self._n_kept + data.nbytes <= _MAX_KEPT:
                self._pieces[position] = data.copy()
                self._n_kept += data.nbytes
            else:
                self._pieces[position] = data.nbytes
        if is_its_turn:
            self._update(data.data)
            self._is_hashing = False
        self.go_on()

    def go_on(self, n_at_once: int = _AT_ONCE) -> None:
        """Hash some of the pieces whose turn has come, unless another thread is doing that. Raises `OSError`."""
        with self._lock:
            if self._is_hashing:
                return
            self._is_hashing = True
        end = self._n_hashed + n_at_once
        while self._n_hashed < end and (piece := self._take()) is not None:
            if isinstance(piece, int):
                self._read_back(piece)
            else:
                self._update(piece.data)
        self._is_hashing = False

    def _take(self) -> Buffer | int | None:
        with self._lock:
            piece = self._pieces.pop(self._n_hashed, None)
            self._n_kept -= 0 if piece is None or isinstance(piece, int) else piece.nbytes
            return piece

    def _read_back(self, n_bytes: int) -> None:
        end = self._n_hashed + n_bytes
        while self._n_hashed < end:
            self._update(self._read(self._n_hashed, end - self._n_hashed))

    def _update(self, data: memoryview) -> None:
        self._sha256.update(data)
        self._n_hashed += data.nbytes

    def finish(self, size_bytes: int) -> str:
        """Hash what is left of a file of this size and return the SHA-256 in hex. Only when all is written."""
        self.go_on(size_bytes)
        if self._n_hashed != size_bytes:
            raise RuntimeError(f"nobody told what is at {self._n_hashed} of {size_bytes}")
        return self._sha256.hexdigest()
