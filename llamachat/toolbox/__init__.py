"""Python files whose functions models may call, each in a process of its own.

What such a file does (print, read standard input, crash, never end) stays there; the process can be killed at any
moment, and is started anew for the next call.
"""

from llamachat.toolbox.process import ToolProcess

__all__ = ["ToolProcess"]
