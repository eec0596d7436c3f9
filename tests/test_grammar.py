"""Answers held to a grammar: checked before a model loads, and obeyed by models that would never write so."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamachat.chat.message import Conversation
from llamachat.chat.templates import ChatML
from llamachat.engine.base import End, EngineOptions, FinishReason, GenerationRequest, Token
from llamachat.engine.gbnf import check_grammar
from llamachat.engine.llamacpp import LlamaEngine
from llamachat.engine.sampling import SamplingParams
from llamachat.errors import BadGrammar, EngineFailed

WILD = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


@pytest.fixture(scope="module")
def demo(demo_model: Path) -> Iterator[LlamaEngine]:
    engine = LlamaEngine(demo_model, EngineOptions(n_ctx=512, n_threads=1))
    yield engine
    engine.close()


def write(
    engine: LlamaEngine, grammar: str, sampling: SamplingParams, *, text: str = "x", max_tokens: int = 200
) -> tuple[str, FinishReason]:
    """The answer, which must be UTF-8, and why it ended."""
    ids = ChatML().render(Conversation().with_message("user", text), engine.tokenizer).ids if len(text) > 1 else (1,)
    request = GenerationRequest(ids, sampling, max_tokens, grammar=grammar)
    written = b""
    for event in engine.generate(request, threading.Event()):
        if isinstance(event, Token):
            written += event.piece
        elif isinstance(event, End):
            return written.decode("utf-8", "strict" if event.finish_reason == "stop" else "ignore"), event.finish_reason
    raise AssertionError


# --- what is wrong with a grammar ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grammar", "place", "problem"),
    [
        ("", None, "there is no rule named root"),
        ('greeting ::= "a"', None, "there is no rule named root"),
        ('root ::= "a', "line 1, column 10", "missing"),
        ('root ::= [a-z', "line 1, column 10", "missing"),
        ('root ::= ("a"', "line 1, column 14", ") is expected"),
        ('root ::= "a" )', "line 1, column 14", "end of the line"),
        ('root ::= "a"\n\n  | "b"', "line 3, column 3", "name is expected"),
        ('# 你好\nroot : "a"', "line 2, column 6", "::= is expected"),
        (r'root ::= "\q"', "line 1, column 11", "escape"),
        ('root ::= "a" | b\n', "line 1, column 16", "no rule named b"),
        ("root ::= *", "line 1, column 10", "nothing before"),
        ('root ::= "a"{5,3}', "line 1, column 13", "larger than the second"),
        ('root ::= "a"{2001}', "line 1, column 13", "2000"),
        ('root ::= "a"{99999999999}', "line 1, column 26", "too large"),
        ('root ::= ("a" "b"){900} | ("a" | ("b"? "c"?)){900}', "line 1, column 46", "2000"),
        ("root ::= " + '("a"{2000})* ' * 101, "line 1", "together are too many"),
        ("root ::= " + "(" * 1000, "line 1, column 110", "nested more than 100 deep"),
        ('root ::= ("a"?)*', "line 1, column 10", "may be empty"),
        ('root ::= "a"?*', "line 1, column 10", "may be empty"),
        ('root ::= "x" | sum\nsum ::= sum "+" "1"', "line 2, column 9", "begin with itself"),
        ('root ::= a b\na ::= ""\nb ::= a root', "line 3, column 9", "begin with itself"),
        ('root ::= "a" root', "line 1, column 14", "never ends"),
        ('root ::= "a" b?\nb ::= "b" b', "line 1, column 14", "never ends"),
        ("root ::= <think>", "line 1, column 10", "token"),
        ('root ::= "a\0b"', "line 1, column 12", "NUL"),
        ('root ::= "a"\n' * 30_000, None, "larger than 256 KiB"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(grammar: str, place: str | None, problem: str) -> None:
    started = time.monotonic()
    with pytest.raises(BadGrammar) as caught:
        check_grammar(grammar, "my.gbnf")
    assert time.monotonic() - started < 2
    assert problem in caught.value.problem
    assert str(caught.value).startswith("my.gbnf: ")
    assert "\n" not in str(caught.value)
    if place:
        assert caught.value.problem.startswith(place)


def test_long_chains_of_rules_are_checked_soon() -> None:
    chain = "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(9000)) + 'r9000 ::= "a"\n'
    started = time.monotonic()
    check_grammar(chain, "chain")
    assert time.monotonic() - started < 2


_atoms = st.sampled_from(['"a"', '"bc"', '""', "[a-c]", "[^x]", ".", "root", "one", "two", "(", ")", "|", "\n"])
_counts = st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,3}", "{0,2}", "{2,}"])


@settings(max_examples=150, deadline=None, database=None)
@given(st.lists(st.tuples(_atoms, _counts), max_size=8), st.lists(st.tuples(_atoms, _counts), max_size=4))
def test_llama_cpp_takes_what_passes(
    random_engine: LlamaEngine, root: list[tuple[str, str]], one: list[tuple[str, str]]
) -> None:
    bodies = [" ".join(atom + count for atom, count in body) for body in (root, one)]
    grammar = f'root ::= {bodies[0]}\none ::= {bodies[1]}\ntwo ::= "t" | one\n'
    try:
        check_grammar(grammar, "drawn")
    except BadGrammar:
        return
    sampler = llama_cpp.llama_sampler_init_grammar(random_engine.tokenizer.vocab, grammar.encode(), b"root")
    assert sampler, grammar
    llama_cpp.llama_sampler_free(sampler)


# --- what comes out -----------------------------------------------------------------------------------------

GRAMMARS = [
    ('root ::= "yes" | "no"', r"yes|no"),
    (r'root ::= [0-9]{2,4} ("," [0-9]{1,3})* "\n"', r"\d{2,4}(,\d{1,3})*\n"),
    ('root ::= "你" [一-龥]{2,6} ("，" [一-龥]{1,4})? "。"', "你[一-龥]{2,6}(，[一-龥]{1,4})?。"),
    ("root ::= [一-龥]+", "[一-龥]+"),
    ('root ::= [😀-😏]{3} "é"', "[😀-😏]{3}é"),
    ('root ::= "<s>x<unk>"', "<s>x<unk>"),
    (r"root ::= [^\x00-\x7F]{1,5}", r"[^\x00-\x7F]{1,5}"),
    (r'root ::= item{3}\nitem ::= "- " [a-z ]{3,10} "\n"'.replace(r"\nitem", "\nitem"), r"(- [a-z ]{3,10}\n){3}"),
]


@pytest.mark.parametrize(("grammar", "expected"), GRAMMARS, ids=[expected for _, expected in GRAMMARS])
def test_a_model_that_knows_nothing_obeys(random_engine: LlamaEngine, grammar: str, expected: str) -> None:
    """Single bytes are tokens here, so characters are put together from what is no character by itself."""
    n_ended = 0
    for seed in range(12):
        text, reason = write(random_engine, grammar, SamplingParams(**WILD, seed=seed))  # type: ignore[arg-type]
        if reason == "stop":
            n_ended += 1
            assert re.fullmatch(expected, text), text
    assert n_ended >= 8


def test_chinese_from_a_real_model(demo: LlamaEngine) -> None:
    for temperature in (0.0, 1.5):
        text, reason = write(demo, GRAMMARS[2][0], SamplingParams(temperature=temperature, seed=5), text="Say hello.")
        assert reason == "stop"
        assert re.fullmatch(GRAMMARS[2][1], text)


def test_what_the_model_would_say_anyway_is_left_alone(demo: LlamaEngine) -> None:
    """Every token is the free choice where the grammar allows it; also with a seed."""
    question = "What is the capital of France?"
    for sampling in (SamplingParams(temperature=0.0), SamplingParams(temperature=0.9, seed=11)):
        free, _ = write(demo, "root ::= [\\x00-\\U0010FFFF]*", sampling, text=question, max_tokens=20)
        request = GenerationRequest(
            ChatML().render(Conversation().with_message("user", question), demo.tokenizer).ids, sampling, 20
        )
        events = demo.generate(request, threading.Event())
        assert free == b"".join(event.piece for event in events if isinstance(event, Token)).decode()


def test_a_limit_cuts_it_short(demo: LlamaEngine) -> None:
    assert write(demo, "root ::= [a-z]{50}", SamplingParams(temperature=0.0), max_tokens=3)[1] == "length"


def test_a_grammar_that_no_token_can_follow(random_engine: LlamaEngine) -> None:
    with pytest.raises(EngineFailed, match="no token of this model"):
        write(random_engine, 'root ::= <[599999]> "a"', SamplingParams(temperature=0.0))
    assert write(random_engine, 'root ::= "yes"', SamplingParams(temperature=0.0)) == ("yes", "stop")
