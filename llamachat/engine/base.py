"""The protocol between a conversation and whatever runs the model.

A generation is a stream of typed events: prefill progress, then tokens, then exactly one `End` with statistics
and the finish reason. Everything is token ids and bytes; text is the caller's business.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from llamachat.engine.sampling import SamplingParams
from llamachat.errors import LlamachatError

DEFAULT_N_CTX = 8192
"""The context window where nothing else is asked for, in tokens; a smaller one if the model was trained for that."""

FinishReason = Literal["stop", "length", "interrupted"]
RopeScaling = Literal["linear", "yarn"]
DraftMode = Literal["auto", "lookup", "off"]
KvType = Literal["f16", "q8_0", "q4_0"]


@dataclass(frozen=True)
class LoraAdapter:
    """A GGUF adapter, and how much of what it adds to the model's weights is added."""

    path: Path
    scale: float = 1.0


@dataclass(frozen=True)
class EngineOptions:
    """How to load a model. None or "auto" leave the choice to the engine."""

    n_ctx: int | None = None
    n_threads: int | None = None
    n_gpu_layers: int | Literal["auto"] = "auto"
    kv_type: KvType | None = None
    adapters: Sequence[LoraAdapter] = ()
    rope_scaling: RopeScaling | None = None
    """How positions are stretched for a window longer than the model was trained for; without it that is refused."""
    draft: DraftMode | Path = "off"
    """Who guesses tokens ahead: the text so far, where that saves time ("auto") or always, or a smaller model."""


@dataclass(frozen=True)
class Cut:
    """Token ids [start, stop) of what came before are not in the prompt; what followed them has moved up."""

    start: int
    stop: int


@dataclass(frozen=True)
class GenerationRequest:
    """What to evaluate and how to go on from there."""

    prompt_ids: Sequence[int]
    sampling: SamplingParams
    max_tokens: int | None = None
    """None: until the model stops or the context window is full."""
    ignore_eog: bool = False
    """Go on past end-of-generation tokens; for measuring."""
    cut: Cut | None = None
    """What to take out of the KV cache, so that what followed it there need not be evaluated again."""
    grammar: str | None = None
    """GBNF that the answer obeys, from its rule `root`; it ends when that is complete. See `check_grammar`."""
    is_repeatable: bool = False
    """Whether it should give the same tokens again: nothing may depend on the clock then. True of all greedy ones."""
    messages: Sequence[Mapping[str, str]] = ()
    """What `prompt_ids` were made of, as chat templates take it: for engines that render conversations themselves."""
    stop: Sequence[str] = ()
    """Texts at which the answer ends; for the same engines. The caller looks for them all the same."""
    schema: Any = None
    """The JSON Schema that `grammar` stands for, for engines that take that instead."""


@dataclass(frozen=True)
class GenerationStats:
    """Counts of tokens, and times in seconds. Prefill and decoding are always kept apart.

    None is what a server does not tell. One that runs here knows everything.
    """

    n_prompt: int | None
    n_reused: int | None
    """Prompt tokens that were still in the KV cache and not evaluated again."""
    n_generated: int | None
    prefill_s: float | None
    ttft_s: float
    """From the request to the first token."""
    decode_s: float
    """From the first token to the last."""
    n_drafted: int = 0
    """Tokens guessed ahead and evaluated with the one before them."""
    n_accepted: int = 0
    """Those of them that came true."""

    @property
    def n_evaluated(self) -> int | None:
        """Prompt tokens that were evaluated."""
        return self.n_prompt - self.n_reused if self.n_prompt is not None and self.n_reused is not None else None

    @property
    def prompt_tps(self) -> float | None:
        """Prompt tokens per second, counting those evaluated."""
        if self.n_evaluated is None or self.prefill_s is None:
            return None
        return self.n_evaluated / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def generation_tps(self) -> float | None:
        """Generated tokens per second; the first one belongs to the prefill."""
        if self.n_generated is None or (self.n_generated > 1 and self.decode_s <= 0):  # the latter: all came at once
            return None
        return (self.n_generated - 1) / self.decode_s if self.n_generated > 1 else 0.0


@dataclass(frozen=True)
class Prefill:
    """Prompt tokens evaluated so far."""

    n_done: int
    n_total: int


@dataclass(frozen=True)
class Token:
    """One generated token and the bytes it stands for; a character may be spread over several."""

    token_id: int
    piece: bytes


@dataclass(frozen=True)
class AnswerBytes:
    """The next bytes of the answer from an engine that does not tell its tokens: they may be of one, or of many."""

    data: bytes


@dataclass(frozen=True)
class ThoughtText:
    """What the model says to itself before it answers, from an engine that tells it apart. No part of the answer."""

    text: str


@dataclass(frozen=True)
class Remark:
    """What the user should know about how the answer comes, in a sentence."""

    text: str


@dataclass(frozen=True)
class End:
    """The last event of every generation."""

    finish_reason: FinishReason
    stats: GenerationStats
    trouble: LlamachatError | None = None
    """What interrupted the answer, if it was not the user; what there was of it counts."""


Event = Prefill | Token | AnswerBytes | ThoughtText | Remark | End


@dataclass(frozen=True)
class EngineInfo:
    """What was loaded and how it runs."""

    n_params: int
    size_bytes: int
    n_ctx: int
    """0: a server's, which it does not tell."""
    n_ctx_train: int
    n_threads: int
    backend: str
    file_type: str
    load_s: float
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CacheState:
    """What is in the KV cache: of which ids, the size of a file that keeps it, and what it took to fill it.

    `prompt_tps` is the best measured speed of evaluating prompts, in tokens per second; 0 if none was.
    """

    ids: Sequence[int] = ()
    n_bytes: int = 0
    prompt_tps: float = 0.0


class Tokenizer(Protocol):
    """Text ↔ token ids for one vocabulary."""

    @property
    def n_vocab(self) -> int:
        """Number of tokens."""

    @property
    def bos_id(self) -> int | None:
        """Beginning of sequence, if the vocabulary has one."""

    @property
    def eos_id(self) -> int | None:
        """End of sequence, if the vocabulary has one."""

    @property
    def adds_bos(self) -> bool:
        """Whether the model expects a BOS before everything."""

    @property
    def adds_space_prefix(self) -> bool:
        """Whether text is tokenized as if a space came first (sentencepiece); an answer then starts with one."""

    @property
    def infill_ids(self) -> tuple[int, int, int] | None:
        """What stands before a prefix, a suffix, and what comes between them, in models that fill gaps."""

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Tokens that steer the model, by their text. User text never becomes one."""

    def tokenize(self, text: str) -> list[int]:
        """Ids of plain text: nothing added, and control tokens in it stay text."""

    def piece(self, token_id: int) -> bytes:
        """The bytes of one token; control tokens give none."""


class Engine(Protocol):
    """A loaded model with a context window and a KV cache."""

    @property
    def info(self) -> EngineInfo:
        """What was loaded."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's vocabulary."""

    @property
    def can_shift(self) -> bool:
        """Whether a run of ids can be taken out of the middle of the KV cache."""

    @property
    def can_continue(self) -> bool:
        """Whether an answer can go on where it ended."""

    def generate(self, request: GenerationRequest, cancel: threading.Event) -> Iterator[Event]:
        """Evaluate the prompt and generate. Setting `cancel` ends the stream soon with "interrupted".

        Raises `PromptTooLong` before anything is evaluated if the prompt leaves no room for an answer.
        """

    def cache_state(self) -> CacheState:
        """What `save_state` would save; nothing if the KV cache cannot be saved."""

    def save_state(self, file: BinaryIO, model_key: str, cancel: threading.Event) -> bool:
        """Write the KV cache, where there is one. `model_key` tells the model's content from all others.

        False if `cancel` was set meanwhile; raises `OSError`.
        """

    def restore_state(self, file: BinaryIO, model_key: str, prompt_ids: Sequence[int], cancel: threading.Event) -> int:
        """Bring back the keys and values of what `prompt_ids` begins with, in place of what is in the KV cache.

        Return how many of those tokens are there now: 0 if `file` is of no use, whatever the reason, or if `cancel` was
        set meanwhile. Raises `OSError`.
        """

    def close(self) -> None:
        """Free the model. The engine is not used afterwards."""
