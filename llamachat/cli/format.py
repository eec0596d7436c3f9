"""Numbers for people."""

from __future__ import annotations


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
