"""Options of commands: those of one as a single value, and values that several commands read the same way."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

import typer

_MAX_LAYERS = 10_000
_MAX_SCALE = 1000

T = TypeVar("T")


def taking(arguments: type[T]) -> Callable[[Callable[[T], None]], Callable[..., None]]:
    """Let a command have all its options as one value: Typer sees a parameter for each field of the dataclass."""

    def decorate(command: Callable[[T], None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            command(arguments(**values))

        hints = get_type_hints(arguments, include_extras=True)
        fields = [
            parameter.replace(annotation=hints[name])
            for name, parameter in inspect.signature(arguments).parameters.items()
        ]
        run.__annotations__ = hints
        run.__signature__ = inspect.Signature(fields)  # type: ignore[attr-defined]
        return run

    return decorate


def parse_gpu_layers(text: str) -> int | Literal["auto"]:
    """`auto`, or how many layers to put on the GPU."""
    if text == "auto":
        return "auto"
    if text.isascii() and text.isdecimal() and int(text) <= _MAX_LAYERS:
        return int(text)
    raise typer.BadParameter(f"--gpu-layers is auto or a number up to {_MAX_LAYERS}.")


def parse_adapter(text: str) -> tuple[Path, float]:
    """PATH[:SCALE]: a file, and a number of which 1 is the default."""
    head, colon, tail = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    try:
        scale = float(tail)
    except ValueError:
        return Path(text), 1.0
    if not head or not -_MAX_SCALE <= scale <= _MAX_SCALE:
        raise typer.BadParameter(f"--adapter is PATH or PATH:SCALE, with a scale from -{_MAX_SCALE} to {_MAX_SCALE}.")
    return Path(head), scale
