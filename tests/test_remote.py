"""Chat completions of a server: what goes out, what comes in, and everything that can go wrong between."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCommand
from hypothesis import given
from hypothesis import strategies as st

from llamachat.chat.compaction import Compacted, Compacting
from llamachat.chat.events import Answer, ReasoningPiece, TextPiece
from llamachat.chat.history import History
from llamachat.chat.session import Session
from llamachat.chat.templates import Served
from llamachat.cli.chat_wishes import ChatOptions
from llamachat.cli.describing import describe_compaction
from llamachat.cli.opening import open_chat
from llamachat.engine.base import AnswerBytes, EngineOptions, GenerationRequest, Remark, ThoughtText
from llamachat.engine.remote import ServedEngine, Server, connect, parse_address, plain
from llamachat.engine.remote.sse import EventData
from llamachat.engine.sampling import NOTHING_CHOSEN
from llamachat.errors import BadServer, LlamachatError, NoServedModel, PromptTooLong, ServerFailed, ServerUnreachable
from llamachat.paths import history_path
from support.chat_server import CUT, JSON, SSE, ChatServer, Reply, answer, delta, event, llama_server, refusal, vllm
from support.terminal import CTRL_C, Terminal

CHAT = [sys.executable, "-m", "llamachat", "chat"]
HELLO = [{"role": "user", "content": "Hello?"}]


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LLAMACHAT_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer() as server:
        yield server


def engine_of(server: ChatServer, key: str | None = None) -> ServedEngine:
    reached = connect(server.url, key)
    return ServedEngine(reached, reached.names()[0])


def generate(engine: ServedEngine, cancel: threading.Event | None = None, **wanted: Any) -> list[Any]:
    request = GenerationRequest((), wanted.pop("sampling", NOTHING_CHOSEN), **{"messages": HELLO, **wanted})
    return list(engine.generate(request, cancel or threading.Event()))


def text_of(events: list[Any]) -> str:
    return b"".join(event.data for event in events if isinstance(event, AnswerBytes)).decode("utf-8", "replace")


def session_with(server: ChatServer, **options: Any) -> Session:
    reached = connect(server.url, None)
    name = reached.names()[0]
    template = Served(lambda messages: _seen(reached, name, messages))
    return Session(ServedEngine(reached, name), template, NOTHING_CHOSEN, **options)


def _seen(reached: Server, name: str, messages: Any) -> Any:
    view = reached.view(name, messages)
    return (view.ids, view.text) if view else None


def say(session: Session, text: str) -> list[Any]:
    return list(session.send(text, threading.Event()))


def talk(server: ChatServer, text: str, *, model: str | None = None, **options: Any) -> str:
    """One answer of a chat, opened as the command does it."""
    with open_chat(model, ChatOptions(EngineOptions(), {}, **options), server=server.url, save=False) as chat:
        *_, last = chat.session.send(text, threading.Event())
    assert isinstance(last, Answer)
    return last.content


# --- addresses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("localhost:8080", "http://localhost:8080"),
        ("localhost", "http://localhost"),
        ("10.0.0.7", "http://10.0.0.7"),
        ("http://localhost:8080/", "http://localhost:8080"),
        ("http://localhost:8080/v1/", "http://localhost:8080/v1"),
        ("https://api.openai.com/v1/chat/completions", "https://api.openai.com/v1"),
        ("api.openai.com", "https://api.openai.com"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        (" https://host/prefix/v1beta ", "https://host/prefix/v1beta"),
    ],
)
def test_an_address_may_be_written_in_short(written: str, meant: str) -> None:
    assert parse_address(written) == meant


@pytest.mark.parametrize(
    "written",
    ["", "ftp://host", "http://", "http://user:secret@host", "host:99999", "http://host?key=secret", "a b", "x\x1b[2J"],
)
def test_what_is_no_address_is_refused_without_being_repeated(written: str) -> None:
    with pytest.raises(BadServer) as caught:
        parse_address(written)
    assert "secret" not in f"{caught.value} {caught.value.next_step}"


# --- the stream --------------------------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=20), max_size=5), st.data())
def test_events_are_the_same_however_they_are_cut(texts: list[str], data: st.DataObject) -> None:
    written = b"\xef\xbb\xbf: hello\r\n\r\n"
    expected = []
    for text in texts:
        lines = text.replace("\r", "\n").split("\n")
        end = data.draw(st.sampled_from(["\n", "\r\n", "\r"]))
        written += "".join(f"data: {line}{end}" for line in lines).encode() + f"event: x{end}:c{end}{end}".encode()
        expected.append("\n".join(lines))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(written)), max_size=8)))
    parser = EventData()
    found = []
    for start, stop in zip([0, *cuts], [*cuts, len(written)], strict=True):
        found += parser.feed(written[start:stop])
    assert [*found, *parser.finish()] == expected


def test_an_answer_arrives_with_the_counts_the_server_tells(server: ChatServer) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
    server.answers.append(answer("Hel", "lo, ", "wörld 🙂", usage=usage))
    *events, end = generate(engine_of(server), max_tokens=7, stop=("a", "b", "c", "d", "e"))
    assert text_of(events) == "Hello, wörld 🙂"
    assert end.finish_reason == "stop"
    assert (end.stats.n_prompt, end.stats.n_reused, end.stats.n_generated) == (9, 4, 3)
    assert (end.stats.prefill_s, end.stats.prompt_tps) == (None, None), "nobody here can know that"
    (body,) = server.bodies
    assert body == {
        "model": "tiny",
        "messages": HELLO,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 7,
        "stop": ["a", "b", "c", "d"],
    }, "and no sampling that nobody chose"


def test_what_a_server_does_not_tell_stays_unknown(server: ChatServer) -> None:
    server.answers.append(answer("Hi", " there"))
    *_, end = generate(engine_of(server))
    stats = end.stats
    assert (stats.n_prompt, stats.n_reused, stats.n_generated, stats.prefill_s) == (None, None, None, None)
    assert stats.generation_tps is None
    assert stats.ttft_s > 0


def test_llama_servers_own_clock_is_believed() -> None:
    timings = {"cache_n": 30, "prompt_n": 10, "prompt_ms": 50.0, "predicted_n": 21, "predicted_ms": 1000.0}
    with llama_server() as server:
        server.answers.append(answer("Hi", timings=timings, usage={"prompt_tokens": 40, "completion_tokens": 21}))
        *_, end = generate(engine_of(server))
    assert (end.stats.n_prompt, end.stats.n_reused, end.stats.prompt_tps) == (40, 30, 200)
    assert end.stats.generation_tps == 20


def test_a_reply_that_is_no_stream_is_an_answer_too(server: ChatServer) -> None:
    whole = {
        "choices": [{"message": {"role": "assistant", "content": "All at once."}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 4},
    }
    server.answers.append(Reply([json.dumps(whole).encode()], headers=JSON))
    *events, end = generate(engine_of(server))
    assert (text_of(events), end.finish_reason, end.stats.n_generated) == ("All at once.", "length", 4)
    assert end.stats.generation_tps is None, "it all came at one moment"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_are_told_from_the_answer(server: ChatServer, name: str) -> None:
    server.answers.append(Reply([delta(**{name: "Hm. "}), delta(content="Yes."), delta("stop"), event("[DONE]")]))
    *events, _end = generate(engine_of(server))
    assert [event.text for event in events if isinstance(event, ThoughtText)] == ["Hm. "]
    assert text_of(events) == "Yes."
    server.answers.append(Reply([delta(**{name: "Hm. "}), delta(content="Yes."), delta("stop"), event("[DONE]")]))
    session = session_with(server)
    *events, answered = say(session, "Hello?")
    assert [event.text for event in events if isinstance(event, ReasoningPiece)] == ["Hm. "]
    assert (answered.reasoning, answered.content) == ("Hm. ", "Yes.")
    server.answers.append(answer("Again."))
    say(session, "And?")
    assert server.bodies[-1]["messages"][1] == {"role": "assistant", "content": "Yes."}, "thoughts are not told again"


def test_thoughts_within_the_answer_are_told_from_it(server: ChatServer) -> None:
    server.answers.append(answer("<think>\nHm.\n</think>\n\nYes."))
    answered = say(session_with(server), "Hello?")[-1]
    assert (answered.reasoning.strip(), answered.content) == ("Hm.", "Yes.")


# --- what servers do not take ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "refused",
    [
        {"error": {"message": "Unrecognized request argument supplied: top_k", "type": "invalid_request_error"}},
        {"error": {"message": "Unknown parameter: 'top_k'.", "param": "top_k", "code": "unknown_parameter"}},
        {"detail": [{"loc": ["body", "top_k"], "msg": "Extra inputs are not permitted", "type": "extra_forbidden"}]},
        {"object": "error", "message": "top_k is not supported", "code": 400},
        {"error": "unsupported: top_k"},
    ],
)
def test_a_parameter_that_is_refused_is_left_out_and_that_is_said_once(server: ChatServer, refused: Any) -> None:
    engine = engine_of(server)
    sampling = NOTHING_CHOSEN.override({"temperature": 0.5, "top_k": 3})
    server.answers += [refusal(400, refused), answer("Hi"), answer("Again")]
    first = generate(engine, sampling=sampling)
    second = generate(engine, sampling=sampling)
    assert [text_of(first), text_of(second)] == ["Hi", "Again"]
    remarks = [event.text for event in [*first, *second] if isinstance(event, Remark)]
    assert len(remarks) == 1
    assert "top_k" in remarks[0]
    assert [("top_k" in body, body["temperature"]) for body in server.bodies] == [
        (True, 0.5),
        (False, 0.5),
        (False, 0.5),
    ]


def test_servers_without_usage_and_with_another_name_for_max_tokens(server: ChatServer) -> None:
    server.answers += [
        refusal(422, {"detail": [{"loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted"}]}),
        refusal(400, {"error": {"message": "Use 'max_completion_tokens' instead.", "param": "max_tokens"}}),
        answer("Hi"),
    ]
    events = generate(engine_of(server), max_tokens=5)
    assert text_of(events) == "Hi"
    assert not any(isinstance(event, Remark) for event in events), "nothing that anybody would miss"
    assert server.bodies[-1]["max_completion_tokens"] == 5
    assert not {"stream_options", "max_tokens"} & server.bodies[-1].keys()


def test_names_of_vllm() -> None:
    with vllm() as server:
        engine = engine_of(server)
        server.answers.append(answer("more"))
        asked = [*HELLO, {"role": "assistant", "content": "Once"}]
        generate(engine, messages=asked, sampling=NOTHING_CHOSEN.override({"repeat_penalty": 1.2, "seed": 4}))
    (body,) = server.bodies
    assert (body["repetition_penalty"], body["seed"]) == (1.2, 4)
    assert body["continue_final_message"] is True
    assert body["add_generation_prompt"] is False
    assert engine.can_continue
    assert engine.info.n_ctx == 4096


# --- windows -----------------------------------------------------------------------------------------------------


def test_where_the_server_counts_the_oldest_turns_go_as_they_do_here() -> None:
    with llama_server(n_ctx=100) as server:
        session = session_with(server)
        for i in range(8):
            server.answers.append(answer("word " * 12))
            say(session, f"Question {i} " + "x " * 8)
        assert session.left_out, "the window is full"
        sent = server.bodies[-1]["messages"]
        assert sent[-1]["content"].startswith("Question 7")
        assert not sent[0]["content"].startswith("Question 0")
        with pytest.raises(PromptTooLong):
            say(session, "y " * 200)
        seen = session.seen()
    assert seen
    assert seen.is_counted
    assert seen.text.endswith("<assistant>")


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "Too many.", "code": "context_length_exceeded", "param": "messages"}},
        {"error": {"code": 400, "message": "request (9 tokens) exceeds the available context size (4 tokens)",
                   "type": "exceed_context_size_error", "n_prompt_tokens": 9, "n_ctx": 4}},
        {"object": "error", "message": "This model's maximum context length is 4096 tokens, so max_tokens is …"},
    ],
)  # fmt: skip
def test_a_prompt_that_only_the_server_finds_too_long(server: ChatServer, body: Any) -> None:
    server.answers.append(refusal(400, body))
    with pytest.raises(LlamachatError, match="too long for the server's context window") as caught:
        generate(engine_of(server), max_tokens=5)
    assert "/undo" in caught.value.next_step


# --- trouble -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "words", "step"),
    [
        (401, {"error": {"message": "Incorrect API key provided"}}, "Incorrect API key", "LLAMACHAT_API_KEY"),
        (403, {"detail": "Not for you"}, "Not for you", "another one"),
        (404, {"error": {"message": "model 'x' not found"}}, "not found", "model's name"),
        (429, {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}, "quota", "Wait"),
        (500, b"Internal Server Error", "Internal Server Error", "log"),
        (418, b"<html>\x1b[2J</html>", "HTTP 418", "operator"),
    ],
)
def test_a_refusal_is_one_sentence_and_a_next_step(
    server: ChatServer, status: int, body: Any, words: str, step: str
) -> None:
    server.answers.append(refusal(status, body))
    with pytest.raises(LlamachatError) as caught:
        generate(engine_of(server))
    assert words in str(caught.value)
    assert step in caught.value.next_step
    assert str(caught.value).isprintable()


def test_a_busy_server_is_asked_again_and_the_count_is_shown(server: ChatServer) -> None:
    busy = {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}
    server.answers += [refusal(503, busy, Retry_After="0.1"), refusal(429, {}, Retry_After="0"), answer("Hi")]
    server.answers[1].headers["Retry-After"] = "0.1"  # type: ignore[index]
    events = generate(engine_of(server))
    assert text_of(events) == "Hi"
    remarks = [event.text for event in events if isinstance(event, Remark)]
    assert "Loading model" in remarks[0]
    assert "retry 1 of 3" in remarks[0]
    assert "retry 2 of 3" in remarks[1]


def test_a_server_that_wants_a_long_pause_is_not_waited_for(server: ChatServer) -> None:
    server.answers.append(refusal(429, {"error": {"message": "slow down"}}, Retry_After="3600"))
    with pytest.raises(LlamachatError, match="slow down") as caught:
        generate(engine_of(server))
    assert "3,600 s" in caught.value.next_step


@pytest.mark.parametrize(
    "tail",
    [
        [CUT],
        [],
        [event({"error": {"message": "out of memory\x1b[31m", "code": 500}})],
        [event("{not json")],
        [event({"choices": "none"})],
        [b"data: " + b"x" * 5_000_000],
    ],
    ids=["reset", "ended", "error", "no json", "other json", "endless line"],
)
def test_an_answer_that_breaks_off_is_kept_as_interrupted(server: ChatServer, tail: list[Any]) -> None:
    session = session_with(server)
    server.answers.append(Reply([delta(content="Once upon"), 0.05, *tail]))
    with pytest.raises(LlamachatError) as caught:
        say(session, "Tell.")
    assert str(caught.value).isprintable()
    assert caught.value.next_step
    assert session.conversation.messages[-1].content == "Once upon"
    assert session.unanswered is None


@pytest.mark.parametrize(
    "reply",
    [
        Reply([b"x" * 70_000], 500, {"Content-Type": "text/plain"}),
        Reply([b'{"choices": [' + b"[" * 100_000], headers=JSON),
        Reply([b"[" * 5_000_000], headers=JSON),
        Reply([event(json.loads("[" * 50 + "]" * 50))]),
        Reply([event({"choices": [{"delta": {"content": {"a": 1}}, "finish_reason": 7}], "usage": "x"})]),
        Reply([b"\x1f\x8b" + bytes(1000)], headers={**SSE, "Content-Encoding": "gzip"}),
        Reply([b"\xff\xfe\x00" * 100]),
        Reply([event('{"usage": {"prompt_tokens": ' + "9" * 5000 + "}}")]),
        Reply([], 302, {"Location": "http://127.0.0.1:1/v1/\x1bchat"}),
    ],
    ids=["huge error", "deep", "huge json", "list", "wrong types", "compressed", "no text", "huge number", "redirect"],
)  # fmt: skip
def test_a_hostile_server_ends_in_one_clear_error(server: ChatServer, reply: Reply) -> None:
    server.answers.append(reply)
    with pytest.raises(LlamachatError) as caught:
        generate(engine_of(server))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500
    assert caught.value.next_step.isprintable()


def test_a_stream_that_ends_before_it_begins_is_asked_for_in_one_piece(server: ChatServer) -> None:
    """As llama-cpp-python's server does with a prompt that is too long: only then does it say why."""
    server.answers += [Reply([]), refusal(400, {"error": {"message": "Too long.", "code": "context_length_exceeded"}})]
    with pytest.raises(LlamachatError, match="too long for the server's context window"):
        generate(engine_of(server))
    assert [body.get("stream") for body in server.bodies] == [True, None]


def test_a_server_that_knows_schemas_in_their_older_form_only(server: ChatServer) -> None:
    words = "'loc': ('body', 'response_format', 'type'), 'msg': \"Input should be 'text' or 'json_object'\""
    server.answers += [refusal(500, {"error": {"message": words}}), answer("{}")]
    events = generate(engine_of(server), schema={"type": "object"})
    assert text_of(events) == "{}"
    assert any(isinstance(event, Remark) and "check the answer" in event.text for event in events)
    assert server.bodies[1]["response_format"] == {"type": "json_object", "schema": {"type": "object"}}


def test_a_flood_of_events_can_be_stopped(server: ChatServer) -> None:
    server.answers.append(Reply(b": keep alive\n\n" * 1000 for _ in range(10**6)))
    cancel = threading.Event()
    threading.Timer(0.3, cancel.set).start()
    started = time.monotonic()
    *_, end = generate(engine_of(server), cancel)
    assert time.monotonic() - started < 0.8
    assert end.finish_reason == "interrupted"


@pytest.mark.parametrize("chunks", [[30.0], [delta(content="Hi"), 30.0]], ids=["before the first byte", "stalled"])
def test_a_wish_to_stop_is_heard_at_once_and_the_server_is_told(server: ChatServer, chunks: list[Any]) -> None:
    server.answers.append(
        Reply([*chunks[:-1], *[0.05, b": still here\n\n"] * 100]) if len(chunks) > 1 else Reply(chunks)
    )
    engine = engine_of(server)
    cancel = threading.Event()
    stopped: list[float] = []

    def stop() -> None:
        stopped.append(time.monotonic())
        cancel.set()

    threading.Timer(0.3, stop).start()
    *_, end = generate(engine, cancel)
    assert time.monotonic() - stopped[0] < 0.2
    assert end.finish_reason == "interrupted"
    if len(chunks) > 1:
        until = time.monotonic() + 3
        while not server.n_gone and time.monotonic() < until:
            time.sleep(0.02)
        assert server.n_gone == 1, "the connection is closed, so that the server stops generating"


def test_no_connection_is_said_with_its_cause() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with pytest.raises(ServerUnreachable, match="refused"):
        connect(f"http://127.0.0.1:{port}", None)


def test_https_where_http_is_spoken(server: ChatServer) -> None:
    with pytest.raises(ServerUnreachable, match="http://"):
        connect(server.url.replace("http:", "https:"), None)


def test_what_is_no_such_server() -> None:
    page = Reply([b"<html>Welcome</html>"], headers={"Content-Type": "text/html"})
    with ChatServer(routes={"GET /v1/models": page, "GET /models": page}) as server, pytest.raises(ServerFailed):
        connect(server.url, None)


def test_names_in_a_list_are_read_as_a_strangers() -> None:
    entries = [{"id": "a"}, {"id": "\x1b[2J"}, {"id": 7}, "b", None, {"id": ""}, {"id": "x" * 9999}]
    with ChatServer(entries) as server:
        assert connect(server.url, None).names() == ["a"]


# --- the key -----------------------------------------------------------------------------------------------------


def test_the_key_goes_to_the_named_server_only_and_is_never_shown(server: ChatServer) -> None:
    server.answers.append(refusal(401, {"error": {"message": "Bad key: sk-secret. Go away."}}))
    with pytest.raises(LlamachatError) as caught:
        generate(engine_of(server, "sk-secret"))
    assert "sk-secret" not in str(caught.value)
    assert {asked.headers["Authorization"] for asked in server.asked} == {"Bearer sk-secret"}
    with ChatServer() as other:
        server.answers.append(Reply([], 307, {"Location": f"{other.url}/v1/chat/completions"}))
        with pytest.raises(LlamachatError, match="points to another place"):
            generate(engine_of(server, "sk-secret"))
        assert other.asked == []


def test_the_key_of_openai_goes_to_openai_alone(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    server.answers.append(answer("Hi"))
    assert talk(server, "Hello") == "Hi"
    assert not any("Authorization" in asked.headers for asked in server.asked)


def test_plain_words() -> None:
    assert plain("a\x1b[31m\u202eb\n\nc") == "a [31m b c"
    assert plain("key K in it", secret="K") == "key … in it"
    assert len(plain("x" * 10**6)) < 300


def test_thoughts_without_an_answer_are_a_failure_for_scripts(server: ChatServer, run: RunCommand) -> None:
    server.answers.append(Reply([delta(reasoning_content="Hm."), delta("length"), event("[DONE]")]))
    done = run("chat", "--server", server.url, "-p", "Why?")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no room for an answer" in done.stderr


# --- the command -------------------------------------------------------------------------------------------------


def test_one_answer_for_scripts_and_the_history(
    server: ChatServer, run: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMACHAT_API_KEY", "sk-1")
    usage = {"prompt_tokens": 9, "completion_tokens": 3}
    server.answers += [answer("Blue", " sky.", usage=usage), answer("Still blue.")]
    done = run("chat", "--server", server.url, "-p", "Why?", "-s", "Be brief.", "--temperature", "0", "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert (printed["model"], printed["content"], printed["prompt_tokens"]) == ("tiny", "Blue sky.", 9)
    assert printed["timings"]["prompt_tps"] is None
    assert server.bodies[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert server.bodies[0]["temperature"] == 0
    with History(history_path()) as history:
        stored = history.load(1)
    assert (stored.facts.model, stored.facts.server) == ("tiny", f"{server.url}/v1")
    assert b"sk-1" not in history_path().read_bytes()

    done = run("chat", "--resume", "-p", "Sure?")
    assert done.stdout == "Still blue.\n", done.stderr
    assert f"goes to tiny at {server.url}/v1" in done.stderr
    assert [message["content"] for message in server.bodies[1]["messages"]] == [
        "Be brief.",
        "Why?",
        "Blue sky.",
        "Sure?",
    ]
    assert server.bodies[1]["temperature"] == 0, "it goes on as it was"
    keys = [asked.headers.get("Authorization") for asked in server.asked]
    assert keys == ["Bearer sk-1"] * 2 + [None] * 2, "only a server that the command line names gets the key"


def test_what_means_nothing_with_a_server_is_wrong_usage(server: ChatServer, run: RunCommand) -> None:
    done = run("chat", "--server", server.url, "-p", "Hi", "--ctx", 512, "--threads", 2, "--template", "chatml")
    assert done.returncode == 2
    assert "--ctx, --threads, --template" in done.stderr
    assert server.asked == []


def test_several_models_are_named() -> None:
    with ChatServer([{"id": "llama3:latest"}, {"id": "qwen"}]) as server:
        with pytest.raises(NoServedModel, match="llama3:latest, qwen"):
            talk(server, "Hi")
        server.answers.append(answer("Hi"))
        assert talk(server, "Hi", model="llama3") == "Hi"
    assert server.bodies[0]["model"] == "llama3:latest"


def test_answers_held_to_a_schema_or_a_grammar() -> None:
    schema, grammar = {"type": "object", "properties": {"a": {"type": "integer"}}}, 'root ::= "yes" | "no"'
    with llama_server() as server, ChatServer() as other:
        server.answers += [answer('{"a": 1}'), answer("yes")]
        assert talk(server, "Hi", schema=schema, stop=("1",)) == '{"a": 1}', "stop strings would leave it incomplete"
        assert talk(server, "Hi", grammar=grammar) == "yes"
        with pytest.raises(NoServedModel, match="takes no grammar"):
            talk(other, "Hi", grammar=grammar)
    assert server.bodies[0]["response_format"]["json_schema"]["schema"] == schema
    assert server.bodies[1]["grammar"] == grammar


def test_a_script_is_told_where_a_server_does_not_hold_the_schema(
    server: ChatServer, run: RunCommand, tmp_path: Path
) -> None:
    schema = tmp_path / "schema.json"
    asked = ("chat", "--server", server.url, "-p", "Hi", "--json-schema", schema)
    schema.write_text('["a list is no schema"]')
    done = run(*asked)
    assert (done.returncode, done.stdout, server.asked) == (1, "", []), done.stderr
    schema.write_text('{"type": "object"}')
    server.answers += [answer('{"a": 1}'), answer('Sure! {"a": 1}')]
    done = run(*asked)
    assert (done.returncode, done.stdout, done.stderr) == (0, '{"a": 1}\n', "")
    done = run(*asked)
    assert (done.returncode, done.stdout) == (1, 'Sure! {"a": 1}\n')
    assert "Error: The answer is not JSON" in done.stderr


def test_what_a_server_says_beside_an_answer(server: ChatServer, run: RunCommand) -> None:
    thoughts = [delta(reasoning_content=text) for text in ("Let ", "me ", "think.")]
    server.answers += [
        Reply([*thoughts, delta("stop", content="42")]),
        Reply([delta(refusal="I will not."), delta("stop")]),
        Reply([delta("tool_calls", tool_calls=[{"index": 0}])]),
    ]
    done = run("chat", "--server", server.url, "-p", "Hi")
    assert done.stdout == "42\n"
    assert "thought for" in done.stderr
    assert "token" not in done.stderr, "nobody has counted them"
    assert run("chat", "--server", server.url, "-p", "Hi").stdout == "I will not.\n"
    done = run("chat", "--server", server.url, "-p", "Hi")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "Warning: The answer is empty.\n")


def test_a_summary_without_counts_is_told_without_them(server: ChatServer) -> None:
    session = session_with(server)
    server.answers += [*(answer("word " * 20) for _ in range(4)), answer("A summary.")]
    for _ in range(4):
        say(session, "Go on.")
    begun, *_, done = (e for e in session.compact(threading.Event()) if isinstance(e, (Compacting, Compacted)))
    assert describe_compaction(begun) == "Summing up 2 turns …"
    assert re.fullmatch(r"Summed up 2 turns in \d\.\d s\.", describe_compaction(done))


def test_bytes_that_are_no_text_reach_a_server_as_question_marks(server: ChatServer, run: RunCommand) -> None:
    server.answers.append(answer("Yes."))
    done = run("chat", "--server", server.url, "-p", "caf\udce9?")
    assert (done.returncode, done.stdout) == (0, "Yes.\n"), done.stderr
    assert server.bodies[0]["messages"][-1]["content"] == "caf??"
    done = run("chat", "mod\udce9l", "--server", server.url, "-p", "Hi")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_tools_are_refused_with_a_server_before_they_are_run(
    server: ChatServer, run: RunCommand, tmp_path: Path
) -> None:
    tools = tmp_path / "tools.py"
    tools.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef f() -> int:\n    return 1\n")
    done = run("chat", "--server", server.url, "-p", "Hi", "--tools", tools)
    assert (done.returncode, server.asked, (tmp_path / "ran").exists()) == (2, [], False)
    assert "--tools has no meaning with a server" in done.stderr


def test_a_server_that_dies_leaves_what_it_said(server: ChatServer, run: RunCommand) -> None:
    server.answers.append(Reply([delta(content="Once upon"), 0.05, CUT]))
    done = run("chat", "--server", server.url, "-p", "Tell.")
    assert (done.returncode, done.stdout) == (1, "Once upon\n")
    assert done.stderr.count("Error:") == 1
    assert "Next:" in done.stderr
    with History(history_path()) as history:
        stored = history.load(1)
    assert (stored.finish_reason, stored.conversation.messages[-1].content) == ("interrupted", "Once upon")


def test_ctrl_c_while_the_server_says_nothing(server: ChatServer) -> None:
    server.answers.append(Reply([30.0]))
    command = [*CHAT, "--server", server.url, "-p", "Hi"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not server.bodies:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    started = time.monotonic()
    process.communicate(timeout=10)
    assert process.returncode == 130
    assert time.monotonic() - started < 2, "with the end of the program"


def test_a_chat_on_the_screen() -> None:
    with llama_server() as server, Terminal([*CHAT, "--server", server.url]) as terminal:
        terminal.wait_for("/help shows")
        assert "template: the server's" in terminal.text
        assert "2,048 tokens" in terminal.text
        server.answers.append(answer("**Bold", "ly** said."))
        terminal.enter("Hello there")
        terminal.wait_for("Boldly said.")
        terminal.enter("/prompt")
        terminal.wait_for("<user> Hello there")
        server.answers.append(Reply([delta(content="One, two"), 30.0]))
        terminal.enter("Count")
        terminal.wait_for("One, two")
        terminal.send(CTRL_C)
        terminal.wait_for("/continue goes on")
        server.answers.append(answer(", three."))
        terminal.enter("/continue")
        terminal.wait_for(", three.")
        assert server.bodies[-1]["messages"][-1] == {"role": "assistant", "content": "One, two"}
        terminal.enter("/model nothere")
        terminal.wait_for("lists no model 'nothere'")
        terminal.enter("/set ctx 512")
        terminal.wait_for("--ctx has no meaning with a server")
        server.answers.append(answer("Another."))
        terminal.enter("/retry temperature=0.1")
        terminal.wait_for("Another.")
        assert server.bodies[-1]["temperature"] == 0.1
        terminal.enter("/exit")
        assert terminal.wait_for_exit() == 0


def test_an_unknown_server_cannot_continue_and_is_asked_again_instead(server: ChatServer) -> None:
    session = session_with(server, max_tokens=2)
    server.answers.append(answer("One", finish_reason="length"))
    said = say(session, "Count.")
    assert isinstance(said[-1], Answer)
    assert said[-1].finish_reason == "length"
    with pytest.raises(LlamachatError, match="cannot go on"):
        list(session.go_on(threading.Event()))
    server.answers.append(answer("Two"))
    assert [event.text for event in session.retry(threading.Event()) if isinstance(event, TextPiece)] == ["Two"]
    assert session.conversation.messages[-1].content == "Two"
