"""What is in the context window, kept when a conversation ends and restored when it goes on.

It only saves time: whatever is wrong with a file, the conversation is evaluated again and the file goes.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import BinaryIO

from llamachat.chat.session import Session
from llamachat.cli.chat_wishes import is_held_with
from llamachat.cli.format import count, size
from llamachat.cli.live_chat import OpenChat
from llamachat.cli.output import out
from llamachat.cli.terminal.interrupt import cancel_on_interrupt
from llamachat.engine.base import CacheState
from llamachat.errors import LlamachatError
from llamachat.models.contexts import (
    context_path,
    forget_context,
    make_room,
    open_context,
    touch_context,
    writing_context,
)

_WORTH_S = 2.0
"""Evaluating again what takes less is no trouble."""

_DISK_BYTES_PER_S = 200e6
"""What a slow disk writes."""

_SIGNAL_S = 0.5
"""How long a process that was told to end may still take."""

_MAX_NOTE_BYTES = 100_000


class _Skipped(Exception):
    """The user did not want to wait."""


def restore_context(chat: OpenChat) -> str | None:
    """Bring back what was in the window of the conversation that goes on; say how much it was, if anything."""
    stored = chat.resumed
    if stored is None or not is_held_with(chat.model, stored.facts) or not context_path(stored.id).exists():
        return None
    started = time.monotonic()
    with cancel_on_interrupt() as cancel, out.status("Restoring the context window (Ctrl-C skips)"):
        n_tokens = _restore(chat, stored.id, cancel)
    if n_tokens:
        return f"Restored {count(n_tokens, 'token')} in {time.monotonic() - started:.1f} s."
    return None


def _restore(chat: OpenChat, session_id: int, cancel: threading.Event) -> int:
    session, n_tokens = chat.session, 0
    try:
        with open_context(session_id) as file:
            session.left_out = _left_out(file, session)
            prompt, key = session.seen(), chat.model.content_key
            if prompt and key is not None:
                n_tokens = session.engine.restore_state(file, key, prompt.ids, cancel)
                chat.kept_ids = prompt.ids[:n_tokens]
    except OSError:
        pass  # as good as none
    if n_tokens == 0:
        session.left_out = frozenset()
    if chat.record and n_tokens:
        touch_context(session_id)
    elif chat.record and not cancel.is_set():
        forget_context(session_id)
    return n_tokens


def _write_note(file: BinaryIO, session: Session) -> None:
    file.write(json.dumps({"left_out": sorted(session.left_out)}).encode() + b"\n")


def _left_out(file: BinaryIO, session: Session) -> frozenset[int]:
    """The turns that were left out of the window then, as far as there is no room for them now either."""
    try:
        noted = frozenset(json.loads(file.readline(_MAX_NOTE_BYTES))["left_out"])
        return noted and noted & session.without_room()
    except (ValueError, TypeError, KeyError, RecursionError, LlamachatError):
        return frozenset()


@contextmanager
def keeping_context(
    chat: OpenChat, allow_interrupt: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Iterator[None]:
    """Around a conversation: at its end, what is in the window is kept. `allow_interrupt` makes Ctrl-C a signal."""
    try:
        yield
    except SystemExit:  # SIGTERM or SIGHUP
        keep_context(chat, is_hurried=True)
        raise
    with allow_interrupt():
        keep_context(chat)


def keep_context(chat: OpenChat, *, is_hurried: bool = False) -> None:
    """Keep what is in the window, if restoring it will save more time than keeping it takes, and there is room."""
    cached = chat.session.engine.cache_state()
    session_id = _kept_session(chat)
    if session_id is None or not _is_worth_it(cached, chat.kept_ids):
        return
    if is_hurried and cached.n_bytes > _SIGNAL_S * _DISK_BYTES_PER_S:
        return
    try:
        if make_room(session_id, cached.n_bytes):
            _keep(chat, session_id, cached, is_hurried=is_hurried)
    except OSError as error:
        if not is_hurried:
            out.warning(f"The context window was not kept ({error.strerror or error}); it will be read again.")


def _kept_session(chat: OpenChat) -> int | None:
    """The session as it is in the history; None if it is not, or no longer."""
    if chat.record is None or chat.record.session_id is None:
        return None
    try:
        return chat.record.history.tree(chat.record.session_id).id
    except LlamachatError:
        return None


def _is_worth_it(cached: CacheState, kept_ids: tuple[int, ...]) -> bool:
    """Whether evaluating what is not kept yet takes long, and longer than writing everything."""
    n_kept = next((i for i, (a, b) in enumerate(zip(cached.ids, kept_ids, strict=False)) if a != b), len(kept_ids))
    n_new = len(cached.ids) - n_kept
    if n_new <= 0 or cached.prompt_tps <= 0:
        return False
    return n_new / cached.prompt_tps > max(_WORTH_S, cached.n_bytes / _DISK_BYTES_PER_S)


def _keep(chat: OpenChat, session_id: int, cached: CacheState, *, is_hurried: bool) -> None:
    what = f"Keeping the context window, {size(cached.n_bytes)} (Ctrl-C skips)"
    with cancel_on_interrupt() as cancel, nullcontext() if is_hurried else out.status(what):
        hurry = threading.Timer(_SIGNAL_S, cancel.set)
        hurry.daemon = True
        if is_hurried:
            hurry.start()
        try:
            with writing_context(session_id, is_synced=not is_hurried) as file:
                _write_note(file, chat.session)
                if not chat.session.engine.save_state(file, chat.model.content_key or "", cancel):
                    raise _Skipped
            chat.kept_ids = tuple(cached.ids)
        except _Skipped:
            pass
        finally:
            hurry.cancel()
