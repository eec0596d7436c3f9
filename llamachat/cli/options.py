"""Option values that several commands read the same way."""

from __future__ import annotations

from typing import Literal

import typer

_MAX_LAYERS = 10_000


def parse_gpu_layers(text: str) -> int | Literal["auto"]:
    """`auto`, or how many layers to put on the GPU."""
    if text == "auto":
        return "auto"
    if text.isascii() and text.isdecimal() and int(text) <= _MAX_LAYERS:
        return int(text)
    raise typer.BadParameter(f"--gpu-layers is auto or a number up to {_MAX_LAYERS}.")
