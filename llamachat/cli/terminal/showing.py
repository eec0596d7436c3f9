"""An answer as it comes: its text, its thoughts, its calls of tools, and what is said about it meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from types import TracebackType
from typing import Any

from llamachat.chat.compaction import Compacted, Compacting, NotCompacted
from llamachat.chat.events import (
    Answer,
    AnswerEvents,
    LeftOut,
    Notice,
    ReasoningPiece,
    TextPiece,
    Thought,
    ToolCalled,
    ToolReturned,
)
from llamachat.cli.describing import describe_compaction, describe_left_out, describe_tool
from llamachat.cli.output import out
from llamachat.cli.terminal.notice import PrefillNotice
from llamachat.cli.terminal.thoughts import ThoughtsView
from llamachat.cli.terminal.view import open_view
from llamachat.engine.base import Prefill


class Showing:
    """A context around one answer, whose events are shown as they come."""

    def __init__(self, *, shows_thoughts: bool, shows_text: bool = True) -> None:
        """Without `shows_text` there is only what is said about the answer."""
        self._shows_thoughts, self._shows_text = shows_thoughts, shows_text
        self._open = ExitStack()
        self.is_begun = False
        """Whether there is anything of the answer on the screen."""

    def __enter__(self) -> Showing:
        self._view = self._open.enter_context(open_view())
        self._thoughts = self._open.enter_context(ThoughtsView(shown=self._shows_thoughts))
        self._notice = self._open.enter_context(PrefillNotice())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, traceback)

    def show_all(self, events: AnswerEvents) -> Answer | None:
        """Show what comes; return the answer. None if there was only a summary to be written."""
        answer = None
        with closing(events):  # at once, while there is a history to keep what came so far
            for event in events:
                if isinstance(event, Answer):
                    answer = event
                else:
                    _SHOW[type(event)](self, event)
        self._notice.close()
        self._view.close()
        return answer

    def _tell(self, event: Notice) -> None:
        out.warning(event.text)

    def _tell_left_out(self, event: LeftOut) -> None:
        out.note(describe_left_out(event))

    def _tell_compaction(self, event: Compacting | Compacted | NotCompacted) -> None:
        self._view.close()
        out.note(describe_compaction(event))

    def _count_prompt(self, event: Prefill) -> None:
        self._notice.update(event.n_done, event.n_total)

    def _think(self, event: ReasoningPiece | Thought) -> None:
        self._notice.close()
        if self._shows_text:
            self._thoughts.feed(event)

    def _write(self, event: TextPiece) -> None:
        self._notice.close()
        if self._shows_text:
            self._view.feed(event.text)
            self.is_begun = True

    def _tell_tool(self, event: ToolCalled | ToolReturned) -> None:
        self._notice.close()
        self._view.close()
        out.note(describe_tool(event))
        self.is_begun = True


_SHOW: dict[type, Callable[[Showing, Any], None]] = {
    Notice: Showing._tell,
    LeftOut: Showing._tell_left_out,
    Compacting: Showing._tell_compaction,
    Compacted: Showing._tell_compaction,
    NotCompacted: Showing._tell_compaction,
    Prefill: Showing._count_prompt,
    ReasoningPiece: Showing._think,
    Thought: Showing._think,
    TextPiece: Showing._write,
    ToolCalled: Showing._tell_tool,
    ToolReturned: Showing._tell_tool,
}
"""What is done about each event."""
