"""One model, one context, one sequence: prefill, decoding, and a KV cache whose ids are kept beside it."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import llama_cpp

from llamachat.engine.base import (
    DEFAULT_N_CTX,
    CacheState,
    Cut,
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
from llamachat.engine.hardware import default_threads
from llamachat.engine.llamacpp.drafting import Drafter, make_drafter
from llamachat.engine.llamacpp.library import collected_log, last_error, supports_gpu
from llamachat.engine.llamacpp.loading import file_type_name, load_adapter, load_model, metadata
from llamachat.engine.llamacpp.sampling import sampling
from llamachat.engine.llamacpp.state import (
    N_SEQUENCES,
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

_N_BATCH = 512
_ABORTED = 2

_ROPE_SCALING = {
    "linear": llama_cpp.LLAMA_ROPE_SCALING_TYPE_LINEAR,
    "yarn": llama_cpp.LLAMA_ROPE_SCALING_TYPE_YARN,
}
_KV_TYPES = {"f16": llama_cpp.GGML_TYPE_F16, "q8_0": llama_cpp.GGML_TYPE_Q8_0, "q4_0": llama_cpp.GGML_TYPE_Q4_0}
_LAST_ROW = -1


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
        self._ids: list[int] = []
        self._prompt_tps = 0.0
        self._is_shifting = False
        """Whether keys wait to be rotated: llama.cpp does that when it evaluates next."""
        self._model = load_model(path, options.n_gpu_layers, cancel=cancel)
        try:
            # Before the context, which makes room for what they add to the graph. They are the model's from then on.
            adapters = [load_adapter(self._model, adapter.path) for adapter in options.adapters]
            n_ctx_train = llama_cpp.llama_model_n_ctx_train(self._model)  # before YaRN, which makes it longer
            self._context, n_threads = self._open_context(options)
        except (EngineFailed, UnusableAdapter, WindowTooLong):
            llama_cpp.llama_model_free(self._model)
            raise
        self._apply(adapters, [adapter.scale for adapter in options.adapters])
        self._memory = llama_cpp.llama_get_memory(self._context)
        self.can_shift = bool(llama_cpp.llama_memory_can_shift(self._memory))
        self.can_continue = True
        self.tokenizer = LlamaTokenizer(self._model)
        self.info = EngineInfo(
            n_params=llama_cpp.llama_model_n_params(self._model),
            size_bytes=llama_cpp.llama_model_size(self._model),
            n_ctx=llama_cpp.llama_n_ctx(self._context),
            n_ctx_train=n_ctx_train,
            n_threads=n_threads,
            backend="GPU" if _offloads(options.n_gpu_layers) else "CPU",
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

    def _open_context(self, options: EngineOptions) -> tuple[Any, int]:
        params = llama_cpp.llama_context_default_params()
        n_ctx_train = llama_cpp.llama_model_n_ctx_train(self._model)
        params.n_ctx = options.n_ctx or min(n_ctx_train or DEFAULT_N_CTX, DEFAULT_N_CTX)
        params.n_batch = params.n_ubatch = _N_BATCH
        params.n_threads = params.n_threads_batch = options.n_threads or default_threads()
        params.type_k = params.type_v = _KV_TYPES[options.kv_type or "f16"]
        params.no_perf = True
        if has_plain_cache(self._model):
            params.n_seq_max, params.kv_unified = N_SEQUENCES, True  # one cache for both, of which one is used
        if n_ctx_train and params.n_ctx > n_ctx_train:
            if options.rope_scaling is None:
                raise WindowTooLong(params.n_ctx, n_ctx_train)
            params.rope_scaling_type = _ROPE_SCALING[options.rope_scaling]
            own_scale = llama_cpp.llama_model_rope_freq_scale_train(self._model)  # some are stretched already
            params.rope_freq_scale = min(own_scale, n_ctx_train / params.n_ctx)
        with collected_log() as log:
            context = llama_cpp.llama_init_from_model(self._model, params)
        if not context:
            raise EngineFailed(f"no context of {params.n_ctx:,} tokens could be made ({last_error(log)})")
        return context, params.n_threads

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
            self._take_out(request.cut, prompt)
        n_reused = self._keep_common_prefix(prompt)
        for n_done in self._prefill(prompt, cancel):
            yield Prefill(n_done - n_reused, len(prompt) - n_reused)
        prefill_s = time.monotonic() - started

        course = _Course()
        finish_reason: FinishReason = "interrupted"
        if len(self._ids) == len(prompt):
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

    def _take_out(self, cut: Cut, prompt: Sequence[int]) -> None:
        """Remove a run of ids from the KV cache and move up what follows; its keys are rotated to their new places.

        Only if the cache then has more of the prompt than now: it may hold something else than the caller believes.
        """
        rest = self._ids[: cut.start] + self._ids[cut.stop :]
        if _n_common(rest, prompt) <= _n_common(self._ids, prompt):
            return
        if llama_cpp.llama_memory_seq_rm(self._memory, 0, cut.start, cut.stop):
            llama_cpp.llama_memory_seq_add(self._memory, 0, cut.stop, -1, cut.start - cut.stop)
            self._ids = rest
            self._is_shifting = True

    def _keep_common_prefix(self, prompt: Sequence[int]) -> int:
        """Drop from the KV cache what the prompt does not start with; return how much of the prompt is there."""
        n_common = _n_common(self._ids, prompt[:-1])  # the last token is needed for its logits
        if self._cut_back(n_common):
            return n_common
        self._forget()  # a memory that cannot be cut, such as a recurrent one
        return 0

    def _cut_back(self, n_kept: int) -> bool:
        """Drop from the KV cache all but its first ids; False if that cannot be done."""
        if n_kept < len(self._ids):
            if not llama_cpp.llama_memory_seq_rm(self._memory, 0, n_kept, -1):
                return False
            del self._ids[n_kept:]
        return True

    def _prefill(self, prompt: Sequence[int], cancel: threading.Event) -> Iterator[int]:
        """Evaluate the rest of the prompt in batches, telling how far it got. Stops within a batch when cancelled."""
        with self._aborting(cancel):
            while len(self._ids) < len(prompt) and not cancel.is_set():
                batch = prompt[len(self._ids) : len(self._ids) + _N_BATCH]
                if not self._evaluate(batch):
                    break
                yield len(self._ids)

    @contextmanager
    def _aborting(self, cancel: threading.Event) -> Iterator[None]:
        """Evaluations end in their middle when `cancel` is set."""
        callback = llama_cpp.ggml_abort_callback(lambda _: cancel.is_set())
        llama_cpp.llama_set_abort_callback(self._context, callback, None)
        try:
            yield
        finally:
            llama_cpp.llama_set_abort_callback(self._context, llama_cpp.ggml_abort_callback(), None)

    def _decode(
        self, request: GenerationRequest, cancel: threading.Event, course: _Course
    ) -> Generator[Event, None, FinishReason]:
        """Sample and evaluate token after token, or several at once: drafts that came true need no step of their own.

        Each token is drawn from the logits behind those before it, so the sampler sees what it would without drafts.
        """
        n_known, row = len(self._ids), _LAST_ROW  # what is in the cache behind the first n_known ids are drafts
        if self._drafter:
            self._drafter.begin(request, cancel)
        try:
            with sampling(request, self._context, self.tokenizer) as next_token:
                while not cancel.is_set():
                    token_id = next_token(row)
                    if self.tokenizer.is_eog(token_id) and not request.ignore_eog:
                        return "stop"
                    is_drafted = n_known < len(self._ids) and self._ids[n_known] == token_id
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
                        if not self._cut_back(n_known):
                            raise EngineFailed("a draft cannot be taken back")
                        row = self._step(token_id, n_left - 1, cancel, course)
                    n_known += 1
        finally:
            self._cut_back(min(n_known, len(self._ids)))
        return "interrupted"

    def _step(self, token_id: int, n_max: int, cancel: threading.Event, course: _Course) -> int:
        """Evaluate a token, and with it a draft of at most `n_max`; return the row of the logits behind the token."""
        if not self._drafter:
            self._evaluate([token_id])
            return _LAST_ROW
        draft = self._drafter.propose(n_max)
        started = time.perf_counter()
        if not draft:
            is_done = self._evaluate([token_id])
        else:
            with self._aborting(cancel):  # it may take many times as long as a step
                is_done = self._evaluate([token_id, *draft], every_row=True)
            course.n_drafted += len(draft)
        if is_done:
            llama_cpp.llama_synchronize(self._context)
            self._drafter.hear_time(1 + len(draft), time.perf_counter() - started)
        return 0 if draft else _LAST_ROW

    def _evaluate(self, ids: Sequence[int], *, every_row: bool = False) -> bool:
        """Run tokens through the model and note them; False if it was aborted. Only the last gives logits, or every."""
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        batch = llama_cpp.llama_batch_get_one(tokens, len(ids))
        if every_row:
            batch.logits = (ctypes.c_int8 * len(ids))(*[1] * len(ids))
        result = llama_cpp.llama_decode(self._context, batch)
        if result == _ABORTED and self._is_shifting:
            self._forget()  # perhaps in the middle of the rotation, which would begin again with the keys as they are
            return False
        if result == _ABORTED:
            llama_cpp.llama_memory_seq_rm(self._memory, 0, len(self._ids), -1)
            return False
        if result != 0:
            self._forget()
            raise EngineFailed(f"llama_decode returned {result}")
        self._is_shifting = False
        self._ids.extend(ids)
        return True

    def _forget(self) -> None:
        """Empty the KV cache: after an error nothing in it can be relied on."""
        llama_cpp.llama_memory_clear(self._memory, True)
        self._is_shifting = False
        self._ids.clear()

    def cache_state(self) -> CacheState:
        """See `Engine`."""
        if self._is_shifting or not has_plain_cache(self._model):
            return CacheState()
        return CacheState(tuple(self._ids), state_bytes(self._context), self._prompt_tps)

    def save_state(self, file: BinaryIO, model_key: str, cancel: threading.Event) -> bool:
        """See `Engine`."""
        return write_state(self._context, self._ids, self._state_key(model_key), file, cancel)

    def restore_state(self, file: BinaryIO, model_key: str, prompt_ids: Sequence[int], cancel: threading.Event) -> int:
        """See `Engine`."""
        if not has_plain_cache(self._model):
            return 0
        try:
            head = read_head(file, self._state_key(model_key), self.info.n_ctx)
            n_common = _n_common(head.ids, prompt_ids)
            self._forget()
            n_there = read_slices(self._context, file, head, n_common, cancel)
        except (UnusableState, OSError) as error:
            self._forget()
            if isinstance(error, OSError):
                raise
            return 0
        self._ids = head.ids[:n_there]
        return n_common

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


def _offloads(n_gpu_layers: int | str) -> bool:
    return supports_gpu() and n_gpu_layers != 0


def _n_common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two lists have in common at their beginning."""
    shorter = min(len(a), len(b))
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)
