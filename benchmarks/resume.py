"""What a kept context window saves: the first answer after `chat --resume`, with and without it.

Both sides in one run, in turn, through the real command on the same conversation, in a home of its own: `kept` restores
the window from its file, `read` finds none and evaluates the prompt. Whole times are those of the process, from start
to end; an answer is one token.

    python benchmarks/resume.py [MODEL] [--tokens 4000] [--repetitions 3] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.pop(0)  # the directory of this file, where another `quantize` is

from llamachat.cli.chat_wishes import ChatOptions
from llamachat.cli.context import keep_context
from llamachat.cli.opening import open_chat
from llamachat.engine.base import EngineOptions
from llamachat.models.contexts import context_path
from llamachat.models.resolve import resolve

_TEXT = "The lake lies still in the morning, and nobody speaks of the boat that was left there, number {i}. "


def begin(model: str, n_tokens: int, n_threads: int) -> None:
    """Hold a conversation of one turn with about so many tokens, and keep its window."""
    options = ChatOptions(EngineOptions(n_ctx=n_tokens + 512, n_threads=n_threads), {}, max_tokens=16)
    with open_chat(model, options) as chat:
        tokenizer = chat.session.engine.tokenizer
        text = "".join(_TEXT.format(i=i) for i in range(n_tokens))
        ids = tokenizer.tokenize(text[: n_tokens * 6])[: n_tokens - 100]
        text = b"".join(map(tokenizer.piece, ids)).decode(errors="replace")
        for _ in chat.session.send(text, threading.Event()):
            pass
        started = time.monotonic()
        keep_context(chat)
        elapsed = time.monotonic() - started
        n_kept, n_bytes = len(chat.session.engine.cache_state().ids), context_path(1).stat().st_size
    print(
        f"{n_kept} tokens kept: {n_bytes / 1e6:.1f} MB, {1000 * n_bytes / n_kept / 1e6:.1f} KB a token, {elapsed:.2f} s"
    )


def go_on(model: str, n_threads: int) -> tuple[float, float, float]:
    """Seconds: whole process, restoring, first token."""
    command = [sys.executable, "-m", "llamachat", "chat", model, "--resume", "--no-save", "--json", "--max-tokens", "1"]
    command += ["--threads", str(n_threads), "-p", "And what then?"]
    started = time.monotonic()
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    whole = time.monotonic() - started
    restored = re.search(r"Restored .* in ([\d.]+) s", result.stderr)
    return whole, float(restored[1]) if restored else 0.0, json.loads(result.stdout)["timings"]["ttft_s"]


def main() -> None:
    """Print a row for each side: medians, and all whole times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="default: the embedded demo model")
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    model = str(resolve(arguments.model).path)
    with tempfile.TemporaryDirectory() as home:
        os.environ["LLAMACHAT_HOME"] = home
        begin(model, arguments.tokens, arguments.threads)
        path, aside = context_path(1), Path(home, "aside")
        rows: dict[str, list[tuple[float, float, float]]] = {"kept": [], "read": []}
        for _ in range(arguments.repetitions):
            rows["kept"].append(go_on(model, arguments.threads))
            path.rename(aside)
            rows["read"].append(go_on(model, arguments.threads))
            aside.rename(path)
            print("first token: " + ", ".join(f"{name} {side[-1][2]:.2f} s" for name, side in rows.items()), flush=True)
    for name, side in rows.items():
        whole, restored, first = (statistics.median(column) for column in zip(*side, strict=True))
        every = " ".join(f"{row[0]:.1f}" for row in side)
        print(f"{name}: first token {first:7.2f} s, restoring {restored:.1f} s, whole {whole:7.2f} s ({every})")


if __name__ == "__main__":
    main()
