"""The context window of a conversation, kept in a file: it saves time, and whatever happens to it costs only that."""

from __future__ import annotations

import io
import json
import os
import random
import shlex
import signal
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from conftest import RunCommand
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamachat.chat.message import Conversation
from llamachat.cli import context
from llamachat.cli.chat_wishes import ChatOptions
from llamachat.cli.opening import open_chat
from llamachat.cli.terminal.commands import run_command
from llamachat.engine.base import EngineOptions, GenerationRequest, GenerationStats, LoraAdapter, Token
from llamachat.engine.llamacpp import LlamaEngine, state
from llamachat.engine.llamacpp.state import fingerprint
from llamachat.engine.sampling import SamplingParams
from llamachat.models import contexts
from llamachat.models.contexts import context_path, make_room, writing_context
from llamachat.paths import contexts_dir
from support.terminal import CTRL_D, Terminal

GREEDY = SamplingParams(temperature=0.0)
TEXT = "The lake lies still in the morning. Somebody has left a boat, and nobody speaks of it. " * 5
MODEL = "smollm2-135m-instruct"
KEY = "the demo model"
CHAT = [sys.executable, "-m", "support.eager_chat", "chat", "--threads", "1", "--temperature", "0", "--stats"]
N_ANSWER = 6


def never() -> threading.Event:
    return threading.Event()


def go_on(engine: LlamaEngine, ids: list[int], n_tokens: int = N_ANSWER) -> tuple[list[int], GenerationStats]:
    """The ids of an answer, and its statistics."""
    request = GenerationRequest(ids, GREEDY, n_tokens, ignore_eog=True)
    *tokens, end = (event for event in engine.generate(request, never()))
    return [event.token_id for event in tokens if isinstance(event, Token)], end.stats  # type: ignore[union-attr]


@pytest.fixture(scope="module", autouse=True)
def _small_slices() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(state, "_SLICE_BYTES", 2**20)  # 45 tokens of the demo model
        yield


# --- the engine ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_what_is_restored_is_what_was_there(kv_type: Literal["f16", "q8_0"], demo_model: Path, tmp_path: Path) -> None:
    options = EngineOptions(n_ctx=512, n_threads=1, kv_type=kv_type)
    with closing(LlamaEngine(demo_model, options)) as engine:
        ids = engine.tokenizer.tokenize(TEXT)
        ids += go_on(engine, ids)[0]
        kept = engine.cache_state()
        with (tmp_path / "kept").open("wb") as file:
            assert engine.save_state(file, KEY, never())
        assert abs(file_size(tmp_path / "kept") - kept.n_bytes) < 20_000
        ids += engine.tokenizer.tokenize("And then")
        expected, stats = go_on(engine, ids)
        assert stats.n_reused == len(kept.ids), "saving leaves the cache as it was"
    with closing(LlamaEngine(demo_model, replace(options, n_ctx=1024))) as another:
        go_on(another, another.tokenizer.tokenize("Something else."))
        with (tmp_path / "kept").open("rb") as file:
            assert another.restore_state(file, KEY, ids, never()) == len(kept.ids)
        answer, stats = go_on(another, ids)
        assert stats.n_reused == len(kept.ids)
        assert answer == expected


def file_size(path: Path) -> int:
    return path.stat().st_size


class Kept:
    """An engine, and a file of what it evaluated."""

    def __init__(self, model: Path, directory: Path) -> None:
        self.engine = LlamaEngine(model, EngineOptions(n_ctx=256, n_threads=1))
        self.ids = self.engine.tokenizer.tokenize(TEXT)
        self.answer = go_on(self.engine, self.ids)[0]
        self.path = directory / "kept"
        with self.path.open("wb") as file:
            self.engine.save_state(file, KEY, never())
        self.data = self.path.read_bytes()

    def restore(self, data: bytes | None = None, *, key: str = KEY, ids: list[int] | None = None) -> int:
        self.path.write_bytes(self.data if data is None else data)
        with self.path.open("rb") as file:
            return self.engine.restore_state(file, key, self.ids if ids is None else ids, never())


@pytest.fixture(scope="module")
def kept(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    found = Kept(demo_model, tmp_path_factory.mktemp("kept"))
    with closing(found.engine):
        yield found


def test_only_what_the_prompt_begins_with_is_read(kept: Kept) -> None:
    first = kept.data[: len(kept.data) // 2]  # some slices, and nothing of the last
    assert kept.restore(first, ids=[*kept.ids[:40], 1, 2, 3]) == 40
    assert go_on(kept.engine, [*kept.ids[:40], 1, 2, 3])[1].n_reused == 40
    assert kept.restore(first, ids=[1, 2, 3]) == 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), in_head=st.booleans(), bit=st.integers(0, 7))
def test_a_bit_that_is_wrong(kept: Kept, place: float, bit: int, *, in_head: bool) -> None:
    data = bytearray(kept.data)
    data[int(place * (1500 if in_head else len(data)))] ^= 1 << bit
    assert kept.restore(bytes(data)) == 0


def test_after_damage_the_prompt_is_evaluated(kept: Kept) -> None:
    assert kept.restore(kept.data[:-1]) == 0
    answer, stats = go_on(kept.engine, kept.ids)
    assert (answer, stats.n_reused) == (kept.answer, 0)


def _head_says(offset: int, form: str, value: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:offset] + struct.pack(form, value) + data[offset + struct.calcsize(form) :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda _: random.Random(1).randbytes(100_000),
        lambda data: data[:20],
        lambda data: data[:60],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: bytes(len(data)),
        _head_says(40, "<I", 2**32 - 1),
        _head_says(40, "<I", 0),
        _head_says(44, "<I", 0),
        _head_says(44, "<I", 2**32 - 1),
    ],
)
def test_damaged_and_cut_short(damage: Callable[[bytes], bytes], kept: Kept) -> None:
    assert kept.restore(damage(kept.data)) == 0


def test_a_slice_that_claims_to_be_huge(kept: Kept) -> None:
    """As long as the file, too, which is mostly a hole."""
    n_ids = struct.unpack_from("<I", kept.data, 40)[0]
    first_slice = 48 + 4 * n_ids + 32
    kept.path.write_bytes(kept.data[:first_slice] + struct.pack("<QQ", 0, 2**40) + bytes(32))
    os.truncate(kept.path, 2**40 + 10_000)
    with kept.path.open("rb") as file:
        assert kept.engine.restore_state(file, KEY, kept.ids, never()) == 0
    kept.path.unlink()


def test_state_that_llama_cpp_refuses(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole and with the right checksum, but of another shape; what it was put into is empty again."""
    monkeypatch.setattr(state, "_take", lambda _context, start, _stop: (b"\0" * 4000)[start:])
    file = io.BytesIO()
    assert kept.restore() > 0
    assert kept.engine.save_state(file, KEY, never())
    assert kept.restore(file.getvalue()) == 0
    assert kept.engine.cache_state().ids == ()


def test_of_another_model(kept: Kept) -> None:
    assert kept.restore(key="another model") == 0


def test_longer_than_the_window(kept: Kept, demo_model: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(kept.data)
    with closing(LlamaEngine(demo_model, EngineOptions(n_ctx=256, n_threads=1))) as small:
        small.info = replace(small.info, n_ctx=64)
        with (tmp_path / "kept").open("rb") as file:
            assert small.restore_state(file, KEY, kept.ids, never()) == 0


def test_skipped_by_the_user(kept: Kept) -> None:
    cancel = threading.Event()
    cancel.set()
    kept.path.write_bytes(kept.data)
    with kept.path.open("rb") as file:
        assert kept.engine.restore_state(file, KEY, kept.ids, cancel) == 0
    assert go_on(kept.engine, kept.ids)[0] == kept.answer
    assert not kept.engine.save_state(io.BytesIO(), KEY, cancel)


def test_what_decides_the_keys_and_values(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter.gguf"
    adapter.write_bytes(b"one")
    plain = EngineOptions()
    adapted = replace(plain, adapters=[LoraAdapter(adapter)])
    marks = [
        fingerprint("a", plain, None),
        fingerprint("b", plain, None),
        fingerprint("a", replace(plain, kv_type="q8_0"), None),
        fingerprint("a", replace(plain, rope_scaling="yarn"), 9000),
        fingerprint("a", replace(plain, rope_scaling="linear"), 9000),
        fingerprint("a", replace(plain, rope_scaling="linear"), 10_000),
        fingerprint("a", adapted, None),
        fingerprint("a", replace(plain, adapters=[LoraAdapter(adapter, 0.5)]), None),
    ]
    adapter.write_bytes(b"another")
    marks.append(fingerprint("a", adapted, None))
    assert len(set(marks)) == len(marks)
    same = replace(plain, n_ctx=1024, n_threads=3)
    assert fingerprint("a", same, None) == marks[0], "neither the window nor threads do"


# --- the files ----------------------------------------------------------------------------------------------


def write(session: int, n_bytes: int, used_at: int) -> None:
    with writing_context(session, is_synced=True) as file:
        file.write(bytes(n_bytes))
    os.utime(context_path(session), (used_at, used_at))


def sessions_kept() -> list[str]:
    return sorted(path.name for path in contexts_dir().iterdir())


def test_those_not_used_for_longest_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts, "BUDGET_BYTES", 1000)
    assert make_room(1, 300)
    for session, used_at in ((1, 10), (2, 30), (3, 20)):
        write(session, 300, used_at)
    assert make_room(4, 100)
    assert len(sessions_kept()) == 3
    assert make_room(1, 400), "what it replaces does not count"
    assert len(sessions_kept()) == 3
    assert make_room(4, 500)
    assert sessions_kept() == ["2.kv"]
    assert not make_room(4, 1001)
    assert sessions_kept() == ["2.kv"]


def test_the_disk_is_never_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_room(1, 300)
    write(1, 300, 10)
    monkeypatch.setattr(contexts, "RESERVE_BYTES", 2**62)
    assert not make_room(2, 300)
    assert sessions_kept() == ["1.kv"]


def test_killed_while_writing(run: RunCommand) -> None:
    make_room(1, 100)
    write(1, 100, 10)
    program = (
        "import os; from llamachat.models.contexts import writing_context\n"
        "with writing_context(1, is_synced=True) as file: file.write(bytes(200)); file.flush(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    assert file_size(context_path(1)) == 100
    left = json.loads(run("prune", "--dry-run", "--json").stdout)["leftovers"]
    assert [item["kind"] for item in left] == ["unfinished context", "kept context"]
    assert make_room(2, 100)
    assert sessions_kept() == ["1.kv"]


def test_what_another_process_is_writing_is_left_alone(run: RunCommand) -> None:
    make_room(1, 100)
    with writing_context(1, is_synced=True) as file:
        file.write(bytes(100))
        assert json.loads(run("prune", "--yes", "--json").stdout)["leftovers"] == []
        program = "from llamachat.models.contexts import make_room; make_room(2, 100)"
        subprocess.run([sys.executable, "-c", program], check=True)
    assert sessions_kept() == ["1.kv"]


def test_a_file_that_is_none() -> None:
    contexts_dir().mkdir(parents=True)
    os.mkfifo(context_path(1))
    with pytest.raises(OSError, match="regular"):
        contexts.open_context(1)


# --- conversations ------------------------------------------------------------------------------------------


def chat(*arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command, after some other words to the shell."""
    line = f"{before} exec {shlex.join(map(str, [*CHAT, *arguments]))}"
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL
    )


@pytest.fixture(autouse=True)
def _own_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), str(root / "tests")]))


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch, home: Path) -> ChatOptions:
    """Short conversations with a small window are worth keeping, too."""
    home.mkdir(parents=True)
    monkeypatch.setattr(context, "_WORTH_S", 0.0)
    monkeypatch.setattr(context, "_DISK_BYTES_PER_S", 1e12)
    return ChatOptions(EngineOptions(n_ctx=256, n_threads=1), {"temperature": 0.0}, max_tokens=6)


@pytest.fixture
def conversation(eager: ChatOptions) -> Path:
    """The file of a conversation."""
    with open_chat(MODEL, eager) as opened, context.keeping_context(opened):
        list(opened.session.send(TEXT[:180], never()))
    return context_path(1)


def test_an_answer_is_the_same_with_and_without_the_file(conversation: Path) -> None:
    assert stat.S_IMODE(conversation.stat().st_mode) == 0o600
    assert stat.S_IMODE(conversation.parent.stat().st_mode) == 0o700
    before = conversation.read_bytes(), conversation.stat().st_mtime_ns
    again = ["--resume", "-p", "And another?", "--max-tokens", 12, "--no-save"]
    restored = chat(*again)
    n_restored = int(restored.stderr.partition("Restored ")[2].partition(" tokens in")[0])
    assert n_restored > 40
    assert f"{n_restored} of them reused" in restored.stderr
    assert (conversation.read_bytes(), conversation.stat().st_mtime_ns) == before, "--no-save leaves no trace"
    conversation.unlink()
    evaluated = chat(*again)
    assert "Restored" not in evaluated.stderr
    assert " 0 of them reused" in evaluated.stderr
    assert restored.stdout == evaluated.stdout
    assert not list(conversation.parent.iterdir())


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"\n" + data, lambda _: b""])
def test_a_damaged_file_goes(damage: Callable[[bytes], bytes], conversation: Path, eager: ChatOptions) -> None:
    conversation.write_bytes(damage(conversation.read_bytes()))
    with open_chat(MODEL, eager, resume="last") as opened:
        assert context.restore_context(opened) is None
        assert not conversation.exists()
        *_, answer = opened.session.send("And another?", never())
        assert answer.stats.n_reused == 0  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "note", [b"[]", b'{"left_out": [[]]}', b'{"left_out": 7}', b'{"left_out": [0, -1, 9, "1", null]}', b"\xff" * 50_000]
)
def test_a_note_of_turns_that_makes_no_sense(note: bytes, conversation: Path, eager: ChatOptions) -> None:
    conversation.write_bytes(note + b"\n" + conversation.read_bytes().partition(b"\n")[2])
    with open_chat(MODEL, eager, resume="last") as opened:
        assert context.restore_context(opened)
        assert opened.session.left_out == frozenset()


def test_not_where_reading_it_again_is_quick(eager: ChatOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "_WORTH_S", 60.0)
    with open_chat(MODEL, eager) as opened, context.keeping_context(opened):
        list(opened.session.send("Name a colour.", never()))
    assert not contexts_dir().exists()


def test_a_full_disk_costs_one_warning(conversation: Path) -> None:
    conversation.unlink()
    result = chat("--resume", "-p", "And another?", "--max-tokens", 4, before="ulimit -f 500;")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("The context window was not kept (File too large)") == 1
    assert not list(conversation.parent.iterdir())


def test_a_place_that_cannot_be_written(eager: ChatOptions, capsys: pytest.CaptureFixture[str]) -> None:
    contexts_dir().write_text("")
    with open_chat(MODEL, eager) as opened, context.keeping_context(opened):
        list(opened.session.send("Name a colour.", never()))
    assert capsys.readouterr().err.count("The context window was not kept (File exists)") == 1


def test_ctrl_c_skips(eager: ChatOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    take = state._take

    def interrupted(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return take(*arguments)

    monkeypatch.setattr(state, "_take", interrupted)
    with open_chat(MODEL, eager) as opened, context.keeping_context(opened):
        list(opened.session.send(TEXT[:300], never()))
    assert not sessions_kept()


def test_a_signal_is_not_kept_waiting(eager: ChatOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "_SIGNAL_S", 0.0)
    with open_chat(MODEL, eager) as opened:
        list(opened.session.send(TEXT[:180], never()))
        with pytest.raises(SystemExit), context.keeping_context(opened):
            raise SystemExit(128 + signal.SIGTERM)
    assert not contexts_dir().exists()


def test_removed_with_its_session(conversation: Path, run: RunCommand) -> None:
    assert run("sessions", "rm", "1", "--yes").returncode == 0
    assert not conversation.exists()


def test_prune_takes_it(conversation: Path, run: RunCommand) -> None:
    result = json.loads(run("prune", "--yes", "--json").stdout)
    assert [(item["kind"], item["path"]) for item in result["leftovers"]] == [("kept context", str(conversation))]
    assert result["freed_bytes"] > 500_000
    assert not conversation.exists()


def test_on_the_screen(home: Path) -> None:
    home.mkdir(parents=True)
    with Terminal([*CHAT, "--max-tokens", "4"]) as screen:
        screen.wait_for("\n>")
        screen.enter("Name a colour.")
        screen.wait_for("\n\n>")
        screen.send(CTRL_D)
        assert screen.wait_for_exit() == 0
    assert context_path(1).exists()
    with Terminal([*CHAT, "--resume", "--max-tokens", "4"]) as screen:
        screen.wait_for("Restored ")
        screen.wait_for("\n>")
        screen.enter("And another?")
        screen.wait_for(" of them reused")
        screen.wait_for("\n\n>")
        written = context_path(1).stat().st_mtime_ns
        screen.process.send_signal(signal.SIGTERM)
        assert screen.wait_for_exit() == 128 + signal.SIGTERM
    assert context_path(1).stat().st_mtime_ns > written


def test_another_conversation_and_back(eager: ChatOptions) -> None:
    with open_chat(MODEL, eager) as opened:
        for text in ("Name a colour.", "And another?"):
            list(opened.session.send(text, never()))
        opened.record.adopt(None)  # type: ignore[union-attr]
        opened.session.resume(Conversation(None))
        list(opened.session.send("Name a lake.", never()))
        assert "Restored" not in run_command("/resume 1", opened).text, "it was never kept"
        list(opened.session.send("And a third?", never()))
        assert "Restored" in run_command("/resume 2", opened).text
        assert "Restored" in run_command("/resume 1", opened).text
        *_, answer = opened.session.send("And a fourth?", never())
        assert answer.stats.n_reused > 50  # type: ignore[union-attr]


def test_turns_that_were_left_out_stay_out(eager: ChatOptions) -> None:
    with open_chat(MODEL, eager) as opened:
        for i in range(9):
            list(
                opened.session.send(f"Name a colour, the {i}th one of many, and say nothing else besides it.", never())
            )
        left_out = opened.session.left_out
        assert left_out
        context.keep_context(opened)
        n_cached = len(opened.session.engine.cache_state().ids)
    with open_chat(MODEL, eager, resume="last") as opened:
        assert context.restore_context(opened)
        assert opened.session.left_out == left_out
        *_, answer = opened.session.send("Name a colour, the last one of many, and say nothing else.", never())
        assert opened.session.left_out > left_out
        assert answer.stats.n_reused > n_cached - 60  # type: ignore[union-attr]


def test_nothing_is_kept_twice_or_for_a_session_that_is_gone(eager: ChatOptions) -> None:
    with open_chat(MODEL, eager) as opened:
        list(opened.session.send("Name a colour.", never()))
        context.keep_context(opened)
        assert context_path(1).exists()
        context_path(1).unlink()
        context.keep_context(opened)
        assert not context_path(1).exists()
        list(opened.session.send("And another?", never()))
        opened.record.history.remove(1)  # type: ignore[union-attr]
        context.keep_context(opened)
        assert not context_path(1).exists()
