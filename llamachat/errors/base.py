"""What every error has, and those of files."""

from __future__ import annotations

import errno
import os
from pathlib import Path


class LlamachatError(Exception):
    """Base of everything the program raises on purpose."""

    exit_status = 1

    def __init__(self, sentence: str, next_step: str) -> None:
        super().__init__(sentence)
        self.next_step = next_step


class AlreadyThere(LlamachatError):
    """A file that would have to be replaced, and nobody said that it may be."""

    def __init__(self, path: Path, step: str = "Give another name with -o, or --force.") -> None:
        super().__init__(f"{path} is there already, and is not replaced.", step)
        self.path = path


class CannotWrite(LlamachatError):
    """The system refuses to write: a full or read-only disk, a path that is no directory, missing rights."""

    def __init__(self, path: Path | str, error: OSError, step: str | None = None) -> None:
        step = step or "Choose another place with LLAMACHAT_HOME, or make this one writable."
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            step = "Free some space, then run the same command again; finished files are not fetched again."
        super().__init__(f"{path}: cannot be written ({describe_os_error(error)}).", step)
        self.path = path


class NobodyToAsk(LlamachatError):
    """Something would be lost, and there is no terminal to ask at."""

    def __init__(self, question: str) -> None:
        super().__init__(f"{question} Nobody is there to answer.", "Add --yes.")


class CannotRead(LlamachatError):
    """An input file that cannot be read as text."""

    def __init__(self, path: Path | str, problem: str) -> None:
        super().__init__(f"{path}: {problem}.", "Give a text file in UTF-8.")


class SystemRefused(LlamachatError):
    """Something the operating system did not do, and nobody had better words for: a path that is too long, say."""

    def __init__(self, error: OSError) -> None:
        where = f"{str(error.filename)[:80]}: " if error.filename else ""
        super().__init__(f"{where}{describe_os_error(error)}.", "Check the path, its permissions, and the room there.")


def describe_os_error(error: OSError) -> str:
    """The operating system's own words for an error, without Python's decoration."""
    return error.strerror or (os.strerror(error.errno) if error.errno else str(error))
