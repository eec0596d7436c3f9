"""What a model thinks before its answer: dim while it comes, or a count of it; then one line in any case."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

from llamachat.chat.events import ReasoningPiece, Thought
from llamachat.cli.describing import describe_thought
from llamachat.cli.format import count
from llamachat.cli.output import out
from llamachat.cli.terminal.view import WholeCharacters


class ThoughtsView:
    """All of it is on stderr, so that standard output has the answer alone."""

    def __init__(self, *, shown: bool) -> None:
        """Unless `shown`, the tokens are counted on a terminal, and the count is wiped when the answer begins."""
        self._text = WholeCharacters(out.aside) if shown else None
        self._count = ExitStack()
        self._change: Callable[[str], None] | None = None

    def __enter__(self) -> ThoughtsView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def feed(self, event: ReasoningPiece | Thought) -> None:
        """Show or count the next piece; at the end say how much it was and how long it took."""
        if isinstance(event, Thought):
            self.close()
            out.note(describe_thought(event))
        elif self._text:
            self._text.feed(event.text)
        else:
            self._show_count("Thinking" if event.n_tokens is None else f"Thinking: {count(event.n_tokens, 'token')}")

    def close(self) -> None:
        """End the line of what was shown, or wipe the count."""
        if self._text:
            self._text.close()
        self._count.close()

    def _show_count(self, words: str) -> None:
        if self._change is None:
            self._change = self._count.enter_context(out.status(words))
        self._change(words)
