"""Kill a scripted conversation at random moments, again and again, and see what the history has kept each time.

A process of its own talks to a model that is a script: it stores each question before the answer begins, the answer
every `--every` seconds while it grows, and the whole answer at its end, as a chat does. On standard output it says what
was acknowledged to it. It is killed with SIGKILL after a random time, while it opens the history, too. After each kill
the database is opened and read through, and everything that was acknowledged must be there.

    python benchmarks/kill_chat.py [--kills 100] [--every 0.1] [--seed 1]
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
import time
from pathlib import Path

from llamachat.chat.history import History, SessionFacts
from llamachat.chat.message import Message
from llamachat.engine.base import GenerationStats

FACTS = SessionFacts("scripted:f32", None, "chatml", {"temperature": 0.0}, 4096)
WORD_S = 0.005
LONGEST_S = 1.0


def talk(path: Path, every_s: float, seed: int) -> None:
    """The scripted chat; goes on until it is killed, and takes some turns back on the way."""
    rng = random.Random(seed)
    with History(path) as history:
        session = history.start_session(FACTS)
        system = tip = history.add_message(session, None, Message("system", "Be brief."))
        for turn in itertools.count():
            question = f"question {turn} of {seed}"
            asked = history.add_message(session, tip, Message("user", question))
            say(kind="question", session=session, key=asked, content=question)
            tip = answer(history, session, asked, rng, every_s)
            if rng.random() < 0.2:  # another answer to the same question
                tip = answer(history, session, asked, rng, every_s)
            if rng.random() < 0.1:
                tip = system
                history.set_head(session, tip)


def answer(history: History, session: int, asked: int, rng: random.Random, every_s: float) -> int:
    """One answer, word by word."""
    key = history.add_message(session, asked, Message("assistant", ""), seed=rng.getrandbits(32))
    content, stored_at = "", time.monotonic()
    n_words = rng.randrange(2, 60)
    for i in range(n_words):
        time.sleep(WORD_S)
        content += f"word {i} "
        say(kind="piece", session=session, key=key, content=content, t=time.monotonic())
        if time.monotonic() - stored_at >= every_s:
            history.update_answer(key, content)
            stored_at = time.monotonic()
    history.update_answer(key, content, finish_reason="stop", stats=GenerationStats(9, 0, n_words, 0.1, 0.1, 0.3))
    say(kind="answer", session=session, key=key, content=content)
    return key


def say(**facts: object) -> None:
    """A line of JSON in one write, so that a kill leaves no half of it."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


class Trial:
    """What was acknowledged, and what was found again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.acknowledged: dict[int, str] = {}
        self.sessions: set[int] = set()
        self.n_opened = self.n_set_aside = self.n_lost = self.n_wrong = 0
        self.moments = {"opening": 0, "answering": 0, "between": 0}
        self.lost_s: list[float] = []
        self.open_s: list[float] = []

    def run(self, rng: random.Random, every_s: float) -> None:
        """Start one chat, kill it, and look."""
        command = [sys.executable, __file__, "--talk", str(self.path), "--every", str(every_s)]
        process = subprocess.Popen([*command, "--seed", str(rng.getrandbits(32))], stdout=subprocess.PIPE, text=True)
        time.sleep(rng.uniform(0.05, LONGEST_S))
        process.send_signal(signal.SIGKILL)
        lines = [line for line in process.communicate()[0].splitlines(keepends=True) if line.endswith("\n")]
        said = [json.loads(line) for line in lines]
        for line in said:
            if line["kind"] != "piece":
                self.acknowledged[line["key"]] = line["content"]
                self.sessions.add(line["session"])
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
        pieces = [line for line in said if line["kind"] == "piece"]
        if pieces and said[-1]["kind"] == "piece":
            self.lost_s.append(_lost_s([p for p in pieces if p["key"] == pieces[-1]["key"]], stored))


def _lost_s(pieces: list[dict[str, object]], stored: dict[int, str]) -> float:
    """How old the oldest word is that was shown and not stored."""
    kept = stored[int(str(pieces[-1]["key"]))]
    missing = [float(str(piece["t"])) for piece in pieces if len(str(piece["content"])) > len(kept)]
    return float(str(pieces[-1]["t"])) - missing[0] if missing else 0.0


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--every", type=float, default=0.1, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--talk", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.talk:
        talk(arguments.talk, arguments.every, arguments.seed)
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        trial = Trial(Path(name) / "history.db")
        for _ in range(arguments.kills):
            trial.run(rng, arguments.every)
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
        f"{len(trial.acknowledged)} messages of {len(trial.sessions)} sessions acknowledged, "
        f"looked for after every kill: {trial.n_lost} missing, {trial.n_wrong} differ"
    )
    if trial.lost_s:
        print(f"answers cut short: {len(trial.lost_s)}; of each {statistics.median(trial.lost_s):.3f} s missing in the "
              f"median, {max(trial.lost_s):.3f} s at most")  # fmt: skip


if __name__ == "__main__":
    main()
