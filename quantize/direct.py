"""Write and read a large file past the page cache.

A page of the page cache costs more than the disk does where memory has to be found for it first: in a virtual machine
that gives memory back to its host, or beside a model that fills it. So what lies in whole pages goes to the disk from
a buffer of our own (`O_DIRECT`), and only the ends of a piece of data, which share a page with their neighbours, go
the ordinary way. No page is ever written both ways at a time, and Linux keeps the two ways coherent: a direct read
first writes back what the page cache has of its range, a direct write also drops it.

Source: open(2), O_DIRECT; `iomap_dio_rw` and `kiocb_invalidate_pages` in Linux.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np

from quantize.ggml import Buffer

_LEAST_SIZE = 256 << 20
"""Bytes; a smaller file goes the ordinary way, and so is in the page cache for who loads it next."""

_N_BUFFER = 1 << 20


class DirectFile:
    """An open file, written past the page cache as far as the system and the file system can."""

    def __init__(self, fd: int, path: Path, size_bytes: int) -> None:
        """Take the file at `path`, open for reading and writing as `fd`, which stays the caller's."""
        self._fd, self._direct_fd = fd, -1
        self._own = threading.local()
        self.is_direct = False
        if hasattr(os, "O_DIRECT") and size_bytes >= _LEAST_SIZE:
            with suppress(OSError):
                self._direct_fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
                self.is_direct = os.path.sameopenfile(fd, self._direct_fd)

    def write(self, data: Buffer, position: int) -> None:
        """Write all of `data` (contiguous) at `position`. Safe from several threads, if none writes the same bytes."""
        end = position + data.size
        first, last = _page_up(position), _page_down(end)
        if not self.is_direct or first >= last:
            self._write_through_cache(data, position)
            return
        self._write_through_cache(data[: first - position], position)
        for start in range(first, last, _N_BUFFER):
            stop = min(start + _N_BUFFER, last)
            self._write_pages(data[start - position : stop - position], start)
        self._write_through_cache(data[last - position :], last)

    def _write_pages(self, data: Buffer, position: int) -> None:
        pages = self._buffer()[: data.size]
        np.copyto(pages, data)
        n_written = 0
        try:
            n_written = os.pwrite(self._direct_fd, pages.data, position) if self.is_direct else 0
        except OSError as error:
            self._give_up(error)
        self._write_through_cache(data[n_written:], position + n_written)

    def _write_through_cache(self, data: Buffer, position: int) -> None:
        view = data.data
        while view:
            n_written = os.pwrite(self._fd, view, position)
            view, position = view[n_written:], position + n_written

    def read(self, position: int, n_bytes: int) -> memoryview:
        """Read so many bytes from `position`, or fewer, but one at least; valid until this thread's next call."""
        start, pages, n_read = _page_down(position), self._buffer(), 0
        if self.is_direct:
            try:
                n_read = os.preadv(self._direct_fd, [pages.data], start)
            except OSError as error:
                self._give_up(error)
        n_read = n_read or os.preadv(self._fd, [pages.data], start)
        if start + n_read <= position:
            raise OSError(errno.EIO, "it has become shorter")
        return pages[position - start : min(n_read, position + n_bytes - start)].data

    def _give_up(self, error: OSError) -> None:
        """Go the ordinary way from now on, if the file system opens files for direct access but cannot do it."""
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise error
        self.is_direct = False

    def _buffer(self) -> Buffer:
        """Memory of this thread that starts with a page."""
        if not hasattr(self._own, "pages"):
            self._own.pages = np.frombuffer(mmap.mmap(-1, _N_BUFFER), np.uint8)
        pages: Buffer = self._own.pages
        return pages

    def close(self) -> None:
        """Close what was opened here."""
        self.is_direct = False
        if self._direct_fd >= 0:
            os.close(self._direct_fd)
            self._direct_fd = -1


def _page_down(position: int) -> int:
    return position - position % mmap.PAGESIZE


def _page_up(position: int) -> int:
    return _page_down(position + mmap.PAGESIZE - 1)
