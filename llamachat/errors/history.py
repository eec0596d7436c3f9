"""Saved conversations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llamachat.errors.base import LlamachatError


class HistoryFailed(LlamachatError):
    """The history of conversations cannot be read or written now. A chat can go on without it."""

    def __init__(self, path: Path, problem: str, next_step: str) -> None:
        super().__init__(f"{path}: {problem}.", next_step)
        self.path = path


class SessionRemoved(LlamachatError):
    """The conversation that is being held was removed from the history by another process."""

    def __init__(self) -> None:
        super().__init__(
            "This conversation was removed by another llamachat.",
            "/clear begins a new one, /export writes this one to a file.",
        )


class HistoryTooNew(HistoryFailed):
    """A newer llamachat has written the history in a form that this one does not know."""

    def __init__(self, path: Path, version: int, known: int) -> None:
        problem = f"was written by a newer llamachat (its form is {version}, this one knows up to {known})"
        super().__init__(path, problem, "Update llamachat, or set LLAMACHAT_HOME to another directory.")
        self.version = version


class UnknownSession(LlamachatError):
    """No stored conversation, or no single one, is meant by this; `near` are ids and titles of some that could be."""

    def __init__(self, text: str, near: Sequence[tuple[int, str]]) -> None:
        guess = f" Near: {'; '.join(f'{id_} ({title})' for id_, title in near)}." if near else ""
        super().__init__(
            f"There is no saved conversation {text!r}.{guess}" if text else "There is no saved conversation yet.",
            "See all with: llamachat sessions list." if text else "Begin one with: llamachat chat.",
        )
        self.near = tuple(near)


class UnusableSessionFile(LlamachatError):
    """A file that should hold an exported conversation, and does not."""

    def __init__(self, path: Path | str, problem: str) -> None:
        super().__init__(f"{path}: {problem}.", "Give a file made with: llamachat sessions export ID FILE.json.")
