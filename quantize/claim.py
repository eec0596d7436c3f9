"""Files that belong to one running process: locked for as long as it has them open, however it ends.

What a killed process left behind is known by its lock being free, so whoever makes the same file next clears it away.
"""

from __future__ import annotations

import fcntl
import glob
import os
import re
from contextlib import suppress
from pathlib import Path


def try_lock(fd: int) -> bool:
    """Lock an open file; False if another process has it. Where locks are not supported, everyone gets one."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def partial_path(path: Path) -> Path:
    """The place beside `path` where this process makes it."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def create_partial(path: Path) -> int:
    """Return a file descriptor of an empty, locked file at the `partial_path` of `path`; raise `OSError`."""
    while True:
        fd = os.open(partial_path(path), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with suppress(OSError):  # not supported
                fcntl.flock(fd, fcntl.LOCK_EX)
            if _is_at(partial_path(path), fd):
                os.ftruncate(fd, 0)
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # it was published, or taken for a leftover, before it was locked


def _is_at(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left of `path`: partial files that nobody has open."""
    of_a_process = re.compile(rf"\.{re.escape(path.name)}\.\d+\.partial")
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        if not of_a_process.fullmatch(leftover.name):
            continue
        with suppress(OSError):
            fd = os.open(leftover, os.O_RDWR)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()
            finally:
                os.close(fd)
