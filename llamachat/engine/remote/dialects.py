"""What the servers have beyond OpenAI's interface, or without it: a table, looked up by how they list their models.

Sources: llama.cpp's tools/server/README.md and server-common.cpp; vLLM's docs/serving/openai_compatible_server.md and
its protocol for chat completions and /tokenize.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Dialect:
    """One kind of server."""

    repeat_penalty: str = "repeat_penalty"
    takes_gbnf: bool = False
    """Whether a request may have a `grammar`."""
    continues: Mapping[str, Any] | None = None
    """What a request says so that the last answer goes on; None: there is no way to say it."""
    counts: Literal["llama.cpp", "vllm"] | None = None
    """Whose way of counting the tokens of a conversation it has."""


OPENAI = Dialect()
"""Nothing but the interface that all share."""

_BY_OWNER = {
    "llamacpp": Dialect(takes_gbnf=True, continues={}, counts="llama.cpp"),
    "vllm": Dialect(
        repeat_penalty="repetition_penalty",
        continues={"continue_final_message": True, "add_generation_prompt": False},
        counts="vllm",
    ),
    "sglang": Dialect(repeat_penalty="repetition_penalty"),
}


def dialect_of(owner: str) -> Dialect:
    """By `owned_by` of a model in the server's list."""
    return _BY_OWNER.get(owner, OPENAI)
