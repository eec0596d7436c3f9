"""What chooses the next token: llama.cpp's sampler chain, held to a grammar where one is asked for."""

from __future__ import annotations

import codecs
import ctypes
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import llama_cpp
import numpy as np

from llamachat.engine.base import GenerationRequest
from llamachat.engine.llamacpp.tokenizer import LlamaTokenizer
from llamachat.engine.sampling import SamplerStep, sampler_chain
from llamachat.errors import EngineFailed


@contextmanager
def sampling(request: GenerationRequest, context: Any, tokenizer: LlamaTokenizer) -> Iterator[Callable[[int], int]]:
    """What chooses the next token from a row of the last batch's logits, for one generation."""
    with _sampler(request, tokenizer.n_vocab) as chain:
        if request.grammar is None:
            yield lambda row: llama_cpp.llama_sampler_sample(chain, context, row)
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

    def next_token(self, row: int) -> int:
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self._context, row), shape=self._ids.shape)
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
