"""The KV cache of a context, with the ids that are in it kept beside it."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import llama_cpp

from llamachat.engine.base import Cut
from llamachat.errors import EngineFailed

_ABORTED = 2


class KVCache:
    """What has been evaluated, one sequence. It grows with `evaluate`, and can be cut back and shifted."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self._memory = llama_cpp.llama_get_memory(context)
        self.ids: list[int] = []
        self.is_shifting = False
        """Whether keys wait to be rotated: llama.cpp does that when it evaluates next."""
        self.can_shift = bool(llama_cpp.llama_memory_can_shift(self._memory))

    def take_out(self, cut: Cut, prompt: Sequence[int]) -> None:
        """Remove a run of ids and move up what follows; its keys are rotated to their new places.

        Only if the cache then has more of the prompt than now: it may hold something else than the caller believes.
        """
        rest = self.ids[: cut.start] + self.ids[cut.stop :]
        if n_common(rest, prompt) <= n_common(self.ids, prompt):
            return
        if llama_cpp.llama_memory_seq_rm(self._memory, 0, cut.start, cut.stop):
            llama_cpp.llama_memory_seq_add(self._memory, 0, cut.stop, -1, cut.start - cut.stop)
            self.ids = rest
            self.is_shifting = True

    def keep_common_prefix(self, prompt: Sequence[int]) -> int:
        """Drop what the prompt does not start with; return how much of the prompt is there."""
        n_kept = n_common(self.ids, prompt[:-1])  # the last token is needed for its logits
        if self.cut_back(n_kept):
            return n_kept
        self.forget()  # a memory that cannot be cut, such as a recurrent one
        return 0

    def cut_back(self, n_kept: int) -> bool:
        """Drop all but the first ids; False if that cannot be done."""
        if n_kept < len(self.ids):
            if not llama_cpp.llama_memory_seq_rm(self._memory, 0, n_kept, -1):
                return False
            del self.ids[n_kept:]
        return True

    def evaluate(self, ids: Sequence[int], *, every_row: bool = False) -> bool:
        """Run tokens through the model and note them; False if it was aborted. Only the last gives logits, or every."""
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        batch = llama_cpp.llama_batch_get_one(tokens, len(ids))
        if every_row:
            batch.logits = (ctypes.c_int8 * len(ids))(*[1] * len(ids))
        result = llama_cpp.llama_decode(self.context, batch)
        if result == _ABORTED and self.is_shifting:
            self.forget()  # perhaps in the middle of the rotation, which would begin again with the keys as they are
            return False
        if result == _ABORTED:
            llama_cpp.llama_memory_seq_rm(self._memory, 0, len(self.ids), -1)
            return False
        if result != 0:
            self.forget()
            raise EngineFailed(f"llama_decode returned {result}")
        self.is_shifting = False
        self.ids.extend(ids)
        return True

    @contextmanager
    def aborting(self, cancel: threading.Event) -> Iterator[None]:
        """Evaluations end between two of their operations when `cancel` is set."""
        callback = llama_cpp.ggml_abort_callback(lambda _: cancel.is_set())
        llama_cpp.llama_set_abort_callback(self.context, callback, None)
        try:
            yield
        finally:
            llama_cpp.llama_set_abort_callback(self.context, llama_cpp.ggml_abort_callback(), None)

    def forget(self) -> None:
        """Empty it: after an error nothing in it can be relied on."""
        llama_cpp.llama_memory_clear(self._memory, True)
        self.is_shifting = False
        self.ids.clear()


def n_common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two lists have in common at their beginning."""
    shorter = min(len(a), len(b))
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)
