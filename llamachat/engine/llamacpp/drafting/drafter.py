"""What the engine asks of whoever guesses, and what it tells them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

from llamachat.engine.base import GenerationRequest


class Drafter(Protocol):
    """Guesses at what follows. It is asked for a draft whenever the last one is used up."""

    def begin(self, request: GenerationRequest, cancel: threading.Event) -> None:
        """A generation begins; what takes long in it ends soon after `cancel` is set."""

    def propose(self, n_max: int) -> Sequence[int]:
        """At most `n_max` ids that may come next; none where a single step is better."""

    def hear(self, token_id: int) -> None:
        """The next token, drafted or not."""

    def hear_time(self, n_ids: int, elapsed_s: float) -> None:
        """How long the model took to evaluate so many ids at once."""

    def close(self) -> None:
        """Free what is used for drafting alone."""
