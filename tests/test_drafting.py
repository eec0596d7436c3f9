"""Drafts change how fast an answer comes, and nothing else."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from conftest import RunCommand
from hypothesis import given
from hypothesis import strategies as st

from llamachat.chat.events import Answer
from llamachat.chat.message import Conversation
from llamachat.chat.session import Session
from llamachat.chat.templates import ChatML
from llamachat.engine.base import Cut, End, EngineOptions, GenerationRequest, Token
from llamachat.engine.llamacpp import LlamaEngine
from llamachat.engine.llamacpp.drafting.auto import AutoDrafts
from llamachat.engine.llamacpp.drafting.lookup import Lookup
from llamachat.engine.sampling import SamplingParams
from llamachat.errors import NotAModelFile, UnusableDraft
from quantize import convert, find_file_type
from support.checkpoints import LlamaShape, write_random_checkpoint
from support.gguf_files import write_mamba

GREEDY = SamplingParams(temperature=0.0)
SEEDED = SamplingParams(temperature=0.9, seed=7)
PENALIZED = SamplingParams(temperature=0.8, repeat_penalty=1.1, seed=3)
N_CTX = 256
"""No more, so that llama.cpp's attention adds up in the same order for one token as for a batch."""
REPEAT = "The gate is red, the gate is old, the gate is shut at nine.\n\nRepeat the text above, word for word."
QUESTIONS = (REPEAT, "Count from one to ten, and then again.")

Open = Callable[[str | Path], LlamaEngine]


def run_through(
    engine: LlamaEngine,
    ids: Sequence[int],
    sampling: SamplingParams = GREEDY,
    *,
    max_tokens: int | None = 28,
    ignore_eog: bool = True,
    cut: Cut | None = None,
    grammar: str | None = None,
) -> tuple[list[int], End]:
    request = GenerationRequest(ids, sampling, max_tokens, ignore_eog, cut=cut, grammar=grammar)
    *events, end = engine.generate(request, threading.Event())
    assert isinstance(end, End)
    tokens = [event.token_id for event in events if isinstance(event, Token)]
    assert end.stats.n_generated == len(tokens)
    assert 0 <= end.stats.n_accepted <= min(end.stats.n_drafted, len(tokens))
    return tokens, end


def prompt_of(engine: LlamaEngine, *contents: str) -> list[int]:
    conversation = Conversation(None)
    for i, content in enumerate(contents):
        conversation = conversation.with_message("assistant" if i % 2 else "user", content)
    return list(ChatML().render(conversation, engine.tokenizer).ids)


@pytest.fixture(scope="module")
def open_demo(demo_model: Path) -> Iterator[Open]:
    """The demo model with a drafter, once for each; all are closed at the end."""
    opened: dict[str | Path, LlamaEngine] = {}

    def open_once(draft: str | Path) -> LlamaEngine:
        if draft not in opened:
            options = EngineOptions(n_ctx=N_CTX, n_threads=1, draft=draft)  # type: ignore[arg-type]
            opened[draft] = LlamaEngine(demo_model, options)
        return opened[draft]

    yield open_once
    for engine in opened.values():
        engine.close()


@pytest.fixture(scope="module")
def tiny_models(small_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two random models over one tokenizer, which agree on nothing, at F32."""
    directory = tmp_path_factory.mktemp("tiny")
    paths = []
    for name, width in (("large", 64), ("small", 32)):
        shape = LlamaShape(n_vocab=600, n_embd=width, n_ff=64, n_layer=2, n_head=2, n_head_kv=1)
        write_random_checkpoint(directory / name, shape, tokenizer=small_tokenizer)
        paths.append(convert(directory / name, directory / f"{name}.gguf", find_file_type("f32"), n_threads=1).path)
    return paths[0], paths[1]


# --- the same tokens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("sampling", [GREEDY, SEEDED, PENALIZED], ids=["greedy", "seeded", "penalties"])
def test_lookup_and_auto_give_the_same_tokens(open_demo: Open, question: str, sampling: SamplingParams) -> None:
    plain, _ = run_through(open_demo("off"), prompt_of(open_demo("off"), question), sampling)
    for draft in ("lookup", "auto"):
        engine = open_demo(draft)
        tokens, _ = run_through(engine, prompt_of(engine, question), sampling)
        assert tokens == plain, draft


def test_drafts_come_true_where_the_answer_repeats(open_demo: Open) -> None:
    for draft, n_accepted in (("lookup", 20), ("auto", 5)):
        engine = open_demo(draft)
        _, end = run_through(engine, engine.tokenizer.tokenize("one two three four " * 12), max_tokens=40)
        assert end.stats.n_accepted >= n_accepted, draft


def test_a_grammar_is_held_alike(open_demo: Open) -> None:
    grammar = 'root ::= "[" word (", " word)* "]"\nword ::= "\\"" [a-z]{3,5} "\\""'
    prompt = prompt_of(open_demo("off"), 'Say it again: ["red", "blue", "green", "red", "blue", "green"]')
    plain, _ = run_through(open_demo("off"), prompt, SEEDED, grammar=grammar, ignore_eog=False)
    tokens, end = run_through(open_demo("lookup"), prompt, SEEDED, grammar=grammar, ignore_eog=False)
    assert tokens == plain
    assert end.stats.n_drafted


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_a_model_that_drafts_changes_nothing(tiny_models: tuple[Path, Path], sampling: SamplingParams) -> None:
    """Neither the model itself, which is always right when greedy, nor one that never is."""
    large, small = tiny_models
    outcomes = {}
    for draft in ("off", large, small):
        options = EngineOptions(n_ctx=N_CTX, n_threads=1, draft=draft)  # type: ignore[arg-type]
        engine = LlamaEngine(large, options)
        try:
            prompt = engine.tokenizer.tokenize("the colour of the boat ")
            outcomes[draft] = run_through(engine, prompt, sampling, max_tokens=None)  # to the edge of the window
        finally:
            engine.close()
    assert outcomes[large][0] == outcomes[small][0] == outcomes["off"][0]
    assert all(end.finish_reason == "length" for _, end in outcomes.values())
    itself, other = outcomes[large][1].stats, outcomes[small][1].stats
    assert other.n_drafted > 100
    assert other.n_accepted < 0.2 * other.n_drafted
    if sampling is GREEDY:
        assert itself.n_accepted == itself.n_drafted > 150


# --- the cache and the ids beside it ------------------------------------------------------------------------


@pytest.mark.parametrize("draft", ["lookup", "auto"])
def test_the_next_turn_finds_the_answer_in_the_cache(open_demo: Open, draft: str) -> None:
    engine, contents = open_demo(draft), [REPEAT]
    for _ in range(2):
        prompt = prompt_of(engine, *contents)
        tokens, _ = run_through(engine, prompt, max_tokens=20)
        again, end = run_through(engine, [*prompt, *tokens[:12]], max_tokens=8)
        assert end.stats.n_reused == len(prompt) + 11, "all but the last token, which is needed for its logits"
        assert again == tokens[12:]
        contents += [engine.tokenizer.piece(tokens[0]).decode(), "And again?"]


@pytest.mark.parametrize("n_tokens", [1, 6, 9])
def test_a_stream_that_ends_anywhere_leaves_the_cache_right(open_demo: Open, n_tokens: int) -> None:
    """Cancelled after a token, left alone, or at the most that was asked for: each also amidst a draft."""
    engine = open_demo("lookup")
    prompt = prompt_of(engine, REPEAT)
    whole, _ = run_through(engine, prompt, max_tokens=16)
    tokens, end = run_through(engine, prompt, max_tokens=n_tokens)
    assert (tokens, end.finish_reason) == (whole[:n_tokens], "length")
    for leave in (True, False):
        cancel, seen = threading.Event(), []
        events = engine.generate(GenerationRequest(prompt, GREEDY, 16), cancel)
        for event in events:
            seen += [event.token_id] if isinstance(event, Token) else []
            if len(seen) == n_tokens and leave:
                break
            if len(seen) == n_tokens:
                cancel.set()
        events.close()  # type: ignore[attr-defined]
        assert seen == whole[:n_tokens]
        again, end = run_through(engine, [*prompt, *whole[:n_tokens]], max_tokens=16 - n_tokens)
        assert end.stats.n_reused >= len(prompt) + n_tokens - 2
        assert again == whole[n_tokens:]


def test_the_edge_of_the_window(open_demo: Open) -> None:
    prompt = open_demo("off").tokenizer.tokenize("one two three four " * 100)[: N_CTX - 5]
    plain, end = run_through(open_demo("off"), prompt, max_tokens=None)
    assert (len(plain), end.finish_reason) == (6, "length")
    tokens, end = run_through(open_demo("lookup"), prompt, max_tokens=None)
    assert (tokens, end.finish_reason) == (plain, "length")
    assert end.stats.n_drafted == 4, "as many as there is room for"


def test_a_cut_goes_on_with_drafts(open_demo: Open) -> None:
    engine = open_demo("lookup")
    whole = prompt_of(engine, "My dog is called Rex.", "Nice!", REPEAT)
    run_through(engine, whole, max_tokens=12)
    cut = Cut(3, 20)
    _, end = run_through(engine, [*whole[: cut.start], *whole[cut.stop :]], max_tokens=12, cut=cut)
    assert end.stats.n_reused == len(whole) - 17 - 1
    run_through(engine, prompt_of(engine, "Hi"), max_tokens=1)


def test_a_stop_string_amidst_a_draft(open_demo: Open) -> None:
    answers = []
    for draft in ("off", "lookup"):
        session = Session(open_demo(draft), ChatML(), GREEDY, stop=["shut"], max_tokens=48)
        for question in (REPEAT, "And what colour is it?"):
            *_, answer = session.send(question, threading.Event())
            assert isinstance(answer, Answer)
            answers.append((draft, answer.content, answer.finish_reason))
    assert [answer[1:] for answer in answers[:2]] == [answer[1:] for answer in answers[2:]]
    assert answers[0][2] == "stop"


def test_cancel_while_a_draft_model_reads_the_prompt(demo_model: Path) -> None:
    engine = LlamaEngine(demo_model, EngineOptions(n_ctx=2048, n_threads=1, draft=demo_model))
    try:
        prompt = engine.tokenizer.tokenize("The lighthouse keeper climbed the steps. " * 40)
        cancel, cancelled_at = threading.Event(), []

        def cancel_soon() -> None:
            cancelled_at.append(time.monotonic())
            cancel.set()

        timer = threading.Timer(0.2, cancel_soon)
        for event in engine.generate(GenerationRequest(prompt, GREEDY), cancel):
            if isinstance(event, Token) and not timer.is_alive() and not cancelled_at:
                timer.start()
        assert isinstance(event, End)
        assert event.finish_reason == "interrupted"
        assert time.monotonic() - cancelled_at[0] < 0.75
    finally:
        engine.close()


# --- which models can draft ---------------------------------------------------------------------------------


def test_another_vocabulary_is_refused(tiny_models: tuple[Path, Path], demo_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UnusableDraft, match="vocabulary") as caught:
        LlamaEngine(demo_model, EngineOptions(n_ctx=N_CTX, n_threads=1, draft=tiny_models[0]))
    assert "same family" in caught.value.next_step
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(demo_model.read_bytes()[:5000])
    with pytest.raises(NotAModelFile):
        LlamaEngine(demo_model, EngineOptions(n_ctx=N_CTX, n_threads=1, draft=broken))


def test_nothing_is_drafted_where_a_guess_cannot_be_taken_back(tiny_models: tuple[Path, Path], tmp_path: Path) -> None:
    path, answers = tmp_path / "mamba.gguf", []
    write_mamba(tiny_models[0], path)
    for draft in ("off", "auto"):
        engine = LlamaEngine(path, EngineOptions(n_ctx=N_CTX, n_threads=1, draft=draft))  # type: ignore[arg-type]
        tokens, end = run_through(engine, [5, 6, 7] * 8, SEEDED)
        answers.append(tokens)
        assert end.stats.n_drafted == 0
        engine.close()
    assert answers[0] == answers[1]
    with pytest.raises(UnusableDraft, match="take a wrong guess back"):
        LlamaEngine(path, EngineOptions(n_ctx=N_CTX, n_threads=1, draft="lookup"))


# --- the lookup ---------------------------------------------------------------------------------------------

IDS = st.lists(st.integers(0, 3), max_size=60)


@given(IDS, IDS, st.integers(1, 20))
def test_what_is_looked_up_did_follow_the_same_ids(prompt: list[int], answer: list[int], n_ids: int) -> None:
    lookup = Lookup(prompt)
    for token_id in answer:
        guess = lookup.propose(1)
        assert lookup.append(token_id) == (guess == [token_id])
    ids, n = [*prompt, *answer], lookup.n_matched
    draft = lookup.propose(n_ids)
    key = ids[-3:]
    places = [i for i in range(3, len(ids)) if ids[i - 3 : i] == key] if len(key) == 3 else []
    assert bool(draft) == bool(n) == bool(places), "something is found exactly if the last three ids were there before"
    if places:
        assert len(draft) == n_ids
        grown = [*ids, *draft]
        assert any(grown[i - n : i] == ids[-n:] and grown[i : i + n_ids] == draft for i in range(n, len(ids)))


def test_the_latest_place_is_found_in_a_prompt() -> None:
    assert Lookup([1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 3]).propose(2) == [8, 1]
    assert Lookup([7, 5, 6, 7, 5, 6, 7, 5]).propose(7) == [6, 7, 5, 6, 7, 5, 6], "a period goes on"
    assert Lookup([1, 2, 3]).propose(5) == Lookup([]).propose(5) == []


# --- whether it pays ----------------------------------------------------------------------------------------

_COPIED = list(range(100, 400))
_NOT_CANCELLED = threading.Event()


def n_drafted(auto: AutoDrafts, answer: Sequence[int], step_s: Callable[[int], float], *, seed: int | None = 5) -> int:
    """Let `auto` see the ids of `answer` come from a model that takes `step_s(n)` for a batch; count what it drafts."""
    sampling = SamplingParams(temperature=0.8, seed=seed)
    auto.begin(GenerationRequest(_COPIED, sampling), _NOT_CANCELLED)
    total, left = 0, list(answer)
    while left:
        auto.hear(left.pop(0))
        draft = list(auto.propose(len(left)))
        total += len(draft)
        auto.hear_time(1 + len(draft), step_s(1 + len(draft)))
        while draft and left and draft.pop(0) == left[0]:
            auto.hear(left.pop(0))
    return total


def test_it_drafts_while_an_answer_repeats_the_prompt() -> None:
    assert n_drafted(AutoDrafts(), _COPIED, lambda n: 0.9 + 0.1 * n) > 200
    assert n_drafted(AutoDrafts(), range(1000, 1300), lambda n: 0.9 + 0.1 * n) == 0, "nothing is there to be looked up"


def test_it_stops_where_batches_do_not_pay() -> None:
    auto = AutoDrafts()
    assert n_drafted(auto, _COPIED, lambda n: 1.0 * n) <= 3 + 7 + 15, "each length is tried at most once"
    assert n_drafted(auto, _COPIED[:200], lambda n: 1.0 * n) == 0, "and that is known in the next answer"
    late = sum(n_drafted(auto, _COPIED, lambda n: 0.9 + 0.1 * n) for _ in range(4))
    assert late > 300, "until it is tried again, after many tokens"


def test_it_stops_where_guesses_are_wrong() -> None:
    misled = [token_id for i in range(0, 300, 4) for token_id in (*_COPIED[i : i + 4], 7)]  # goes another way each time
    assert n_drafted(AutoDrafts(), misled, lambda n: 0.7 + 0.3 * n) < 30


def test_the_clock_has_no_say_in_an_answer_that_should_repeat() -> None:
    prompt = [*_COPIED[:250], *_COPIED[:10]]
    for request in (
        GenerationRequest(prompt, SamplingParams(temperature=0.8, seed=5), is_repeatable=True),
        GenerationRequest(prompt, SamplingParams(temperature=0.0)),
    ):
        decisions = []
        for slowness in (0.01, 0.5, 3.0):
            auto, sizes = AutoDrafts(), []
            for _ in range(2):
                auto.begin(request, _NOT_CANCELLED)
                for token_id in _COPIED[10:200]:
                    sizes.append(len(auto.propose(15)))
                    auto.hear_time(1 + sizes[-1], 1 + slowness * sizes[-1])
                    auto.hear(token_id)
            assert sizes[: len(sizes) // 2] == sizes[len(sizes) // 2 :], "nor has what was said before"
            decisions.append(sizes)
        assert decisions[0] == decisions[1] == decisions[2]
        assert max(decisions[0]) > 0


def test_a_seed_that_the_user_gave_makes_a_request_repeatable() -> None:
    from support.fake_engine import FakeEngine

    engine = FakeEngine([b"a"], [b"a"])
    for seed in (None, 4):
        list(Session(engine, ChatML(), SamplingParams(seed=seed)).send("Hi", threading.Event()))
    assert [request.is_repeatable for request in engine.requests] == [False, True]


# --- the command --------------------------------------------------------------------------------------------


def test_the_command_tells_what_was_drafted(run: RunCommand, demo_model: Path) -> None:
    common = (
        "chat",
        demo_model,
        "-p",
        REPEAT,
        "--temperature",
        "0",
        "--max-tokens",
        "24",
        "--threads",
        "1",
        "--no-save",
    )
    looked_up = run(*common, "--draft", "lookup", "--json", "--stats")
    plain = run(*common, "--draft", "off", "--json", "--stats")
    assert looked_up.returncode == plain.returncode == 0, looked_up.stderr + plain.stderr
    with_drafts, without = json.loads(looked_up.stdout), json.loads(plain.stdout)
    assert with_drafts["content"] == without["content"]
    assert without["draft"] == {"drafted": 0, "accepted": 0}
    draft = with_drafts["draft"]
    assert draft["drafted"] >= draft["accepted"] > 0
    assert f"drafted {draft['drafted']}, accepted {draft['accepted']}" in looked_up.stderr
    assert "drafted" not in plain.stderr


def test_a_draft_model_on_the_command_line(run: RunCommand, tiny_models: tuple[Path, Path], demo_model: Path) -> None:
    large, small = tiny_models
    common = ("-p", "Hi", "--max-tokens", "4", "--threads", "1", "--no-save", "--draft")
    drafted = run("chat", large, *common, small)
    assert drafted.returncode == 0, drafted.stderr
    assert "small.gguf drafts, which takes" in drafted.stderr
    other = run("chat", large, *common, demo_model)
    assert other.returncode == 1
    assert "vocabulary" in other.stderr
    assert "--draft lookup" in other.stderr
    unknown = run("chat", large, *common, "lokup")
    assert unknown.returncode == 1
    assert "There is no model named 'lokup'" in unknown.stderr
