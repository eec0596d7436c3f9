"""`llamachat` that keeps the context window of short conversations, too: run as a program of its own.

    python -m support.eager_chat chat …

All of it is real but the limits below which keeping is not worth it: waiting for them would make tests slow.
"""

from __future__ import annotations

from llamachat.__main__ import main
from llamachat.cli import context

if __name__ == "__main__":
    context._WORTH_S = 0.0
    context._DISK_BYTES_PER_S = 1e12
    main()
