"""What rendering an answer costs: processor time a token, when tokens come at the speed of a quick model.

The clock that the view looks at is a simulated one on which a token comes every 1/150 s, and to which the time that
drawing really takes is added. The terminal is a pseudo-terminal whose output is read and thrown away.

    python benchmarks/render.py [--tokens-per-second 150] [--columns 80]
"""

from __future__ import annotations

import argparse
import os
import pty
import threading
import time

from rich.console import Console

from llamachat.cli.terminal.size import Size
from llamachat.cli.terminal.view import MarkdownView

_PROSE = (
    "The **capital** of France is *Paris*; it has a long history, `code` included, that goes back a very long time. "
)
_CODE = (
    "    def area(self, width: float, height: float) -> float:\n"
    '        """Area in m²."""\n        return width * height\n\n'
)
_CHINESE = "法国的首都是**巴黎**，它有着悠久的历史，可以追溯到两千多年前，至今仍然是欧洲重要的城市之一。"
_TEXTS = {
    "prose": (_PROSE * 5 + "\n\n") * 20,
    "long paragraphs": (_PROSE * 30 + "\n\n") * 3,
    "list": "".join(f"{i}. {_PROSE}\n" for i in range(1, 90)),
    "code": "```python\n" + _CODE * 70 + "```\n",
    "dense code": "```python\n" + _CODE.replace("    def", "def").replace("\n\n", "\n") * 70 + "```\n",
    "tables": ("| name | value | what it is |\n|---|---:|---|\n" + "| one | 12 | three *four* five |\n" * 25 + "\n")
    * 8,
    "Chinese": (_CHINESE * 6 + "\n\n") * 15,
}
_TOKEN_CHARACTERS = 4


class _Clock:
    """Simulated time, in which the processor time of this thread passes as well."""

    def __init__(self) -> None:
        self.waited_s = 0.0

    def __call__(self) -> float:
        return self.waited_s + time.thread_time()


def measure(text: str, token_s: float, columns: int) -> tuple[float, float]:
    """Seconds of processor time a token, and the longest that one token took."""
    master, slave = pty.openpty()
    reader = threading.Thread(target=_throw_away, args=(master,), daemon=True)
    reader.start()
    clock, longest_s = _Clock(), 0.0
    with os.fdopen(slave, "w") as terminal:

        def write(sequences: str) -> None:
            terminal.write(sequences)
            terminal.flush()

        console = Console(file=terminal, force_terminal=True, color_system="256", width=columns)
        view = MarkdownView(console, write, lambda: Size(columns, 40), clock)
        n_characters = 1 if "法" in text else _TOKEN_CHARACTERS
        pieces = [text[i : i + n_characters] for i in range(0, len(text), n_characters)]
        started = time.thread_time()
        for piece in pieces:
            before = time.thread_time()
            view.feed(piece)
            longest_s = max(longest_s, time.thread_time() - before)
            clock.waited_s += token_s
        view.close()
        return (time.thread_time() - started) / len(pieces), longest_s


def _throw_away(master: int) -> None:
    try:
        while os.read(master, 65536):
            pass
    except OSError:
        pass


def main() -> None:
    """Print a line a text."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens-per-second", type=float, default=150)
    parser.add_argument("--columns", type=int, default=80)
    arguments = parser.parse_args()
    token_s = 1 / arguments.tokens_per_second
    measure(_CODE + _PROSE, token_s, 80)  # imports
    for name, text in _TEXTS.items():
        cost_s, longest_s = measure(text, token_s, arguments.columns)
        share = f"{cost_s / token_s:.1%} of the time"
        print(f"{name:16} {cost_s * 1e3:.3f} ms a token, {share}; longest {longest_s * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
