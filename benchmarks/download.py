"""This program's download against curl, from the Hub stand-in on loopback, in one run.

The stand-in runs in a process of its own. curl takes the file over one connection and checks nothing; ours takes it
over several, hashes it and makes it durable. The sides take turns; the medians are printed. With --per-connection the
server also limits each connection to so many MB/s, which is what several connections are for.

    python benchmarks/download.py [--gb 1] [--rounds 5] [--per-connection 20] [--dir DIRECTORY]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)
sys.path.append(str(ROOT / "tests"))

REPO, NAME = "org/large", "model.safetensors"


class Silence:
    """A watch that only looks on."""

    cancelled = threading.Event()

    def advance(self, _file_name: str, _n_bytes: int) -> None:
        """Say nothing."""

    def restart(self, _file_name: str, _n_bytes: int) -> None:
        """Say nothing."""

    def notice(self, text: str) -> None:
        """Something went wrong, and the figures are worth nothing."""
        print(text)


def serve(directory: Path, per_connection_mb_s: float) -> None:
    """Run in a child: the stand-in, until standard input ends."""
    from support.hub import HubStandIn, Slow

    with HubStandIn() as hub:
        hub.add_repo(REPO, directory)
        if per_connection_mb_s:
            hub.faults[NAME] = Slow(int(per_connection_mb_s * 1e6))
        print(hub.url, flush=True)
        sys.stdin.read()


def ours(out: Path, _: float) -> None:
    """Run in a child: look the file up, then print how long fetching it took."""
    from llamachat.models.hub import download, find_repository

    repository = find_repository(REPO, None, print)
    started = time.monotonic()
    download(repository, repository.files[NAME], out, Silence())
    print(time.monotonic() - started)


def _time_ours(url: str, out: Path) -> float:
    command = [sys.executable, __file__, "--child", "ours", str(out), "0"]
    done = subprocess.run(command, env={**os.environ, "HF_ENDPOINT": url}, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def _time_curl(url: str, out: Path) -> float:
    started = time.monotonic()
    subprocess.run(["curl", "-sfL", "-o", str(out), f"{url}/{REPO}/resolve/main/{NAME}"], check=True)
    return time.monotonic() - started


def compare(directory: Path, n_rounds: int, per_connection_mb_s: float) -> None:
    """Print the medians of both sides."""
    sides = {"curl": _time_curl, "ours": _time_ours}
    elapsed: dict[str, list[float]] = {side: [] for side in sides}
    command = [sys.executable, __file__, "--child", "serve", str(directory / "repo"), str(per_connection_mb_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        for n_round in range(n_rounds):
            # Who goes first alternates: what one side leaves behind in the page cache costs the next one time.
            for side in list(sides)[:: 1 if n_round % 2 else -1]:
                out = directory / f"{side}.out"
                elapsed[side].append(sides[side](url, out))
                out.unlink()
        server.stdin.close()
    n_mb = (directory / "repo" / NAME).stat().st_size / 1e6
    medians = {side: statistics.median(times) for side, times in elapsed.items()}
    limit = f"{per_connection_mb_s:g} MB/s a connection" if per_connection_mb_s else "no limit"
    row = "  ".join(
        f"{side} {n_mb / medians[side]:6.0f} MB/s {sorted(f'{t:.2f}' for t in elapsed[side])}" for side in sides
    )
    print(
        f"{limit:<24} {row}  ratio {medians['curl'] / medians['ours']:.2f}  load {os.getloadavg()[0]:.1f}", flush=True
    )


def main() -> None:
    """Print one row without a limit and one with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--per-connection", type=float, default=20.0, help="MB/s")
    parser.add_argument("--dir", type=Path, help="where to write (default: the system's temporary directory)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.dir) as name:
        directory = Path(name)
        (directory / "repo").mkdir()
        with (directory / "repo" / NAME).open("wb") as out:
            for _ in range(round(arguments.gb * 1024)):
                out.write(os.urandom(1 << 20))
        compare(directory, arguments.rounds, 0.0)
        os.truncate(directory / "repo" / NAME, 128 << 20)
        compare(directory, min(3, arguments.rounds), arguments.per_connection)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        function, place, limit = sys.argv[2:]
        {"serve": serve, "ours": ours}[function](Path(place), float(limit))
    else:
        main()
