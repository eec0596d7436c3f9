"""Kill a scripted conversation at random moments, again and again, and see what the history has kept each time.

A process of its own holds the program's session with an engine that is a script, and says on standard output what was
acknowledged to it. It is killed with SIGKILL after a random time, while it opens the history, too. After each kill the
database is opened and read through, and everything that was acknowledged must be there.

    PYTHONPATH=tests python benchmarks/kill_chat.py [--kills 100] [--seed 1]
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from llamachat.chat.events import Answer, SessionEvent, TextPiece
from llamachat.chat.history import History, SessionFacts
from llamachat.chat.history_record import HistoryRecord
from llamachat.chat.message import Conversation
from llamachat.chat.session import Session
from llamachat.chat.templates import ChatML
from llamachat.engine.sampling import SamplingParams
from llamachat.errors import LlamachatError
from support.fake_engine import FakeEngine

FACTS = SessionFacts("scripted:f32", None, "chatml", {"temperature": 0.0}, 4096)
WORD_S = 0.005
LONGEST_S = 2.5


class AcknowledgingRecord(HistoryRecord):
    """Says what was kept, as soon as it is."""

    def begin(self, asked: Conversation, sampling: SamplingParams) -> Conversation:
        """See `Record`."""
        kept = super().begin(asked, sampling)
        question = kept.messages[-1]
        say(kind="question", key=question.key, content=question.content)
        return kept

    def finish(self, answer: Answer) -> int | None:
        """See `Record`."""
        key = super().finish(answer)
        say(kind="answer", key=key, content=answer.content)
        return key


def talk(path: Path, seed: int) -> None:
    """The scripted chat; goes on until it is killed, and retries and takes back turns on the way."""
    rng = random.Random(seed)
    engine = FakeEngine(n_ctx=1 << 20)
    session = Session(engine, ChatML(), SamplingParams(temperature=0.0), system="Be brief.")
    with History(path) as history:
        session.record = AcknowledgingRecord(history, lambda _: FACTS, _give_up)
        for turn in itertools.count():
            show(session.send(f"question {turn} of {seed}", script(engine, rng)))
            if rng.random() < 0.2:
                show(session.retry(script(engine, rng)))
            if rng.random() < 0.1:
                session.undo(2)


def script(engine: FakeEngine, rng: random.Random) -> threading.Event:
    """Let the engine's next answer be some words with pauses between."""
    words = [(f"word {i} ".encode(), partial(time.sleep, WORD_S)) for i in range(rng.randrange(2, 400))]
    engine.answers.append([step for pair in words for step in pair])
    return threading.Event()


def show(events: Iterator[SessionEvent]) -> None:
    """What a screen would do: here a line for each piece, with all there was of the answer until then."""
    content = ""
    for event in events:
        if isinstance(event, TextPiece):
            content += event.text
            say(kind="piece", content=content, t=time.monotonic())


def _give_up(error: LlamachatError) -> None:
    raise error


def say(**facts: object) -> None:
    """A line of JSON in one write, so that a kill leaves no half of it."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


class Trial:
    """What was acknowledged, and what was found again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.acknowledged: dict[int, str] = {}
        self.n_opened = self.n_set_aside = self.n_lost = self.n_wrong = 0
        self.moments = {"opening": 0, "answering": 0, "between": 0}
        self.lost_s: list[float] = []
        self.open_s: list[float] = []

    def run(self, rng: random.Random) -> None:
        """Start one chat, kill it, and look."""
        command = [sys.executable, __file__, "--talk", str(self.path)]
        process = subprocess.Popen([*command, "--seed", str(rng.getrandbits(32))], stdout=subprocess.PIPE, text=True)
        time.sleep(rng.uniform(0.05, LONGEST_S))
        process.send_signal(signal.SIGKILL)
        lines = [line for line in process.communicate()[0].splitlines(keepends=True) if line.endswith("\n")]
        said = [json.loads(line) for line in lines]
        for line in said:
            if line["kind"] != "piece":
                self.acknowledged[line["key"]] = line["content"]
        last = said[-1] if said else None
        moment = "opening" if last is None else "answering" if last["kind"] != "answer" else "between"
        self.moments[moment] += 1
        self.look(said)

    def look(self, said: list[dict[str, object]]) -> None:
        """Open the history and compare."""
        started = time.monotonic()
        with History(self.path) as history:
            self.open_s.append(time.monotonic() - started)
            self.n_opened += 1
            self.n_set_aside += len(history.notices)
            stored = {
                message.key: message.message.content
                for summary in history.sessions()
                for message in history.tree(summary.id).messages
            }
            for summary in history.sessions():
                history.load(summary.id)
        self.n_lost += sum(key not in stored for key in self.acknowledged)
        self.n_wrong += sum(stored.get(key, text) != text for key, text in self.acknowledged.items())
        if said and said[-1]["kind"] == "piece":
            pieces = said[1 + max(i for i, line in enumerate(said) if line["kind"] == "question") :]
            self.lost_s.append(_lost_s(pieces, stored[max(stored)]))


def _lost_s(pieces: list[dict[str, object]], kept: str) -> float:
    """How old the oldest word is that was shown and not stored."""
    missing = [float(str(piece["t"])) for piece in pieces if len(str(piece["content"])) > len(kept)]
    return float(str(pieces[-1]["t"])) - missing[0] if missing else 0.0


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--talk", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.talk:
        talk(arguments.talk, arguments.seed)
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        trial = Trial(Path(name) / "history.db")
        for _ in range(arguments.kills):
            trial.run(rng)
        report(trial)


def report(trial: Trial) -> None:
    """What happened, and what must not."""
    connection = sqlite3.connect(trial.path)
    (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
    connection.close()
    print(
        f"killed {sum(trial.moments.values())} times: {trial.moments}; opened again {trial.n_opened} times in "
        f"{statistics.median(trial.open_s) * 1000:.1f} ms in the median, {max(trial.open_s) * 1000:.1f} at most"
    )
    print(f"set aside {trial.n_set_aside}; integrity_check: {verdict}")
    print(
        f"{len(trial.acknowledged)} messages acknowledged, "
        f"looked for after every kill: {trial.n_lost} missing, {trial.n_wrong} differ"
    )
    if trial.lost_s:
        print(f"answers cut short: {len(trial.lost_s)}; of each {statistics.median(trial.lost_s):.3f} s missing in the "
              f"median, {max(trial.lost_s):.3f} s at most")  # fmt: skip


if __name__ == "__main__":
    main()
