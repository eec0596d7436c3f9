"""What Tab completes: commands, their arguments, and file names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from llamachat.cli.terminal.commands import COMMANDS, is_command
from llamachat.cli.terminal.commands.settings import REASONING_MODES, SAMPLING_NAMES, SETTINGS_NAMES
from llamachat.cli.terminal.escapes import visible

Words = Callable[[], Iterable[str]]

_TAKES_A_PATH = re.compile(r"PATH|FILE")
_PATH_IN_TEXT = re.compile(r"(?:^|\s)(?:@(\S*)|((?:\.{1,2}|~)?/\S*))$")


class ChatCompleter(Completer):
    """Completes the line up to the cursor."""

    def __init__(self, words: Mapping[str, Words] | None = None) -> None:
        """`words` gives, by command, what its first argument can be."""
        self._words: Mapping[str, Words] = {
            "/set": lambda: SETTINGS_NAMES,
            "/retry": _sampling,
            "/reasoning": lambda: REASONING_MODES,
            **(words or {}),
        }
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """See prompt-toolkit."""
        line = document.text_before_cursor
        if is_command(line):
            name, blank, argument = line.partition(" ")
            if not blank:
                yield from _starting_with(name, COMMANDS)
            elif name in COMMANDS:
                yield from self._arguments(name, argument.lstrip(), complete_event)
        elif found := _PATH_IN_TEXT.search(line):
            yield from self._files(found[1] or found[2] or "", complete_event)

    def _arguments(self, name: str, argument: str, event: CompleteEvent) -> Iterable[Completion]:
        if name in self._words:
            yield from _starting_with(argument, self._words[name]())
        if _TAKES_A_PATH.search(COMMANDS[name].arguments):
            yield from self._files(argument, event)

    def _files(self, path: str, event: CompleteEvent) -> Iterable[Completion]:
        for completion in self._paths.get_completions(Document(path), event):
            if visible(completion.text) == completion.text:
                is_directory = completion.display_text.endswith("/")
                yield Completion(
                    completion.text + "/" * is_directory, completion.start_position, display=completion.display
                )


def _starting_with(text: str, words: Iterable[str]) -> Iterable[Completion]:
    return (Completion(word, -len(text)) for word in words if word.startswith(text))


def _sampling() -> Iterable[str]:
    return [f"{name}=" for name in SAMPLING_NAMES]
