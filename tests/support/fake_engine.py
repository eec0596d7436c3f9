"""An engine that says what it is told to: behind the Engine protocol, with a tokenizer of one id a byte.

Each generation takes the next answer from the queue and plays it: bytes are tokens, an exception is raised, and
anything else is called (to set `cancel`, say).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import BinaryIO

from llamachat.engine.base import (
    CacheState,
    End,
    EngineInfo,
    Event,
    FinishReason,
    GenerationRequest,
    GenerationStats,
    Prefill,
    Token,
)
from llamachat.errors import PromptTooLong

Step = bytes | Exception | Callable[[], None]

CONTROL_TOKENS = {"<s>": 256, "</s>": 257, "<|im_start|>": 258, "<|im_end|>": 259, "[INST]": 260, "<|a b|>": 261}


class FakeTokenizer:
    """`Tokenizer` over the 256 bytes and a few control tokens."""

    def __init__(
        self,
        control_tokens: Mapping[str, int] = CONTROL_TOKENS,
        *,
        adds_bos: bool = False,
        adds_space_prefix: bool = False,
    ) -> None:
        self.control_tokens = control_tokens
        self.adds_bos = adds_bos
        self.adds_space_prefix = adds_space_prefix
        self.bos_id = control_tokens.get("<s>")
        self.eos_id = control_tokens.get("</s>")
        self.n_vocab = 256 + len(control_tokens)
        self.infill_ids: tuple[int, int, int] | None = None

    def tokenize(self, text: str) -> list[int]:
        return list(text.encode())

    def piece(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else b""

    def show(self, ids: Sequence[int]) -> str:
        """Text and control tokens as one string."""
        names = {token_id: text.encode() for text, token_id in self.control_tokens.items()}
        return b"".join(names.get(token_id) or self.piece(token_id) for token_id in ids).decode()


class FakeEngine:
    """`Engine` that plays `answers`, one a generation, and notes the requests it got."""

    def __init__(self, *answers: Sequence[Step], tokenizer: FakeTokenizer | None = None, n_ctx: int = 4096) -> None:
        self.answers = deque(answers)
        self.requests: list[GenerationRequest] = []
        self.n_ended = 0
        self.ids: dict[bytes, int] = {}
        """Ids of pieces that are not that of their first byte."""
        self.can_shift = False
        self.can_continue = True
        self.tokenizer = tokenizer or FakeTokenizer()
        self.info = EngineInfo(
            n_params=0,
            size_bytes=0,
            n_ctx=n_ctx,
            n_ctx_train=n_ctx,
            n_threads=1,
            backend="CPU",
            file_type="q8_0",
            load_s=0.0,
        )

    @property
    def prompts(self) -> list[str]:
        """What was asked, control tokens written out."""
        return [self.tokenizer.show(request.prompt_ids) for request in self.requests]

    def generate(self, request: GenerationRequest, cancel: threading.Event) -> Iterator[Event]:
        n_prompt = len(request.prompt_ids)
        if n_prompt >= self.info.n_ctx:
            raise PromptTooLong(n_prompt, self.info.n_ctx)
        self.requests.append(request)
        answer = self.answers.popleft()
        n_generated = 0
        reason: FinishReason = "stop"
        yield Prefill(n_prompt, n_prompt)
        for step in answer:
            if cancel.is_set():
                reason = "interrupted"
                break
            if isinstance(step, Exception):
                raise step
            if not isinstance(step, bytes):
                step()
                continue
            n_generated += 1
            yield Token(self.ids.get(step, step[0] if step else 0), step)
            if n_generated == request.max_tokens:
                reason = "length"
                break
        else:
            if cancel.is_set():
                reason = "interrupted"
        self.n_ended += 1
        yield End(reason, GenerationStats(n_prompt, 0, n_generated, 0.5, 0.5, 1.0))

    def cache_state(self) -> CacheState:
        return CacheState()

    def save_state(self, file: BinaryIO, model_key: str, cancel: threading.Event) -> bool:
        raise NotImplementedError

    def restore_state(self, file: BinaryIO, model_key: str, prompt_ids: Sequence[int], cancel: threading.Event) -> int:
        raise NotImplementedError

    def close(self) -> None:
        self.answers.clear()
