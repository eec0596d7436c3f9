"""Two at work on one model: who waits, who is refused, who is named, and what a kill leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llamachat.errors import StoreBusy
from llamachat.models.locks import Holder, locked

_HOLD = """
import sys
from llamachat.models.locks import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def _held_elsewhere(name: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def _in_time(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_the_holder_is_named_to_who_is_refused() -> None:
    with _held_elsewhere("someone/tiny") as holder:
        refusal = rf"\(process {holder.pid}, since 20\d\d-.*already working on someone/tiny"
        with pytest.raises(StoreBusy, match=refusal), locked("someone/tiny"):
            pass
        with locked("someone/other"):
            pass


def test_who_waits_is_told_for_whom_and_gets_the_lock_after_a_kill() -> None:
    waits: list[tuple[str, Holder | None]] = []
    got = threading.Event()

    def wait() -> None:
        with locked("someone/tiny", lambda name, holder: waits.append((name, holder))):
            got.set()

    with _held_elsewhere("someone/tiny") as holder:
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert _in_time(lambda: bool(waits))
        assert not got.is_set()
        holder.send_signal(signal.SIGKILL)
        assert got.wait(20)
        waiting.join()
    assert [(name, who and who.pid) for name, who in waits] == [("someone/tiny", holder.pid)]


def test_the_note_of_a_killed_holder_is_not_believed(home: Path) -> None:
    """A lock that is held while the note still names the dead: whoever it is, it is not that one."""
    with _held_elsewhere("mine") as dead:
        note = (home / "locks" / "mine.who").read_text()
        assert json.loads(note)["pid"] == dead.pid
        dead.kill()
        dead.wait()
        assert (home / "locks" / "mine.who").exists()
    with _held_elsewhere("mine"):
        (home / "locks" / "mine.who").write_text(note)
        with pytest.raises(StoreBusy, match=r"^Another llamachat is already working on mine\.$"), locked("mine"):
            pass


@pytest.mark.parametrize(
    "note", ["", "[]", "{}", '{"pid": 1}', '{"pid": "x", "host": "", "since": 3}', "[" * 900, '{"pid": -1}']
)
def test_a_damaged_note_says_nothing(note: str, home: Path) -> None:
    with _held_elsewhere("mine"):
        (home / "locks" / "mine.who").write_text(note)
        with pytest.raises(StoreBusy, match="Another llamachat is already"), locked("mine"):
            pass


def test_nothing_but_the_lock_file_is_left(home: Path) -> None:
    with locked("mine"):
        assert json.loads((home / "locks" / "mine.who").read_text())["pid"] == os.getpid()
    assert {path.name for path in (home / "locks").iterdir()} <= {"mine.lock"}


def test_ctrl_c_ends_the_wait(home: Path) -> None:
    """In the real command: the first line says for whom, and the wait ends with 130."""
    (home / "checkpoint").mkdir(parents=True)
    with _held_elsewhere("checkpoint") as holder:
        process = subprocess.Popen(
            [sys.executable, "-m", "llamachat", "pull", str(home / "checkpoint")], stderr=subprocess.PIPE, text=True
        )
        assert process.stderr
        assert f"Waiting for another llamachat (process {holder.pid}, since" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, talk = process.communicate(timeout=20)
        assert process.returncode == 130, talk
        assert "Traceback" not in talk
