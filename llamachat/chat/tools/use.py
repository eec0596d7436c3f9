"""A call of a tool, from what the model wrote to what it is told: whatever goes wrong is a result, too."""

from __future__ import annotations

import threading
from typing import Protocol

from llamachat.chat.tools.check import check_arguments
from llamachat.chat.tools.values import Tool, ToolCall, ToolResult
from llamachat.engine.base import Tokenizer

MAX_STEPS = 10
"""How often in a row a model may call tools before it must be asked to go on."""


class Toolbox(Protocol):
    """Tools and who runs them, having asked the user if that is to be."""

    @property
    def tools(self) -> tuple[Tool, ...]:
        """What there is."""

    def run(self, call: ToolCall, cancel: threading.Event) -> ToolResult:
        """Run a tool with arguments that fit it; setting `cancel` ends that soon. Refusals are results."""


def use_tool(
    toolbox: Toolbox | None, call: ToolCall, cancel: threading.Event, tokenizer: Tokenizer, max_tokens: int
) -> ToolResult:
    """Check a call and run it, unless `cancel` is set; a result longer than `max_tokens` is cut, with a note."""
    tools = {tool.name: tool for tool in (toolbox.tools if toolbox else ())}
    if cancel.is_set():
        return ToolResult("It was not run: the user interrupted.", is_error=True)
    if toolbox is None or call.name not in tools:
        return ToolResult(f"There is no tool of that name. There are: {', '.join(tools)}.", is_error=True)
    if problem := check_arguments(tools[call.name], call):
        return ToolResult(problem, is_error=True)
    result = toolbox.run(call, cancel)
    text = result.text.encode("utf-8", "replace").decode()  # half a surrogate pair is no character
    return ToolResult(_cut(text, tokenizer, max_tokens), result.is_error)


def _cut(text: str, tokenizer: Tokenizer, max_tokens: int) -> str:
    kept = text
    while (n_tokens := len(tokenizer.tokenize(kept))) > max_tokens:
        kept = kept[: len(kept) * max_tokens // n_tokens]
    return text if kept == text else f"{kept}\n[cut: {len(kept):,} of {len(text):,} characters]"
