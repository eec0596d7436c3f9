"""llama.cpp as an engine, on the real demo model: repeatable, interruptible, and evaluating only what is new."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import gguf
import pytest

from llamachat.chat.events import Answer
from llamachat.chat.message import Conversation
from llamachat.chat.session import Session
from llamachat.chat.templates import ChatML
from llamachat.engine import hardware
from llamachat.engine.base import (
    Cut,
    End,
    EngineOptions,
    Event,
    GenerationRequest,
    GenerationStats,
    Prefill,
    Token,
)
from llamachat.engine.llamacpp import LlamaEngine, open_tokenizer
from llamachat.engine.sampling import SamplerStep, SamplingParams, recommended, sampler_chain
from llamachat.errors import EngineFailed, NotAModelFile, PromptTooLong, WindowTooLong
from quantize import convert, find_file_type
from support.checkpoints import LlamaShape, write_random_checkpoint

GREEDY = SamplingParams(temperature=0.0)
N_CTX = 256
LONG_N_CTX = 8192


@dataclass(frozen=True)
class Generation:
    """Everything one generation gave."""

    prefills: list[Prefill]
    tokens: list[Token]
    end: End

    @property
    def ids(self) -> list[int]:
        return [token.token_id for token in self.tokens]

    @property
    def text(self) -> str:
        return b"".join(token.piece for token in self.tokens).decode("utf-8", "replace")

    @property
    def stats(self) -> GenerationStats:
        return self.end.stats


def collect(events: Iterator[Event]) -> Generation:
    """Also hold the stream to its order: prefill, tokens, one end."""
    *before, end = events
    prefills = [event for event in before if isinstance(event, Prefill)]
    tokens = [event for event in before if isinstance(event, Token)]
    assert before == [*prefills, *tokens]
    assert isinstance(end, End)
    assert end.stats.n_generated == len(tokens)
    return Generation(prefills, tokens, end)


def generate(
    engine: LlamaEngine,
    ids: Sequence[int],
    sampling: SamplingParams = GREEDY,
    *,
    max_tokens: int | None = 24,
    ignore_eog: bool = False,
) -> Generation:
    return collect(engine.generate(GenerationRequest(ids, sampling, max_tokens, ignore_eog), threading.Event()))


def prompt_of(engine: LlamaEngine, *contents: str, system: str | None = None) -> list[int]:
    conversation = Conversation(system)
    for i, content in enumerate(contents):
        conversation = conversation.with_message("assistant" if i % 2 else "user", content)
    return list(ChatML().render(conversation, engine.tokenizer).ids)


def forget(engine: LlamaEngine) -> None:
    """Leave nothing in the KV cache that a chat could begin with."""
    generate(engine, engine.tokenizer.tokenize("x"), max_tokens=1)


@pytest.fixture(scope="module")
def open_demo(demo_model: Path) -> Iterator[Callable[[int], LlamaEngine]]:
    """An engine over the demo model, one for each size of context; they are all closed at the end."""
    opened: dict[int, LlamaEngine] = {}

    def open_once(n_ctx: int) -> LlamaEngine:
        if n_ctx not in opened:
            opened[n_ctx] = LlamaEngine(demo_model, EngineOptions(n_ctx=n_ctx, n_threads=1))
        return opened[n_ctx]

    yield open_once
    for engine in opened.values():
        engine.close()


@pytest.fixture
def engine(open_demo: Callable[[int], LlamaEngine]) -> LlamaEngine:
    engine = open_demo(N_CTX)
    forget(engine)
    return engine


@pytest.fixture
def fresh(demo_model: Path) -> Iterator[LlamaEngine]:
    """An engine that has never seen a token."""
    engine = LlamaEngine(demo_model, EngineOptions(n_ctx=N_CTX, n_threads=1))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def tiny_gguf(small_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    shape = LlamaShape(n_vocab=600, n_embd=32, n_ff=32, n_layer=1, n_head=1, n_head_kv=1)
    write_random_checkpoint(directory, shape, tokenizer=small_tokenizer)
    return convert(directory, directory / "tiny.gguf", find_file_type("q8_0"), n_threads=1).path


# --- repeatable ---------------------------------------------------------------------------------------------


def test_it_answers(engine: LlamaEngine) -> None:
    generation = generate(engine, prompt_of(engine, "What is the capital of France?"))
    assert "Paris" in generation.text
    assert generation.end.finish_reason == "stop"
    stats = generation.stats
    assert 0 < stats.prefill_s <= stats.ttft_s
    assert stats.decode_s > 0
    assert stats.prompt_tps > 0
    assert stats.generation_tps > 0


def test_greedy_is_repeatable(engine: LlamaEngine) -> None:
    prompt = prompt_of(engine, "Tell me about the sea.")
    first = generate(engine, prompt)
    forget(engine)
    assert generate(engine, prompt).ids == first.ids
    assert generate(engine, prompt).ids == first.ids, "also from the KV cache"


def test_a_seed_repeats(engine: LlamaEngine) -> None:
    prompt = prompt_of(engine, "Invent a name.")
    answers = [generate(engine, prompt, SamplingParams(temperature=1.5, seed=seed)).ids for seed in (7, 7, 8)]
    assert answers[0] == answers[1] != answers[2]
    free = [tuple(generate(engine, prompt, SamplingParams(temperature=1.5)).ids) for _ in range(3)]
    assert len(set(free)) > 1, "without a seed each generation has its own"


@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**40 + 5])
def test_any_seed_repeats(engine: LlamaEngine, seed: int) -> None:
    prompt, sampling = prompt_of(engine, "Invent a name."), SamplingParams(temperature=1.5, seed=seed)
    assert generate(engine, prompt, sampling, max_tokens=8).ids == generate(engine, prompt, sampling, max_tokens=8).ids


def test_penalties_count_the_prompt_and_the_answer(engine: LlamaEngine) -> None:
    prompt = engine.tokenizer.tokenize("one two one two one two one two one two")
    free = generate(engine, prompt, max_tokens=12, ignore_eog=True)
    penalized = generate(engine, prompt, SamplingParams(temperature=0.0, repeat_penalty=20.0), max_tokens=12)
    assert set(free.ids) & set(prompt)
    assert len(set(penalized.ids)) == len(penalized.ids)
    assert not set(penalized.ids) & set(prompt)


# --- only what is new ---------------------------------------------------------------------------------------


def test_a_second_turn_evaluates_only_new_tokens(engine: LlamaEngine, fresh: LlamaEngine) -> None:
    first_prompt = prompt_of(engine, "What is the capital of France?")
    first = generate(engine, first_prompt)
    assert first.stats.n_reused == 0
    second_prompt = prompt_of(engine, "What is the capital of France?", first.text, "And of Italy?")
    second = generate(engine, second_prompt)
    assert first.end.finish_reason == "stop"
    assert second_prompt[: len(first_prompt) + len(first.ids)] == first_prompt + first.ids
    assert second.stats.n_reused == len(first_prompt) + len(first.ids)
    assert second.prefills[-1].n_done == second.prefills[-1].n_total == second.stats.n_evaluated
    assert second.ids == generate(fresh, second_prompt).ids
    assert "Rome" in second.text


def test_a_changed_message_evaluates_only_the_tail(engine: LlamaEngine) -> None:
    contents = ["Count to three.", "One, two, three.", "Go on.", "Four, five, six.", "And on?"]
    generate(engine, prompt_of(engine, *contents))
    contents[2] = "Now count down."
    changed = prompt_of(engine, *contents)
    kept = prompt_of(engine, *contents[:2], "Go on.", *contents[3:])
    n_common = next(i for i, (a, b) in enumerate(zip(changed, kept, strict=False)) if a != b)
    again = generate(engine, changed)
    assert again.stats.n_reused == n_common
    forget(engine)
    assert generate(engine, changed).ids == again.ids


def test_the_same_prompt_evaluates_one_token(engine: LlamaEngine) -> None:
    prompt = prompt_of(engine, "Hello")
    first = generate(engine, prompt)
    again = generate(engine, prompt)
    assert again.stats.n_evaluated == 1
    assert again.ids == first.ids
    shorter = generate(engine, prompt[:-2])
    assert shorter.stats.n_evaluated == 1


def test_a_session_over_the_real_engine(engine: LlamaEngine, fresh: LlamaEngine) -> None:
    session, contents, n_known = Session(engine, ChatML(), GREEDY, max_tokens=24), list[str](), 0
    for question in ("My name is Ada.", "What is the capital of France?", "Tell me more."):
        *_, answer = session.send(question, threading.Event())
        assert isinstance(answer, Answer)
        assert answer.content == generate(fresh, prompt_of(fresh, *contents, question)).text
        assert answer.stats.n_reused >= n_known
        contents += [question, answer.content]
        n_known = answer.stats.n_prompt


# --- cancelling ---------------------------------------------------------------------------------------------


def test_cancel_during_a_long_prefill(open_demo: Callable[[int], LlamaEngine]) -> None:
    engine = open_demo(LONG_N_CTX)
    question = prompt_of(engine, "What is the capital of France?")
    before = generate(engine, question)
    long_prompt = engine.tokenizer.tokenize("The lighthouse keeper climbed the steps. " * 800)
    assert len(long_prompt) > 5000
    cancel, cancelled_at = threading.Event(), []

    def cancel_soon() -> None:
        cancelled_at.append(time.monotonic())
        cancel.set()

    timer = threading.Timer(0.15, cancel_soon)
    timer.start()
    generation = collect(engine.generate(GenerationRequest(long_prompt, GREEDY), cancel))
    ended_at = time.monotonic()
    timer.join()
    assert generation.end.finish_reason == "interrupted"
    assert not generation.tokens
    assert ended_at - cancelled_at[0] < 0.75
    assert generate(engine, question).ids == before.ids, "the engine is still right"


def test_what_a_cancelled_prefill_did_is_not_done_again(tiny_gguf: Path) -> None:
    engine = LlamaEngine(tiny_gguf, EngineOptions(n_ctx=4096, n_threads=1, rope_scaling="linear"))
    try:
        prompt = engine.tokenizer.tokenize("Every question has a shape. " * 180)
        at_once = generate(engine, prompt, max_tokens=8, ignore_eog=True)
        places = [*range(512, len(prompt), 512), len(prompt)]
        assert [(p.n_done, p.n_total) for p in at_once.prefills] == [(place, len(prompt)) for place in places]
        for place in places[:2]:
            forget(engine)
            cancel = threading.Event()
            for event in engine.generate(GenerationRequest(prompt, GREEDY, 8), cancel):
                if event == Prefill(place, len(prompt)):
                    cancel.set()
            assert isinstance(event, End)
            assert event.finish_reason == "interrupted"
            again = generate(engine, prompt, max_tokens=8, ignore_eog=True)
            assert again.stats.n_reused == place
            assert again.ids == at_once.ids
    finally:
        engine.close()


class _AfterOneLook(threading.Event):
    """Set once somebody has looked: what was begun before is cancelled in its middle."""

    n_looks = 0

    def is_set(self) -> bool:
        self.n_looks += 1
        return self.n_looks > 1


def test_cancel_while_the_cache_is_shifted(engine: LlamaEngine) -> None:
    whole = prompt_of(engine, "My dog is called Rex.", "Nice!", "Count to three.", "One, two, three.", "And on?")
    generate(engine, whole, max_tokens=1)
    cut = Cut(12, 26)
    prompt = [*whole[: cut.start], *whole[cut.stop :]]
    request = GenerationRequest(prompt, GREEDY, 16, cut=cut)
    assert collect(engine.generate(request, _AfterOneLook())).end.finish_reason == "interrupted"
    after = generate(engine, prompt, max_tokens=16)
    forget(engine)
    assert generate(engine, prompt, max_tokens=16).ids == after.ids


def test_cancel_during_decode(engine: LlamaEngine) -> None:
    prompt = prompt_of(engine, "Tell me a long story.")
    whole = generate(engine, prompt, max_tokens=16)
    cancel, tokens = threading.Event(), []
    for event in engine.generate(GenerationRequest(prompt, GREEDY), cancel):
        if isinstance(event, Token):
            tokens.append(event.token_id)
            if len(tokens) == 5:
                cancel.set()
    assert isinstance(event, End)
    assert (event.finish_reason, event.stats.n_generated) == ("interrupted", 5)
    assert tokens == whole.ids[:5]
    assert generate(engine, prompt, max_tokens=16).ids == whole.ids


class _AfterOneLookMore(_AfterOneLook):
    """The same, from the moment on that somebody says so."""

    is_armed = False

    def is_set(self) -> bool:
        return self.is_armed and super().is_set()


def test_cancel_in_the_middle_of_a_token(engine: LlamaEngine) -> None:
    prompt = prompt_of(engine, "Tell me a long story.")
    whole = generate(engine, prompt, max_tokens=16)
    cancel = _AfterOneLookMore()
    for event in engine.generate(GenerationRequest(prompt, GREEDY), cancel):
        cancel.is_armed = isinstance(event, Token)
    assert isinstance(event, End)
    assert (event.finish_reason, event.stats.n_generated) == ("interrupted", 1)
    after = generate(engine, [*prompt, *whole.ids[:2]], max_tokens=14)
    assert after.stats.n_reused == len(prompt), "the token itself was not evaluated to its end"
    assert after.ids == whole.ids[2:]


def test_cancelled_before_it_began(engine: LlamaEngine) -> None:
    cancel = threading.Event()
    cancel.set()
    generation = collect(engine.generate(GenerationRequest(prompt_of(engine, "Hi"), GREEDY), cancel))
    assert generation.end.finish_reason == "interrupted"
    assert not generation.prefills
    assert not generation.tokens
    assert generation.stats.generation_tps == 0.0


def test_a_stream_that_is_left_alone_harms_nothing(engine: LlamaEngine) -> None:
    prompt = prompt_of(engine, "Tell me about the sea.")
    whole = generate(engine, prompt, max_tokens=8)
    for n_events in (1, 4):
        events = engine.generate(GenerationRequest(prompt, GREEDY), threading.Event())
        for _ in range(n_events):
            next(events)
        events.close()  # type: ignore[attr-defined]
        assert generate(engine, prompt, max_tokens=8).ids == whole.ids


# --- limits -------------------------------------------------------------------------------------------------


def test_a_prompt_that_fills_the_context_is_refused(engine: LlamaEngine) -> None:
    prompt = prompt_of(engine, "Hello")
    generate(engine, prompt)
    for n_prompt in (N_CTX, N_CTX + 1, 5 * N_CTX):
        with pytest.raises(PromptTooLong) as caught:
            next(engine.generate(GenerationRequest([5] * n_prompt, GREEDY), threading.Event()))
        assert (caught.value.n_prompt, caught.value.n_ctx) == (n_prompt, N_CTX)
    assert generate(engine, prompt).stats.n_evaluated == 1, "the KV cache is as it was"


def test_an_empty_prompt_is_refused(engine: LlamaEngine) -> None:
    with pytest.raises(EngineFailed):
        next(engine.generate(GenerationRequest([], GREEDY), threading.Event()))


def test_a_full_context_ends_the_answer(engine: LlamaEngine) -> None:
    prompt = engine.tokenizer.tokenize("the boats will leave " * 400)[: N_CTX - 6]
    generation = generate(engine, prompt, max_tokens=None, ignore_eog=True)
    assert generation.end.finish_reason == "length"
    assert len(prompt) + generation.stats.n_generated == N_CTX + 1, "the last token needs no place"
    last = generate(engine, prompt + generation.ids[:5], max_tokens=None, ignore_eog=True)
    assert last.end.finish_reason == "length"
    assert last.ids == generation.ids[5:]


@pytest.mark.parametrize("max_tokens", [1, 3])
def test_max_tokens(engine: LlamaEngine, max_tokens: int) -> None:
    generation = generate(engine, prompt_of(engine, "Tell me a long story."), max_tokens=max_tokens)
    assert (generation.end.finish_reason, len(generation.tokens)) == ("length", max_tokens)


def test_ignore_eog_goes_on(engine: LlamaEngine) -> None:
    prompt = prompt_of(engine, "What is the capital of France?")
    stopped = generate(engine, prompt, max_tokens=40)
    assert stopped.end.finish_reason == "stop"
    on = generate(engine, prompt, max_tokens=len(stopped.ids) + 3, ignore_eog=True)
    assert (on.end.finish_reason, on.stats.n_generated) == ("length", len(stopped.ids) + 3)
    assert on.ids[: len(stopped.ids)] == stopped.ids
    assert engine.tokenizer.is_eog(on.ids[len(stopped.ids)])
    assert on.tokens[len(stopped.ids)].piece == b"", "a control token has no text"


def test_text_that_is_not_unicode_is_tokenized_all_the_same(engine: LlamaEngine, tiny_gguf: Path) -> None:
    """Lone surrogates are what Python makes of bytes in arguments that are not UTF-8."""
    with closing(LlamaEngine(tiny_gguf, EngineOptions(n_ctx=64, n_threads=1))) as tiny:
        for any_engine in (engine, tiny):
            tokenize = any_engine.tokenizer.tokenize
            assert tokenize("caf\udce9 \ud83d!") == tokenize("caf? ?!")


def test_what_was_loaded(engine: LlamaEngine, demo_model: Path) -> None:
    info = engine.info
    assert 130e6 < info.n_params < 140e6
    assert 0.9 * demo_model.stat().st_size < info.size_bytes < demo_model.stat().st_size
    assert (info.n_ctx, info.n_ctx_train, info.n_threads) == (N_CTX, 8192, 1)
    assert info.metadata["general.architecture"] == "llama"
    assert info.file_type == "q4_1"


@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0"])
def test_a_smaller_kv_cache(demo_model: Path, kv_type: str) -> None:
    engine = LlamaEngine(demo_model, EngineOptions(n_ctx=512, n_threads=1, kv_type=kv_type))  # type: ignore[arg-type]
    try:
        assert generate(engine, prompt_of(engine, "Hello"), max_tokens=4).tokens
    finally:
        engine.close()
        engine.close()


# --- files that are not models ------------------------------------------------------------------------------


_BAD_FILES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "text": lambda _: b"hello, world\n" * 100,
    "zeros": lambda _: bytes(4096),
    "magic alone": lambda _: b"GGUF",
    "magic and zeros": lambda _: b"GGUF" + bytes(4096),
    "magic and ones": lambda _: b"GGUF\x03\0\0\0" + b"\xff" * 4096,
    "a trillion tensors": lambda data: data[:8] + (1 << 60).to_bytes(8, "little") + data[16:],
    "a trillion keys": lambda data: data[:16] + (1 << 60).to_bytes(8, "little") + data[24:],
    "half of it": lambda data: data[: len(data) // 2],
    "all but a byte": lambda data: data[:-1],
    "safetensors": lambda _: (80).to_bytes(8, "little") + b'{"x":{"dtype":"F32"}}'.ljust(80) + bytes(64),
}


@pytest.mark.parametrize("name", _BAD_FILES)
def test_not_a_model(name: str, tiny_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad model.gguf"
    path.write_bytes(_BAD_FILES[name](tiny_gguf.read_bytes()))
    with pytest.raises(NotAModelFile, match=r"bad model\.gguf: ") as caught:
        LlamaEngine(path)
    assert caught.value.path == path
    assert "no reason given" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["empty", "text", "magic and ones"])
def test_not_a_vocabulary(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(_BAD_FILES[name](b""))
    with pytest.raises(NotAModelFile), open_tokenizer(path):
        pass


@pytest.mark.parametrize("name", ["nothing.gguf", "."])
def test_no_file_at_all(name: str, tmp_path: Path) -> None:
    with pytest.raises(NotAModelFile):
        LlamaEngine(tmp_path / name)


_OPEN_EACH = """
import sys, threading
from pathlib import Path
from llamachat.engine.base import EngineOptions, GenerationRequest
from llamachat.engine.llamacpp import LlamaEngine
from llamachat.engine.sampling import SamplingParams
from llamachat.errors import LlamachatError

for path in sorted(Path(sys.argv[1]).iterdir()):
    print(path.name, flush=True)
    try:
        engine = LlamaEngine(path, EngineOptions(n_ctx=256, n_threads=1))
        engine.tokenizer.tokenize("hello"), engine.tokenizer.control_tokens
        list(engine.generate(GenerationRequest([1, 5], SamplingParams(temperature=0.0), 2), threading.Event()))
        engine.close()
    except LlamachatError as error:
        assert type(error).__name__ in ("NotAModelFile", "EngineFailed"), error
"""


def _open_each(directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _OPEN_EACH, directory], capture_output=True, text=True, timeout=120, check=False
    )


def test_truncated_files_end_in_an_error(tiny_gguf: Path, tmp_path: Path) -> None:
    data, header_end = tiny_gguf.read_bytes(), gguf.GGUFReader(tiny_gguf).data_offset
    places = [*range(25), *range(25, header_end, header_end // 40), header_end, (header_end + len(data)) // 2]
    for place in places:
        (tmp_path / f"{place:06}.gguf").write_bytes(data[:place])
    done = _open_each(tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == len(places)


def test_mutated_headers_never_crash(tiny_gguf: Path, tmp_path: Path) -> None:
    """llama.cpp may give up on a file by an assertion; even then the process ends with a sentence, not a signal."""
    rng, data, header_end = random.Random(5), tiny_gguf.read_bytes(), gguf.GGUFReader(tiny_gguf).data_offset
    for i in range(150):
        mutated = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 4])):
            mutated[rng.randrange(24, rng.choice([2500, header_end]))] = rng.randrange(256)
        (tmp_path / f"{i:03}.gguf").write_bytes(mutated)
    while left := sorted(tmp_path.iterdir()):
        done = _open_each(tmp_path)
        opened = done.stdout.split()
        for path in left[: len(opened)]:
            path.unlink()
        if done.returncode != 0:
            assert (done.returncode, opened != []) == (1, True), done.stderr
            assert done.stderr.strip().startswith("Error: llama.cpp gave up ("), done.stderr


def test_an_assertion_in_llama_cpp_ends_in_plain_words(tiny_gguf: Path, tmp_path: Path) -> None:
    """Two tokens with the same text are one that llama.cpp aborts on."""
    data = tiny_gguf.read_bytes()
    assert data.count(b"<0x41>") == data.count(b"<0x42>") == 1
    (tmp_path / "twice.gguf").write_bytes(data.replace(b"<0x41>", b"<0x42>"))
    done = _open_each(tmp_path)
    assert done.returncode == 1
    error, step = done.stderr.strip().splitlines()
    assert error.startswith("Error: llama.cpp gave up (llama.cpp/")
    assert step.startswith("Next: ")


# --- sampling -----------------------------------------------------------------------------------------------

_NEUTRAL = SamplingParams(temperature=1.0, top_k=0, typical_p=1.0, top_p=1.0, min_p=0.0, repeat_penalty=1.0)


def test_the_chain_is_in_order() -> None:
    params = SamplingParams(0.7, top_k=50, typical_p=0.9, top_p=0.8, min_p=0.1, repeat_penalty=1.1, seed=None)
    assert sampler_chain(params, 42) == [
        SamplerStep("penalties", (64, 1.1, 0.0, 0.0)),
        SamplerStep("top_k", (50,)),
        SamplerStep("typical", (0.9, 1)),
        SamplerStep("top_p", (0.8, 1)),
        SamplerStep("min_p", (0.1, 1)),
        SamplerStep("temp", (0.7,)),
        SamplerStep("dist", (42,)),
    ]


def test_neutral_values_are_left_out() -> None:
    assert [step.name for step in sampler_chain(_NEUTRAL, 1)] == ["temp", "dist"]


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_zero_is_greedy(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, repeat_penalty=1.2)
    assert [step.name for step in sampler_chain(params, 1)] == ["penalties", "greedy"]


def test_every_step_is_one_llama_cpp_has(engine: LlamaEngine) -> None:
    params = SamplingParams(0.7, top_k=50, typical_p=0.9, top_p=0.8, min_p=0.1, repeat_penalty=1.1, seed=1)
    prompt = prompt_of(engine, "Hi")
    assert generate(engine, prompt, params, max_tokens=4).ids == generate(engine, prompt, params, max_tokens=4).ids
    assert generate(engine, prompt, SamplingParams(top_k=1), max_tokens=4).ids == (
        generate(engine, prompt, GREEDY, max_tokens=4).ids
    )


def test_what_is_not_none_overrides() -> None:
    params = SamplingParams(temperature=0.5).override({"temperature": None, "top_k": 0, "seed": 0})
    assert (params.temperature, params.top_k, params.seed) == (0.5, 0, 0)


def test_what_a_header_recommends() -> None:
    metadata = {
        "general.sampling.temp": "0.600000",
        "general.sampling.top_k": "20",
        "general.sampling.top_p": "0.95",
        "general.sampling.min_p": "0",
        "general.sampling.penalty_repeat": "1.05",
        "general.name": "x",
    }
    values = recommended(metadata)
    assert values == {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.0, "repeat_penalty": 1.05}
    assert isinstance(values["top_k"], int)
    assert recommended({}) == {}


@pytest.mark.parametrize("value", ["", "hot", "nan", "inf", "-inf", "-1", "1e300"])
def test_advice_without_sense_is_none(value: str) -> None:
    keys = ("temp", "top_k", "top_p", "min_p", "penalty_repeat")
    assert recommended({f"general.sampling.{key}": value for key in keys}) == {}


# --- hardware -----------------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend to be a machine of cores with two hyper-threads each, within a mask and a container's quota."""

    def pretend(n_cpus: int, allowed: set[int], v2: str | None = None, v1: tuple[int, int] | None = None) -> None:
        for cpu in range(n_cpus):
            topology = tmp_path / "cpu" / f"cpu{cpu}" / "topology"
            topology.mkdir(parents=True)
            (topology / "physical_package_id").write_text("0\n")
            (topology / "core_id").write_text(f"{cpu % (n_cpus // 2)}\n")
        if v2 is not None:
            (tmp_path / "cpu.max").write_text(v2 + "\n")
        if v1 is not None:
            (tmp_path / "v1").mkdir()
            (tmp_path / "v1" / "cpu.cfs_quota_us").write_text(f"{v1[0]}\n")
            (tmp_path / "v1" / "cpu.cfs_period_us").write_text(f"{v1[1]}\n")
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed, raising=False)
        monkeypatch.setattr(hardware, "_CPU_TOPOLOGY", tmp_path / "cpu")
        monkeypatch.setattr(hardware, "_CGROUP_V2_QUOTA", tmp_path / "cpu.max")
        monkeypatch.setattr(hardware, "_CGROUP_V1", tmp_path / "v1")

    return pretend


@pytest.mark.parametrize(
    ("allowed", "v2", "v1", "n_threads"),
    [
        (set(range(16)), None, None, 8),
        (set(range(8)), None, None, 8),
        ({0, 8}, None, None, 1),
        ({0, 1, 8}, None, None, 2),
        (set(range(16)), "max 100000", None, 8),
        (set(range(16)), "300000 100000", None, 3),
        (set(range(16)), "250000 100000", None, 2),
        (set(range(16)), "50000 100000", None, 1),
        (set(range(16)), "9900000 100000", None, 8),
        ({0, 1}, "400000 100000", None, 2),
        (set(range(16)), "nonsense", None, 8),
        (set(range(16)), None, (400000, 100000), 4),
        (set(range(16)), None, (-1, 100000), 8),
    ],
)
def test_default_threads(
    machine: Callable[..., None], allowed: set[int], v2: str | None, v1: tuple[int, int] | None, n_threads: int
) -> None:
    machine(16, allowed, v2, v1)
    assert hardware.default_threads() == n_threads


def test_threads_where_the_system_tells_nothing(
    machine: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(16, {0, 1, 2})
    monkeypatch.setattr(hardware, "_CPU_TOPOLOGY", tmp_path / "nothing")
    assert hardware.default_threads() == 3
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert hardware.default_threads() == 1


def test_a_window_longer_than_the_model_was_trained_for(tiny_gguf: Path) -> None:
    with pytest.raises(WindowTooLong, match="trained for 256 tokens"):
        LlamaEngine(tiny_gguf, EngineOptions(n_ctx=1024))
    engine = LlamaEngine(tiny_gguf, EngineOptions(n_ctx=1024, rope_scaling="yarn"))
    try:
        assert (engine.info.n_ctx, engine.info.n_ctx_train) == (1024, 256)
    finally:
        engine.close()


def test_a_model_that_is_stretched_already_is_never_stretched_less(small_tokenizer: Path, tmp_path: Path) -> None:
    shape = LlamaShape(
        n_vocab=600, n_embd=64, n_ff=64, n_layer=2, n_head=2, n_head_kv=2,
        rope_scaling={"rope_type": "linear", "factor": 4.0},
    )  # fmt: skip
    write_random_checkpoint(tmp_path, shape, tokenizer=small_tokenizer)
    path = convert(tmp_path, tmp_path / "model.gguf", find_file_type("f16"), n_threads=1).path
    answers = []
    for options in (EngineOptions(n_ctx=256), EngineOptions(n_ctx=512, rope_scaling="linear")):
        engine = LlamaEngine(path, options)
        prompt = engine.tokenizer.tokenize("Every question has a shape. " * 6)
        answers.append(generate(engine, prompt, SamplingParams(seed=1), max_tokens=150, ignore_eog=True).ids)
        engine.close()
    assert answers[0] == answers[1]
