"""Full-text search over messages: SQLite's FTS5 with trigrams, which needs no word boundaries and so finds Chinese.

The index only proposes: every message it names is looked into again, as are those it does not know yet, and all where
it knows nothing. So it may be behind, lost, or not there at all (SQLite before 3.34). Searching brings it up to date; a
chat does not wait for it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from llamachat.chat.history.titles import excerpt
from llamachat.chat.history.values import Hit

_SHORTEST = 3
"""Characters a trigram has; shorter words are not in the index."""
_MOST_WORDS = 16
"""Of a query, that the index is asked for; all are looked for in what it proposes."""

_CREATE = "CREATE VIRTUAL TABLE message_text USING fts5 (content, tokenize = 'trigram')"
_HITS = """
    SELECT message.session, session.title, message.key, message.role, message.created, message.content
    FROM message JOIN session ON session.id = message.session
    WHERE message.role != 'system' AND {candidates} holds(message.content)
    ORDER BY message.key DESC LIMIT ?
"""
_PROPOSED = """
    (message.key IN (SELECT rowid FROM message_text WHERE message_text MATCH ?)
     OR message.key IN (SELECT key FROM to_index)) AND
"""


def split_words(text: str) -> list[str]:
    """What a query asks for: its words, each to be found as it is, in any case."""
    return list(dict.fromkeys(text.replace("\0", " ").casefold().split()))


def has_index(connection: sqlite3.Connection) -> bool:
    """Whether there is a full-text index."""
    return connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'message_text'").fetchone() is not None


def update_index(connection: sqlite3.Connection) -> None:
    """Index what was written since the last time. Runs in the caller's transaction.

    Raises sqlite3.Error where the index is damaged or this SQLite cannot index.
    """
    if not has_index(connection):
        connection.execute(_CREATE)
        connection.execute("INSERT OR IGNORE INTO to_index SELECT key FROM message")
    connection.execute("DELETE FROM message_text WHERE rowid IN (SELECT key FROM to_index)")
    connection.execute(
        "INSERT INTO message_text (rowid, content) "
        "SELECT key, content FROM message WHERE role != 'system' AND key IN (SELECT key FROM to_index)"
    )
    connection.execute("DELETE FROM to_index")


def check_index(connection: sqlite3.Connection) -> None:
    """Raise sqlite3.Error if the index does not fit the text in it."""
    connection.execute("INSERT INTO message_text (message_text) VALUES ('integrity-check')")


def drop_index(connection: sqlite3.Connection) -> None:
    """Remove the index; `update_index` makes a new one."""
    connection.execute("DROP TABLE IF EXISTS message_text")


def find_messages(connection: sqlite3.Connection, words: list[str], limit: int, *, indexed: bool) -> list[Hit]:
    """Messages that hold all `words`, newest first.

    Raises sqlite3.Error where the index is asked and is damaged.
    """
    connection.create_function("holds", 1, _holds_all(words))
    long = sorted((word for word in words if len(word) >= _SHORTEST), key=len, reverse=True)[:_MOST_WORDS]
    if not (indexed and long):
        rows = connection.execute(_HITS.format(candidates=""), (limit,)).fetchall()
    else:
        query = " AND ".join('"' + word.replace('"', '""') + '"' for word in long)
        rows = connection.execute(_HITS.format(candidates=_PROPOSED), (query, limit)).fetchall()
    return [
        Hit(session, title, key, role, created, excerpt(content, words))
        for session, title, key, role, created, content in rows
    ]


def _holds_all(words: list[str]) -> Callable[[object], bool]:
    def holds(content: object) -> bool:
        folded = str(content).casefold()
        return all(word in folded for word in words)

    return holds
