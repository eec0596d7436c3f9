"""Llama 2 Chat and the families that keep to its format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from llamachat.chat.message import Conversation
from llamachat.chat.prompt import Content, Part, Text, TokenId
from llamachat.chat.templates.base import PromptTemplate, turns_of
from llamachat.engine.base import Tokenizer

INST_TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")


class Llama2(PromptTemplate):
    """Llama-2-Chat.

    Source: `Llama.chat_completion` in meta-llama/llama, llama/generation.py. Every finished turn is tokenized by
    itself between BOS and EOS, the open one without EOS; the system prompt stands inside the first user message.
    """

    name = "llama-2"
    sampling: ClassVar[Mapping[str, float | int]] = {"temperature": 0.6, "top_p": 0.9, "top_k": 0, "min_p": 0.0}
    tags = INST_TAGS

    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Part]:
        """See `PromptTemplate`."""
        for i, turn in enumerate(turns_of(conversation)):
            yield TokenId(tokenizer.bos_id)
            yield Text("[INST] ")
            yield from _question(turn.question, None if i else conversation.system)
            yield Text(" [/INST]")
            if turn.answer is not None:
                yield Text(" ")
                yield Content(turn.answer.strip() if turn.is_finished else turn.answer.lstrip())
            if turn.is_finished:
                yield Text(" ")
                yield TokenId(tokenizer.eos_id)


def _question(question: str, system: str | None) -> Iterator[Part]:
    """The user's message with the system prompt, stripped as a whole."""
    if system is None:
        yield Content(question.strip())
        return
    yield Text("<<SYS>>\n")
    yield Content(system)
    yield Text("\n<</SYS>>\n\n" if question.strip() else "\n<</SYS>>")
    yield Content(question.rstrip())


class CodeLlamaInstruct(Llama2):
    """Code Llama Instruct of 7 to 34b.

    Source: `Llama.chat_completion` and example_instructions.py (the sampling) in meta-llama/codellama.
    """

    name = "code-llama-instruct"
    sampling: ClassVar[Mapping[str, float | int]] = {"temperature": 0.2, "top_p": 0.95, "top_k": 0, "min_p": 0.0}


class ChineseAlpaca2(PromptTemplate):
    """Chinese-Alpaca-2: Llama 2's markers, but nothing is stripped, and an answer is ended without a blank.

    Source: `generate_prompt` and `predict` in ymcui/Chinese-LLaMA-Alpaca-2, scripts/inference/gradio_demo.py, and
    the sampling of inference_hf.py beside it. An empty system prompt is none.
    """

    name = "chinese-alpaca-2"
    sampling: ClassVar[Mapping[str, float | int]] = {
        "temperature": 0.2, "top_k": 40, "top_p": 0.9, "min_p": 0.0, "repeat_penalty": 1.1,
    }  # fmt: skip
    system = "You are a helpful assistant. 你是一个乐于助人的助手。"
    tags = INST_TAGS

    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Part]:
        """See `PromptTemplate`."""
        system = self.system if conversation.system is None else conversation.system
        for i, turn in enumerate(turns_of(conversation)):
            yield TokenId(tokenizer.bos_id)
            yield Text("[INST] ")
            if i == 0 and system:
                yield Text("<<SYS>>\n")
                yield Content(system)
                yield Text("\n<</SYS>>\n\n")
            yield Content(turn.question)
            yield Text(" [/INST]")
            if turn.answer:
                yield Text(" ")
                yield Content(turn.answer)
            if turn.is_finished:
                yield TokenId(tokenizer.eos_id)
