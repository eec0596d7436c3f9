"""What stands below the line that is being typed."""

from __future__ import annotations

from llamachat.chat.session import Answer
from llamachat.cli.opening import OpenChat


class Toolbar:
    """Tokens in use of the window, the speed of the last answer, and what the session is called."""

    def __init__(self, chat: OpenChat) -> None:
        self._chat = chat
        self._last: Answer | None = None
        self.title = ""

    def note(self, answer: Answer) -> None:
        """Remember how the last answer came about."""
        self._last = answer

    def count_tokens(self, text: str) -> int:
        """How much of the window a text takes."""
        return len(self._chat.session.engine.tokenizer.tokenize(text))

    def __call__(self) -> str:
        """One line."""
        info = self._chat.session.engine.info
        n_used, speed = 0, ""
        if self._last and self._chat.session.conversation.messages:
            stats = self._last.stats
            n_used = stats.n_prompt + stats.n_generated
            speed = f"{stats.generation_tps:.1f} tok/s"
        parts = (f"{n_used:,} of {info.n_ctx:,} tokens", speed, self.title)
        return " · ".join(part for part in parts if part)
