"""Conversations that are hard to get right, and vocabularies to render them with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llamachat.chat.message import Conversation, Message
from llamachat.engine.base import Tokenizer
from llamachat.engine.llamacpp import open_tokenizer
from quantize import convert, find_file_type
from support.checkpoints import LlamaShape, write_random_checkpoint

CONTENTS = [
    "Hello",
    "",
    " ",
    "  two before, three after   ",
    "\n\tnew\r\nlines\n\n",
    "我喜欢吃苹果。漢字、かな",
    "🙂 👨\u200d👩\u200d👧 👍🏽",
    'def f(x):\n    return {"a": x ** 2}  # squared\n\nif (a[i] <= b && !c) { i++; }',
    "They're naïve; it's 3.14159 or 1,000,000",
    "\u00a0\u3000 odd blanks \u2003\x85\x1c",
    "\x00 ▁ <0x0A> \ufffd",
]


def conversation_of(contents: Sequence[str], system: str | None = None) -> Conversation:
    """User and assistant in turn."""
    return Conversation(
        system, tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(contents))
    )


def some_conversations() -> Iterator[Conversation]:
    """With and without a system prompt, one to six turns; every content at every kind of place."""
    for i, content in enumerate(CONTENTS):
        others = CONTENTS[i:] + CONTENTS[:i]
        yield conversation_of([content])
        yield conversation_of([content], system="Answer briefly.")
        yield conversation_of(["Hi"], system=content)
        yield conversation_of(others[: 1 + 2 * (i % 6)], system=others[-1])
        yield conversation_of(others[: 1 + 2 * (i % 6)])


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary as llama.cpp has it, and the directory with the tokenizer it was made of."""

    tokenizer: Tokenizer
    directory: Path

    @property
    def control_ids(self) -> set[int]:
        return set(self.tokenizer.control_tokens.values())


@contextmanager
def open_vocabulary(directory: Path, n_vocab: int, tokenizer: Path | None = None) -> Iterator[Vocabulary]:
    """Convert a checkpoint with next to no weights and open its vocabulary."""
    shape = LlamaShape(n_vocab=n_vocab, n_embd=32, n_ff=32, n_layer=1, n_head=1, n_head_kv=1)
    write_random_checkpoint(directory, shape, tokenizer=tokenizer)
    path = convert(directory, directory / "model.gguf", find_file_type("q8_0"), n_threads=1).path
    with open_tokenizer(path) as (opened, _):
        yield Vocabulary(opened, directory)
