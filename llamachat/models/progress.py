"""How far a pull is: what those who work tell those who show it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from llamachat.models.plan import PullPlan


class Progress(Protocol):
    """May be called from several threads."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """How far a stage is: "download", "import" and "verify" count bytes, "quantize" counts weights."""

    def planned(self, plan: PullPlan) -> None:
        """What is about to be done, before the first weight moves; there is room for it."""

    def file(self, name: str, done: int, total: int) -> None:
        """How far the download of a file is, in bytes."""

    def paused(self, name: str) -> None:
        """No more of a file comes for now: it is not under way, nor has it arrived."""

    def arrived(self, name: str, size_bytes: int) -> None:
        """A file has been downloaded and verified."""

    def notice(self, text: str) -> None:
        """Something worth a line."""
