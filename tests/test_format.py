"""Numbers for people."""

from __future__ import annotations

import pytest

from llamachat.cli.format import duration, share


@pytest.mark.parametrize(
    ("seconds", "says"),
    [
        (0.0, "less than 1 s"),
        (0.99, "less than 1 s"),
        (1.0, "1 s"),
        (35.4, "35 s"),
        (119.4, "119 s"),
        (119.9, "2 min"),
        (7100.0, "118 min"),
        (7200.0, "2 h 0 min"),
        (12_000.0, "3 h 20 min"),
    ],
)
def test_durations(seconds: float, says: str) -> None:
    assert duration(seconds) == says


@pytest.mark.parametrize(
    ("n_done", "n_bytes", "says"),
    [
        (0, 0, "0 of 0 B"),
        (12, 999, "12 of 999 B"),
        (1_200_000_000, 3_900_000_000, "1.2 of 3.9 GB"),
        (80_000_000, 3_900_000_000, "0.1 of 3.9 GB"),
        (99_600_000, 417_000_000, "100 of 417 MB"),
    ],
)
def test_shares(n_done: int, n_bytes: int, says: str) -> None:
    assert share(n_done, n_bytes) == says
