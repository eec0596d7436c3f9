"""What stands below the line that is being typed."""

from __future__ import annotations

from llamachat.cli.live_chat import OpenChat
from llamachat.errors import TokensUnknown


class Toolbar:
    """Tokens in use of the window, the speed of the last answer, and what the conversation is called."""

    def __init__(self, chat: OpenChat) -> None:
        self._chat = chat
        self._text = ""

    def refresh(self) -> None:
        """Look at the chat again; not at every key, since counting tokens takes a moment."""
        chat = self._chat
        speed = chat.last_answer.stats.generation_tps if chat.last_answer else None
        parts = (self._in_use(), f"{speed:.1f} tok/s" if speed is not None else "", chat.title())
        self._text = " · ".join(part for part in parts if part)

    def _in_use(self) -> str:
        """What is known of it: a server may tell neither the tokens nor the window."""
        seen = self._chat.session.seen()
        n_ctx = self._chat.session.engine.info.n_ctx
        n_tokens = len(seen.ids) if seen else 0
        if seen and not seen.is_counted:
            stats = self._chat.last_answer.stats if self._chat.last_answer else None
            if stats is None or stats.n_prompt is None or stats.n_generated is None:
                return ""
            n_tokens = stats.n_prompt + stats.n_generated
        return f"{n_tokens:,} of {n_ctx:,} tokens" if n_ctx else f"{n_tokens:,} tokens" if n_tokens else ""

    def count_tokens(self, text: str) -> int | None:
        """How much of the window a text takes; None: only a server would know."""
        try:
            return len(self._chat.session.engine.tokenizer.tokenize(text))
        except TokensUnknown:
            return None

    def __call__(self) -> str:
        """One line."""
        return self._text
