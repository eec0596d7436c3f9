"""Renames that survive a crash, and one that puts a new directory in an old one's place without a moment between."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_HERE = -100  # AT_FDCWD on Linux
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2), and RENAME_SWAP of renamex_np(2)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def exchange(first: Path, second: Path) -> bool:
    """Let two directories change places in one step; False, and nothing done, where the system cannot."""
    names = os.fsencode(first), os.fsencode(second)
    library = ctypes.CDLL(None)
    if hasattr(library, "renameat2"):
        return bool(library.renameat2(_HERE, names[0], _HERE, names[1], ctypes.c_uint(_EXCHANGE)) == 0)
    if hasattr(library, "renamex_np"):
        return bool(library.renamex_np(*names, ctypes.c_uint(_EXCHANGE)) == 0)
    return False
