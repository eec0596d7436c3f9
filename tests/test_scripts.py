"""`llamachat chat` as scripts use it: what is asked, what stands on stdout, and how it ends. The real model answers.

One thread, because a second one makes llama.cpp very slow where other work shares the cores.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from conftest import RunCommand

from llamachat.chat.history import History
from llamachat.paths import history_path

CHAT = f"{shlex.quote(sys.executable)} -m llamachat chat --threads 1 --temperature 0"
LONG = "Tell me a very long story about a dragon."


def shell(command: str, directory: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a line as bash does, where `llamachat chat` is the command under test."""
    command = command.replace("llamachat chat", CHAT)
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False, cwd=directory
    )


@pytest.fixture
def chat(run: RunCommand) -> RunCommand:
    """Run `llamachat chat ARGUMENTS…`."""
    return partial(run, "chat", "--threads", "1", "--temperature", "0")


@pytest.fixture(autouse=True)
def _own_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are run in other directories, too."""
    root = str(Path(__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])))


def test_a_commit_message_for_a_diff(tmp_path: Path) -> None:
    git = "git -c user.name=A -c user.email=a@example.com"
    begin = f"git init -q . && echo 'print(1)' > hello.py && git add . && {git} commit -qm first"
    prepared = shell(f"{begin} && echo 'print(2)' > hello.py", tmp_path)
    assert prepared.returncode == 0, prepared.stderr
    result = shell('git diff | llamachat chat -p "Write a commit message" --max-tokens 30', tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    assert "standard input: " in result.stderr
    assert "tokens" in result.stderr
    with History(history_path()) as history:
        assert history.sessions()[0].title == "Write a commit message"


def test_a_reader_that_leaves_is_not_complained_about() -> None:
    result = shell(f"set -o pipefail; llamachat chat -p {shlex.quote(LONG)} --max-tokens 400 | head -c 5")
    assert len(result.stdout) == 5
    assert result.stderr == ""
    assert result.returncode == 1


@pytest.mark.parametrize("option", ["", "--json"])
def test_a_full_disk_is_one_error(option: str) -> None:
    result = shell(f"llamachat chat -p Hello --max-tokens 3 {option} > /dev/full")
    assert result.returncode == 1
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["Error", "Next"]


@pytest.mark.parametrize("gone", ["2>/dev/full", "2> >(exec true)"], ids=["full", "closed"])
def test_an_answer_does_not_depend_on_who_reads_the_talk(gone: str) -> None:
    result = shell(f"sleep 0.2 | llamachat chat -p Hello --max-tokens 3 --stats {gone}")
    assert result.returncode == 0
    assert result.stdout.strip()


# --- what is asked ------------------------------------------------------------------------------------------


def test_each_file_has_its_tokens_said(chat: RunCommand, tmp_path: Path) -> None:
    short, long = tmp_path / "short.txt", tmp_path / "long.txt"
    short.write_text("One word.", encoding="utf-8")
    long.write_text("one two three four " * 40, encoding="utf-8")
    result = chat("-f", short, "-f", long, "-f", "-", "-p", "How many?", "--max-tokens", "1", text="And this.")
    (note,) = result.stderr.splitlines()
    parts = [part.rpartition(": ") for part in note.split(" · ")]
    assert [name for name, _, _ in parts] == [str(short), str(long), "standard input"]
    counts = [int(count.removesuffix(" tokens")) for _, _, count in parts]
    assert counts[0] < 5 < 150 < counts[1]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\x7fELF\0\0", "is a binary file"),
        ("Hi".encode("utf-16"), "is a binary file"),
        (b"caf\xe9", "is not UTF-8 text"),
    ],
)
def test_what_is_no_text_is_refused(chat: RunCommand, tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    result = chat("--file", path, "-p", "What is it?", "--json")
    assert (result.returncode, result.stdout) == (1, "")
    assert f"{path}: {problem}." in result.stderr


def test_what_never_ends_is_refused() -> None:
    result = shell("yes | llamachat chat -p 'What is it?'; echo $?")
    assert result.stdout == "1\n"
    assert "standard input: is larger than 16 MB." in result.stderr


def test_input_that_does_not_come_is_said_and_that_there_was_none() -> None:
    waiting = shell("sleep 4 | llamachat chat -p Hello --max-tokens 1")
    assert waiting.stderr.splitlines() == [
        "Reading standard input to its end; </dev/null leaves it out.",
        "standard input: 0 tokens",
    ]


# --- one JSON document --------------------------------------------------------------------------------------


def test_only_the_document_is_on_stdout_and_an_interrupted_one_is_whole(demo_model: Path) -> None:
    assert demo_model.exists()
    for wait_s in (2, 6, 20):  # until the interruption comes after the first token, however slow the machine
        process = subprocess.Popen(
            [*shlex.split(CHAT), "-p", LONG, "--json", "--stats"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(wait_s)
        process.send_signal(signal.SIGINT)
        document, talk = process.communicate(timeout=60)
        assert process.returncode == 130, talk
        assert "Interrupted." in talk
        assert "Traceback" not in talk
        answer = json.loads(document) if document else {"content": ""}
        if answer["content"]:
            break
    assert answer["content"]
    assert answer["finish_reason"] == "interrupted"
    assert answer["completion_tokens"] > 0


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["no-such-model", "-p", "Hi"], 1),
        (["-p", "word " * 500, "--ctx", "256"], 1),
        (["-p", "Hi", "--kv-type", "f64"], 2),
    ],
    ids=["model", "too long", "usage"],
)
def test_an_error_leaves_stdout_empty(chat: RunCommand, arguments: list[str], status: int) -> None:
    result = chat(*arguments, "--json")
    assert (result.returncode, result.stdout) == (status, "")
    assert "Error: " in result.stderr
    assert "Traceback" not in result.stderr


# --- an answer that parses ----------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "population": {"type": "integer", "minimum": 0},
        "twins": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 2, "uniqueItems": True},
    },
    "required": ["city", "population"],
}


def test_an_answer_by_a_schema(chat: RunCommand, tmp_path: Path) -> None:
    schema = tmp_path / "city.json"
    schema.write_text(json.dumps(SCHEMA), encoding="utf-8")
    asked = ("-p", "Describe Paris as JSON.", "--json-schema", schema)
    result = chat(*asked)
    answer = json.loads(result.stdout)
    assert {"city", "population"} <= answer.keys() <= SCHEMA["properties"].keys()  # type: ignore[attr-defined]
    assert (
        result.stderr
        == f"Warning: {schema}: this is not held, so check it in the answer: /properties/twins uniqueItems.\n"
    )

    cut = chat(*asked, "--max-tokens", "4", "--json")
    document = json.loads(cut.stdout)
    assert document["finish_reason"] == "length"
    assert cut.returncode == 1, "what does not parse is not what was asked for"
    assert "Error: The answer is incomplete" in cut.stderr


def test_an_answer_by_a_grammar(chat: RunCommand, tmp_path: Path) -> None:
    grammar = tmp_path / "colour.gbnf"
    grammar.write_text('root ::= "红" | "绿" | "蓝"  # one of three\n', encoding="utf-8")
    result = chat("-p", "Which colour?", "--grammar", grammar, "--temperature", "1.5")
    assert result.stdout in ("红\n", "绿\n", "蓝\n")


def test_a_wrong_grammar_is_said_before_the_model_loads(chat: RunCommand, tmp_path: Path) -> None:
    path = tmp_path / "wrong"
    path.write_text('root ::= "a" |\n  numbr\n', encoding="utf-8")
    for option, problem in (
        ("--grammar", "line 2, column 3: there is no rule named numbr"),
        ("--json-schema", "not valid JSON"),
    ):
        result = chat("no-such-model", "-p", "Hi", option, path)
        assert (result.returncode, result.stdout) == (1, "")
        assert problem in result.stderr
        assert "no-such-model" not in result.stderr
    assert chat("-p", "Hi", "--grammar", path, "--json-schema", path).returncode == 2
    assert chat("-p", "Hi", "--grammar", path, "--stop", "x").returncode == 2


# --- going on with a conversation ---------------------------------------------------------------------------


def test_resume_without_an_id_goes_on_with_the_last(chat: RunCommand) -> None:
    few = ("--max-tokens", "3", "--json")
    first = json.loads(chat("-p", "Name a colour.", *few).stdout)
    for arguments in (["--resume", "-p", "And another."], ["-p", "A third.", *few, "--resume"]):
        result = chat(*arguments, *few)
        assert result.returncode == 0, result.stderr
        again = json.loads(result.stdout)
        assert again["session"] == first["session"]
        assert again["prompt_tokens"] > first["prompt_tokens"]
        first = again


@pytest.mark.parametrize("option", ["--system=Be brief.", "--examples=turns.jsonl", "--infill"])
def test_what_begins_a_conversation_is_refused_with_resume(chat: RunCommand, option: str) -> None:
    result = chat("--resume", option, *(["a.py", "b.py"] if option == "--infill" else ["-p", "Hi"]))
    assert (result.returncode, result.stdout) == (2, "")
    assert "--resume" in result.stderr
