"""The history: sessions and their messages, written so that what was acknowledged survives a kill at any moment."""

from __future__ import annotations

import difflib
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from llamachat.chat.history.database import Database, is_damage
from llamachat.chat.history.rows import (
    FACTS_COLUMNS,
    MESSAGE_COLUMNS,
    STATS_COLUMNS,
    facts_row,
    read_facts,
    read_message,
    stats_row,
    steps_row,
)
from llamachat.chat.history.search import check_index, drop_index, find_messages, has_index, split_words, update_index
from llamachat.chat.history.titles import make_title, one_line
from llamachat.chat.history.values import (
    FOLLOWS,
    Hit,
    SessionFacts,
    SessionSummary,
    SessionTree,
    StoredMessage,
    StoredSession,
)
from llamachat.chat.message import Message
from llamachat.chat.tools.values import ToolStep
from llamachat.engine.base import FinishReason, GenerationStats
from llamachat.errors import BadConversation, HistoryFailed, UnknownSession

NEWEST = ("", "last")
"""What `find` takes for the newest session."""

_OWN_TITLE_COLUMNS = 200
_N_HITS = 50
_MAX_SEED = 2**63 - 1
_N_NEAR = 3
_FORGET_EMPTY = timedelta(days=30)
_IS_BEGUN = "EXISTS (SELECT 1 FROM message WHERE message.session = session.id AND role = 'user')"
_SUMMARY = f"""
    SELECT id, title, created, updated,
        (SELECT model FROM facts WHERE facts.session = session.id ORDER BY facts.id DESC LIMIT 1),
        (SELECT count(*) FROM message WHERE message.session = session.id AND role != 'system')
    FROM session WHERE {_IS_BEGUN} ORDER BY updated DESC, id DESC LIMIT ?
"""


class History:
    """All sessions in one file. Several processes, and threads of each, may use it at once.

    Everything raises `HistoryFailed` when the file cannot be read or written now; nothing is half done then.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or create it. Raises `HistoryFailed`, of that `HistoryTooNew`."""
        self._database = Database(path)
        self.notices = self._database.notices
        """What the user should be told about the opening."""
        self._own: list[int] = []
        with suppress(HistoryFailed), self._database.writing() as connection:  # a full disk can still be read
            long_ago = (datetime.now(timezone.utc) - _FORGET_EMPTY).isoformat(timespec="microseconds")
            connection.execute(f"DELETE FROM session WHERE created < ? AND NOT {_IS_BEGUN}", (long_ago,))

    def __enter__(self) -> History:
        """Close at the end."""
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Forget the sessions begun here in which nobody said anything, and close."""
        if self._own:
            with suppress(HistoryFailed), self._database.writing() as connection:
                for session in self._own:
                    connection.execute(f"DELETE FROM session WHERE id = ? AND NOT {_IS_BEGUN}", (session,))
        self._database.close()

    # --- writing: each of these is on the disk when it returns ---------------------------------------------------

    def start_session(self, about: SessionFacts) -> int:
        """Begin one, and return its id. It is listed, found and kept once a user has said something in it."""
        with self._database.writing() as connection:
            session = _insert_session(connection, "", _now(), about)
        self._own.append(session)
        return session

    def set_facts(self, session: int, about: SessionFacts) -> None:
        """Change what answers are made with from now on; those already there keep what they were made with."""
        with self._changing(session) as connection:
            known = _read_facts_of(connection, session)
            if about != known[max(known)]:
                _insert_facts(connection, session, about)

    def add_message(self, session: int, parent: int | None, message: Message, *, seed: int | None = None) -> int:
        """Add a message after `parent` (None: as a root), make it the head, and return its key.

        An answer begins without a finish reason and takes the session's facts along. The first user message gives the
        session its title. Raises `BadConversation` if it is not the turn of `message.role` there.
        """
        with self._changing(session) as connection:
            _check_turn(connection, session, parent, message)
            facts = max(_read_facts_of(connection, session)) if message.role == "assistant" else None
            content = _storable(message.content)
            columns = "session, parent, role, content, is_pinned, n_summarized, created, facts, seed"
            about = (message.is_pinned, message.n_summarized, _now(), facts, _seed(seed))
            key = _insert(connection, "message", columns, (session, parent, message.role, content, *about))
            connection.execute("UPDATE session SET head = ? WHERE id = ?", (key, session))
            if message.role == "user":
                title = make_title(content)
                connection.execute("UPDATE session SET title = ? WHERE id = ? AND title = ''", (title, session))
        return key

    def update_answer(
        self,
        key: int,
        content: str,
        *,
        reasoning: str = "",
        finish_reason: FinishReason | None = None,
        stats: GenerationStats | None = None,
        seed: int | None = None,
        steps: tuple[ToolStep, ...] | None = None,
    ) -> None:
        """Store an answer as far as it is there. Without a finish reason it is still being written.

        `stats`, `seed` and `steps` are kept as they were where None.
        """
        names = ["content", "reasoning", "finish_reason"]
        values: list[Any] = [_storable(content), _storable(reasoning), finish_reason]
        if stats is not None:
            names += STATS_COLUMNS.split(", ")
            values += stats_row(stats)
        if seed is not None:
            names.append("seed")
            values.append(_seed(seed))
        if steps is not None:
            names.append("steps")
            values.append(steps_row(steps))
        with self._database.writing() as connection:
            settings = ", ".join(f"{name} = ?" for name in names)
            self._change_one(
                connection, f"UPDATE message SET {settings} WHERE key = ? AND role = 'assistant'", (*values, key)
            )
            connection.execute(
                "UPDATE session SET updated = ? WHERE id = (SELECT session FROM message WHERE key = ?)", (_now(), key)
            )

    def set_head(self, session: int, key: int | None) -> None:
        """Let the conversation stand at a message of the session; None: before everything."""
        with self._changing(session) as connection:
            if key is not None and _session_of(connection, key) != session:
                raise BadConversation(f"Message {key} is not in conversation {session}.", "Choose one of its own.")
            connection.execute("UPDATE session SET head = ? WHERE id = ?", (key, session))

    def set_pinned(self, key: int, pinned: bool) -> None:
        """Pin a user message, or no longer."""
        with self._database.writing() as connection:
            self._change_one(connection, "UPDATE message SET is_pinned = ? WHERE key = ?", (pinned, key))

    def set_title(self, session: int, title: str) -> None:
        """Give a session a name of the user's; an empty one stands for what it would be called by itself."""
        with self._changing(session) as connection:
            cleaned = make_title(_storable(title), _OWN_TITLE_COLUMNS) or _title_by_itself(connection, session)
            connection.execute("UPDATE session SET title = ? WHERE id = ?", (cleaned, session))

    def remove(self, session: int) -> None:
        """Forget a session with all its branches; its text is gone from the file, too."""
        with self._changing(session) as connection:
            connection.execute("DELETE FROM session WHERE id = ?", (session,))
        self._refresh_index(only_if_there=True)
        self._database.shrink_log()

    def add_tree(self, tree: SessionTree) -> int:
        """Store a session from elsewhere, with its times and branches, and return its id here; its keys are new."""
        with self._database.writing() as connection:
            session = _insert_session(connection, tree.title, tree.created, tree.facts)
            keys = _insert_messages(connection, session, tree)
            title = tree.title or _title_by_itself(connection, session)
            head = keys[tree.head] if tree.head is not None else None
            updated = min(tree.updated, _now())  # a time to come would make it the newest for ever
            connection.execute(
                "UPDATE session SET title = ?, updated = ?, head = ? WHERE id = ?", (title, updated, head, session)
            )
        return session

    # --- reading -------------------------------------------------------------------------------------------------

    def load(self, session: int) -> StoredSession:
        """The conversation at the session's head. Raises `UnknownSession`."""
        tree = self.tree(session)
        try:
            return tree.at_head()
        except BadConversation as error:
            raise self._unreadable(session) from error

    def tree(self, session: int) -> SessionTree:
        """A session with all its branches. Raises `UnknownSession`."""
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT id, title, created, updated, head FROM session WHERE id = ?", (session,)
            ).fetchone()
            if row is None:
                raise UnknownSession(str(session), ())
            rows = connection.execute(
                f"SELECT {MESSAGE_COLUMNS} FROM message WHERE session = ? ORDER BY key", (session,)
            ).fetchall()
            try:
                facts = _read_facts_of(connection, session)
                messages = tuple(read_message(message, facts) for message in rows)
            except (ValueError, TypeError, RecursionError) as error:
                raise self._unreadable(session) from error
        id_, title, created, updated, head = row
        return SessionTree(id_, title, created, updated, facts[max(facts)], head, messages)

    def message(self, key: int) -> Message | None:
        """A message as it is stored; None if it is not there, or cannot be read."""
        with self._database.reading() as connection:
            row = connection.execute(f"SELECT {MESSAGE_COLUMNS} FROM message WHERE key = ?", (key,)).fetchone()
        try:
            return read_message(row, {}).message if row else None
        except (ValueError, TypeError, RecursionError):
            return None

    def sessions(self, limit: int | None = None) -> list[SessionSummary]:
        """Those in which a user has said something, the one used last first."""
        with self._database.reading() as connection:
            rows = connection.execute(_SUMMARY, (-1 if limit is None else limit,)).fetchall()
        return [SessionSummary(*row) for row in rows]

    def find(self, text: str) -> int:
        """The session meant by an id, by the beginning of a title, or by "last" or nothing: the newest.

        Raises `UnknownSession`, which names near ones.
        """
        wanted = text.strip()
        known = {summary.id: summary.title for summary in self.sessions()}  # the newest first
        if wanted in NEWEST and known:
            return next(iter(known))
        if wanted.isascii() and wanted.isdecimal() and len(wanted) < 20 and int(wanted) in known:
            return int(wanted)
        begun = [id_ for id_, title in known.items() if wanted and title.casefold().startswith(wanted.casefold())]
        if len(begun) == 1:
            return begun[0]
        if not known:
            raise UnknownSession("", ())
        near = begun or _near(wanted, known)
        raise UnknownSession(wanted, [(id_, known[id_]) for id_ in near[:_N_NEAR]])

    def search(self, words: str, limit: int = _N_HITS) -> list[Hit]:
        """Messages that hold every one of the words, in any case and any language, newest first."""
        wanted = split_words(words)
        if not wanted:
            return []
        if self._refresh_index():
            with suppress(HistoryFailed):  # a damaged index is as good as none
                if hits := self._find_messages(wanted, limit, indexed=True):
                    return hits
        hits = self._find_messages(wanted, limit, indexed=False)
        if hits:
            self._refresh_index(check=True)  # it should have known them, unless it folds case otherwise
        return hits

    def _find_messages(self, words: list[str], limit: int, *, indexed: bool) -> list[Hit]:
        with self._database.reading() as connection:
            return find_messages(connection, words, limit, indexed=indexed and has_index(connection))

    def _refresh_index(self, *, only_if_there: bool = False, check: bool = False, anew: bool = False) -> bool:
        """Bring the full-text index up to date, or make it anew where it is damaged; whether it can be asked."""
        try:
            with self._database.writing() as connection:
                if only_if_there and not has_index(connection):
                    return False
                if anew:
                    drop_index(connection)
                update_index(connection)
                if check:
                    check_index(connection)
        except HistoryFailed as error:
            if anew or not (is_damage(error.__cause__) or isinstance(error.__cause__, MemoryError)):
                return False
            return self._refresh_index(anew=True)
        return True

    @contextmanager
    def _changing(self, session: int) -> Iterator[sqlite3.Connection]:
        """A transaction that changes a session. Raises `UnknownSession`, also where another process removed it."""
        with self._database.writing() as connection:
            if not connection.execute("UPDATE session SET updated = ? WHERE id = ?", (_now(), session)).rowcount:
                raise UnknownSession(str(session), ())
            try:
                yield connection
            except (ValueError, TypeError, RecursionError) as error:
                raise self._unreadable(session) from error

    def _change_one(self, connection: sqlite3.Connection, statement: str, values: tuple[Any, ...]) -> None:
        if not connection.execute(statement, values).rowcount:
            raise HistoryFailed(
                self._database.path, f"message {values[-1]} is not there any more", "Its conversation was removed."
            )

    def _unreadable(self, session: int) -> HistoryFailed:
        return HistoryFailed(
            self._database.path,
            f"conversation {session} is damaged",
            f"Remove it with: llamachat sessions rm {session}. The others can be read.",
        )


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def _storable(text: str) -> str:
    """Half a surrogate pair is no character and has no UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8") if not text.isascii() else text


def _seed(seed: int | None) -> int | None:
    """What SQLite can hold; engines use fewer bits."""
    return seed if seed is None else seed & _MAX_SEED


def _insert(connection: sqlite3.Connection, table: str, columns: str, values: tuple[Any, ...]) -> int:
    marks = ", ".join("?" * len(values))
    key = connection.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", values).lastrowid
    assert key is not None, "an INSERT gives a key"
    return key


def _insert_session(connection: sqlite3.Connection, title: str, created: str, about: SessionFacts) -> int:
    session = _insert(connection, "session", "title, created, updated", (title, created, created))
    _insert_facts(connection, session, about)
    return session


def _insert_facts(connection: sqlite3.Connection, session: int, about: SessionFacts) -> int:
    return _insert(connection, "facts", f"session, {FACTS_COLUMNS}", (session, *facts_row(about)))


def _insert_messages(connection: sqlite3.Connection, session: int, tree: SessionTree) -> dict[int, int]:
    """All messages of a tree; returns new keys by those in the tree. The tree's own facts stay the newest."""
    keys: dict[int, int] = {}
    facts: list[tuple[SessionFacts, int]] = []
    for stored in tree.messages:
        about = next((id_ for known, id_ in facts if known == stored.facts), None)
        if about is None and stored.facts is not None:
            about = _insert_facts(connection, session, stored.facts)
            facts.append((stored.facts, about))
        keys[stored.key] = _insert_stored(connection, session, replace(
            stored, parent=keys[stored.parent] if stored.parent is not None else None
        ), about)  # fmt: skip
    _insert_facts(connection, session, tree.facts)
    return keys


def _insert_stored(connection: sqlite3.Connection, session: int, stored: StoredMessage, facts: int | None) -> int:
    message = stored.message
    columns = (
        "session, parent, role, content, reasoning, steps, is_pinned, n_summarized, created, finish_reason, facts, seed"
    )
    texts = (_storable(message.content), _storable(message.reasoning), steps_row(message.steps))
    said = (session, stored.parent, message.role, *texts, message.is_pinned, message.n_summarized)
    about = (stored.created, stored.finish_reason, facts, stored.seed, *stats_row(stored.stats))
    return _insert(connection, "message", f"{columns}, {STATS_COLUMNS}", (*said, *about))


def _read_facts_of(connection: sqlite3.Connection, session: int) -> dict[int, SessionFacts]:
    """By id; the one in force is the newest. Raises ValueError where there are none."""
    rows = connection.execute(f"SELECT id, {FACTS_COLUMNS} FROM facts WHERE session = ? ORDER BY id", (session,))
    facts = {id_: read_facts(tuple(row)) for id_, *row in rows}
    if not facts:
        raise ValueError("a session without facts")
    return facts


def _check_turn(connection: sqlite3.Connection, session: int, parent: int | None, message: Message) -> None:
    role = None
    if parent is not None:
        row = connection.execute("SELECT role FROM message WHERE key = ? AND session = ?", (parent, session)).fetchone()
        if row is None:
            raise BadConversation(f"Message {parent} is not in conversation {session}.", "Choose one of its own.")
        (role,) = row
    if message.role not in FOLLOWS[role]:
        after = f"after one from {role}" if role else "at the beginning"
        raise BadConversation(f"A message from {message.role} cannot stand {after}.", "User and assistant take turns.")


def _session_of(connection: sqlite3.Connection, key: int) -> int | None:
    row = connection.execute("SELECT session FROM message WHERE key = ?", (key,)).fetchone()
    return int(row[0]) if row else None


def _title_by_itself(connection: sqlite3.Connection, session: int) -> str:
    row = connection.execute(
        "SELECT content FROM message WHERE session = ? AND role = 'user' ORDER BY key LIMIT 1", (session,)
    ).fetchone()
    return make_title(row[0]) if row else ""


def _near(wanted: str, known: dict[int, str]) -> list[int]:
    """Sessions whose titles hold the text, then those with ids like it."""
    folded = one_line(wanted).casefold()
    by_title = [id_ for id_, title in known.items() if folded and folded in title.casefold()]
    by_id = difflib.get_close_matches(wanted, map(str, known), n=_N_NEAR, cutoff=0.5)
    return list(dict.fromkeys([*by_title, *map(int, by_id)]))
