"""Gaps to fill, and turns from a file to begin with."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from llamachat.chat.message import Conversation, parse_examples
from llamachat.chat.session import Session
from llamachat.chat.templates import ChatML, Infill, NoTemplate
from llamachat.engine.sampling import SamplingParams
from llamachat.errors import BadConversation, TemplateFailed
from support.checkpoints import train_sentencepiece
from support.fake_engine import FakeEngine, FakeTokenizer
from support.prompts import CONTENTS, Vocabulary, open_vocabulary

MARKS = ["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"]


@pytest.fixture(scope="module")
def code_llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vocabulary]:
    directory = tmp_path_factory.mktemp("code-llama")
    train_sentencepiece(directory / "own.model", more="☺" * 50, user_defined_symbols=MARKS)
    with open_vocabulary(directory, 600, directory / "own.model") as vocabulary:
        yield vocabulary


class MetaInfill:
    """`infilling_prompt_tokens` and `encode_infilling` of meta-llama/codellama."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.sp_model = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary.directory / "tokenizer.model"))

    def prompt_tokens(self, pre: str, suf: str) -> list[int]:
        prefix_id, suffix_id, middle_id, _ = map(self.sp_model.piece_to_id, MARKS)
        after = self.sp_model.encode("☺" + suf)[2:]
        return [self.sp_model.bos_id(), prefix_id, *self.sp_model.encode(pre), suffix_id, *after, middle_id]


def test_infill_is_meta_s(code_llama: Vocabulary) -> None:
    reference = MetaInfill(code_llama)
    assert len(reference.sp_model.encode("☺")) == 2
    for prefix in CONTENTS:
        for suffix in CONTENTS:
            ids = Infill(prefix, suffix).render(Conversation(), code_llama.tokenizer).ids
            assert list(ids) == reference.prompt_tokens(prefix, suffix), (prefix, suffix)


@pytest.mark.parametrize("text", ["x <MID> y", "<PRE>", " <SUF>", "▁<EOT>", "</s> <s>"])
def test_marks_in_the_files_are_text(text: str, code_llama: Vocabulary) -> None:
    processor = MetaInfill(code_llama).sp_model
    marks = [1, 2, *map(processor.piece_to_id, MARKS)]
    ids = Infill(text, text).render(Conversation(), code_llama.tokenizer).ids
    assert sum(token_id in marks for token_id in ids) == 4


def test_a_model_without_infill_tokens() -> None:
    with pytest.raises(TemplateFailed, match="no infill tokens"):
        Infill("a", "b").render(Conversation(), FakeTokenizer())


@pytest.mark.parametrize(("template", "kept"), [(Infill("a", "b"), True), (NoTemplate(), True), (ChatML(), False)])
def test_a_blank_before_the_answer(template: Any, kept: bool) -> None:
    """It is sentencepiece's before an answer, and the text's own in the middle of a text."""
    tokenizer = FakeTokenizer(adds_space_prefix=True)
    tokenizer.infill_ids = (258, 259, 260)
    session = Session(FakeEngine([b" upon"], tokenizer=tokenizer), template, SamplingParams())
    list(session.send("Once", threading.Event()))
    assert session.conversation.messages[1].content == (" upon" if kept else "upon")


def test_infill_on_the_command_line(run: Any, tmp_path: Path) -> None:
    """The demo model cannot; the file names come to the sentence only if they cannot be read."""
    (tmp_path / "a.py").write_text("def f(x):\n", encoding="utf-8")
    done = run("chat", "--infill", tmp_path / "a.py", tmp_path / "b.py")
    assert (done.returncode, done.stdout) == (1, "")
    assert "b.py" in done.stderr
    done = run("chat", "--infill", tmp_path / "a.py", tmp_path / "a.py", "-p", "Hi")
    assert done.returncode == 2
    done = run("chat", "--infill", tmp_path / "a.py", tmp_path / "a.py", "--max-tokens", 2)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no infill tokens" in done.stderr


# --- examples -----------------------------------------------------------------------------------------------

PAIR = json.dumps({"user": "2+2", "assistant": "vier"})
SINGLE = '{"role": "user", "content": "3+3"}\n\n{"role": "assistant", "content": "sechs"}'


def test_examples_are_earlier_turns() -> None:
    examples = parse_examples(f"{PAIR}\n{SINGLE}\n")
    assert [message.content for message in examples] == ["2+2", "vier", "3+3", "sechs"]
    engine = FakeEngine([b"acht"], [b"zwei"])
    session = Session(engine, ChatML(), SamplingParams(), system="S", examples=examples)
    list(session.send("4+4", threading.Event()))
    asked = Conversation("S", examples).with_message("user", "4+4")
    assert engine.requests[0].prompt_ids == ChatML().render(asked, engine.tokenizer).ids
    session.start_over("T")
    list(session.send("1+1", threading.Event()))
    assert "vier" in engine.prompts[1]
    assert "acht" not in engine.prompts[1]


def test_any_character_may_stand_in_an_example() -> None:
    odd = "a\u2028b\x85c\x1cd\u2029"
    lines = [json.dumps({"user": odd, "assistant": odd}, ensure_ascii=False), PAIR]
    assert [message.content for message in parse_examples("\r\n".join(lines))][:2] == [odd, odd]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "in the middle"),
        ('{"role": "user", "content": "a"}', "in the middle"),
        ('{"role": "assistant", "content": "a"}\n{"role": "user", "content": "b"}', "turn"),
        (f"{PAIR}\n{{", "Line 2"),
        (f"{PAIR}\n\n[]", "Line 3"),
        ('{"user": 1, "assistant": "a"}', "Line 1"),
        ('{"role": "system", "content": "a"}', "Line 1"),
        ("[" * 100000, "Line 1"),
    ],
)
def test_bad_examples(text: str, problem: str) -> None:
    with pytest.raises(BadConversation, match=problem):
        parse_examples(text)


def test_examples_on_the_command_line(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    path.write_text("\n".join([PAIR, SINGLE]), encoding="utf-8")
    options = ("chat", "-p", "4+4", "--max-tokens", 2, "--json")
    with_them, without = (json.loads(run(*options, *more).stdout) for more in (("--examples", path), ()))
    assert with_them["prompt_tokens"] > without["prompt_tokens"] + 20
    path.write_text("{}", encoding="utf-8")
    done = run(*options, "--examples", path)
    assert done.returncode == 1
    assert "Line 1" in done.stderr
