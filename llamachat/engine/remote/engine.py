"""Chat completions as an `Engine`: messages go out, pieces of text come in, and what is not told stays unknown."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from llamachat.engine.base import (
    AnswerBytes,
    CacheState,
    End,
    EngineInfo,
    Event,
    FinishReason,
    GenerationRequest,
    GenerationStats,
    Remark,
    ThoughtText,
)
from llamachat.engine.remote.client import Cancelled, Exchange, Head
from llamachat.engine.remote.refusals import MOST_BYTES, Refusal, read_refusal, refused, said
from llamachat.engine.remote.replies import Delta, ServerSaid, Timings, Usage, read_delta
from llamachat.engine.remote.server import Server
from llamachat.engine.remote.sse import MOST_CHARACTERS, EventData
from llamachat.engine.remote.words import plain
from llamachat.errors import LlamachatError, ServerFailed, ServerLost, TokensUnknown

_MOST_ANSWER = 16 << 20
"""Characters of an answer; no window is that large."""
_N_TRIES = 3
_FIRST_PAUSE_S = 1.0
_LOOK_S = 0.05
_N_STOP = 4
"""As many stop strings as OpenAI takes; the others are found here."""
_DONE = "[DONE]"

_FINISH_REASONS: Mapping[str, FinishReason] = {"length": "length", "max_tokens": "length", "abort": "interrupted"}
_SAID_OF_ENDS = {"content_filter": "The server's content filter has ended the answer."}
_QUIETLY = ("stream_options", "stop")
"""What can be left out without a difference that anybody would see."""
_OTHER_NAMES = {"max_tokens": "max_completion_tokens"}
_NEVER_LEFT_OUT = ("model", "messages", "stream", "response_format", "grammar", "continue_final_message")


class ServedTokenizer:
    """`Tokenizer` of a vocabulary that only the server knows. Text in messages is the server's to render."""

    n_vocab = 0
    bos_id = None
    eos_id = None
    adds_bos = False
    adds_space_prefix = False
    infill_ids = None
    control_tokens: Mapping[str, int] = {}

    def __init__(self, server: Server, model: str) -> None:
        self._server, self._model = server, model

    def tokenize(self, text: str) -> list[int]:
        """See `Tokenizer`. Raises `TokensUnknown` where the server does not tell."""
        ids = self._server.tokenize(self._model, text)
        if ids is None:
            raise TokensUnknown
        return ids

    def piece(self, token_id: int) -> bytes:  # noqa: ARG002
        """See `Tokenizer`."""
        raise TokensUnknown


class ServedEngine:
    """`Engine` over one model of a server."""

    can_shift = False

    def __init__(self, server: Server, model: str, cancel: threading.Event | None = None) -> None:
        """Ask for the model's window. Raises `Cancelled` soon after `cancel` is set."""
        started = time.monotonic()
        self.server, self.model = server, model
        self._dialect = server.dialect(model)
        self.can_continue = self._dialect.continues is not None
        self.takes_gbnf = self._dialect.takes_gbnf
        self.tokenizer = ServedTokenizer(server, model)
        self._schema_form = _schema_form
        self._unwanted: dict[str, str | None] = {}
        """What this server does not take in a request, and the name under which it takes it."""
        self.info = EngineInfo(
            n_params=0,
            size_bytes=0,
            n_ctx=server.n_ctx(model, cancel),
            n_ctx_train=0,
            n_threads=0,
            backend="server",
            file_type="",
            load_s=time.monotonic() - started,
        )

    def cache_state(self) -> CacheState:
        """See `Engine`. What the server keeps is its own."""
        return CacheState()

    def save_state(self, file: BinaryIO, model_key: str, cancel: threading.Event) -> bool:  # noqa: ARG002
        """See `Engine`."""
        return False

    def restore_state(
        self,
        file: BinaryIO,  # noqa: ARG002
        model_key: str,  # noqa: ARG002
        prompt_ids: Sequence[int],  # noqa: ARG002
        cancel: threading.Event,  # noqa: ARG002
    ) -> int:
        """See `Engine`."""
        return 0

    def close(self) -> None:
        """See `Engine`. Nothing is held between answers."""

    def generate(self, request: GenerationRequest, cancel: threading.Event) -> Iterator[Event]:
        """See `Engine`.

        Before the first piece any trouble is raised; after it, it comes with the `End`, so that what is there counts.
        """
        tally = _Tally(len(request.prompt_ids) or None)
        try:
            yield from self._answer(request, tally, cancel, streams=True)
            if not tally.is_begun:  # some servers end a stream where they should report an error
                yield from self._answer(request, tally, cancel, streams=False)
            if not tally.is_ended:
                raise ServerLost(self.server.client.address, "its answer has no end")
            yield End(_FINISH_REASONS.get(tally.finish_reason or "stop", "stop"), tally.stats())
        except Cancelled:
            yield End("interrupted", tally.stats())
        except LlamachatError as error:
            if not tally.n_characters:
                raise
            yield End("interrupted", tally.stats(), error)

    def _answer(
        self, request: GenerationRequest, tally: _Tally, cancel: threading.Event, *, streams: bool
    ) -> Iterator[Event]:
        exchange, head = yield from self._begin(request, cancel, streams=streams)
        with exchange:
            yield from self._stream(exchange, head, tally, cancel)

    # --- asking ------------------------------------------------------------------------------------------------

    def _begin(
        self, request: GenerationRequest, cancel: threading.Event, *, streams: bool
    ) -> Generator[Event, None, tuple[Exchange, Head]]:
        """Ask until the server begins to answer; the caller ends the exchange."""
        n_failures = 0
        while True:
            body = self._body(request)
            if not streams:
                body = {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
            exchange = self.server.client.send("POST", f"{self.server.base}/chat/completions", body)
            try:
                head = exchange.head(cancel)
                if head.status == 200:
                    return exchange, head
                refusal = self._read_refusal(exchange, head, cancel)
            except BaseException:
                exchange.__exit__(None, None, None)
                raise
            exchange.__exit__(None, None, None)
            if "response_format" in body and (remark := self._other_schema_form(refusal)):
                yield remark
                continue
            if unwanted := refusal.unwanted(set(body) - set(_NEVER_LEFT_OUT)):
                yield from self._leave_out(unwanted, refusal.words)
                continue
            n_failures += 1
            if not refusal.may_pass or n_failures > _N_TRIES:
                client = self.server.client
                raise refused(refusal, client.address, has_key=client.key is not None)
            yield from _wait(refusal, n_failures, cancel)

    def _read_refusal(self, exchange: Exchange, head: Head, cancel: threading.Event) -> Refusal:
        try:
            body = exchange.body(MOST_BYTES, cancel)
        except (ServerFailed, ServerLost):
            body = b""
        return read_refusal(head.status, head.headers, body, self.server.client.key)

    def _leave_out(self, names: list[str], words: str) -> Iterator[Event]:
        for name in names:
            other = _OTHER_NAMES.get(name)
            self._unwanted[name] = other
            if other is None and name not in _QUIETLY:
                yield Remark(f"Answers come without {name}, which the server refuses: {words}")

    def _other_schema_form(self, refusal: Refusal) -> Remark | None:
        """Go over to the older form if it is the form that is refused."""
        if self._schema_form is _older_schema_form or not refusal.is_about("response_format", "json_schema"):
            return None
        self._schema_form = _older_schema_form
        return Remark("The server takes a schema in an older form only, which some ignore: check the answer.")

    def _body(self, request: GenerationRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(request.messages),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for name, value in request.sampling.chosen().items():
            body[self._dialect.repeat_penalty if name == "repeat_penalty" else name] = value
        if request.max_tokens is not None:
            body["max_tokens"] = request.max_tokens
        if request.stop:
            body["stop"] = list(request.stop[:_N_STOP])
        if request.schema is not None:
            body["response_format"] = self._schema_form(request.schema)
        elif request.grammar is not None:
            body["grammar"] = request.grammar
        if request.messages and request.messages[-1]["role"] == "assistant":
            body.update(self._dialect.continues or {})
        for name, other in self._unwanted.items():
            if name in body:
                value = body.pop(name)
                if other:
                    body[other] = value
        return {name: value for name, value in body.items() if value is not None}

    # --- the answer --------------------------------------------------------------------------------------------

    def _stream(self, exchange: Exchange, head: Head, tally: _Tally, cancel: threading.Event) -> Iterator[Event]:
        for delta in self._deltas(exchange, head, cancel):
            tally.take(delta)
            if delta.reasoning:
                yield ThoughtText(delta.reasoning)
            if delta.content:
                yield AnswerBytes(delta.content.encode("utf-8", "surrogatepass"))
            if tally.n_characters > _MOST_ANSWER:
                raise ServerFailed("sends an answer without end")
            if remark := _SAID_OF_ENDS.get(delta.finish_reason or ""):
                yield Remark(remark)

    def _deltas(self, exchange: Exchange, head: Head, cancel: threading.Event) -> Iterator[Delta]:
        """The answer in pieces: from a stream, or from one JSON document where the server does not stream."""
        try:
            if "json" in head.headers.get("content-type", "").lower():
                yield read_delta(exchange.body(MOST_CHARACTERS, cancel))
                return
            for data in _events(exchange, cancel):
                if data.strip() == _DONE:
                    yield Delta(finish_reason=_DONE)
                    return
                yield read_delta(data)
        except ServerSaid as error:
            client = self.server.client
            raise said(plain(str(error), secret=client.key), error.about, client.address) from error


def _schema_form(schema: Any) -> dict[str, Any]:
    """As OpenAI has it."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def _older_schema_form(schema: Any) -> dict[str, Any]:
    """As llama-cpp-python's server and some gateways have it."""
    return {"type": "json_object", "schema": schema}


def _events(exchange: Exchange, cancel: threading.Event) -> Iterator[str]:
    events = EventData()
    for chunk in exchange.chunks(cancel):
        for data in events.feed(chunk):
            if cancel.is_set():
                raise Cancelled
            yield data
    yield from events.finish()


def _wait(refusal: Refusal, n_failures: int, cancel: threading.Event) -> Iterator[Event]:
    """Wait as long as the server asks for, or twice as long each time, and say so."""
    pause_s = refusal.asked_pause_s or _FIRST_PAUSE_S * 2 ** (n_failures - 1)
    about = f"HTTP {refusal.status}" + (f": {refusal.words}" if refusal.words else "")
    yield Remark(f"The server is busy ({about}); retry {n_failures} of {_N_TRIES} in {math.ceil(pause_s)} s.")
    until = time.monotonic() + pause_s
    while time.monotonic() < until:
        if cancel.is_set():
            raise Cancelled
        time.sleep(_LOOK_S)


@dataclass
class _Tally:
    """What is known of an answer while it comes."""

    n_prompt: int | None
    started: float = field(default_factory=time.monotonic)
    first: float | None = None
    last: float = 0.0
    n_characters: int = 0
    finish_reason: str | None = None
    is_begun: bool = False
    is_ended: bool = False
    usage: Usage = field(default_factory=Usage)
    timings: Timings | None = None

    def take(self, delta: Delta) -> None:
        if delta.content or delta.reasoning:
            self.last = time.monotonic()
            self.first = self.first or self.last
            self.n_characters += len(delta.content) + len(delta.reasoning)
        self.is_begun = True
        self.is_ended = self.is_ended or delta.finish_reason is not None
        if delta.finish_reason != _DONE:
            self.finish_reason = delta.finish_reason or self.finish_reason
        self.usage = delta.usage or self.usage
        self.timings = delta.timings or self.timings

    def stats(self) -> GenerationStats:
        """Counts are the server's. Times are its own where it tells them, else what passed here."""
        timings = self.timings
        told = [timings.usage, self.usage] if timings else [self.usage]
        first = self.first or self.started
        return GenerationStats(
            n_prompt=_first_known(*(usage.n_prompt for usage in told), self.n_prompt),
            n_reused=_first_known(*(usage.n_reused for usage in told)),
            n_generated=_first_known(*(usage.n_generated for usage in told)),
            prefill_s=timings.prefill_s if timings else None,
            ttft_s=first - self.started,
            decode_s=timings.decode_s if timings else max(0.0, self.last - first),
        )


def _first_known(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
