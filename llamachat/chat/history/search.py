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

_N = 3
"""Characters of a trigram; words of fewer are not in the index."""
_MOST_TRIGRAMS = 32
"""Of a query, that the index is asked for; whole words are looked for in what it proposes."""

_BATCH = 1000
"""Messages that are indexed at once: about a quarter of a second."""
_REMOVED = "SELECT key FROM to_index WHERE key NOT IN (SELECT key FROM message)"

_CREATE = "CREATE VIRTUAL TABLE message_text USING fts5 (content, tokenize = 'trigram', detail = none, columnsize = 0)"
"""Without the places of trigrams in a message it is half as large."""
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
    """Forget what was removed and index what was written since the last time, as much as takes no time to speak of.

    The rest is looked through by every search until its turn comes. Runs in the caller's transaction.
    Raises sqlite3.Error where the index is damaged or this SQLite cannot index.
    """
    if not has_index(connection):
        connection.execute(_CREATE)
        connection.execute("INSERT OR IGNORE INTO to_index SELECT key FROM message")
    for keys in (_REMOVED, f"SELECT key FROM to_index ORDER BY key DESC LIMIT {_BATCH}"):
        connection.execute(f"DELETE FROM message_text WHERE rowid IN ({keys})")
        connection.execute(
            "INSERT INTO message_text (rowid, content) "
            f"SELECT key, content FROM message WHERE role != 'system' AND key IN ({keys})"
        )
        connection.execute(f"DELETE FROM to_index WHERE key IN ({keys})")


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
    trigrams = dict.fromkeys(word[i : i + _N] for word in words for i in range(len(word) - _N + 1))
    if indexed and trigrams:
        query = " AND ".join('"' + trigram.replace('"', '""') + '"' for trigram in list(trigrams)[:_MOST_TRIGRAMS])
        rows = connection.execute(_HITS.format(candidates=_PROPOSED), (query, limit)).fetchall()
    else:
        rows = connection.execute(_HITS.format(candidates=""), (limit,)).fetchall()
    return [
        Hit(session, title, key, role, created, excerpt(content, words))
        for session, title, key, role, created, content in rows
    ]


def _holds_all(words: list[str]) -> Callable[[object], bool]:
    def holds(content: object) -> bool:
        folded = str(content).casefold()
        return all(word in folded for word in words)

    return holds
