"""Long pastes folded into one word of the line that is being typed.

In the line a chip is one private-use character, so that the cursor, backspace and every other command of the editor
take it as a whole; on the screen it is a label, and what leaves the editor is the text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from llamachat.cli.format import count
from llamachat.cli.terminal.commands import PREFIX, escape, is_command
from llamachat.cli.terminal.mentions import escape_mentions

if TYPE_CHECKING:
    from prompt_toolkit.layout.processors import Processor

LONGEST_PASTE, MOST_CHARACTERS = 20, 4000
"""Lines, and characters in all, that are shown as they are: longer ones make every key slow."""

_FIRST, _LAST = 0xF0000, 0xFFFFD  # Supplementary Private Use Area-A


class Chips:
    """The pastes that were folded, by the character that stands for each."""

    def __init__(self, count_tokens: Callable[[str], int | None] | None = None) -> None:
        self.count_tokens = count_tokens
        """None as long as there is no model to ask."""
        self._texts: dict[str, str] = {}
        self._labels: dict[str, str] = {}
        self._with_slash: list[str] = []

    def begin_line(self) -> None:
        """Another line is going to be typed."""
        self._with_slash.clear()

    def fold(self, text: str) -> str:
        """A paste as it goes into the line: itself, or its chip if it is long."""
        text = "".join("\ufffd" if character in self._texts else character for character in text)
        if text.startswith(PREFIX):
            self._with_slash.append(text.partition("@")[0])  # the rest may be changed: see `escape_mentions`
        if text.rstrip("\n").count("\n") < LONGEST_PASTE and len(text) <= MOST_CHARACTERS:
            return text
        character = chr(_FIRST + len(self._texts))
        if character > chr(_LAST) or character in text:
            return text
        self._texts[character] = text
        return character

    def expand(self, line: str) -> str:
        """The line with all its text. What was pasted is escaped, so that it is never a command and names no file.

        That holds also where what stood before it is gone.
        """
        begins_with_paste = line[:1] in self._texts or line.startswith(tuple(self._with_slash))
        if is_command(line) and not begins_with_paste:
            return "".join(self._texts.get(character, character) for character in line)
        parts = [""]
        for character in line:
            text = self._texts.get(character)
            parts.append(character if text is None else escape_mentions(text, parts[-1]))
        return escape("".join(parts)) if begins_with_paste else "".join(parts)

    def label(self, character: str) -> str | None:
        """What the screen shows for a chip; None for any other character."""
        text = self._texts.get(character)
        if text is None:
            return None
        lines = count(text.rstrip("\n").count("\n") + 1, "line")
        if self.count_tokens is None:
            return f"[pasted {lines}]"
        if character not in self._labels:
            n_tokens = self.count_tokens(text)
            tokens = "" if n_tokens is None else f", {count(n_tokens, 'token')}"
            self._labels[character] = f"[pasted {lines}{tokens}]"
        return self._labels[character]


def show_chips(chips: Chips) -> Processor:
    """What puts the labels in the place of the characters when the line is drawn."""
    from prompt_toolkit.formatted_text import StyleAndTextTuples
    from prompt_toolkit.formatted_text.utils import fragment_list_to_text
    from prompt_toolkit.layout.processors import Processor, Transformation, TransformationInput
    from prompt_toolkit.layout.utils import explode_text_fragments

    class Labels(Processor):
        def apply_transformation(self, transformation_input: TransformationInput) -> Transformation:
            fragments = explode_text_fragments(transformation_input.fragments)
            starts = [0]  # of each character of the line, on the screen
            shown: StyleAndTextTuples = []
            for style, character, *_ in fragments:
                label = chips.label(character)
                shown.append((f"{style} reverse" if label else style, label or character))
                starts.append(starts[-1] + len(label or character))
            if starts[-1] == len(fragment_list_to_text(fragments)):
                return Transformation(transformation_input.fragments)
            return Transformation(
                shown,
                source_to_display=lambda i: starts[i] if i < len(starts) else starts[-1] + i - len(starts) + 1,
                display_to_source=lambda i: next((n - 1 for n, at in enumerate(starts) if at > i), len(starts) - 1),
            )

    return Labels()
