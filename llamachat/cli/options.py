"""Option values that several commands read the same way."""

from __future__ import annotations

from typing import Literal

import typer


def parse_gpu_layers(text: str) -> int | Literal["auto"]:
    """`auto`, or how many layers to put on the GPU."""
    if text == "auto":
        return "auto"
    if text.isdecimal():
        return int(text)
    raise typer.BadParameter("--gpu-layers is auto or a number.")
