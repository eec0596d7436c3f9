"""Conversations are kept: what is stored loads back equal, whatever was undone, retried, forked, killed or damaged."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamachat.chat.history import History, SessionFacts
from llamachat.chat.history.migrations import MIGRATIONS
from llamachat.chat.history.titles import make_title
from llamachat.chat.message import Conversation, Message
from llamachat.engine.sampling import SamplingParams
from llamachat.errors import BadConversation, HistoryFailed, HistoryTooNew, UnknownSession
from support.stored_sessions import FACTS, STATS, answer, fill, say

_ROOT = Path(__file__).parents[1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "history.db"


# --- storing and loading ------------------------------------------------------------------------------------


def test_a_conversation_loads_back_with_all_its_facts(path: Path) -> None:
    facts = replace(FACTS, adapters=(("/adapters/a.gguf", 0.5),))
    with History(path) as history:
        session = history.start_session(facts)
        system = history.add_message(session, None, Message("system", "Be brief.\n\0\x1b[31m"))
        question = say(history, session, system, "湖水 🙂\r\n\ttab")
        last = answer(history, session, question, "Yes.", "length")
        history.set_pinned(question, True)
    with History(path) as history:
        loaded = history.load(session)
    assert loaded.conversation == Conversation(
        "Be brief.\n\0\x1b[31m",
        (Message("user", "湖水 🙂\r\n\ttab", is_pinned=True), Message("assistant", "Yes.")),
    )
    assert [message.key for message in loaded.conversation.messages] == [question, last]
    assert (loaded.system_key, loaded.tip, loaded.unanswered) == (system, last, None)
    assert (loaded.facts, loaded.finish_reason, loaded.title) == (facts, "length", "湖水 🙂 tab")
    assert loaded.last
    assert (loaded.last.facts, loaded.last.seed, loaded.last.stats) == (facts, 11, STATS)


def test_a_question_is_kept_apart_while_nothing_is_answered(path: Path) -> None:
    with History(path) as history:
        session = history.start_session(FACTS)
        first = say(history, session, None, "One?")
        done = answer(history, session, first, "One.")
        second = say(history, session, done, "Two?")
        for stored in (None, "", ""):
            if stored is not None:
                history.add_message(session, second, Message("assistant", stored))
            loaded = history.load(session)
            assert loaded.unanswered == Message("user", "Two?")
            assert loaded.unanswered.key == second
            assert (loaded.tip, len(loaded.conversation.messages)) == (done, 2)
        key = history.add_message(session, second, Message("assistant", ""))
        history.update_answer(key, "Tw")
        loaded = history.load(session)
    assert (loaded.unanswered, loaded.finish_reason, loaded.tip) == (None, "interrupted", key)
    assert loaded.conversation.messages[-1].content == "Tw"


def test_an_empty_answer_that_the_model_ended_is_one(path: Path) -> None:
    with History(path) as history:
        session = history.start_session(FACTS)
        answer(history, session, say(history, session, None, "Say nothing."), "", "stop")
        loaded = history.load(session)
    assert (len(loaded.conversation.messages), loaded.unanswered, loaded.finish_reason) == (2, None, "stop")


def test_no_message_may_stand_out_of_turn(path: Path) -> None:
    with History(path) as history:
        session, other = history.start_session(FACTS), history.start_session(FACTS)
        question = say(history, session, None, "One?")
        for where, parent, role in [
            (session, question, "user"), (session, question, "system"), (session, None, "assistant"),
            (other, question, "assistant"), (session, 999, "assistant"),
        ]:  # fmt: skip
            with pytest.raises(BadConversation):
                history.add_message(where, parent, Message(role, "Two?"))  # type: ignore[arg-type]
        with pytest.raises(BadConversation):
            history.set_head(other, question)
        assert history.load(session).unanswered == Message("user", "One?")


def test_answers_keep_what_they_were_made_with(path: Path) -> None:
    warmer = replace(FACTS, model="other:q4_0", sampling={"temperature": 1.0, "of a later version": 7})
    with History(path) as history:
        session = history.start_session(FACTS)
        first = answer(history, session, say(history, session, None, "One?"), "One.")
        history.set_facts(session, warmer)
        answer(history, session, say(history, session, first, "Two?"), "Two.")
        tree = history.tree(session)
    assert [stored.facts for stored in tree.messages] == [None, FACTS, None, warmer]
    assert tree.facts == warmer
    assert tree.facts.sampling_params() == SamplingParams(temperature=1.0)


def test_half_a_surrogate_pair_does_not_stop_anything(path: Path) -> None:
    with History(path) as history:
        session = history.start_session(FACTS)
        say(history, session, None, "a\ud800b")
        assert history.load(session).unanswered == Message("user", "a?b")
        assert history.search("\ud800") == []
        assert history.find("a") == session


_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("send"), _TEXTS, _TEXTS),
        st.tuples(st.just("undo"), st.integers(1, 3)),
        st.tuples(st.just("retry"), _TEXTS),
        st.tuples(st.just("fork"), st.integers(0, 100)),
        st.tuples(st.just("system"), _TEXTS),
        st.tuples(st.just("clear")),
        st.tuples(st.just("pin"), st.booleans()),
        st.tuples(st.just("interrupt"), _TEXTS, _TEXTS),
        st.tuples(st.just("reopen")),
    ),
    max_size=20,
)


class _Chat:
    """The same moves on the history and on plain values."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.history = History(path)
        self.session = self.history.start_session(FACTS)
        self.system: tuple[int, str] | None = None
        self.said: list[Message] = []
        self.reached: list[tuple[tuple[int, str] | None, list[Message]]] = []
        self.contents: dict[int, str] = {}

    def send(self, text: str, reply: str, finish_reason: Any = "stop") -> None:
        question = say(self.history, self.session, self._tip(), text)
        key = answer(self.history, self.session, question, reply, finish_reason)
        self.contents |= {question: text, key: reply}
        if reply or finish_reason == "stop":
            self.said += [Message("user", text, key=question), Message("assistant", reply, key=key)]
            self.reached.append((self.system, list(self.said)))
        else:
            self.history.set_head(self.session, self._tip())

    def interrupt(self, text: str, reply: str) -> None:
        self.send(text, reply, "interrupted")

    def undo(self, n: int) -> None:
        del self.said[max(0, len(self.said) - 2 * n) :]
        self.history.set_head(self.session, self._tip())

    def retry(self, reply: str) -> None:
        if self.said:
            self.said.pop()
            key = answer(self.history, self.session, self.said[-1].key or 0, reply)
            self.contents[key] = reply
            self.said.append(Message("assistant", reply, key=key))

    def fork(self, i: int) -> None:
        if self.reached:
            self.system, said = self.reached[i % len(self.reached)]
            self.said = list(said)
            self.history.set_head(self.session, self._tip())

    def start_over(self, text: str) -> None:
        key = self.history.add_message(self.session, None, Message("system", text))
        self.contents[key] = text
        self.system, self.said = (key, text), []

    def clear(self) -> None:
        self.said = []
        self.history.set_head(self.session, self._tip())

    def pin(self, pinned: bool) -> None:
        if self.said:
            self.history.set_pinned(self.said[-2].key or 0, pinned)
            for said in (self.said, *(said for _, said in self.reached)):
                said[:] = [replace(m, is_pinned=pinned) if m.key == self.said[-2].key else m for m in said]

    def reopen(self) -> None:
        began = any(stored.message.role == "user" for stored in self.history.tree(self.session).messages)
        if began:
            self.history.close()
            self.history = History(self.path)

    def _tip(self) -> int | None:
        return self.said[-1].key if self.said else self.system[0] if self.system else None


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=_MOVES)
def test_any_sequence_of_moves_loads_back_equal(moves: list[tuple[Any, ...]], tmp_path: Path) -> None:
    chat = _Chat(tmp_path / f"{random.getrandbits(64)}.db")
    try:
        for name, *arguments in moves:
            getattr(chat, {"system": "start_over"}.get(name, name))(*arguments)
            loaded = chat.history.load(chat.session)
            assert loaded.conversation == Conversation(chat.system[1] if chat.system else None, tuple(chat.said))
            assert [m.key for m in loaded.conversation.messages] == [m.key for m in chat.said]
            assert loaded.unanswered is None
        stored = {m.key: m.message.content for m in chat.history.tree(chat.session).messages}
        assert stored == chat.contents  # nothing that was ever said is gone
    finally:
        chat.history.close()


# --- titles, lists, finding, searching ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("How do lakes freeze?", "How do lakes freeze?"),
        ("  Fix\tthis:\n\n  def f():\n", "Fix this: def f():"),
        ("word " * 40, "word " * 11 + "word…"),
        ("x" * 100, "x" * 59 + "…"),
        ("湖水结冰" * 20, "湖水结冰" * 7 + "湖…"),
        ("\x1b[31mred\x07 \u202eflip", "[31mred flip"),
        ("👩\u200d👧 family", "👩\u200d👧 family"),
        ("", ""),
    ],
)
def test_titles(text: str, title: str) -> None:
    assert make_title(text) == title


@given(st.text(max_size=200))
def test_a_title_is_one_plain_line_of_limited_width(text: str) -> None:
    title = make_title(text)
    assert sum(2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1
               for c in title if c != "\u200d" and unicodedata.category(c) not in ("Mn", "Me")) <= 60  # fmt: skip
    assert all(c == "\u200d" or c == " " or unicodedata.category(c)[0] not in "CZ" for c in title)


def test_sessions_without_a_user_message_are_not_kept(path: Path) -> None:
    with History(path) as history:
        kept = history.start_session(FACTS)
        say(history, kept, None, "Hello")
        empty = history.start_session(FACTS)
        history.add_message(empty, None, Message("system", "Be brief."))
        assert [summary.id for summary in history.sessions()] == [kept]
        assert history.find("") == kept
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT id FROM session").fetchall() == [(kept,)]
        assert connection.execute("SELECT count(*) FROM message").fetchone() == (1,)
    connection.close()


def test_an_empty_session_of_a_killed_chat_goes_some_day_but_not_that_of_a_living_one(path: Path) -> None:
    with History(path) as living:
        young, old = living.start_session(FACTS), living.start_session(FACTS)
        connection = sqlite3.connect(path)
        connection.execute("UPDATE session SET created = '2020-01-01T00:00:00.000000+00:00' WHERE id = ?", (old,))
        connection.commit()
        with History(path):
            assert connection.execute("SELECT id FROM session").fetchall() == [(young,)]
        connection.close()


def test_sessions_are_found_by_id_title_and_last(path: Path) -> None:
    lakes, rivers, more = fill(path, "How do lakes freeze?", "Rivers in winter", "How do rivers flow?")
    with History(path) as history:
        assert [summary.id for summary in history.sessions()] == [more, rivers, lakes]
        assert [summary.id for summary in history.sessions(limit=1)] == [more]
        assert history.sessions()[0].n_messages == 3
        assert (history.find(""), history.find(" last ")) == (more, more)
        assert (history.find(str(lakes)), history.find("how do LAKES"), history.find("riv")) == (lakes, lakes, rivers)
        history.set_head(lakes, None)
        assert history.find("last") == lakes
        for text, near in [
            ("How do", {lakes, more}),
            ("winter", {rivers}),
            ("99999999999999999999", set()),
            ("-1", set()),
        ]:
            with pytest.raises(UnknownSession) as caught:
                history.find(text)
            assert near <= {id_ for id_, _ in caught.value.near}
        history.set_title(rivers, "  Ice\non \x1b[1mrivers ")
        assert history.load(rivers).title == "Ice on [1mrivers"
        history.set_title(rivers, "")
        assert history.load(rivers).title == "Rivers in winter"
        with pytest.raises(UnknownSession):
            history.load(99)


@pytest.mark.parametrize("batch", [0, 1, 1000])
def test_search_finds_words_in_any_language_and_case(batch: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamachat.chat.history.search._BATCH", batch)  # how much is indexed at once changes nothing
    lakes, winter = fill(path, "How do LAKES freeze? Ça gèle à l'Été", '湖水在冬天结冰 a*b "quoted" NEAR(x)')
    with History(path) as history:

        def found(words: str) -> set[int]:
            return {hit.session for hit in history.search(words)}

        assert found("lakes") == found("freeze LAK") == found("été") == found("ÇA gèle") == {lakes}
        assert found("湖") == found("湖水") == found("冬天结") == found("结冰 湖水") == {winter}
        assert found("answer") == {lakes, winter}
        assert found('"') == found('"quoted"') == found("a*b") == found("NEAR(x)") == found("*") == {winter}
        for nothing in (
            "lakes 湖水",
            "AND",
            "lakes OR xyzzy",
            "^lakes",
            "content:lakes",
            "%",
            "_",
            "\0",
            "",
            "Be brief",
        ):
            assert not found(nothing), nothing
        assert found(" ".join(f"w{i}" * 3 for i in range(3000))) == set()
        (hit, *_) = history.search("lak")
        assert (hit.title, "LAKES freeze" in hit.excerpt, len(hit.excerpt) < 130) == (
            history.load(lakes).title,
            True,
            True,
        )


def test_search_sees_what_changed_since_the_last_one(path: Path) -> None:
    with History(path) as history:
        session = history.start_session(FACTS)
        question = say(history, session, None, "question")
        key = history.add_message(session, question, Message("assistant", ""))
        history.update_answer(key, "unfinished walrus")
        assert [hit.key for hit in history.search("walrus")] == [key]
        history.update_answer(key, "finished seal", finish_reason="stop")
        assert history.search("walrus") == []
        assert [hit.key for hit in history.search("seal")] == [key]
        history.remove(session)
        assert history.search("seal") == []


@pytest.mark.parametrize("trouble", ["absent", "zeros", "damaged", "gone"])
def test_search_works_without_a_good_index(trouble: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (session,) = fill(path, "A walrus on the ice")
    if trouble == "absent":  # as SQLite before 3.34 says it
        monkeypatch.setattr("llamachat.chat.history.search._CREATE", "CREATE VIRTUAL TABLE message_text USING nothing")
    with History(path) as history:
        assert {hit.session for hit in history.search("walrus")} == {session}
    connection = sqlite3.connect(path)
    if trouble == "zeros":
        connection.execute("UPDATE message_text_data SET block = zeroblob(20)")
    if trouble == "damaged":
        connection.execute("UPDATE message_text_data SET block = randomblob(200)")
    if trouble == "gone":
        connection.execute("DROP TABLE message_text")
    connection.commit()
    connection.close()
    with History(path) as history:
        assert not history.notices
        assert {hit.session for hit in history.search("walrus")} == {session}
        answer(history, session, say(history, session, history.load(session).tip, "And a seal?"), "A seal.")
        assert len(history.search("seal")) == 2


def test_what_is_removed_is_gone_from_the_files(path: Path) -> None:
    kept, removed = fill(path, "a question that stays", "the secret xylophone password")
    with History(path) as history:
        assert history.search("xylophone")
        history.remove(removed)
        with pytest.raises(UnknownSession):
            history.load(removed)
        with pytest.raises(UnknownSession):
            say(history, removed, None, "Hello?")
        assert history.load(kept).title == "a question that stays"
    for file in path.parent.iterdir():
        assert b"xylophone" not in file.read_bytes(), file
    (new,) = fill(path, "another")
    assert new > removed  # ids are not used again


# --- files, processes, versions -----------------------------------------------------------------------------


def test_files_are_private(path: Path) -> None:
    old_mask = os.umask(0)
    try:
        with History(path) as history:
            say(history, history.start_session(FACTS), None, "Hello")
            modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
        path.chmod(0o644)
        History(path).close()
    finally:
        os.umask(old_mask)
    assert modes == dict.fromkeys(["history.db", "history.db-wal", "history.db-shm", "history.db.lock"], 0o600)
    assert path.stat().st_mode & 0o777 == 0o600


_WRITER = """
import sys
from pathlib import Path
from llamachat.chat.history import History
from llamachat.chat.message import Message
from support.stored_sessions import FACTS, answer, say

with History(Path(sys.argv[1])) as history:
    session, tip = history.start_session(FACTS), None
    print("ready", flush=True)
    sys.stdin.readline()
    for i in range(int(sys.argv[2])):
        tip = answer(history, session, say(history, session, tip, f"question {i}"), f"answer {i}")
    print(session, flush=True)
"""


def _start(script: str, *arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), str(_ROOT / "tests")])}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def test_two_processes_that_open_and_write_at_once(path: Path) -> None:
    writers = [_start(_WRITER, path, 40) for _ in range(3)]
    for writer in writers:
        assert writer.stdout
        assert writer.stdout.readline() == "ready\n"
    sessions = [int(writer.communicate("\n", timeout=60)[0]) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    with History(path) as history:
        assert {summary.id for summary in history.sessions()} == set(sessions)
        for session in sessions:
            said = [message.content for message in history.load(session).conversation.messages]
            assert said == [f"{who} {i}" for i in range(40) for who in ("question", "answer")]


def test_threads_of_one_process(path: Path) -> None:
    with History(path) as history:

        def write() -> None:
            session, tip = history.start_session(FACTS), None
            for i in range(20):
                tip = answer(history, session, say(history, session, tip, f"{i}"), f"{i}")

        threads = [threading.Thread(target=write) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [summary.n_messages for summary in history.sessions()] == [40, 40, 40]


_ANSWER = """
import itertools, sys
from pathlib import Path
from llamachat.chat.history import History
from llamachat.chat.message import Message
from support.stored_sessions import FACTS, say

with History(Path(sys.argv[1])) as history:
    session, tip = history.start_session(FACTS), None
    for i in itertools.count():
        question = say(history, session, tip, f"question {session} {i}")
        print(f"question {session} {i}", flush=True)
        tip = history.add_message(session, question, Message("assistant", ""))
        for n in range(1, 6):
            history.update_answer(tip, "word " * n, finish_reason="stop" if n == 5 else None)
"""


def test_a_kill_at_any_moment_loses_nothing_acknowledged(path: Path) -> None:
    acknowledged: set[str] = set()
    for _ in range(15):
        writer = _start(_ANSWER, path)
        assert writer.stdout
        first = writer.stdout.readline()
        time.sleep(random.uniform(0, 0.03))
        writer.send_signal(signal.SIGKILL)
        acknowledged |= {
            line for line in (first + writer.communicate()[0]).splitlines(keepends=True) if line[-1:] == "\n"
        }
        with History(path) as history:
            assert not history.notices
            assert history.load(history.find("last")).conversation is not None
    with History(path) as history:
        trees = [history.tree(summary.id) for summary in history.sessions()]
    stored = {
        stored.message.content + "\n" for tree in trees for stored in tree.messages if stored.message.role == "user"
    }
    assert len(acknowledged) >= 15
    assert acknowledged <= stored
    assert len(stored - acknowledged) <= 15  # stored, and killed before it could be said


_VERSION_1 = """
    INSERT INTO session
        VALUES (3, 'Old times', '2025-01-01T00:00:00.000000+00:00', '2025-01-02T00:00:00.000000+00:00', 8);
    INSERT INTO facts VALUES (5, 3, 'tiny:q8_0', NULL, 'chatml', '{"temperature": 0.5}', 4096, '[["/a.gguf", 0.5]]');
    INSERT INTO message (key, session, parent, role, content, created)
        VALUES (7, 3, NULL, 'user', 'Who were you?', '2025-01-01T00:00:00.000000+00:00');
    INSERT INTO message VALUES (8, 3, 7, 'assistant', 'A walrus.', 0, '2025-01-01T00:00:01.000000+00:00', 'stop', 5, 1,
        9, 4, 7, 0.5, 0.25, 1.5);
"""


def test_a_history_of_version_1_is_brought_up_to_date(path: Path) -> None:
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    for statement in MIGRATIONS[0]:
        connection.execute(statement)
    connection.executescript(f"{_VERSION_1}; PRAGMA user_version = 1; PRAGMA application_id = {0x6C6C6D63}")
    connection.close()
    with History(path) as history:
        assert not history.notices
        loaded = history.load(3)
        assert loaded.conversation == Conversation(
            None, (Message("user", "Who were you?"), Message("assistant", "A walrus."))
        )
        assert loaded.facts == SessionFacts(
            "tiny:q8_0", None, "chatml", {"temperature": 0.5}, 4096, (("/a.gguf", 0.5),)
        )
        assert loaded.last
        assert loaded.last.stats == STATS
        assert [hit.key for hit in history.search("walrus")] == [8]
        assert say(history, 3, 8, "And now?") == 9
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    connection.close()


def test_a_newer_history_is_refused_and_left_alone(path: Path) -> None:
    fill(path, "Hello")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(HistoryTooNew, match="99"):
        History(path)
    assert path.read_bytes() == before


def _grow(path: Path) -> None:
    """A history of many pages, part of it in the log of a process that was killed."""
    with History(path) as history:
        session, tip = history.start_session(FACTS), None
        for i in range(30):
            tip = answer(history, session, say(history, session, tip, f"question {i} " * 40), f"answer {i} " * 40)
        history.search("question")
        shutil.copytree(path.parent, path.parent.with_name("grown"))
    shutil.rmtree(path.parent)
    path.parent.with_name("grown").rename(path.parent)


def _damages(size: int) -> list[tuple[str, Any]]:
    rng = random.Random(6)

    def random_bytes(data: bytearray) -> None:
        for _ in range(rng.choice([1, 20, 500])):
            data[rng.randrange(len(data))] = rng.randrange(256)

    def zeroed_page(data: bytearray) -> None:
        start = 4096 * rng.randrange(len(data) // 4096)
        data[start : start + 4096] = bytes(4096)

    def truncated(data: bytearray) -> None:
        del data[rng.randrange(size) :]

    def header(data: bytearray) -> None:
        data[rng.randrange(100)] = rng.randrange(256)

    return [("random bytes", random_bytes)] * 20 + [("zeroed page", zeroed_page)] * 15 + [
        ("truncated", truncated), ("header", header)] * 15  # fmt: skip


def test_a_damaged_history_is_set_aside_and_never_deleted(tmp_path: Path) -> None:
    whole = tmp_path / "whole" / "history.db"
    _grow(whole)
    with History(whole) as history:  # takes the log in
        n_sessions = len(history.sessions())
    assert n_sessions == 1
    n_set_aside = 0
    for i, (kind, damage) in enumerate(_damages(whole.stat().st_size)):
        path = tmp_path / f"{i}" / "history.db"
        path.parent.mkdir()
        data = bytearray(whole.read_bytes())
        damage(data)
        path.write_bytes(data)
        path.with_name("history.db-wal").write_bytes(random.Random(i).randbytes(9000))
        try:
            history = History(path)
        except HistoryTooNew:  # the version itself was hit
            assert kind in ("header", "random bytes")
            assert path.read_bytes() == data
            continue
        with history:
            aside = list(path.parent.glob("history-damaged-*.db"))
            assert len(aside) == len(history.notices) <= 1
            if aside:
                n_set_aside += 1
                assert aside[0].read_bytes() == data
                assert aside[0].name in history.notices[0]
                assert aside[0].stat().st_mode & 0o077 == 0
                assert not history.sessions()
            _use(history)
    assert n_set_aside > 30


def test_one_wrong_letter_in_the_schema_is_damage(tmp_path: Path) -> None:
    """Reading alone, SQLite does not mind that a check speaks of a column that is not there; writing, it does."""
    path = tmp_path / "history.db"
    fill(path, "lake")
    data = path.read_bytes().replace(b"seed INTEGER CHECK", b"seeX INTEGER CHECK")
    path.write_bytes(data)
    with History(path) as history:
        (aside,) = tmp_path.glob("history-damaged-*.db")
        assert aside.read_bytes() == data
        assert not history.sessions()
        _use(history)


def _use(history: History) -> None:
    """Everything works, or says in a sentence why not: damage inside a value is not always to be seen."""
    for use in (
        lambda: [history.load(summary.id) for summary in history.sessions()],
        lambda: history.search("question"),
        lambda: answer(history, (new := history.start_session(FACTS)), say(history, new, None, "Hello"), "Hello"),
        lambda: history.remove(history.find("last")),
    ):
        with contextlib.suppress(HistoryFailed, UnknownSession):
            use()


def test_a_damaged_log_costs_at_most_what_is_in_it(tmp_path: Path) -> None:
    grown = tmp_path / "grown-here" / "history.db"
    _grow(grown)
    log = grown.with_name("history.db-wal").read_bytes()
    assert len(log) > 100_000
    for i in range(12):
        directory = tmp_path / f"log-{i}"
        shutil.copytree(grown.parent, directory)
        data = bytearray(log)
        if i % 2:
            data[random.Random(i).randrange(len(data))] ^= 0x55
        else:
            del data[random.Random(i).randrange(len(data)) :]
        (directory / "history.db-wal").write_bytes(data)
        with History(directory / "history.db") as history:
            _use(history)
            for summary in history.sessions():
                assert history.load(summary.id).conversation is not None


def test_a_damaged_history_that_another_has_open_is_not_moved(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamachat.chat.history.database._LOCK_S", 0.1)
    fill(path, "Hello")
    with History(path) as other:
        data = bytearray(path.read_bytes())
        data[4096:8192] = bytes(4096)
        path.with_name("copy").write_bytes(data)
        path.with_name("copy").rename(path)
        with pytest.raises(HistoryFailed, match="another llamachat has it open"):
            History(path)
        assert path.read_bytes() == data
        other.close()
    with History(path) as history:
        assert len(history.notices) == 1


_OPEN = """
import sys
from pathlib import Path
from llamachat.chat.history import History
from support.stored_sessions import FACTS, say

print("ready", flush=True)
sys.stdin.readline()
with History(Path(sys.argv[1])) as history:
    say(history, history.start_session(FACTS), None, "Hello")
    print(len(history.notices))
"""


def test_two_processes_that_meet_a_damaged_history_set_it_aside_once(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"damaged" * 5000)
    both = [_start(_OPEN, path) for _ in range(2)]
    for process in both:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    assert sorted(process.communicate(timeout=60)[0] for process in both) == ["0\n", "1\n"]
    assert [aside.read_bytes() for aside in path.parent.glob("history-damaged-*.db")] == [b"damaged" * 5000]
    with History(path) as history:
        assert len(history.sessions()) == 2


def test_another_program_s_database_is_set_aside(path: Path) -> None:
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (a)")
    connection.commit()
    connection.close()
    with History(path) as history:
        assert "set aside" in history.notices[0]
        assert fill(path, "Hello")


@pytest.mark.parametrize("what", ["directory", "fifo", "no home"])
def test_what_cannot_be_a_history_is_one_error(what: str, path: Path) -> None:
    if what == "no home":
        path.parent.write_text("a file")
    else:
        path.parent.mkdir()
        path.mkdir() if what == "directory" else os.mkfifo(path)
    with pytest.raises(HistoryFailed) as caught:
        History(path)
    assert caught.value.next_step


_LIMITED = """
import resource, sys
from pathlib import Path
from llamachat.chat.history import History
from llamachat.errors import HistoryFailed
from support.stored_sessions import FACTS, answer, say

with History(Path(sys.argv[1])) as history:
    session, tip, acknowledged = history.start_session(FACTS), None, 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
    try:
        while True:
            tip = answer(history, session, say(history, session, tip, "question " * 500), "answer " * 500)
            acknowledged += 1
    except HistoryFailed as error:
        print(error, error.next_step, sep="|")
    assert history.load(session).conversation.messages
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    tip = history.load(session).tip
    answer(history, session, say(history, session, tip, "room again"), "yes")
    print(acknowledged)
"""


def test_a_disk_that_takes_no_more_is_one_error_and_costs_nothing_written(path: Path) -> None:
    output, _ = (process := _start(_LIMITED, path)).communicate(timeout=60)
    assert process.returncode == 0
    error, acknowledged = output.splitlines()
    assert "disk" in error
    assert "Free some space" in error
    with History(path) as history:
        messages = history.load(history.find("last")).conversation.messages
    assert messages[-1].content == "yes"
    assert len(messages) - 2 >= 2 * int(acknowledged) > 10


def test_a_session_another_process_removed_is_one_error(path: Path) -> None:
    with History(path) as mine, History(path) as theirs:
        session = mine.start_session(FACTS)
        question = say(mine, session, None, "Hello")
        key = mine.add_message(session, question, Message("assistant", ""))
        theirs.remove(session)
        with pytest.raises(HistoryFailed):
            mine.update_answer(key, "Hello")
        with pytest.raises(UnknownSession):
            mine.add_message(session, question, Message("assistant", ""))
