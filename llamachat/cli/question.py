"""What is asked without a conversation: files, piped standard input and -p, put together."""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from llamachat.cli.output import out
from llamachat.errors import CannotRead, describe_os_error

_MAX_BYTES = 16_000_000
"""More than any context window holds."""
_SILENCE_S = 3.0


@dataclass(frozen=True)
class Question:
    """What is asked, and the texts that it is about by their names."""

    text: str
    sources: Sequence[tuple[str, str]] = ()
    prompt: str = ""
    """What is asked about them, the end of the text."""


def read_question(prompt: str | None, files: Sequence[Path]) -> Question | None:
    """Files, then piped input, then -p; None if a person is to type."""
    is_typed = sys.stdin is not None and sys.stdin.isatty()
    if is_typed and prompt is None:
        if files:
            raise typer.BadParameter("--file needs a question: give -p, or pipe one in.")
        return None
    if not is_typed:
        files = [path for path in files if str(path) != "-"]  # which means what is read anyhow
    sources = [(str(path), read_text(path)) for path in files]
    if not is_typed and _is_readable_pipe():
        sources.append(("standard input", _decode("standard input", _read_piped())))
    question = "\n\n".join(text for text in (*(text for _, text in sources), prompt or "") if text.strip())
    if not question:
        raise typer.BadParameter("There is nothing to answer: standard input is empty. Give -p TEXT.")
    return Question(question, sources if files or prompt else (), prompt or "")


def _read_piped() -> bytes:
    """Standard input to its end. One that nobody closes is said, since nothing else would tell what is waited for."""
    hint = threading.Timer(_SILENCE_S, out.note, ["Reading standard input to its end; </dev/null leaves it out."])
    hint.daemon = True
    hint.start()
    try:
        return sys.stdin.buffer.read(_MAX_BYTES + 1)
    finally:
        hint.cancel()


def read_text(path: Path) -> str:
    """The text in a file; raise `CannotRead` for what is none."""
    try:
        with path.open("rb") as file:
            return _decode(path, file.read(_MAX_BYTES + 1))
    except OSError as error:
        raise CannotRead(path, describe_os_error(error)) from error


def _decode(source: Path | str, data: bytes) -> str:
    if b"\0" in data:
        raise CannotRead(source, "is a binary file")
    if len(data) > _MAX_BYTES:
        raise CannotRead(source, f"is larger than {_MAX_BYTES // 1_000_000} MB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CannotRead(source, "is not UTF-8 text") from error


def _is_readable_pipe() -> bool:
    """Whether standard input is a pipe or a file, rather than closed or a device."""
    if sys.stdin is None:
        return False
    mode = os.fstat(sys.stdin.fileno()).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)
