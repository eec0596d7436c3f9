"""Numbers for people."""

from __future__ import annotations

from datetime import datetime


def size(n_bytes: int | float) -> str:
    """Bytes in decimal units, as disks and download pages count them: 4.08 GB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.3g} {unit}"
    return f"{n_bytes:.0f} B"


def parameters(n_params: int) -> str:
    """A parameter count the way models are named: 6.74B."""
    if n_params >= 1_000_000_000:
        return f"{n_params / 1e9:.3g}B"
    return f"{n_params / 1e6:.3g}M"


def count(n: int, noun: str) -> str:
    """1 turn, 2,000 turns."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def moment(iso: str) -> str:
    """A time of ours, ISO 8601 in UTC, as this machine's clock shows it: 2026-11-21 14:05."""
    try:
        return f"{datetime.fromisoformat(iso).astimezone():%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError):
        return iso
