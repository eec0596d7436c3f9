"""Weight files that arrive while the conversion is running, and go when they are no longer needed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from quantize.checkpoint.merged import files_of
from quantize.checkpoint.tensor import TensorSource
from quantize.writer import GGUFFile

_SECURE_EVERY_S = 5.0


class Supply(Protocol):
    """Where weight files come from. Their headers must be readable from the start."""

    def wait_for(self, path: Path, timeout_s: float) -> bool:
        """Whether all of a file is here, waiting so long at most; raises what keeps it from coming."""

    def release(self, path: Path) -> None:
        """Take note that a file is not needed any more: all its tensors are safely in the output."""


class Ledger:
    """Keeps account of finished tensors: secures them now and then, and releases the files that are used up."""

    def __init__(self, sources: Mapping[str, TensorSource], out: GGUFFile, supply: Supply | None) -> None:
        self._out, self._supply = out, supply
        self._waiting: dict[Path, set[str]] = {}
        for name, source in sources.items():
            for path in files_of(source):
                self._waiting.setdefault(path, set()).add(name)
        self._secured_at = time.monotonic()
        self._release(set(out.finished))

    def enter(self, names: Iterable[str]) -> None:
        """Take note that these tensors are wholly written. To be called now and then, even with none."""
        self._out.finish(names)
        if not self._out.is_resumable:
            return
        used_up = self._supply and any(tensors <= self._out.finished for tensors in self._waiting.values())
        if used_up or time.monotonic() - self._secured_at > _SECURE_EVERY_S:
            self._out.secure()
            self._secured_at = time.monotonic()
            self._release(self._out.finished)

    def _release(self, secured: set[str]) -> None:
        for path in [path for path, tensors in self._waiting.items() if tensors <= secured]:
            del self._waiting[path]
            if self._supply:
                self._supply.release(path)
