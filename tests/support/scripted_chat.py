"""`llamachat chat` with an engine that says what a script has it say: run as a program of its own, in a terminal.

    python -m support.scripted_chat SCRIPT.json [chat's arguments …]

The script is a list of answers; an answer is a list of texts, each a piece of it, of numbers, seconds to wait, and of
null, where the engine fails. The program is the real one from the command line to the screen; only `open_engine` gives
another engine.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from llamachat.__main__ import main
from llamachat.chat.templates import CHAT_TEMPLATE_KEY
from llamachat.cli import loading
from llamachat.errors import EngineFailed
from support.fake_engine import FakeEngine, Step


def _step(step: str | float | None) -> Step:
    if step is None:
        return EngineFailed("out of memory")
    return step.encode() if isinstance(step, str) else partial(time.sleep, step)


def _open_engine(script: Path, _path: Path, _options: Any, cancel: threading.Event | None = None) -> FakeEngine:
    """`SCRIPTED_LOAD_S` is how long the model takes to load, `SCRIPTED_TEMPLATE` the template it brings."""
    if cancel and cancel.wait(float(os.environ.get("SCRIPTED_LOAD_S", "0"))):
        raise EngineFailed("cancelled")
    answers = json.loads(script.read_text(encoding="utf-8"))
    engine = FakeEngine(*([_step(step) for step in answer] for answer in answers))
    if source := os.environ.get("SCRIPTED_TEMPLATE"):
        engine.info = replace(engine.info, metadata={CHAT_TEMPLATE_KEY: source})
    return engine


if __name__ == "__main__":
    loading.open_engine = partial(_open_engine, Path(sys.argv[1]))  # type: ignore[assignment]
    sys.argv = ["llamachat", "chat", "--template", "chatml", *sys.argv[2:]]
    main()
