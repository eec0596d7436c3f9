"""Where the entries of an uncompressed zip file lie, so that they can be read in place.

Own reader: the standard library's gives no offsets of the data, and trusts the directory. Here the directory and the
headers in front of the data must agree, and no two entries share a byte.
Format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, sections 4.3 to 4.5, as
torch.save writes it: stored, no comment, one disk.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantize.checkpoint.files import reading
from quantize.errors import CheckpointError, shown

LOCAL_MAGIC = b"PK\x03\x04"

_MAX_DIRECTORY_BYTES = 16_000_000
"""Room for 100,000 tensors."""

_END = struct.Struct("<4s4H2IH")
_END_64_LOCATOR = struct.Struct("<4sIQI")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_LATER_16, _LATER_32 = 0xFFFF, 0xFFFFFFFF
"""Instead of a number that does not fit: it stands in the zip64 fields."""


@dataclass(frozen=True)
class Entry:
    """The bytes of one file inside the archive."""

    offset: int
    size_bytes: int


@dataclass(frozen=True)
class _Directory:
    offset: int
    size_bytes: int
    n_entries: int


@dataclass(frozen=True)
class _Record:
    name: bytes
    header_offset: int
    size_bytes: int


def read_archive(path: Path, fd: int) -> dict[str, Entry]:
    """Return the entries of an open zip file by name; raise `CheckpointError` for one that is damaged or lies."""
    with reading(path):
        directory = _find_directory(path, fd)
        table = os.pread(fd, directory.size_bytes, directory.offset)
        entries: dict[str, Entry] = {}
        end = 0
        for record in sorted(_records(path, table, directory), key=lambda record: record.header_offset):
            name = record.name.decode("utf-8", "backslashreplace")
            if record.header_offset < end:
                raise CheckpointError(path, f"its entry {shown(name)} overlaps another one")
            entry = Entry(_data_offset(path, fd, record), record.size_bytes)
            end = entry.offset + entry.size_bytes
            if end > directory.offset:
                raise CheckpointError(path, f"its entry {shown(name)} lies past the end")
            if name in entries:
                raise CheckpointError(path, f"has the entry {shown(name)} twice")
            entries[name] = entry
    return entries


def _find_directory(path: Path, fd: int) -> _Directory:
    file_size = os.fstat(fd).st_size
    end_offset = file_size - _END.size
    if end_offset < 0:
        raise CheckpointError(path, "is truncated")
    magic, disk, first_disk, n_here, n_entries, size, offset, n_comment = _END.unpack(_exactly(fd, _END, end_offset))
    if magic != b"PK\x05\x06" or n_comment:
        raise CheckpointError(path, "is truncated, or has something at its end that is not part of it")
    found = _Directory(offset, size, n_entries)
    locator = _exactly(fd, _END_64_LOCATOR, end_offset - _END_64_LOCATOR.size)
    if locator.startswith(b"PK\x06\x07"):
        end_offset = _END_64_LOCATOR.unpack(locator)[2]
        found = _widen(path, fd, found, end_offset)
    elif disk or first_disk or n_here != n_entries:
        raise CheckpointError(path, "has a damaged directory")
    if found.offset + found.size_bytes > end_offset or found.size_bytes > _MAX_DIRECTORY_BYTES:
        raise CheckpointError(path, "has a damaged directory")
    return found


def _widen(path: Path, fd: int, narrow: _Directory, offset_64: int) -> _Directory:
    """The directory as the zip64 record has it, which must agree with what the older record can express."""
    if offset_64 > os.fstat(fd).st_size - _END_64.size:
        raise CheckpointError(path, "has a damaged directory")
    magic, _, _, _, disk, first_disk, n_here, n_entries, size, offset = _END_64.unpack(_exactly(fd, _END_64, offset_64))
    pairs = (
        (narrow.offset, offset, _LATER_32),
        (narrow.size_bytes, size, _LATER_32),
        (narrow.n_entries, n_entries, _LATER_16),
    )
    agree = all(short in (long, later) for short, long, later in pairs)
    if magic != b"PK\x06\x06" or disk or first_disk or n_here != n_entries or not agree:
        raise CheckpointError(path, "has a damaged directory")
    return _Directory(offset, size, n_entries)


def _exactly(fd: int, fields: struct.Struct, offset: int) -> bytes:
    """The bytes of `fields` at `offset`, zeros where the file has none."""
    return os.pread(fd, fields.size, offset).ljust(fields.size, b"\0") if offset >= 0 else bytes(fields.size)


def _records(path: Path, table: bytes, directory: _Directory) -> Iterator[_Record]:
    position = n_seen = 0
    while position + _CENTRAL.size <= len(table):
        (magic, _, _, flags, method, _, _, _, packed, size, n_name, n_extra, n_comment, disk, _, _, offset) = (
            _CENTRAL.unpack_from(table, position)
        )
        position += _CENTRAL.size
        name = table[position : position + n_name]
        extra = table[position + n_name : position + n_name + n_extra]
        position += n_name + n_extra + n_comment
        if magic != b"PK\x01\x02" or position > len(table) or disk:
            break
        size, packed, offset = _widen_record(path, [size, packed, offset], extra)
        if flags & 1 or method or packed != size:
            problem = "is encrypted" if flags & 1 else "is compressed"
            raise CheckpointError(path, f"its entry {shown(name.decode(errors='replace'))} {problem}")
        n_seen += 1
        yield _Record(name, offset, size)
    if position != len(table) or n_seen != directory.n_entries:
        raise CheckpointError(path, "has a damaged directory")


def _widen_record(path: Path, numbers: list[int], extra: bytes) -> list[int]:
    """Replace the numbers that did not fit by those in the zip64 field (kind 1) of the extra data."""
    wide = b""
    while len(extra) >= 4:
        kind, n_bytes = struct.unpack_from("<2H", extra)
        if kind == 1:
            wide = extra[4 : 4 + n_bytes]
            break
        extra = extra[4 + n_bytes :]
    n_wide = numbers.count(_LATER_32)
    if len(wide) < 8 * n_wide:
        raise CheckpointError(path, "has a damaged directory")
    values = iter(struct.unpack_from(f"<{n_wide}Q", wide))
    return [next(values) if number == _LATER_32 else number for number in numbers]


def _data_offset(path: Path, fd: int, record: _Record) -> int:
    """Where the data begins: behind its own header, which must be the one the directory speaks of."""
    if record.header_offset + _LOCAL.size > os.fstat(fd).st_size:
        raise CheckpointError(path, f"its entry {shown(record.name.decode(errors='replace'))} lies past the end")
    fields = _LOCAL.unpack(_exactly(fd, _LOCAL, record.header_offset))
    magic, flags, method, n_name, n_extra = fields[0], fields[2], fields[3], fields[9], fields[10]
    name_offset = record.header_offset + _LOCAL.size
    if magic != LOCAL_MAGIC or flags & 1 or method or os.pread(fd, n_name, name_offset) != record.name:
        problem = f"its entry {shown(record.name.decode(errors='replace'))} is not where the directory says"
        raise CheckpointError(path, problem)
    return int(name_offset + n_name + n_extra)
