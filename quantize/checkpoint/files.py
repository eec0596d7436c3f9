"""Open files of a checkpoint that may be anything: missing, a directory, a pipe that never ends, far too large.

Whatever the operating system says about them becomes a `CheckpointError` here.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantize.errors import CheckpointError

_MAX_SMALL_BYTES = 64_000_000
"""Twice the largest tokenizer.json known (Gemma 3); parsing one of this size takes about 1 GB at worst."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise `CheckpointError` for an `OSError` about `path`."""
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(path, "is missing") from None
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error.strerror})") from error


def open_file(path: Path) -> int:
    """Return a file descriptor of the regular file `path`."""
    with reading(path):
        # Not to be stuck at once on a pipe that nobody writes to; it changes nothing for a regular file.
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise CheckpointError(path, "is not a file")
    return fd


def read_bytes(path: Path) -> bytes:
    """Read a whole file other than weights; raise `CheckpointError` if that cannot be done or it is too large."""
    with open(open_file(path), "rb") as file, reading(path):
        content = file.read(_MAX_SMALL_BYTES + 1)
    if len(content) > _MAX_SMALL_BYTES:
        raise CheckpointError(path, "is too large to be what its name says")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raise `CheckpointError` as `read_bytes` does, or if it is not an object."""
    try:
        parsed = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, "is not valid JSON") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(path, "does not hold a JSON object")
    return parsed
