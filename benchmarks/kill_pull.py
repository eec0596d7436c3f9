"""Kill a pull at random moments, again and again, and see what is left each time.

A Hub stand-in on loopback serves a random checkpoint of several shards. `llamachat pull` is started in a process of
its own and killed with SIGKILL after a random time, over and over, until one run is left alone. It prints how often
it was killed, in which stage, how many bytes were sent more than once, and whether the store ever showed a half-made
model or the final file differed.

    PYTHONPATH=tests python benchmarks/kill_pull.py [--kills 100] [--shards 4] [--megabytes 160]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from support.checkpoints import LlamaShape, train_sentencepiece, write_random_checkpoint
from support.hub import HubStandIn

REPO = "demo/killed"
RANGE_BYTES, N_CONNECTIONS = 8 << 20, 4


def make_checkpoint(directory: Path, n_bytes: int, n_shards: int) -> None:
    """Random weights of about `n_bytes`, half of them in the feed-forward nets."""
    n_embd, n_ff = 512, 1536
    n_layer = max(1, n_bytes // (2 * (4 * n_embd * n_embd + 3 * n_embd * n_ff)))
    train_sentencepiece(directory.parent / "tokenizer.model")
    shape = LlamaShape(600, n_embd, n_ff, n_layer, 8, 8)
    write_random_checkpoint(directory, shape, n_shards=n_shards, tokenizer=directory.parent / "tokenizer.model")


class Pulls:
    """Runs of the command in one home."""

    def __init__(self, hub: HubStandIn, home: Path) -> None:
        self._environment = {**os.environ, "HF_ENDPOINT": hub.url, "LLAMACHAT_HOME": str(home), "HF_HOME": str(home)}
        self._environment.pop("HF_TOKEN", None)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run llamachat to its end."""
        command = [sys.executable, "-m", "llamachat", *arguments]
        return subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)

    def kill(self, after_s: float) -> str | None:
        """Start a pull, kill it after a time, and say in which stage it was; None if it was done before."""
        command = [sys.executable, "-m", "llamachat", "pull", REPO, "--quant", "q8_0", "--json"]
        process = subprocess.Popen(
            command, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
        try:
            process.wait(after_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return "killed"
        return None


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--megabytes", type=int, default=160)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name, HubStandIn() as hub:
        directory = Path(name)
        make_checkpoint(directory / "model", arguments.megabytes << 20, arguments.shards)
        hub.add_repo(REPO, directory / "model")
        started = time.monotonic()
        whole = json.loads(Pulls(hub, directory / "reference").run("pull", REPO, "--quant", "q8_0", "--json").stdout)
        length_s = time.monotonic() - started
        report(Trial(hub, directory, whole["sha256"], length_s), arguments.kills, rng)


class Trial:
    """Kills pulls in fresh homes until as many were killed as wanted."""

    def __init__(self, hub: HubStandIn, directory: Path, sha256: str, length_s: float) -> None:
        self.hub, self.directory, self.sha256, self.length_s = hub, directory, sha256, length_s
        self.n_homes = self.n_kills = self.n_half_made = self.n_wrong = 0
        self.n_sent = self.n_needed = 0
        self.most_per_kill = 0.0
        self.stages: Counter[str] = Counter()

    def run_home(self, rng: random.Random, n_kills: int) -> None:
        """Kill up to `n_kills` times in one home, then let it finish."""
        self.n_homes += 1
        home = self.directory / f"home-{self.n_homes}"
        pulls = Pulls(self.hub, home)
        first = len(self.hub.requests)
        killed_here = 0
        for _ in range(n_kills):
            if pulls.kill(rng.uniform(0.0, self.length_s * 1.1)) is None:
                break
            killed_here += 1
            self.stages[_stage(home)] += 1
            listed = json.loads(pulls.run("list", "--json").stdout)["models"]
            self.n_half_made += sum(model["repo"] == REPO and model["sha256"] != self.sha256 for model in listed)
        result = pulls.run("pull", REPO, "--quant", "q8_0", "--json")
        made = json.loads(result.stdout) if result.returncode == 0 else {}
        self.n_wrong += made.get("sha256") != self.sha256
        sent = sum(r.bytes_sent for r in self.hub.requests[first:] if (r.file_name or "").endswith(".safetensors"))
        needed = sum(p.stat().st_size for p in (self.directory / "model").glob("*.safetensors"))
        self.n_kills += killed_here
        self.n_sent, self.n_needed = self.n_sent + sent, self.n_needed + needed
        if killed_here:
            self.most_per_kill = max(self.most_per_kill, (sent - needed) / killed_here)


def _stage(home: Path) -> str:
    if any((home / "models").glob("*/manifest.json")):
        return "published"
    if any((home / "staging").glob("*.journal")):
        return "converting, while shards arrive"
    return "fetching headers" if any((home / "staging").glob("*/*")) else "starting"


def report(trial: Trial, n_kills: int, rng: random.Random) -> None:
    """Run the trial and print its figures."""
    while trial.n_kills < n_kills:
        trial.run_home(rng, min(rng.randint(1, 8), n_kills - trial.n_kills))
    print(f"killed {trial.n_kills} times in {trial.n_homes} homes; an undisturbed pull takes {trial.length_s:.1f} s")
    for stage, n in trial.stages.most_common():
        print(f"  {stage}: {n}")
    again = trial.n_sent - trial.n_needed
    bound = RANGE_BYTES * N_CONNECTIONS
    a_kill = again / max(1, trial.n_kills) / 1e6
    print(f"bytes sent again: {a_kill:.1f} MB a kill, {trial.most_per_kill / 1e6:.1f} MB at most")
    print(f"  (a range a connection is {bound / 1e6:.1f} MB)")
    print(f"half-made models seen: {trial.n_half_made}; final files that differ: {trial.n_wrong}")


if __name__ == "__main__":
    main()
