"""Families whose prompts are plain text between BOS and EOS, against the strings their authors publish."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor

from llamachat.chat.message import Conversation
from llamachat.chat.templates import TEMPLATES
from llamachat.engine.llamacpp import LlamaTokenizer, open_tokenizer
from quantize import FILE_TYPES, convert
from support.checkpoints import LlamaShape, write_random_checkpoint

BOS, EOS = "<s>", "</s>"
TALK = (
    Conversation(None).with_message("user", "Hi 你好").with_message("assistant", "Hello!").with_message("user", "Bye")
)

EXPECTED = {
    "vicuna": [
        BOS,
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: Hi 你好 ASSISTANT: Hello!",
        EOS,
        "USER: Bye ASSISTANT:",
    ],
    "alpaca": [
        BOS,
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\nHi 你好\n\n### Response:Hello!",
        EOS,
        "### Instruction:\nBye\n\n### Response:",
    ],
    "llama2-chinese": [
        *(BOS, "Human: Hi 你好\n", EOS),
        *(BOS, "Assistant: Hello!\n", EOS),
        *(BOS, "Human: Bye\n", EOS),
        *(BOS, "Assistant: "),
    ],
}


@pytest.fixture(scope="module")
def vocabulary(
    small_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LlamaTokenizer, SentencePieceProcessor]]:
    directory = tmp_path_factory.mktemp("tiny")
    shape = LlamaShape(n_vocab=600, n_embd=32, n_ff=32, n_layer=1, n_head=2, n_head_kv=1)
    write_random_checkpoint(directory, shape, tokenizer=small_tokenizer)
    convert(directory, directory / "tiny.gguf", FILE_TYPES["q8_0"])
    with open_tokenizer(directory / "tiny.gguf") as (tokenizer, _):
        yield tokenizer, SentencePieceProcessor(model_file=str(small_tokenizer))


@pytest.mark.parametrize("name", EXPECTED)
def test_ids_equal_sentencepiece(name: str, vocabulary: tuple[LlamaTokenizer, SentencePieceProcessor]) -> None:
    tokenizer, reference = vocabulary
    expected: list[int] = []
    for piece in EXPECTED[name]:
        expected += {BOS: [1], EOS: [2]}.get(piece) or reference.encode(piece)
    prompt = TEMPLATES[name]().render(TALK, tokenizer)
    assert list(prompt.ids) == expected
    assert prompt.text == "".join(EXPECTED[name])


@pytest.mark.parametrize("name", EXPECTED)
def test_a_system_prompt_takes_the_place_of_the_familys_own(
    name: str, vocabulary: tuple[LlamaTokenizer, SentencePieceProcessor]
) -> None:
    tokenizer, _ = vocabulary
    text = TEMPLATES[name]().render(Conversation("Be brief.", TALK.messages), tokenizer).text
    assert "Be brief." in text
    assert "curious" not in text
    assert "describes a task" not in text
