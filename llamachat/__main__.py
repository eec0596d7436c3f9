"""Where the `llamachat` command begins, and `python -m llamachat`.

Only what must hold before anything else is loaded: standard streams that can be used, and Ctrl-C during imports.
"""

from __future__ import annotations

import io
import os
import sys


def main() -> None:
    """Run the command line."""
    try:
        _mend_streams()
        from llamachat.cli.app import app

        app()
    except KeyboardInterrupt:
        sys.exit(130)


def _mend_streams() -> None:
    """A stream that is closed becomes the null device; what cannot be encoded is replaced instead of an error."""
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


if __name__ == "__main__":
    main()
