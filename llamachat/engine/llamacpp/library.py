"""The library itself: started once, its messages kept for errors, its assertions turned into plain words."""

from __future__ import annotations

import ctypes
import os
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import llama_cpp
from llama_cpp import _ggml


def supports_gpu() -> bool:
    """Whether this build of llama.cpp can use a GPU."""
    return bool(llama_cpp.llama_supports_gpu_offload())


def build_description() -> str:
    """The version of the bindings and the instruction sets llama.cpp was built for."""
    quiet_log()
    return f"llama-cpp-python {llama_cpp.__version__} ({llama_cpp.llama_print_system_info().decode().strip(' |')})"


def read_text(function: Any, *arguments: Any) -> str:
    """Call one of llama.cpp's snprintf-like functions with a buffer that is large enough."""
    size = 256
    while True:
        buffer = ctypes.create_string_buffer(size)
        n_bytes = function(*arguments, buffer, size)
        if n_bytes < size:
            return buffer.value.decode("utf-8", "replace")
        size = n_bytes + 1


_log: deque[str] = deque(maxlen=50)
"""llama.cpp's latest messages. It logs from any thread to one place in the process."""


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(_level: int, text: bytes, _user_data: Any) -> None:
    message = text.decode("utf-8", "replace")
    _log.append(message)
    if os.environ.get("LLAMACHAT_DEBUG") == "1":
        sys.stderr.write(message)


@lru_cache(maxsize=1)
def quiet_log() -> None:
    """Keep llama.cpp's messages instead of letting it print them."""
    llama_cpp.llama_log_set(_on_log, None)


@ctypes.CFUNCTYPE(None, ctypes.c_char_p)  # type: ignore[untyped-decorator]
def _on_abort(message: bytes) -> None:
    """An assertion in llama.cpp failed, as damaged files make happen, and it is about to abort the process.

    That cannot be turned into an exception, so the process ends here in plain words; without this, llama.cpp
    would attach a debugger and dump core.
    """
    place = message.decode("utf-8", "replace").rpartition("/vendor/")[2]
    sys.stderr.write(f"\nError: llama.cpp gave up ({place}).\nNext: The file may be damaged; pull the model again.\n")
    sys.stderr.flush()
    os._exit(1)


@lru_cache(maxsize=1)
def init_backend() -> None:
    """Start the library; once in a process."""
    quiet_log()
    _ggml.libggml.ggml_set_abort_callback(_on_abort)
    llama_cpp.llama_backend_init()


@contextmanager
def collected_log() -> Iterator[deque[str]]:
    """What llama.cpp says meanwhile, for `last_error`."""
    llama_cpp.llama_log_set(_on_log, None)  # who else uses the library in this process may have set another
    _log.clear()
    yield _log


def last_error(log: deque[str]) -> str:
    """The most telling line llama.cpp left behind: the first error, without the function's name before it."""
    for message in log:
        if "error" in message or "failed" in message:
            return message.strip().rpartition("error ")[2].removeprefix("loading model: ")[:200]
    return "no reason given"
