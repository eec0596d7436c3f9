"""`llamachat sessions`, and conversations as files: what is exported is all there, what is imported is not trusted."""

from __future__ import annotations

import copy
import html.parser
import json
import os
import sqlite3
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCommand
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamachat.chat.export import export_session, read_export, write_export
from llamachat.chat.history import History
from llamachat.chat.history.document import BadDocument, from_document, to_document
from llamachat.chat.message import Message
from llamachat.errors import CannotWrite, UnusableSessionFile
from support.stored_sessions import FACTS, answer, fill, say
from support.terminal import Terminal

HOSTILE = "\x1b]0;owned\x07</div><script>alert(1)</script>&amp;\u202e\x9b2J\0"


@pytest.fixture
def path(home: Path) -> Path:
    return home / "history.db"


def _branchy(path: Path) -> int:
    """A session with two system prompts, a retried answer, an edited question, and one that is not answered."""
    with History(path) as history:
        session = history.start_session(FACTS)
        system = history.add_message(session, None, Message("system", "Be brief."))
        first = say(history, session, system, "How do lakes freeze?")
        answer(history, session, first, "From the top.")
        cut = answer(history, session, first, "From the t", "interrupted")
        answer(history, session, say(history, session, cut, "Go on"), HOSTILE)
        say(history, session, history.add_message(session, None, Message("system", "Be long.")), "湖水?")
        history.set_head(
            session, answer(history, session, say(history, session, cut, "Why?"), "Ice floats.\n```\ncode")
        )
        history.set_pinned(first, True)
    return session


# --- the command --------------------------------------------------------------------------------------------


def test_nothing_is_made_where_nothing_was_saved(run: RunCommand, home: Path) -> None:
    assert run("sessions", "list").stdout == "ID\tLAST USED\tTITLE\tMESSAGES\tMODEL\n"
    assert json.loads(run("sessions", "list", "--json").stdout) == {"sessions": []}
    assert json.loads(run("sessions", "search", "x", "--json").stdout) == {"hits": []}
    for arguments in (["show"], ["export", "1"], ["rm", "1", "--yes"]):
        result = run("sessions", *arguments)
        assert (result.returncode, result.stdout) == (1, "")
        assert "There is no saved conversation yet." in result.stderr
    assert not home.exists()


def test_list_show_search_and_rm(run: RunCommand, path: Path) -> None:
    first = _branchy(path)
    (second,) = fill(path, "Rivers in winter")
    listed = json.loads(run("sessions", "list", "--json").stdout)["sessions"]
    assert [entry["id"] for entry in listed] == [second, first]
    assert listed[1].keys() == {"id", "title", "created", "updated", "model", "n_messages"}
    assert (listed[1]["title"], listed[1]["n_messages"]) == ("How do lakes freeze?", 8)

    shown = run("sessions", "show", first).stdout
    assert "you:\nWhy?\n\ntiny:q8_0:\nIce floats." in shown
    assert "From the t (interrupted)" in shown
    assert "From the top." in shown.partition("3 other branches:")[2]
    document = json.loads(run("sessions", "show", "How do", "--json").stdout)
    assert (document["id"], len(document["messages"])) == (first, 10)

    hits = json.loads(run("sessions", "search", "湖", "--json").stdout)["hits"]
    assert [(hit["session"], hit["role"], hit["excerpt"]) for hit in hits] == [(first, "user", "湖水?")]
    assert "Rivers in winter" in run("sessions", "search", "rivers", "WINTER").stdout

    refused = run("sessions", "rm", first)
    assert refused.returncode == 1
    assert "Next: Add --yes." in refused.stderr
    assert run("sessions", "rm", first, 99, "--yes").returncode == 1
    assert run("sessions", "rm", first, "last", "--yes").stdout.splitlines() == [
        f"Removed {first} (How do lakes freeze?).", f"Removed {second} (Rivers in winter).",
    ]  # fmt: skip
    assert json.loads(run("sessions", "list", "--json").stdout) == {"sessions": []}


def test_a_terminal_shows_escape_sequences_and_obeys_none(path: Path) -> None:
    with History(path) as history:
        session = history.start_session(FACTS)
        answer(history, session, say(history, session, None, HOSTILE), HOSTILE)
    for arguments in (["list"], ["show"], ["search", "owned"], ["export", "last"]):
        with Terminal([sys.executable, "-m", "llamachat", "sessions", *arguments], columns=120) as terminal:
            terminal.wait_for_exit()
            assert b"\x1b]0;" not in terminal.raw
            assert b"\xc2\x9b" not in terminal.raw
            assert "owned" in terminal.text


def test_a_damaged_history_is_said_and_a_newer_one_refused(run: RunCommand, path: Path) -> None:
    fill(path, "Hello")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 77")
    connection.close()
    result = run("sessions", "list")
    assert result.returncode == 1
    assert "newer llamachat" in result.stderr
    path.write_bytes(b"no database at all" * 1000)
    result = run("sessions", "list", "--json")
    assert result.returncode == 0
    assert json.loads(result.stdout) == {"sessions": []}
    assert "Warning: The history was damaged; it was set aside as" in result.stderr.replace("\n", " ")


# --- files --------------------------------------------------------------------------------------------------


def test_export_writes_what_the_name_says_and_import_takes_it_back(run: RunCommand, path: Path, tmp_path: Path) -> None:
    session = _branchy(path)
    for name, begins in [
        ("a.md", "# How do lakes"),
        ("a.markdown", "# "),
        ("a.html", "<!DOCTYPE html>"),
        ("a.json", "{"),
    ]:
        result = run("sessions", "export", session, tmp_path / name)
        assert (result.returncode, result.stdout) == (0, "")
        assert (tmp_path / name).read_text().startswith(begins)
    assert run("sessions", "export", session).stdout == (tmp_path / "a.md").read_text()
    assert run("sessions", "export", session, "--format", "JSON").stdout == (tmp_path / "a.json").read_text()
    (tmp_path / "a.md").write_text("dear diary")
    refused = run("sessions", "export", session, tmp_path / "a.md")
    assert (refused.returncode, (tmp_path / "a.md").read_text()) == (1, "dear diary")
    assert "--force" in refused.stderr
    assert run("sessions", "export", session, tmp_path / "a.md", "--force").returncode == 0
    assert (tmp_path / "a.md").read_text().startswith("# ")
    assert run("sessions", "export", session, tmp_path / "a.pdf").returncode == 2
    assert run("sessions", "export", session, "--format", "pdf").returncode == 2

    taken = json.loads(run("sessions", "import", tmp_path / "a.json", "--json").stdout)["sessions"]
    assert [entry["title"] for entry in taken] == ["How do lakes freeze?"]
    again = run("sessions", "export", taken[0]["id"], "--format", "json").stdout
    assert again == (tmp_path / "a.json").read_text()
    with History(path) as history:
        assert history.load(taken[0]["id"]).conversation == history.load(session).conversation


def test_import_keeps_nothing_if_one_file_is_bad(run: RunCommand, path: Path, tmp_path: Path) -> None:
    session = _branchy(path)
    run("sessions", "export", session, tmp_path / "a.json")
    (tmp_path / "b.json").write_text("[]")
    result = run("sessions", "import", tmp_path / "a.json", tmp_path / "b.json")
    assert result.returncode == 1
    assert "b.json" in result.stderr
    assert "Traceback" not in result.stderr
    assert len(json.loads(run("sessions", "list", "--json").stdout)["sessions"]) == 1


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(choices=st.lists(st.tuples(st.integers(0, 50), _TEXT, st.sampled_from(["stop", "length", None])), max_size=12))
def test_any_tree_survives_export_and_import(choices: list[tuple[int, str, Any]], tmp_path: Path) -> None:
    with History(tmp_path / "history.db") as history:
        session = history.start_session(FACTS)
        places: list[int | None] = [None, history.add_message(session, None, Message("system", "湖"))]
        for i, text, reason in [(0, "first", "stop"), *choices]:
            question = say(history, session, places[i % len(places)], text)
            places.append(answer(history, session, question, text[::-1], reason))
        exported = export_session(history.tree(session), "json")
        (tmp_path / "x.json").write_text(exported, encoding="utf-8")
        taken = history.add_tree(read_export(tmp_path / "x.json"))
        assert export_session(history.tree(taken), "json") == exported
        assert history.load(taken).conversation == history.load(session).conversation


class _Text(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_holds_the_text_and_none_of_its_markup(path: Path) -> None:
    with History(path) as history:
        session = history.start_session(FACTS)
        answer(history, session, say(history, session, None, f"<img src=x onerror=alert(1)> {HOSTILE}"), "a\r\n<b>\"'")
        page = export_session(history.tree(session), "html")
    parsed = _Text()
    parsed.feed(page)
    assert parsed.tags <= {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "article", "div"}
    assert "<img src=x onerror=alert(1)>" in parsed.text
    assert "<script>alert(1)</script>&amp;" in parsed.text
    assert "a\n<b>\"'" in parsed.text
    assert not {"\x1b", "\0", "\x9b", "\x07", "\r"} & set(page)


def test_markdown_of_an_answer_cut_short_in_a_code_block_goes_on_as_text(path: Path) -> None:
    session = _branchy(path)
    with History(path) as history:
        lines = export_session(history.tree(session), "md").splitlines()
    assert lines.count("```") == 2
    assert lines[-1] == "*3 other branches are not shown.*"
    assert "*(interrupted)*" in lines


def test_an_export_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "a.md"
    write_export(target, "old\n")
    write_export(target, "湖\ud800\n")
    assert target.read_text() == "湖?\n"
    (tmp_path / "d.md").mkdir()
    os.mkfifo(tmp_path / "f.md")
    for place in (tmp_path / "d.md", tmp_path / "f.md", tmp_path / "none" / "a.md", target / "a.md"):
        with pytest.raises(CannotWrite):
            write_export(place, "text")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.md", "d.md", "f.md"]
    assert stat.S_ISFIFO((tmp_path / "f.md").stat().st_mode)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"format": NaN}', b"9" * 10_000,
        b'{"format": "llamachat conversation", "version": 2}',
        b'{"format": "llamachat conversation", "version": 1}',
    ],
    ids=lambda data: repr(data[:30]),
)  # fmt: skip
def test_a_file_that_is_no_conversation_is_one_error(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(UnusableSessionFile) as caught:
        read_export(tmp_path / "x.json")
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("what", ["directory", "fifo", "absent"])
def test_what_is_not_a_file_is_one_error(what: str, tmp_path: Path) -> None:
    if what != "absent":
        (tmp_path / "x.json").mkdir() if what == "directory" else os.mkfifo(tmp_path / "x.json")
    with pytest.raises(UnusableSessionFile):
        read_export(tmp_path / "x.json")


_BAD: list[tuple[list[Any], list[Any]]] = [
    (["title"], [None, 3, {}]),
    (["created"], ["yesterday", "2025-01-01", None, "9999-12-31T23:59:59-14:00", 7]),
    (["head"], [99, "1", True, 1.0]),
    (["facts"], [None, [], {}]),
    (["facts", "sampling", "temperature"], ["hot", -1, True, None, 1e308]),
    (["facts", "sampling", "top_k"], [2**40, 0.5, -1]),
    (["facts", "sampling", "else"], [{}, [1], 1e300]),
    (["facts", "n_ctx"], [0, -1, 10**12, 0.5]),
    (["facts", "model"], ["", "a\x1b[31m", None, "x" * 9999]),
    (["facts", "model_sha256"], ["xyz", 7]),
    (["facts", "adapters"], [None, [1], [{}], [{"path": "/a", "scale": "1"}], [{"path": "", "scale": 1}]]),
    (["facts", "options"], [None, [], 3]),
    (["facts", "options", "max_tokens"], [0, "1", True, 0.5]),
    (["facts", "options", "stop"], ["END", [1], None]),
    (["facts", "options", "of_later"], [{}, [1]]),
    (["messages"], [None, {}, [], [1], "text"]),
    (["messages", 0, "role"], ["tool", None, ["user"], "assistant"]),
    (["messages", 1, "role"], ["assistant", "system"]),
    (["messages", 1, "id"], [1, -1, "2", 10**400, None]),
    (["messages", 1, "parent"], [2, 3, 99, "1", True]),
    (["messages", 2, "parent"], [None, 1]),
    (["messages", 1, "content"], [None, 7, ["a"]]),
    (["messages", 1, "is_pinned"], [None, 1, "yes"]),
    (["messages", 1, "n_summarized"], [None, -1, "2", True]),
    (["messages", 2, "reasoning"], [None, 7, ["a"]]),
    (["messages", 2, "finish_reason"], ["tired", 1]),
    (["messages", 2, "seed"], [-1, "x", 2**80]),
    (["messages", 2, "stats"], [1, {}, {"n_prompt": 1}]),
    (["messages", 2, "stats", "prefill_s"], [-1, "1", None]),
    (["messages", 2, "facts"], [1, {}]),
]


@pytest.mark.parametrize(("where", "values"), _BAD, ids=lambda value: ".".join(map(str, value))[:40])
def test_every_field_of_an_import_is_checked(where: list[Any], values: list[Any], path: Path) -> None:
    session = _branchy(path)
    with History(path) as history:
        good = to_document(history.tree(session))
    from_document(json.loads(json.dumps(good)))
    for value in values:
        document = copy.deepcopy(good)
        place = document
        for step in where[:-1]:
            place = place[step]
        place[where[-1]] = value
        with pytest.raises(BadDocument):
            from_document(json.loads(json.dumps(document)))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_a_document_is_taken_whole_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    file = tmp_path / "history.db"
    with History(file) as history:
        if not history.sessions():
            _branchy(file)
        document: Any = json.loads(json.dumps(to_document(history.tree(history.sessions()[-1].id))))
        place, parent, step = document, None, None
        while isinstance(place, (dict, list)) and place and data.draw(st.booleans() if parent else st.just(True)):
            parent, step = (
                place,
                data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place)))),
            )
            place = place[step]
        parent[step] = data.draw(_JSON)
        try:
            tree = from_document(document)
        except BadDocument:
            return
        taken = history.add_tree(tree)
        again = to_document(history.load(taken).tree)
        assert [entry["content"] for entry in again["messages"]] == [m.message.content for m in tree.messages]
        history.remove(taken)


def test_options_and_summaries_survive_export_and_import(path: Path, tmp_path: Path) -> None:
    facts = replace(FACTS, options={"max_tokens": 9, "stop": ["END", "湖"], "overflow": "compact", "of_later": True})
    with History(path) as history:
        session = history.start_session(facts)
        first = answer(history, session, say(history, session, None, "One"), "1")
        request = history.add_message(session, first, Message("user", "Sum up.", n_summarized=1))
        answer(history, session, request, "Numbers.")
        write_export(tmp_path / "a.json", export_session(history.tree(session), "json"))
        taken = history.load(history.add_tree(read_export(tmp_path / "a.json")))
        assert taken.facts == facts
        assert [message.n_summarized for message in taken.conversation.messages] == [0, 0, 1, 0]
        older = json.loads((tmp_path / "a.json").read_text("utf-8"))
        del older["facts"]["options"], older["messages"][2]["n_summarized"]
        read = from_document(older)
        assert (read.facts.options, read.messages[2].message.n_summarized) == ({}, 0)


def test_an_imported_conversation_from_the_future_is_not_the_newest_for_ever(path: Path) -> None:
    session = _branchy(path)
    with History(path) as history:
        document = to_document(history.tree(session))
        history.add_tree(from_document({**document, "updated": "9998-01-01T00:00:00+00:00"}))
        history.set_head(session, None)
        assert history.find("last") == session
