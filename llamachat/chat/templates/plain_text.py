"""Families whose turns are marked by plain text, with BOS and EOS at most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from llamachat.chat.message import Conversation
from llamachat.chat.prompt import Content, Part, Text, TokenId
from llamachat.chat.templates.base import PromptTemplate, turns_of
from llamachat.engine.base import Tokenizer


class Vicuna(PromptTemplate):
    """Vicuna v1.1 to v1.5.

    Source: `vicuna_v1.1` and `ADD_COLON_TWO` in lm-sys/FastChat, fastchat/conversation.py: a message that is empty
    leaves nothing behind the colon, not even the blank or EOS.
    """

    name = "vicuna"
    stop = ("USER:",)
    sampling: ClassVar[Mapping[str, float | int]] = {"temperature": 0.7, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    tags = ("USER:", "ASSISTANT:")

    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Part]:
        """See `PromptTemplate`."""
        yield TokenId(tokenizer.bos_id)
        yield Content(self.system if conversation.system is None else conversation.system)
        yield Text(" ")
        for turn in turns_of(conversation):
            yield Text("USER:")
            if turn.question:
                yield Text(" ")
                yield Content(turn.question)
                yield Text(" ")
            yield Text("ASSISTANT:")
            if turn.answer:
                yield Text(" ")
                yield Content(turn.answer)
                if turn.is_finished:
                    yield TokenId(tokenizer.eos_id)


class WizardLM(Vicuna):
    """WizardLM v1.0 to v1.2 of 13 and 70b.

    Source: the model card of WizardLMTeam/WizardLM-13B-V1.2, which names Vicuna's format with its system prompt.
    """

    name = "wizardlm"


class Alpaca(PromptTemplate):
    """Alpaca. It was trained on single turns; earlier ones stand before the last, each ended by EOS.

    Source: `PROMPT_DICT` in tatsu-lab/stanford_alpaca, train.py. Without a system prompt, its own is used.
    """

    name = "alpaca"
    stop = ("### Instruction:",)
    system = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    tags = ("### Instruction:", "### Input:", "### Response:")

    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Part]:
        """See `PromptTemplate`."""
        yield TokenId(tokenizer.bos_id)
        yield Content(self.system if conversation.system is None else conversation.system)
        yield Text("\n\n")
        for turn in turns_of(conversation):
            yield Text("### Instruction:\n")
            yield Content(turn.question)
            yield Text("\n\n### Response:")
            yield Content(turn.answer or "")
            if turn.is_finished:
                yield TokenId(tokenizer.eos_id)


class Llama2Chinese(PromptTemplate):
    """Llama2-Chinese (FlagAlpha): every message between BOS and EOS.

    Source: the README of LlamaFamily/Llama-Chinese ("Human: …", newline, EOS, BOS, "Assistant: ").
    """

    name = "llama2-chinese"
    sampling: ClassVar[Mapping[str, float | int]] = {"temperature": 0.3, "top_p": 0.95, "top_k": 50, "min_p": 0.0}
    tags = ("System:", "Human:", "Assistant:")

    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Part]:
        """See `PromptTemplate`."""
        if conversation.system is not None:
            yield from _between_bos_and_eos("System: ", conversation.system, tokenizer)
        for turn in turns_of(conversation):
            yield from _between_bos_and_eos("Human: ", turn.question, tokenizer)
            if turn.is_finished:
                yield from _between_bos_and_eos("Assistant: ", turn.answer or "", tokenizer)
            else:
                yield TokenId(tokenizer.bos_id)
                yield Text("Assistant: ")
                yield Content(turn.answer or "")


def _between_bos_and_eos(speaker: str, content: str, tokenizer: Tokenizer) -> Iterator[Part]:
    yield TokenId(tokenizer.bos_id)
    yield Text(speaker)
    yield Content(content)
    yield Text("\n")
    yield TokenId(tokenizer.eos_id)


class Zephyr(PromptTemplate):
    """Zephyr's format, as in TinyLlama Chat v1.0.

    Source: the chat template of TinyLlama/TinyLlama-1.1B-Chat-v1.0, and its model card for BOS and the sampling.
    """

    name = "zephyr"
    sampling: ClassVar[Mapping[str, float | int]] = {"temperature": 0.7, "top_k": 50, "top_p": 0.95, "min_p": 0.0}
    tags = ("<|system|>", "<|user|>", "<|assistant|>")

    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Part]:
        """See `PromptTemplate`."""
        if tokenizer.adds_bos:
            yield TokenId(tokenizer.bos_id)
        *finished, last = conversation.all_messages()
        for message in finished if last["role"] == "assistant" else [*finished, last]:
            yield Text(f"<|{message['role']}|>\n")
            yield Content(message["content"])
            yield TokenId(tokenizer.eos_id)
            yield Text("\n")
        yield Text("<|assistant|>\n")
        if last["role"] == "assistant":
            yield Content(last["content"])
