"""What was said, kept: conversations as trees of messages in one SQLite file.

A message points to the one it follows, so undoing, retrying, editing and forking only add; nothing is overwritten. A
session's head is the message at which its conversation stands.
"""

from __future__ import annotations

from llamachat.chat.history.history import History
from llamachat.chat.history.values import (
    Hit,
    SessionFacts,
    SessionSummary,
    SessionTree,
    StoredMessage,
    StoredSession,
)

__all__ = ["History", "Hit", "SessionFacts", "SessionSummary", "SessionTree", "StoredMessage", "StoredSession"]
