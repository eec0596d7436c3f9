"""llama.cpp as an engine, through its low-level C calls. The only room that imports llama_cpp.

The library's own `Llama` class is not used: its prompts, its sampling and its bookkeeping cost time and decide
things that are decided here. The ids in the KV cache are kept as a list beside it, so that a new prompt only
evaluates what differs from the last one.
"""

from __future__ import annotations

import codecs
import ctypes
import os
import re
import secrets
import sys
import threading
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from gguf import LlamaFileType
from llama_cpp import _ggml

from llamachat.engine.base import (
    DEFAULT_N_CTX,
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
from llamachat.engine.sampling import SamplerStep, sampler_chain
from llamachat.errors import EngineFailed, NotAModelFile, PromptTooLong, UnusableAdapter, WindowTooLong

_N_BATCH = 512
_ALL_LAYERS = -1
_ABORTED = 2
_SPM = 1  # LLAMA_VOCAB_TYPE_SPM

_ROPE_SCALING = {
    "linear": llama_cpp.LLAMA_ROPE_SCALING_TYPE_LINEAR,
    "yarn": llama_cpp.LLAMA_ROPE_SCALING_TYPE_YARN,
}

_MARKER = re.compile(rb"<\|[^|>]+\|>|<step>")
"""Tokens that steer a model although some vocabularies have them as words that may be typed."""

_KV_TYPES = {"f16": llama_cpp.GGML_TYPE_F16, "q8_0": llama_cpp.GGML_TYPE_Q8_0, "q4_0": llama_cpp.GGML_TYPE_Q4_0}


class LlamaTokenizer:
    """`Tokenizer` over a llama.cpp vocabulary. `model` must outlive it."""

    def __init__(self, model: int) -> None:
        self._model = model
        self.vocab = llama_cpp.llama_model_get_vocab(model)
        self._pieces: dict[int, bytes] = {}

    @cached_property
    def n_vocab(self) -> int:
        """See `Tokenizer`."""
        return int(llama_cpp.llama_vocab_n_tokens(self.vocab))

    @cached_property
    def bos_id(self) -> int | None:
        """See `Tokenizer`."""
        return _token_or_none(llama_cpp.llama_vocab_bos(self.vocab))

    @cached_property
    def eos_id(self) -> int | None:
        """See `Tokenizer`."""
        return _token_or_none(llama_cpp.llama_vocab_eos(self.vocab))

    @cached_property
    def adds_bos(self) -> bool:
        """See `Tokenizer`."""
        return bool(llama_cpp.llama_vocab_get_add_bos(self.vocab))

    @cached_property
    def adds_space_prefix(self) -> bool:
        """See `Tokenizer`."""
        if llama_cpp.llama_vocab_type(self.vocab) != _SPM:
            return False
        return self.piece(self.tokenize("a")[0]).startswith(b" ")

    @cached_property
    def infill_ids(self) -> tuple[int, int, int] | None:
        """See `Tokenizer`."""
        ask = (llama_cpp.llama_vocab_fim_pre, llama_cpp.llama_vocab_fim_suf, llama_cpp.llama_vocab_fim_mid)
        before, after, between = (_token_or_none(find(self.vocab)) for find in ask)
        return None if before is None or after is None or between is None else (before, after, between)

    @cached_property
    def control_tokens(self) -> Mapping[str, int]:
        """See `Tokenizer`."""
        attributes, text_of = llama_cpp.llama_vocab_get_attr, llama_cpp.llama_vocab_get_text
        suspect = llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED
        if llama_cpp.llama_vocab_type(self.vocab) == _SPM:
            suspect |= llama_cpp.LLAMA_TOKEN_ATTR_NORMAL  # what "user defined" tokens of sentencepiece are in GGUF
        control = {}
        for token_id in range(self.n_vocab):
            kind = attributes(self.vocab, token_id)
            if not kind & (llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | suspect):
                continue
            text: bytes = text_of(self.vocab, token_id)
            if kind & llama_cpp.LLAMA_TOKEN_ATTR_CONTROL or _MARKER.fullmatch(text):
                control[text.decode("utf-8", "replace")] = token_id
        return control

    @cached_property
    def _wants_nfc(self) -> bool:
        """Qwen2's tokenizer composes its text first; llama.cpp leaves that to its caller."""
        return _metadata(self._model).get("tokenizer.ggml.pre") == "qwen2"

    @cached_property
    def _control_texts(self) -> Mapping[int, str]:
        return {token_id: text for text, token_id in self.control_tokens.items()}

    @cached_property
    def _byte_ids(self) -> Mapping[bytes, int]:
        """The tokens that stand for one byte each; only sentencepiece vocabularies have them."""
        attributes = llama_cpp.llama_vocab_get_attr
        return {
            self.piece(token_id): token_id
            for token_id in range(self.n_vocab)
            if attributes(self.vocab, token_id) & llama_cpp.LLAMA_TOKEN_ATTR_BYTE
        }

    def tokenize(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        ids = self._tokenize(unicodedata.normalize("NFC", text) if self._wants_nfc else text)
        if self._control_texts.keys().isdisjoint(ids):
            return ids
        return [plain for token_id in ids for plain in self._spell_out(token_id)]

    def _spell_out(self, token_id: int) -> list[int]:
        """The smallest pieces of a control token's text: llama.cpp does merge text into one if all steps exist."""
        text = self._control_texts.get(token_id)
        if text is None:
            return [token_id]
        if self._byte_ids:
            return [self._byte_ids[bytes([byte])] for byte in text.encode()]
        return [plain for character in text for plain in self._tokenize(character)]

    def _tokenize(self, text: str) -> list[int]:
        data = text.encode("utf-8", "replace")
        capacity = len(data) + 2
        ids = (llama_cpp.llama_token * capacity)()
        n_ids = llama_cpp.llama_tokenize(self.vocab, data, len(data), ids, capacity, False, False)
        if n_ids < 0:
            raise EngineFailed("the text could not be tokenized")
        return ids[:n_ids]

    def piece(self, token_id: int) -> bytes:
        """See `Tokenizer`."""
        known = self._pieces.get(token_id)
        if known is not None:
            return known
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            n_bytes = llama_cpp.llama_token_to_piece(self.vocab, token_id, buffer, size, 0, False)
            if n_bytes >= 0:
                self._pieces[token_id] = buffer.raw[:n_bytes]
                return self._pieces[token_id]
            size = -n_bytes

    @cached_property
    def unwritten_ids(self) -> Sequence[int]:
        """Control tokens that do not end a generation: they have a name, but add nothing to an answer."""
        return [token_id for token_id in self._control_texts if not self.is_eog(token_id)]

    def is_eog(self, token_id: int) -> bool:
        """Whether the token ends a generation."""
        return bool(llama_cpp.llama_vocab_is_eog(self.vocab, token_id))


class LlamaEngine:
    """`Engine` over llama.cpp: one model, one context, one sequence."""

    def __init__(self, path: Path, options: EngineOptions | None = None, cancel: threading.Event | None = None) -> None:
        """Load the GGUF file at `path`, and the adapters.

        Raises `NotAModelFile`, `UnusableAdapter`, `WindowTooLong` or `EngineFailed`; the first also soon after `cancel`
        is set.
        """
        options = options or EngineOptions()
        started = time.monotonic()
        self._ids: list[int] = []
        self._is_shifting = False
        """Whether keys wait to be rotated: llama.cpp does that when it evaluates next."""
        self._model = _load_model(path, options.n_gpu_layers, cancel=cancel)
        try:
            # Before the context, which makes room for what they add to the graph. They are the model's from then on.
            adapters = [_load_adapter(self._model, adapter.path) for adapter in options.adapters]
            n_ctx_train = llama_cpp.llama_model_n_ctx_train(self._model)  # before YaRN, which makes it longer
            self._context, n_threads = self._open_context(options)
        except (EngineFailed, UnusableAdapter, WindowTooLong):
            llama_cpp.llama_model_free(self._model)
            raise
        self._apply(adapters, [adapter.scale for adapter in options.adapters])
        self._memory = llama_cpp.llama_get_memory(self._context)
        self.can_shift = bool(llama_cpp.llama_memory_can_shift(self._memory))
        self.tokenizer = LlamaTokenizer(self._model)
        self.info = EngineInfo(
            n_params=llama_cpp.llama_model_n_params(self._model),
            size_bytes=llama_cpp.llama_model_size(self._model),
            n_ctx=llama_cpp.llama_n_ctx(self._context),
            n_ctx_train=n_ctx_train,
            n_threads=n_threads,
            backend="GPU" if _offloads(options.n_gpu_layers) else "CPU",
            file_type=_file_type_name(self._model),
            load_s=time.monotonic() - started,
            metadata=_metadata(self._model),
        )

    def _open_context(self, options: EngineOptions) -> tuple[Any, int]:
        params = llama_cpp.llama_context_default_params()
        n_ctx_train = llama_cpp.llama_model_n_ctx_train(self._model)
        params.n_ctx = options.n_ctx or min(n_ctx_train or DEFAULT_N_CTX, DEFAULT_N_CTX)
        params.n_batch = params.n_ubatch = _N_BATCH
        params.n_threads = params.n_threads_batch = options.n_threads or default_threads()
        params.type_k = params.type_v = _KV_TYPES[options.kv_type]
        params.no_perf = True
        if n_ctx_train and params.n_ctx > n_ctx_train:
            if options.rope_scaling is None:
                raise WindowTooLong(params.n_ctx, n_ctx_train)
            params.rope_scaling_type = _ROPE_SCALING[options.rope_scaling]
            own_scale = llama_cpp.llama_model_rope_freq_scale_train(self._model)  # some are stretched already
            params.rope_freq_scale = min(own_scale, n_ctx_train / params.n_ctx)
        with _collected_log() as log:
            context = llama_cpp.llama_init_from_model(self._model, params)
        if not context:
            raise EngineFailed(f"no context of {params.n_ctx:,} tokens could be made ({_last_error(log)})")
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

        generated: list[float] = []  # when each token came
        finish_reason: FinishReason = "interrupted"
        if len(self._ids) == len(prompt):
            finish_reason = yield from self._decode(request, cancel, generated)
        first, last = (generated[0], generated[-1]) if generated else (started, started)
        stats = GenerationStats(
            n_prompt=len(prompt),
            n_reused=n_reused,
            n_generated=len(generated),
            prefill_s=prefill_s,
            ttft_s=first - started,
            decode_s=last - first,
        )
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
        if n_common < len(self._ids):
            if not llama_cpp.llama_memory_seq_rm(self._memory, 0, n_common, -1):
                llama_cpp.llama_memory_clear(self._memory, True)  # a memory that cannot be cut, such as a recurrent one
                n_common = 0
            del self._ids[n_common:]
        return n_common

    def _prefill(self, prompt: Sequence[int], cancel: threading.Event) -> Iterator[int]:
        """Evaluate the rest of the prompt in batches, telling how far it got. Stops within a batch when cancelled."""
        callback = llama_cpp.ggml_abort_callback(lambda _: cancel.is_set())
        llama_cpp.llama_set_abort_callback(self._context, callback, None)
        try:
            while len(self._ids) < len(prompt) and not cancel.is_set():
                batch = prompt[len(self._ids) : len(self._ids) + _N_BATCH]
                if not self._evaluate(batch):
                    break
                yield len(self._ids)
        finally:
            llama_cpp.llama_set_abort_callback(self._context, llama_cpp.ggml_abort_callback(), None)

    def _decode(
        self, request: GenerationRequest, cancel: threading.Event, generated: list[float]
    ) -> Generator[Event, None, FinishReason]:
        """Sample and evaluate token after token; `generated` collects when each one came."""
        with _sampling(request, self._context, self.tokenizer) as next_token:
            while not cancel.is_set():
                token_id = next_token()
                if self.tokenizer.is_eog(token_id) and not request.ignore_eog:
                    return "stop"
                generated.append(time.monotonic())
                yield Token(token_id, self.tokenizer.piece(token_id))
                if len(generated) == request.max_tokens or len(self._ids) == self.info.n_ctx:
                    return "length"
                self._evaluate([token_id])
        return "interrupted"

    def _evaluate(self, ids: Sequence[int]) -> bool:
        """Run tokens through the model and note them; False if it was aborted."""
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        result = llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(tokens, len(ids)))
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

    def close(self) -> None:
        """See `Engine`."""
        if self._model:
            llama_cpp.llama_free(self._context)
            llama_cpp.llama_model_free(self._model)  # and its adapters
            self._model = None


def _n_common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two lists have in common at their beginning."""
    shorter = min(len(a), len(b))
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)


@contextmanager
def open_tokenizer(path: Path) -> Iterator[tuple[LlamaTokenizer, Mapping[str, str]]]:
    """The vocabulary and the header of a GGUF file, without its weights."""
    model = _load_model(path, 0, vocab_only=True)
    try:
        yield LlamaTokenizer(model), _metadata(model)
    finally:
        llama_cpp.llama_model_free(model)


def supports_gpu() -> bool:
    """Whether this build of llama.cpp can use a GPU."""
    return bool(llama_cpp.llama_supports_gpu_offload())


def build_description() -> str:
    """The version of the bindings and the instruction sets llama.cpp was built for."""
    _quiet_log()
    return f"llama-cpp-python {llama_cpp.__version__} ({llama_cpp.llama_print_system_info().decode().strip(' |')})"


@contextmanager
def _sampling(request: GenerationRequest, context: Any, tokenizer: LlamaTokenizer) -> Iterator[Callable[[], int]]:
    """What chooses the next token from the logits, for one generation."""
    with _sampler(request, tokenizer.n_vocab) as chain:
        if request.grammar is None:
            yield lambda: llama_cpp.llama_sampler_sample(chain, context, -1)
            return
        grammar = llama_cpp.llama_sampler_init_grammar(tokenizer.vocab, request.grammar.encode(), b"root")
        if not grammar:
            raise EngineFailed("it does not take the grammar")
        try:
            yield _GrammarSampling(context, chain, grammar, tokenizer).next_token
        finally:
            llama_cpp.llama_sampler_free(grammar)


class _GrammarSampling:
    """Chooses tokens that a grammar allows, as llama.cpp's common/sampling.cpp does.

    The chain chooses freely first. Only where the grammar refuses that token are all of them held against the
    grammar, which takes longer. llama.cpp's grammar takes control tokens for their names and some invalid UTF-8
    for characters. Neither would be in the answer, so both are refused here.
    """

    def __init__(self, context: Any, chain: Any, grammar: Any, tokenizer: LlamaTokenizer) -> None:
        self._context, self._chain, self._grammar, self._tokenizer = context, chain, grammar, tokenizer
        self._unwritten = np.array(tokenizer.unwritten_ids, dtype=np.int32)
        self._ids = np.arange(tokenizer.n_vocab, dtype=np.int32)
        self._candidates: Any = np.zeros(tokenizer.n_vocab, dtype=np.dtype(llama_cpp.llama_token_data))
        self._text = codecs.getincrementaldecoder("utf-8")()

    def next_token(self) -> int:
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self._context, -1), shape=self._ids.shape)
        token_id = self._choose(logits)
        if not (self._is_text(token_id) and self._is_allowed(token_id)):
            token_id = self._choose_allowed(logits)
        llama_cpp.llama_sampler_accept(self._chain, token_id)
        llama_cpp.llama_sampler_accept(self._grammar, token_id)
        self._text.decode(self._tokenizer.piece(token_id))
        return token_id

    def _choose_allowed(self, logits: Any) -> int:
        self._fill(logits)
        self._candidates["logit"][self._unwritten] = -np.inf
        self._apply(self._grammar, self._candidates)
        allowed = self._candidates["logit"].copy()
        while np.isfinite(allowed).any():
            token_id = self._choose(allowed)
            if self._is_text(token_id):
                return token_id
            allowed[token_id] = -np.inf
        raise EngineFailed("the grammar asks for something that no token of this model can write")

    def _choose(self, logits: Any) -> int:
        self._fill(logits)
        chosen = self._apply(self._chain, self._candidates)
        return int(chosen.data[chosen.selected].id)

    def _fill(self, logits: Any) -> None:
        self._candidates["id"], self._candidates["logit"] = self._ids, logits

    def _is_allowed(self, token_id: int) -> bool:
        candidate: Any = np.zeros(1, dtype=self._candidates.dtype)
        candidate["id"], candidate["logit"] = token_id, 1.0
        self._apply(self._grammar, candidate)
        return bool(np.isfinite(candidate["logit"][0]))

    def _is_text(self, token_id: int) -> bool:
        """Whether it adds to the answer what may begin valid UTF-8, or ends one that is whole."""
        is_eog = self._tokenizer.is_eog(token_id)
        piece = b"" if is_eog else self._tokenizer.piece(token_id)
        if not (piece or is_eog):
            return False
        before = self._text.getstate()
        try:
            self._text.decode(piece, final=is_eog)
        except UnicodeDecodeError:
            return False
        finally:
            self._text.setstate(before)
        return True

    @staticmethod
    def _apply(sampler: Any, candidates: Any) -> Any:
        data = candidates.ctypes.data_as(llama_cpp.llama_token_data_p)
        array = llama_cpp.llama_token_data_array(data, candidates.size, -1, False)
        llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
        return array


@contextmanager
def _sampler(request: GenerationRequest, n_vocab: int) -> Iterator[Any]:
    """A sampler chain for one generation, which has seen the prompt (penalties count it)."""
    params = request.sampling
    seed = secrets.randbelow(_MAX_SEED) if params.seed is None else params.seed % _MAX_SEED
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    try:
        for step in sampler_chain(params, seed):
            llama_cpp.llama_sampler_chain_add(chain, _make_sampler(step, n_vocab))
        for token_id in request.prompt_ids:
            llama_cpp.llama_sampler_accept(chain, token_id)
        yield chain
    finally:
        llama_cpp.llama_sampler_free(chain)


_MAX_SEED = 2**32 - 1  # the last 32-bit value means "random" to llama.cpp


def _make_sampler(step: SamplerStep, n_vocab: int) -> Any:
    create = getattr(llama_cpp, f"llama_sampler_init_{step.name}")
    return create(n_vocab, *step.arguments) if step.name == "penalties" else create(*step.arguments)


def _load_model(
    path: Path, n_gpu_layers: int | str, *, vocab_only: bool = False, cancel: threading.Event | None = None
) -> Any:
    _init_backend()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = vocab_only
    if cancel is not None:
        params.progress_callback = llama_cpp.llama_progress_callback(lambda _share, _data: not cancel.is_set())
    if n_gpu_layers == "auto":
        params.n_gpu_layers = _ALL_LAYERS if supports_gpu() else 0
    else:
        params.n_gpu_layers = int(n_gpu_layers)
    with _collected_log() as log:
        model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise NotAModelFile(path, f"cannot be loaded ({_last_error(log)})")
    return model


def _load_adapter(model: Any, path: Path) -> Any:
    """Load a GGUF adapter for `model`, which frees it with itself; raise `UnusableAdapter` if it does not fit."""
    with _collected_log() as log:
        adapter = llama_cpp.llama_adapter_lora_init(model, os.fsencode(path))
    if not adapter:
        reason = _last_error(log).rpartition("lora adapter: ")[2]
        raise UnusableAdapter(
            f"{path}: the adapter cannot be used with this model ({reason}).",
            "Use it with the model that it was trained on.",
        )
    return adapter


def _offloads(n_gpu_layers: int | str) -> bool:
    return supports_gpu() and n_gpu_layers != 0


def _metadata(model: Any) -> dict[str, str]:
    """The header's scalar keys as text (arrays are shortened by llama.cpp)."""
    pairs = {}
    for i in range(llama_cpp.llama_model_meta_count(model)):
        key = _read_text(llama_cpp.llama_model_meta_key_by_index, model, i)
        pairs[key] = _read_text(llama_cpp.llama_model_meta_val_str_by_index, model, i)
    return pairs


def _read_text(function: Any, *arguments: Any) -> str:
    """Call one of llama.cpp's snprintf-like functions with a buffer that is large enough."""
    size = 256
    while True:
        buffer = ctypes.create_string_buffer(size)
        n_bytes = function(*arguments, buffer, size)
        if n_bytes < size:
            return buffer.value.decode("utf-8", "replace")
        size = n_bytes + 1


def _file_type_name(model: Any) -> str:
    try:
        return LlamaFileType(llama_cpp.llama_model_ftype(model)).name.removeprefix("MOSTLY_").lower()
    except ValueError:
        return "unknown"


def _token_or_none(token_id: int) -> int | None:
    return None if token_id < 0 else token_id


_log: deque[str] = deque(maxlen=50)
"""llama.cpp's latest messages. It logs from any thread to one place in the process."""


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(_level: int, text: bytes, _user_data: Any) -> None:
    message = text.decode("utf-8", "replace")
    _log.append(message)
    if os.environ.get("LLAMACHAT_DEBUG") == "1":
        sys.stderr.write(message)


@lru_cache(maxsize=1)
def _quiet_log() -> None:
    llama_cpp.llama_log_set(_on_log, None)


@ctypes.CFUNCTYPE(None, ctypes.c_char_p)  # type: ignore[untyped-decorator]
def _on_abort(message: bytes) -> None:
    """An assertion in llama.cpp failed, as damaged files make happen, and it is about to abort the process.

    That cannot be turned into an exception, so the process ends here in plain words; without this, llama.cpp
    would attach a debugger and dump core.
    """
    place = message.decode("utf-8", "replace").rpartition("/vendor/")[2]
    sys.stderr.write(f"\nError: llama.cpp gave up ({place}).\nNext: The file may be damaged; pull the model again.\n")
    sys.stderr.flush()
    os._exit(1)


@lru_cache(maxsize=1)
def _init_backend() -> None:
    _quiet_log()
    _ggml.libggml.ggml_set_abort_callback(_on_abort)
    llama_cpp.llama_backend_init()


@contextmanager
def _collected_log() -> Iterator[deque[str]]:
    llama_cpp.llama_log_set(_on_log, None)  # who else uses the library in this process may have set another
    _log.clear()
    yield _log


def _last_error(log: deque[str]) -> str:
    """The most telling line llama.cpp left behind: the first error, without the function's name before it."""
    for message in log:
        if "error" in message or "failed" in message:
            return message.strip().rpartition("error ")[2].removeprefix("loading model: ")[:200]
    return "no reason given"
