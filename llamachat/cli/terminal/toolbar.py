"""What stands below the line that is being typed."""

from __future__ import annotations

from llamachat.cli.opening import OpenChat


class Toolbar:
    """Tokens in use of the window, the speed of the last answer, and what the conversation is called."""

    def __init__(self, chat: OpenChat) -> None:
        self._chat = chat
        self._text = ""

    def refresh(self) -> None:
        """Look at the chat again; not at every key, since counting tokens takes a moment."""
        chat = self._chat
        seen = chat.session.seen()
        last = chat.last_answer
        parts = (
            f"{len(seen.ids) if seen else 0:,} of {chat.session.engine.info.n_ctx:,} tokens",
            f"{last.stats.generation_tps:.1f} tok/s" if last else "",
            chat.title(),
        )
        self._text = " · ".join(part for part in parts if part)

    def count_tokens(self, text: str) -> int:
        """How much of the window a text takes."""
        return len(self._chat.session.engine.tokenizer.tokenize(text))

    def __call__(self) -> str:
        """One line."""
        return self._text
