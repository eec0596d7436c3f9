"""One model, one context, one sequence: prefill and decoding."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import llama_cpp

from llamachat.engine.base import (
    CacheState,
    End,
    EngineInfo,
    EngineOptions,
    Event,
    FinishReason,
    GenerationRequest,
    GenerationStats,
    Prefill,
    Token,
)
from llamachat.engine.llamacpp.cache import KVCache, n_common
from llamachat.engine.llamacpp.context import offloads, open_context
from llamachat.engine.llamacpp.drafting import Drafter, make_drafter
from llamachat.engine.llamacpp.loading import file_type_name, load_adapter, load_model, metadata
from llamachat.engine.llamacpp.sampling import sampling
from llamachat.engine.llamacpp.state import (
    UnusableState,
    fingerprint,
    has_plain_cache,
    read_head,
    read_slices,
    state_bytes,
    write_state,
)
from llamachat.engine.llamacpp.tokenizer import LlamaTokenizer
from llamachat.errors import EngineFailed, LlamachatError, PromptTooLong, UnusableAdapter, WindowTooLong

_LAST_ROW = -1
_SLOW_S = 0.1
"""Of a token that takes longer, one need not wait for the end; of a quick one, asking would take part of its time."""


@dataclass
class _Course:
    """How a generation has gone so far."""

    times: list[float] = field(default_factory=list)
    """When each token came."""
    n_drafted: int = 0
    n_accepted: int = 0

    def note(self, *, is_accepted: bool) -> None:
        """A token has come."""
        self.times.append(time.monotonic())
        self.n_accepted += is_accepted

    @property
    def is_slow(self) -> bool:
        """Whether the last token took long, or nobody knows yet."""
        return len(self.times) < 2 or self.times[-1] - self.times[-2] > _SLOW_S

    def n_left(self, max_tokens: int | None, n_places: int) -> int:
        """How many more tokens may come, where the cache has places for `n_places`."""
        return n_places if max_tokens is None else min(n_places, max_tokens - len(self.times))


class LlamaEngine:
    """`Engine` over llama.cpp: one model, one context, one sequence."""

    def __init__(self, path: Path, options: EngineOptions | None = None, cancel: threading.Event | None = None) -> None:
        """Load the GGUF file at `path`, and the adapters.

        Raises `NotAModelFile`, `UnusableAdapter`, `UnusableDraft`, `WindowTooLong` or `EngineFailed`; the first also
        soon after `cancel` is set.
        """
        self._options = options = options or EngineOptions()
        started = time.monotonic()
        self._prompt_tps = 0.0
        self._model = load_model(path, options.n_gpu_layers, cancel=cancel)
        try:
            # Before the context, which makes room for what they add to the graph. They are the model's from then on.
            adapters = [load_adapter(self._model, adapter.path) for adapter in options.adapters]
            n_ctx_train = llama_cpp.llama_model_n_ctx_train(self._model)  # before YaRN, which makes it longer
            self._context, n_threads = open_context(self._model, options)
        except (EngineFailed, UnusableAdapter, WindowTooLong):
            llama_cpp.llama_model_free(self._model)
            raise
        self._apply(adapters, [adapter.scale for adapter in options.adapters])
        self._cache = KVCache(self._context)
        self.can_shift = self._cache.can_shift
        self.can_continue = True
        self.tokenizer = LlamaTokenizer(self._model)
        self.info = EngineInfo(
            n_params=llama_cpp.llama_model_n_params(self._model),
            size_bytes=llama_cpp.llama_model_size(self._model),
            n_ctx=llama_cpp.llama_n_ctx(self._context),
            n_ctx_train=n_ctx_train,
            n_threads=n_threads,
            backend="GPU" if offloads(options.n_gpu_layers) else "CPU",
            file_type=file_type_name(self._model),
            load_s=time.monotonic() - started,
            metadata=metadata(self._model),
        )
        plain = replace(options, adapters=(), rope_scaling=None, draft="off")
        self._drafter: Drafter | None = None
        try:
            self._drafter = make_drafter(
                options.draft,
                self.tokenizer,
                self.info,
                lambda path, n_ctx: LlamaEngine(path, replace(plain, n_ctx=n_ctx), cancel),
            )
        except LlamachatError:
            self.close()
            raise

    def _apply(self, adapters: Sequence[Any], scales: Sequence[float]) -> None:
        n = len(adapters)
        handles, factors = (llama_cpp.llama_adapter_lora_p_ctypes * n)(*adapters), (ctypes.c_float * n)(*scales)
        llama_cpp.llama_set_adapters_lora(self._context, handles, n, factors)

    def generate(self, request: GenerationRequest, cancel: threading.Event) -> Iterator[Event]:
        """See `Engine`."""
        prompt = list(request.prompt_ids)
        n_ctx = self.info.n_ctx
        if not prompt:
            raise EngineFailed("the prompt is empty")
        if len(prompt) >= n_ctx:
            raise PromptTooLong(len(prompt), n_ctx)
        started = time.monotonic()
        if request.cut:
            self._cache.take_out(request.cut, prompt)
        n_reused = self._cache.keep_common_prefix(prompt)
        for n_done in self._prefill(prompt, cancel):
            yield Prefill(n_done - n_reused, len(prompt) - n_reused)
        prefill_s = time.monotonic() - started

        course = _Course()
        finish_reason: FinishReason = "interrupted"
        if len(self._cache.ids) == len(prompt):
            finish_reason = yield from self._decode(request, cancel, course)
        first, last = (course.times[0], course.times[-1]) if course.times else (started, started)
        stats = GenerationStats(
            n_prompt=len(prompt),
            n_reused=n_reused,
            n_generated=len(course.times),
            prefill_s=prefill_s,
            ttft_s=first - started,
            decode_s=last - first,
            n_drafted=course.n_drafted,
            n_accepted=course.n_accepted,
        )
        self._prompt_tps = max(self._prompt_tps, stats.prompt_tps or 0.0)
        yield End(finish_reason, stats)

    def _prefill(self, prompt: Sequence[int], cancel: threading.Event) -> Iterator[int]:
        """Evaluate the rest of the prompt in batches, telling how far it got. Stops within a batch when cancelled."""
        with self._cache.aborting(cancel):
            n_batch = llama_cpp.llama_n_batch(self._context)
            while (n_done := len(self._cache.ids)) < len(prompt) and not cancel.is_set():
                if not self._cache.evaluate(prompt[n_done : n_done + n_batch]):
                    break
                yield len(self._cache.ids)

    def _decode(
        self, request: GenerationRequest, cancel: threading.Event, course: _Course
    ) -> Generator[Event, None, FinishReason]:
        """Sample and evaluate token after token, or several at once: drafts that came true need no step of their own.

        Each token is drawn from the logits behind those before it, so the sampler sees what it would without drafts.
        """
        n_known, row = len(self._cache.ids), _LAST_ROW  # what is in the cache behind the first n_known ids are drafts
        if self._drafter:
            self._drafter.begin(request, cancel)
        try:
            with sampling(request, self._context, self.tokenizer) as next_token:
                while not cancel.is_set():
                    token_id = next_token(row)
                    if self.tokenizer.is_eog(token_id) and not request.ignore_eog:
                        return "stop"
                    is_drafted = n_known < len(self._cache.ids) and self._cache.ids[n_known] == token_id
                    course.note(is_accepted=is_drafted)
                    yield Token(token_id, self.tokenizer.piece(token_id))
                    n_left = course.n_left(request.max_tokens, self.info.n_ctx - n_known)
                    if n_left <= 0:
                        return "length"
                    if self._drafter:
                        self._drafter.hear(token_id)
                    if is_drafted:
                        row += 1
                    else:
                        if not self._cache.cut_back(n_known):
                            raise EngineFailed("a draft cannot be taken back")
                        row = self._step(token_id, n_left - 1, cancel, course)
                    n_known += 1
        finally:
            self._cache.cut_back(min(n_known, len(self._cache.ids)))
        return "interrupted"

    def _step(self, token_id: int, n_max: int, cancel: threading.Event, course: _Course) -> int:
        """Evaluate a token, and with it a draft of at most `n_max`; return the row of the logits behind the token."""
        abortable = self._cache.aborting(cancel) if course.is_slow else nullcontext()
        if not self._drafter:
            with abortable:
                self._cache.evaluate([token_id])
            return _LAST_ROW
        draft = self._drafter.propose(n_max)
        started = time.perf_counter()
        if not draft:
            with abortable:
                is_done = self._cache.evaluate([token_id])
        else:
            with self._cache.aborting(cancel):  # it may take many times as long as a step
                is_done = self._cache.evaluate([token_id, *draft], every_row=True)
            course.n_drafted += len(draft)
        if is_done:
            llama_cpp.llama_synchronize(self._context)
            self._drafter.hear_time(1 + len(draft), time.perf_counter() - started)
        return 0 if draft else _LAST_ROW

    def cache_state(self) -> CacheState:
        """See `Engine`."""
        if self._cache.is_shifting or not has_plain_cache(self._model):
            return CacheState()
        return CacheState(tuple(self._cache.ids), state_bytes(self._context), self._prompt_tps)

    def save_state(self, file: BinaryIO, model_key: str, cancel: threading.Event) -> bool:
        """See `Engine`."""
        return write_state(self._context, self._cache.ids, self._state_key(model_key), file, cancel)

    def restore_state(self, file: BinaryIO, model_key: str, prompt_ids: Sequence[int], cancel: threading.Event) -> int:
        """See `Engine`."""
        if not has_plain_cache(self._model):
            return 0
        try:
            head = read_head(file, self._state_key(model_key), self.info.n_ctx)
            n_same = n_common(head.ids, prompt_ids)
            self._cache.forget()
            n_there = read_slices(self._context, file, head, n_same, cancel)
        except (UnusableState, OSError) as error:
            self._cache.forget()
            if isinstance(error, OSError):
                raise
            return 0
        self._cache.ids = head.ids[:n_there]
        return n_same

    def _state_key(self, model_key: str) -> bytes:
        n_ctx = self.info.n_ctx
        is_stretched = n_ctx > self.info.n_ctx_train
        is_stretched |= any(key.endswith(".rope.scaling.original_context_length") for key in self.info.metadata)
        return fingerprint(model_key, self._options, n_ctx if is_stretched else None)

    def close(self) -> None:
        """See `Engine`."""
        if self._drafter:
            self._drafter.close()
        if self._model:
            llama_cpp.llama_free(self._context)
            llama_cpp.llama_model_free(self._model)  # and its adapters
            self._model = None
