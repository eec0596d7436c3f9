"""A server as far as it tells about itself: its models, their windows, and how many tokens something has."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llamachat.engine.remote.address import bases, root
from llamachat.engine.remote.client import Client
from llamachat.engine.remote.dialects import Dialect, Messages, dialect_of
from llamachat.engine.remote.refusals import MOST_BYTES, read_refusal, refused
from llamachat.engine.remote.replies import count_of, parse_json
from llamachat.errors import LlamachatError, ServerFailed, ServerLost

_MOST_LIST_BYTES = 8 << 20
_MOST_COUNT_BYTES = 64 << 20
_LONGEST_NAME = 200
_LIST_S = 30.0
_COUNT_S = 2.0
"""A server that cannot count by then is not asked again: counting is a help, and must not be in the way."""
_N_KNOWN = 64


@dataclass(frozen=True)
class ModelInfo:
    """A line of a server's list of models. `n_ctx` is 0 where it is not told."""

    name: str
    owner: str = ""
    n_ctx: int = 0


@dataclass(frozen=True)
class View:
    """How the server renders a conversation. `text` is None where it tells ids only."""

    ids: tuple[int, ...]
    text: str | None = None


@dataclass
class Server:
    """A server that was reached. `models` are those it lists; none: it lists nothing."""

    base: str
    client: Client
    models: Sequence[ModelInfo] = ()
    _known: OrderedDict[str, View] = field(default_factory=OrderedDict)
    _counts: bool = True

    def close(self) -> None:
        """Nothing is held between requests."""

    def names(self) -> list[str]:
        """The models by name."""
        return [model.name for model in self.models]

    def model(self, name: str) -> ModelInfo:
        """What is known of a model; of one that is not in the list (an alias, say), what the only other one says."""
        for model in self.models:
            if model.name == name:
                return model
        owners = {model.owner for model in self.models}
        return ModelInfo(name, owners.pop() if len(owners) == 1 else "")

    def dialect(self, name: str) -> Dialect:
        """What the server can do beyond OpenAI's interface."""
        return dialect_of(self.model(name).owner)

    def n_ctx(self, name: str, cancel: threading.Event | None = None) -> int:
        """The window of a model in tokens; 0: the server does not tell."""
        known = self.model(name).n_ctx
        if known or self.dialect(name).counts != "llama.cpp":
            return known
        props = self._ask("GET", f"{root(self.base)}/props", None, cancel)
        match props:
            case {"default_generation_settings": {"n_ctx": value}}:
                return count_of(value) or 0
        return 0

    def view(self, name: str, messages: Messages) -> View | None:
        """A conversation as the server renders it; None: it does not tell."""
        key = repr((name, messages))
        if key not in self._known:
            found = _COUNTING[kind](self, name, messages) if (kind := self.dialect(name).counts) else None
            if found is None:
                return None
            self._known[key] = found
            while len(self._known) > _N_KNOWN:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]

    def tokenize(self, name: str, text: str) -> list[int] | None:
        """The ids of a text; None: the server does not tell."""
        body = {
            "llama.cpp": {"content": text, "parse_special": False},
            "vllm": {"model": name, "prompt": text, "add_special_tokens": False},
        }.get(self.dialect(name).counts or "")
        return self._ids("tokenize", body) if body else None

    def _ids(self, path: str, body: Any) -> list[int] | None:
        match self._count(path, body):
            case {"tokens": [*ids]} if all(type(i) is int for i in ids):
                return ids
        return None

    def _count(self, path: str, body: Any) -> Any:
        if not self._counts:
            return None
        reply = self._ask("POST", f"{root(self.base)}/{path}", body, None)
        self._counts = reply is not None
        return reply

    def _ask(self, method: str, url: str, body: Any, cancel: threading.Event | None) -> Any:
        """What the server says beyond OpenAI's interface; None for any trouble, since all of it can be done without."""
        deadline = time.monotonic() + _COUNT_S
        try:
            with self.client.send(method, url, body, silence_s=_COUNT_S) as exchange:
                head = exchange.head(cancel, deadline)
                content = exchange.body(_MOST_COUNT_BYTES, cancel, deadline)
        except LlamachatError:
            return None
        return parse_json(content) if head.status == 200 else None


def _view_of_llama_cpp(server: Server, _name: str, messages: Messages) -> View | None:
    """Rendered first, then tokenized as the server does it for a prompt: with BOS, markers as control tokens."""
    match server._count("apply-template", {"messages": list(messages)}):
        case {"prompt": str(text)}:
            ids = server._ids("tokenize", {"content": text, "add_special": True, "parse_special": True})
            return View(tuple(ids), text) if ids is not None else None
    return None


def _view_of_vllm(server: Server, name: str, messages: Messages) -> View | None:
    is_open = bool(messages) and messages[-1]["role"] == "assistant"
    ids = server._ids(
        "tokenize",
        {
            "model": name,
            "messages": list(messages),
            "add_generation_prompt": not is_open,
            "continue_final_message": is_open,
        },
    )
    return View(tuple(ids)) if ids is not None else None


_COUNTING = {"llama.cpp": _view_of_llama_cpp, "vllm": _view_of_vllm}


def connect(address: str, key: str | None, cancel: threading.Event | None = None) -> Server:
    """Find the API at an address, and the models there.

    A server that lists none is one all the same. Raises `ServerUnreachable` and its like, and `Cancelled`.
    """
    client = Client(address, key)
    is_api = False
    for base in bases(address):
        with client.send("GET", f"{base}/models", silence_s=_LIST_S) as exchange:
            deadline = time.monotonic() + _LIST_S
            head = exchange.head(cancel, deadline)
            if head.status == 200:
                models = _read_models(parse_json(exchange.body(_MOST_LIST_BYTES, cancel, deadline)))
                if models is not None:
                    return Server(base, client, models)
            elif head.status not in (404, 405, 501):
                refusal = read_refusal(head.status, head.headers, _words(exchange, cancel, deadline), key)
                raise refused(refusal, address, has_key=key is not None)
            else:
                is_api = True  # gateways without a list
    if not is_api:
        raise ServerFailed(f"at {address} shows something else than a list of models")
    return Server(bases(address)[0], client)


def _words(exchange: Any, cancel: threading.Event | None, deadline: float) -> bytes:
    """The body of a refusal; none if that cannot be had either."""
    try:
        body: bytes = exchange.body(MOST_BYTES, cancel, deadline)
    except (ServerFailed, ServerLost):
        return b""
    return body


def _read_models(parsed: Any) -> list[ModelInfo] | None:
    """`GET /models`, read as if a stranger had written it; None if it is no such list."""
    match parsed:
        case {"data": [*entries]} | [*entries]:
            found = {model.name: model for entry in entries if (model := _read_model(entry))}
            return list(found.values())
        case {"data": None}:  # Ollama without a model
            return []
    return None


def _read_model(entry: Any) -> ModelInfo | None:
    match entry:
        case {"id": str(name)} if 0 < len(name) <= _LONGEST_NAME and name.isprintable():
            owner = entry.get("owned_by")
            meta = entry.get("meta")
            told = meta.get("n_ctx") if isinstance(meta, dict) else entry.get("max_model_len")
            return ModelInfo(name, owner if isinstance(owner, str) else "", count_of(told) or 0)
    return None
