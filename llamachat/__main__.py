"""Where the `llamachat` command begins, and `python -m llamachat`.

Only what must hold before anything else is loaded: standard streams that can be used, and Ctrl-C during imports.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress


def main() -> None:
    """Run the command line."""
    try:
        _mend_streams()
        from llamachat.cli.app import app

        app()
    except KeyboardInterrupt:
        sys.exit(130)


class _Talk(io.TextIOWrapper):
    """Standard error: talk, for which no work is given up when its reader has gone or its disk is full."""

    def write(self, text: str) -> int:
        """See `io.TextIOBase`."""
        with suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        """See `io.TextIOBase`."""
        with suppress(OSError):
            super().flush()


def _mend_streams() -> None:
    """A stream that is closed becomes the null device; what cannot be encoded is replaced instead of an error."""
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = _Talk(sys.stderr.buffer, sys.stderr.encoding, errors="replace", line_buffering=True)


if __name__ == "__main__":
    main()
