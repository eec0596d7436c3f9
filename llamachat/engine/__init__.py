"""Running a model: the protocol every engine speaks, and llama.cpp behind it."""

from __future__ import annotations

from pathlib import Path

from llamachat.engine.base import Engine, EngineOptions


def open_engine(path: Path, options: EngineOptions) -> Engine:
    """Load a GGUF file. llama.cpp is only imported here, because that takes a moment."""
    from llamachat.engine.llamacpp import LlamaEngine

    return LlamaEngine(path, options)
