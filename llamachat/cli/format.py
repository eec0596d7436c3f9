"""Numbers for people."""

from __future__ import annotations

from datetime import datetime

_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def size(n_bytes: int | float) -> str:
    """Bytes in decimal units, as disks and download pages count them: 4.08 GB."""
    for unit, factor in _UNITS:
        if n_bytes >= factor:
            return f"{n_bytes / factor:.3g} {unit}"
    return f"{n_bytes:.0f} B"


def share(n_done: int, n_bytes: int) -> str:
    """How many of how many bytes, in the unit of the latter: 1.2 of 3.9 GB."""
    unit, factor = next(((unit, factor) for unit, factor in _UNITS if n_bytes >= factor), ("B", 1.0))
    digits = 0 if n_bytes >= 100 * factor or unit == "B" else 1
    return f"{n_done / factor:.{digits}f} of {n_bytes / factor:.{digits}f} {unit}"


def duration(seconds: float) -> str:
    """How long something takes, as exact as anybody wants to know it: 35 s, 12 min, 3 h 20 min."""
    if seconds < 1:
        return "less than 1 s"
    if round(seconds) < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


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
