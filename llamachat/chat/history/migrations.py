"""The schema, version by version. Append only: what was released is never edited.

Each version is a list of statements that run in one transaction, together with the step of `user_version`.
"""

from __future__ import annotations

import sqlite3

APPLICATION_ID = 0x6C6C6D63
"""In the file's header (PRAGMA application_id), so that it is known as ours: "llmc"."""

_SESSIONS_AND_MESSAGES = (
    """
    CREATE TABLE session (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        title TEXT NOT NULL DEFAULT '' CHECK (typeof(title) = 'text'),
        created TEXT NOT NULL CHECK (typeof(created) = 'text'),
        updated TEXT NOT NULL CHECK (typeof(updated) = 'text'),
        head INTEGER REFERENCES message (key) ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED
    )
    """,
    # what answers are made with; a session's newest row is in force, and answers keep theirs
    """
    CREATE TABLE facts (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        session INTEGER NOT NULL REFERENCES session (id) ON DELETE CASCADE,
        model TEXT NOT NULL CHECK (typeof(model) = 'text'),
        model_sha256 TEXT CHECK (typeof(model_sha256) IN ('text', 'null')),
        template TEXT NOT NULL CHECK (typeof(template) = 'text'),
        sampling TEXT NOT NULL CHECK (typeof(sampling) = 'text'),
        n_ctx INTEGER NOT NULL CHECK (typeof(n_ctx) = 'integer'),
        adapters TEXT NOT NULL CHECK (typeof(adapters) = 'text')
    )
    """,
    # a parent is older than its child, so that there are no circles, whatever happens to the file
    """
    CREATE TABLE message (
        key INTEGER PRIMARY KEY AUTOINCREMENT,
        session INTEGER NOT NULL REFERENCES session (id) ON DELETE CASCADE,
        parent INTEGER REFERENCES message (key) CHECK (parent < key),
        role TEXT NOT NULL CHECK (role IN ('system', 'user', 'assistant')),
        content TEXT NOT NULL CHECK (typeof(content) = 'text'),
        is_pinned INTEGER NOT NULL DEFAULT 0 CHECK (is_pinned IN (0, 1)),
        created TEXT NOT NULL CHECK (typeof(created) = 'text'),
        finish_reason TEXT CHECK (finish_reason IN ('stop', 'length', 'interrupted')),
        facts INTEGER REFERENCES facts (id) DEFERRABLE INITIALLY DEFERRED,
        seed INTEGER CHECK (typeof(seed) IN ('integer', 'null')),
        n_prompt INTEGER, n_reused INTEGER, n_generated INTEGER,
        prefill_s REAL, ttft_s REAL, decode_s REAL
    )
    """,
    "CREATE INDEX message_of_session ON message (session)",
    "CREATE INDEX message_after ON message (parent)",
    "CREATE INDEX message_made_with ON message (facts)",
    "CREATE INDEX facts_of_session ON facts (session)",
    "CREATE INDEX session_head ON session (head)",
)

# The full-text index itself is no part of the schema: it is made when something is searched for, if this SQLite can.
_WHAT_TO_INDEX = (
    "CREATE TABLE to_index (key INTEGER PRIMARY KEY)",
    "INSERT INTO to_index SELECT key FROM message",
    """
    CREATE TRIGGER index_new AFTER INSERT ON message BEGIN
        INSERT OR IGNORE INTO to_index VALUES (new.key);
    END
    """,
    """
    CREATE TRIGGER index_changed AFTER UPDATE OF content ON message BEGIN
        INSERT OR IGNORE INTO to_index VALUES (new.key);
    END
    """,
    """
    CREATE TRIGGER index_removed AFTER DELETE ON message BEGIN
        INSERT OR IGNORE INTO to_index VALUES (old.key);
    END
    """,
)

_REASONING = ("ALTER TABLE message ADD COLUMN reasoning TEXT NOT NULL DEFAULT '' CHECK (typeof(reasoning) = 'text')",)

# of a question: its answer is a summary that stands for so many turns; and what answers are made with besides the rest
_SUMMARIES_AND_OPTIONS = (
    """
    ALTER TABLE message ADD COLUMN n_summarized INTEGER NOT NULL DEFAULT 0
        CHECK (typeof(n_summarized) = 'integer' AND n_summarized >= 0)
    """,
    "ALTER TABLE facts ADD COLUMN options TEXT NOT NULL DEFAULT '{}' CHECK (typeof(options) = 'text')",
)

_STEPS_OF_ANSWERS = ("ALTER TABLE message ADD COLUMN steps TEXT CHECK (typeof(steps) IN ('text', 'null'))",)
"""Calls of tools, as JSON."""

_SERVERS = ("ALTER TABLE facts ADD COLUMN server TEXT CHECK (typeof(server) IN ('text', 'null'))",)

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    _SESSIONS_AND_MESSAGES,
    _WHAT_TO_INDEX,
    _REASONING,
    _SUMMARIES_AND_OPTIONS,
    _STEPS_OF_ANSWERS,
    _SERVERS,
)
NEW_TABLES: tuple[tuple[str, ...], ...] = (("session", "facts", "message"), ("to_index",), (), (), (), ())
"""The tables that each version adds."""


def schema_version(connection: sqlite3.Connection) -> int:
    """Which version a database has; 0 is an empty one."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a database that is not newer than we are up to date. Another process may be doing the same."""
    while schema_version(connection) < len(MIGRATIONS):
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = schema_version(connection)
            if version < len(MIGRATIONS):
                for statement in MIGRATIONS[version]:
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {version + 1}")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
