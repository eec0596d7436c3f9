"""The process apart: imports one file, tells its public functions, and calls them as it is asked to.

Requests and replies are JSON, a line each, over two pipes of their own. Standard input is empty; what is printed goes
to the parent, which tells the user.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from llamachat.chat.tools.schema import BadTool, describe_function

_MAX_CHARACTERS = 1_000_000
"""Of a result; the rest never leaves this process."""

Functions = Mapping[str, Callable[..., Any]]


def serve(path: str, requests_fd: int, replies_fd: int) -> None:
    """Until the pipe of requests is closed: one reply about the file, and then one to each request."""
    os.set_inheritable(requests_fd, False)
    os.set_inheritable(replies_fd, False)
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests_fd, waiting), daemon=True).start()
    with os.fdopen(replies_fd, "w", encoding="utf-8") as replies:
        functions, told = _open(Path(path))
        _reply(replies, told)
        while True:
            request = json.loads(waiting.get())
            _reply(replies, _call(functions[request["name"]], request["arguments"]))


def _reply(replies: Any, value: dict[str, Any]) -> None:
    sys.stdout.flush()
    replies.write(json.dumps(value) + "\n")
    replies.flush()


def _listen(requests_fd: int, waiting: queue.SimpleQueue[str]) -> None:
    """Hand requests to the main thread; when the parent is gone, end whatever is running here, and its children."""
    with os.fdopen(requests_fd, encoding="utf-8") as requests:
        for line in requests:
            waiting.put(line)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _open(path: Path) -> tuple[Functions, dict[str, Any]]:
    try:
        functions = _public_functions(_load(path))
        tools = [describe_function(function) for function in functions.values()]
    except BadTool as error:
        return {}, {"problem": str(error), "next_step": error.next_step}
    except BaseException as error:  # whatever the file raises, sys.exit() included
        return {}, {"problem": f"it cannot be imported: {_describe(error)}{_where(error, path)}"}
    return functions, {
        "tools": [{"name": one.name, "description": one.description, "parameters": one.parameters} for one in tools]
    }


def _load(path: Path) -> ModuleType:
    """As `python path` would find its neighbours; known by its name, which dataclasses and type hints ask for."""
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError("its name does not end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _public_functions(module: ModuleType) -> Functions:
    """Those that the file itself defines, in order, without the ones whose names begin with _."""
    return {
        name: value
        for name, value in vars(module).items()
        if callable(value)
        and not (name.startswith("_") or inspect.isclass(value))
        and getattr(value, "__name__", None) == name
        and getattr(value, "__module__", None) == module.__name__
    }


def _call(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        value = function(**arguments)
        if inspect.iscoroutine(value):
            import asyncio

            value = asyncio.run(value)
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    except BaseException as error:  # sys.exit() in a tool ends the call, not the chat
        traceback.print_exc()
        return {"text": _describe(error), "is_error": True}
    if len(text) > _MAX_CHARACTERS:
        text = f"{text[:_MAX_CHARACTERS]}\n[cut: {_MAX_CHARACTERS:,} of {len(text):,} characters]"
    return {"text": text, "is_error": False}


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:_MAX_CHARACTERS]


def _where(error: BaseException, path: Path) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f" (line {lines[-1]})" if lines else ""
