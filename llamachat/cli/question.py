"""What is asked without a conversation: files, piped standard input and -p, put together."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from llamachat.errors import CannotRead, describe_os_error


def read_question(prompt: str | None, files: Sequence[Path]) -> str | None:
    """Files, then piped input, then -p; None if a person is to type."""
    is_typed = sys.stdin is not None and sys.stdin.isatty()
    if is_typed and prompt is None:
        if files:
            raise typer.BadParameter("--file needs a question: give -p, or pipe one in.")
        return None
    texts = [read_text(path) for path in files]
    if not is_typed and _is_readable_pipe():
        texts.append(_decode("standard input", sys.stdin.buffer.read()))
    if prompt is not None:
        texts.append(prompt)
    question = "\n\n".join(text for text in texts if text.strip())
    if not question:
        raise typer.BadParameter("There is nothing to answer: standard input is empty. Give -p TEXT.")
    return question


def read_text(path: Path) -> str:
    """A text file, or `CannotRead`."""
    try:
        return _decode(path, path.read_bytes())
    except OSError as error:
        raise CannotRead(path, describe_os_error(error)) from error


def _decode(source: Path | str, data: bytes) -> str:
    if b"\0" in data:
        raise CannotRead(source, "is a binary file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CannotRead(source, "is not UTF-8 text") from error


def _is_readable_pipe() -> bool:
    """Whether standard input is a pipe or a file, rather than closed or an idle handle that would block for ever."""
    if sys.stdin is None:
        return False
    mode = os.fstat(sys.stdin.fileno()).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)
