"""Write a GGUF file: offsets first, then tensors in any order, then publish.

Everything goes to a file beside the final place. Its full size is reserved before the first tensor, so a full
disk is noticed at once; only `publish`, after the content was checked and synced, gives it its name. Whatever
happens before that leaves the final place as it was.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from gguf import GGUFWriter
from gguf.gguf_writer import WriterState

from quantize.claim import create_partial, partial_path, remove_leftovers
from quantize.digest import OrderedDigest
from quantize.direct import DirectFile
from quantize.errors import CheckpointError, DiskFull, OutputError
from quantize.ggml import Buffer, read_tensor_table, row_size
from quantize.journal import Journal
from quantize.recipe import QType

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class TensorPlace:
    """A tensor's type, shape (row length last) and position in the finished file."""

    qtype: QType
    shape: tuple[int, ...]
    offset: int
    size_bytes: int

    @property
    def n_row_bytes(self) -> int:
        """Bytes of one row."""
        return row_size(self.qtype, self.shape[-1])

    @property
    def n_rows(self) -> int:
        """Rows over all leading dimensions."""
        return self.size_bytes // self.n_row_bytes


class GGUFFile:
    """A GGUF file in the making; use as a context manager, and call `publish` when all tensors are written."""

    def __init__(
        self,
        path: Path,
        header: GGUFWriter,
        tensors: Mapping[str, tuple[QType, tuple[int, ...]]],
        journal_path: Path | None = None,
        made_from: bytes = b"",
    ) -> None:
        """Write `header` and the tensor table for `tensors`, and reserve room for their data.

        With a journal, what a run before this one secured of the same file is taken over, and what this one secures
        stays for the next; `made_from` tells what the tensors are made of. Raises `OutputError` if the file cannot be
        created, the disk is too small, or another process has the journal.
        """
        self.path = path
        self.finished: set[str] = set()
        self._partial = path.with_name(f".{path.name}.partial") if journal_path else partial_path(path)
        self._fd, self._is_published, self._to_close = -1, False, ExitStack()
        encoded, layout = _encode(header, tensors)
        self.places, self.size_bytes = layout.places, layout.size_bytes
        try:
            _refuse_what_is_no_file(path)
            self._journal = (
                Journal(journal_path, hashlib.sha256(encoded + made_from).hexdigest()) if journal_path else None
            )
        except OSError as error:
            raise _output_error(path, error) from error
        try:
            if not self._take_over(encoded):
                self._create(encoded)
            self._content = DirectFile(self._fd, self._partial, self.size_bytes)
            self._to_close.callback(self._content.close)
        except BaseException as error:
            self._discard()
            if isinstance(error, OSError):
                raise _output_error(path, error) from error
            raise
        self._secured = set(self.finished)
        self._digest = OrderedDigest(self._content.read)
        self._note_what_is_there()

    @property
    def is_resumable(self) -> bool:
        """Whether there is a journal."""
        return self._journal is not None

    def _take_over(self, encoded: bytes) -> bool:
        """Go on with the file of an earlier run, if it is there and is the same one."""
        names = self._journal.read() if self._journal else None
        if names is None or not names <= self.places.keys():
            return False
        # A file may have been finished and not yet been put to use. What else is in that place is not what the journal
        # speaks of, and stays untouched until it is replaced.
        was_finished = names == self.places.keys() and not self._partial.exists()
        try:
            self._fd = os.open(self.path if was_finished else self._partial, os.O_RDWR)
        except FileNotFoundError:
            return False
        is_same = os.fstat(self._fd).st_size == self.size_bytes and os.pread(self._fd, len(encoded), 0) == encoded
        if not is_same:
            self._close_file()
            return False
        if was_finished:
            self.path.rename(self._partial)
        self.finished = names
        return True

    def _create(self, encoded: bytes) -> None:
        if self._journal:  # first: what an older journal says is not true of the file that is made now
            self._journal.start()
            self._fd = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        else:
            remove_leftovers(self.path)
            self._fd = create_partial(self.path)
        with open(self._fd, "wb", closefd=False) as file:
            file.write(encoded)
        try:
            _reserve(self._fd, self.size_bytes)
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise DiskFull(self.path, self.size_bytes) from error
            raise

    def _note_what_is_there(self) -> None:
        """Header, padding and the tensors of an earlier run."""
        end = 0
        for name, place in self.places.items():
            self._digest.note(end, place.offset - end)
            end = place.offset + place.size_bytes
            if name in self.finished:
                self._digest.note(place.offset, place.size_bytes)
        self._digest.note(end, self.size_bytes - end)

    def write(self, name: str, first_row: int, data: Buffer) -> None:
        """Put whole rows of a tensor in their place. Safe from several threads."""
        place = self.places[name]
        position = place.offset + first_row * place.n_row_bytes
        try:
            self._content.write(data, position)
            self._digest.add(position, data)
        except OSError as error:
            raise _output_error(self.path, error) from error

    def finish(self, names: Iterable[str]) -> None:
        """Take note that these tensors are wholly written, and hash some of what is. For one thread only."""
        self.finished.update(names)
        try:
            self._digest.go_on()
        except OSError as error:
            raise _output_error(self.path, error) from error

    def secure(self) -> None:
        """Put all finished tensors where no crash can undo them."""
        if self._journal is None:
            return
        names = sorted(self.finished - self._secured)
        try:
            os.fsync(self._fd)
            self._journal.append(names)
        except OSError as error:
            raise _output_error(self.path, error) from error
        self._secured.update(names)

    def publish(self) -> str:
        """Check the file with ggml's own reader, sync it, and give it its final name; return its SHA-256 in hex."""
        table = read_tensor_table(self._partial)
        expected = {name: (place.qtype, place.offset, place.size_bytes) for name, place in self.places.items()}
        if table != expected or os.fstat(self._fd).st_size != self.size_bytes:
            self._discard()
            raise OutputError(self.path, "ggml does not read back what was written", "Report this; nothing was kept.")
        try:
            sha256 = self._sync_and_hash()
            self.secure()
            self._partial.replace(self.path)
            self._is_published = True
            sync_directory(self.path.parent)
        except OSError as error:
            raise _output_error(self.path, error) from error
        return sha256

    def _sync_and_hash(self) -> str:
        """Hash what is left of the file while it goes to the disk: neither waits for the other."""
        with ThreadPoolExecutor(1) as pool:
            syncing = pool.submit(os.fsync, self._fd)
            sha256 = self._digest.finish(self.size_bytes)
            syncing.result()
        return sha256

    def __enter__(self) -> GGUFFile:
        """Nothing to do: the file is open since it was made."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file; what was not published is removed, or kept for the next run where that can use it."""
        if self._journal and not isinstance(error, CheckpointError):
            self._close()
        else:
            self._discard()

    def _close(self) -> None:
        self._to_close.close()
        self._close_file()
        if self._journal:
            self._journal.close()

    def _close_file(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _discard(self) -> None:
        if not self._is_published:
            with suppress(OSError):  # it may be what could not be made in the first place
                self._partial.unlink()
        self._close()


def sync_directory(directory: Path) -> None:
    """Make renames in `directory` durable."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def predict_size(header: GGUFWriter, tensors: Mapping[str, tuple[QType, tuple[int, ...]]]) -> int:
    """Return how many bytes a `GGUFFile` of these will have; `header` is used up."""
    return _encode(header, tensors)[1].size_bytes


@dataclass(frozen=True)
class _Layout:
    places: dict[str, TensorPlace]
    size_bytes: int


def _encode(header: GGUFWriter, tensors: Mapping[str, tuple[QType, tuple[int, ...]]]) -> tuple[bytes, _Layout]:
    """Return the bytes before the tensor data, and where everything goes."""
    for name, (qtype, shape) in tensors.items():
        n_bytes = row_size(qtype, shape[-1]) * int(np.prod(shape[:-1], dtype=np.int64))
        header.add_tensor_info(name, shape, np.dtype(np.float32), n_bytes, raw_dtype=qtype)
    encoded = io.BytesIO()
    header.fout = [io.BufferedWriter(encoded)]
    header.state = WriterState.EMPTY
    header.write_header_to_file()
    header.write_kv_data_to_file()
    header.write_ti_data_to_file()
    header.flush()
    content = encoded.getvalue()
    return content, _lay_out(tensors, len(content), header.data_alignment)


def _lay_out(tensors: Mapping[str, tuple[QType, tuple[int, ...]]], n_header: int, alignment: int) -> _Layout:
    places: dict[str, TensorPlace] = {}
    offset = GGUFWriter.ggml_pad(n_header, alignment)
    for name, (qtype, shape) in tensors.items():
        size = row_size(qtype, shape[-1]) * int(np.prod(shape[:-1], dtype=np.int64))
        places[name] = TensorPlace(qtype, shape, offset, size)
        offset += GGUFWriter.ggml_pad(size, alignment)
    return _Layout(places, offset)


def _reserve(fd: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
    else:  # macOS
        os.ftruncate(fd, size)


def _refuse_what_is_no_file(path: Path) -> None:
    """A device, or a directory, would be replaced or be in the way of it in the end."""
    if path.exists() and not path.is_file():
        raise OutputError(path, "is there already, and is not a file", "Choose another place.")


def _output_error(path: Path, error: OSError) -> OutputError:
    if isinstance(error, BlockingIOError):
        return OutputError(path, "is being made by another process", "Wait until that one is done.")
    if error.errno in _NO_SPACE:
        return OutputError(path, "the disk is full", "Free some space, then run the same command again.")
    return OutputError(path, f"cannot be written ({error.strerror})", "Choose a place that can be written to.")
