"""Running a model: the protocol every engine speaks, and llama.cpp behind it."""

from __future__ import annotations

import threading
from pathlib import Path

from llamachat.engine.base import Engine, EngineOptions


def open_engine(path: Path, options: EngineOptions, cancel: threading.Event | None = None) -> Engine:
    """Load a GGUF file; setting `cancel` ends that soon, with an error.

    llama.cpp is only imported here, because that takes a moment.
    """
    from llamachat.engine.llamacpp import LlamaEngine

    return LlamaEngine(path, options, cancel)
