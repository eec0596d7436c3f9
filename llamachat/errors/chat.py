"""What is asked, what the model sees, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llamachat.errors.base import LlamachatError


class UnknownTemplate(LlamachatError):
    """A prompt template that is not in the table."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"There is no prompt template {name!r}.", f"Choose one of: {', '.join(known)}.")


class TemplateFailed(LlamachatError):
    """The checkpoint's own template cannot be used for this conversation."""

    def __init__(self, problem: str, step: str | None = None) -> None:
        super().__init__(
            f"The chat template cannot be used: {problem}.",
            step or "Choose another one: --template llama-2, llama-3.1, chatml, jinja or none.",
        )


class NoToolCalls(LlamachatError):
    """A model that was not trained to call tools, or in a form not known here."""

    def __init__(self, template: str) -> None:
        whose = "The model's own chat template" if template == "jinja" else f"The prompt format {template}"
        super().__init__(
            f"{whose} has no place for tools, or none in a form known here.",
            "Use one that was trained for it, such as qwen2.5-1.5b-instruct, llama-3.2-3b-instruct or "
            "mistral-7b-instruct-v0.3; in a chat, /tools off goes on without.",
        )


class UnusableTools(LlamachatError):
    """A Python file that no tools can be taken from."""

    def __init__(self, path: Path, problem: str, next_step: str) -> None:
        super().__init__(f"{path}: {problem}", next_step)
        self.path = path


class BadConversation(LlamachatError):
    """Messages that no prompt can be made of."""


class ForbiddenTags(LlamachatError):
    """Text with tags of the prompt format, where they are to be refused."""

    def __init__(self, tags: Sequence[str]) -> None:
        named = ", ".join(tags)
        super().__init__(
            f"The text holds what marks turns in this model's prompts: {named}.",
            "Take it out, or leave out --strict-tags: it is then kept from passing for a turn.",
        )


class PromptTooLong(LlamachatError):
    """A prompt that does not fit the context window, with nothing left that could be left out of it."""

    def __init__(self, n_prompt: int, n_ctx: int, n_reserved: int = 1, n_needed: int | None = None) -> None:
        """`n_needed` is the window that would do, if a larger one also keeps more for the answer."""
        self.n_needed = n_needed or n_prompt + n_reserved
        super().__init__(
            f"The prompt has {n_prompt:,} tokens. The context window holds {n_ctx:,}, "
            f"of which {n_reserved:,} {'is' if n_reserved == 1 else 'are'} kept for the answer.",
            f"Shorten it, or give a window of at least {self.n_needed:,} tokens with --ctx.",
        )
        self.n_prompt = n_prompt
        self.n_ctx = n_ctx
        self.n_reserved = n_reserved


class WindowFull(LlamachatError):
    """The conversation has filled the context window, and nothing is to be left out of it."""

    def __init__(self, n_prompt: int, n_ctx: int, n_reserved: int) -> None:
        super().__init__(
            f"The conversation has {n_prompt:,} tokens now. The context window holds {n_ctx:,}, "
            f"of which {n_reserved:,} are kept for the answer.",
            "Take turns back with /undo, start over with /clear, give a larger window with --ctx, "
            "or let the oldest turns go with --overflow drop, or be summed up with --overflow compact.",
        )


class WindowTooLong(LlamachatError):
    """A context window that is longer than what the model was trained for."""

    def __init__(self, n_ctx: int, n_ctx_train: int) -> None:
        super().__init__(
            f"The model was trained for {n_ctx_train:,} tokens; in a window of {n_ctx:,} it would lose its way.",
            f"Give --ctx {n_ctx_train} or less, or --rope-scaling yarn, with which answers get somewhat worse.",
        )


class EngineFailed(LlamachatError):
    """llama.cpp could not do what was asked."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"llama.cpp failed: {problem}.", "Try a smaller --ctx, or LLAMACHAT_DEBUG=1 for its messages.")


class BadGrammar(LlamachatError):
    """A grammar that answers cannot be held to; `problem` says what is wrong, and where."""

    def __init__(self, source: Path | str, problem: str) -> None:
        super().__init__(
            f"{source}: the grammar cannot be used: {problem}.",
            "Correct it; GBNF is described at https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md",
        )
        self.problem = problem


class NoAnswer(LlamachatError):
    """The model has thought, or called tools, and then there was no room for an answer."""


class AnswerNotHeld(LlamachatError):
    """An answer that is not what the grammar or the schema asks for; a script must not take it for one that is."""


_MAX_PLACE = 100


class BadSchema(LlamachatError):
    """A JSON Schema that no grammar can be made of; `place` is a JSON pointer into it."""

    def __init__(self, source: Path | str, place: str, problem: str) -> None:
        shown = place if len(place) <= _MAX_PLACE else f"…{place[-_MAX_PLACE:]}"
        super().__init__(
            f"{source}: the schema cannot be used: at {shown or 'its root'}, {problem}.",
            "Change that part of the schema, or write a grammar for --grammar.",
        )
        self.place = place
        self.problem = problem
