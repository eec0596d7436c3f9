"""A server of chat completions on loopback that says what it is told to, in the wire formats of the real ones.

Written from OpenAI's reference, llama.cpp's tools/server/README.md and vLLM's protocol. Every answer to a chat
completion is taken from a queue: a status, headers, and what is sent, where a number is a pause in seconds and `CUT`
ends the connection without a goodbye.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CUT = object()
SSE = {"Content-Type": "text/event-stream"}
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Reply:
    """What comes back: `chunks` one after the other."""

    chunks: Iterable[Any] = ()
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: SSE)


@dataclass(frozen=True)
class Asked:
    """A request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


def event(data: Any) -> bytes:
    """A server-sent event."""
    return f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()


def delta(finish_reason: str | None = None, **said: Any) -> bytes:
    """An event with a piece of the answer."""
    choice = {"index": 0, "delta": said, "finish_reason": finish_reason}
    return event({"object": "chat.completion.chunk", "choices": [choice]})


def answer(*texts: str, finish_reason: str = "stop", **last: Any) -> Reply:
    """A whole answer as a stream; `last` goes into its last event, as `usage` does."""
    tail = [event({"choices": [], **last})] if last else []
    return Reply([*(delta(content=text) for text in texts), delta(finish_reason), *tail, event("[DONE]")])


def refusal(status: int, body: Any, **headers: str) -> Reply:
    """An error in the place of an answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Reply([data], status, {**JSON, **{name.replace("_", "-"): value for name, value in headers.items()}})


class ChatServer:
    """Runs while its context is entered. `routes` answer what is no chat completion, by method and path."""

    def __init__(self, models: Sequence[Mapping[str, Any]] = ({"id": "tiny"},), routes: Any = None) -> None:
        self.answers: deque[Reply] = deque()
        self.asked: list[Asked] = []
        self.routes: dict[str, Any] = {"GET /v1/models": {"object": "list", "data": list(models)}, **(routes or {})}
        self.n_gone = 0
        """Clients that went away before their answer was complete."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server._handle(self)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # clients that go away are what is tested

        self._http = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> ChatServer:
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def bodies(self) -> list[Any]:
        """What was asked of chat completions."""
        return [asked.body for asked in self.asked if asked.path.endswith("/chat/completions")]

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        content = handler.rfile.read(length)
        body = json.loads(content) if content else None
        self.asked.append(Asked(handler.command, handler.path, dict(handler.headers), body))
        if handler.path.endswith("/v1/chat/completions"):
            reply = self.answers.popleft()
        else:
            found = self.routes.get(f"{handler.command} {handler.path}")
            found = found(body) if callable(found) else found
            missing = Reply([b'{"error":"not found"}'], 404, JSON)
            reply = missing if found is None else found if isinstance(found, Reply) else _json(found)
        handler.send_response(reply.status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        handler.send_header("Connection", "close")
        handler.end_headers()
        with contextlib.suppress(OSError):
            self._play(handler, reply.chunks)

    def _play(self, handler: BaseHTTPRequestHandler, chunks: Iterable[Any]) -> None:
        try:
            for chunk in chunks:
                if isinstance(chunk, int | float):
                    time.sleep(chunk)
                elif chunk is CUT:
                    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    handler.connection.close()
                    return
                else:
                    handler.wfile.write(chunk)
                    handler.wfile.flush()
        except OSError:
            self.n_gone += 1


def _json(value: Any) -> Reply:
    return Reply([json.dumps(value).encode()], headers=JSON)


def llama_server(n_ctx: int = 2048) -> ChatServer:
    """As llama-server lists its model, renders and counts: a token a word, so that tests can count, too."""

    def apply_template(body: Any) -> Any:
        return {"prompt": "".join(f"<{m['role']}> {m['content']} " for m in body["messages"]) + "<assistant>"}

    def tokenize(body: Any) -> Any:
        return {"tokens": [sum(map(ord, word)) for word in body["content"].split()]}

    return ChatServer(
        [{"id": "tiny.gguf", "owned_by": "llamacpp", "meta": {"n_ctx_train": 8192}}],
        {
            "GET /props": {"default_generation_settings": {"n_ctx": n_ctx}},
            "POST /apply-template": apply_template,
            "POST /tokenize": tokenize,
        },
    )


def vllm(max_model_len: int = 4096) -> ChatServer:
    """As vLLM lists a model and counts the tokens of a conversation."""

    def tokenize(body: Any) -> Any:
        text = body.get("prompt") or " ".join(message["content"] for message in body["messages"])
        tokens = list(range(len(text.split())))
        return {"count": len(tokens), "max_model_len": max_model_len, "tokens": tokens}

    entry = {"id": "org/model", "owned_by": "vllm", "max_model_len": max_model_len}
    return ChatServer([entry], {"POST /tokenize": tokenize})
