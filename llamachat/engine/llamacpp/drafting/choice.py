"""Who drafts for a model: `--draft` → a `Drafter`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import llama_cpp

from llamachat.engine.base import Engine, EngineInfo
from llamachat.engine.llamacpp.drafting.auto import AutoDrafts
from llamachat.engine.llamacpp.drafting.drafter import Drafter
from llamachat.engine.llamacpp.drafting.lookup import LookupDrafts
from llamachat.engine.llamacpp.drafting.model import ModelDrafts
from llamachat.engine.llamacpp.tokenizer import LlamaTokenizer, open_tokenizer
from llamachat.errors import UnusableDraft

_MAX_SIZE_DIFFERENCE = 128
_FIRST_COMPARED_ID = 5


def make_drafter(
    draft: Literal["auto", "lookup", "off"] | Path,
    target: LlamaTokenizer,
    info: EngineInfo,
    open_engine: Callable[[Path, int], Engine],
) -> Drafter | None:
    """Who drafts for the model of `target`, if anybody; `open_engine` loads a model with a window of so many tokens.

    Raises `UnusableDraft` where what is asked for cannot be, and what `open_engine` does. "auto" never raises.
    """
    can_cut = not (llama_cpp.llama_model_is_recurrent(target.model) or llama_cpp.llama_model_is_hybrid(target.model))
    if draft == "off" or (draft == "auto" and not can_cut):
        return None
    if not can_cut:
        raise UnusableDraft(
            "Nothing can be drafted for this model: its memory cannot take a wrong guess back.", "Leave --draft out."
        )
    if not isinstance(draft, Path):
        return AutoDrafts() if draft == "auto" else LookupDrafts()
    with open_tokenizer(draft) as (own, header):
        _check_vocabulary(own, draft, target)
        n_ctx_train = header.get(f"{header.get('general.architecture')}.context_length", "")
    n_ctx = min(info.n_ctx, int(n_ctx_train)) if n_ctx_train.isdecimal() else info.n_ctx
    return ModelDrafts(open_engine(draft, n_ctx), target.n_vocab)


def _check_vocabulary(own: LlamaTokenizer, path: Path, target: LlamaTokenizer) -> None:
    """Raise `UnusableDraft` unless the ids of the model at `path` mean what they mean to the target.

    As in llama.cpp's common/speculative.cpp: sizes may differ a little, since some models pad their vocabulary, and so
    may the first few tokens.
    """
    type_of, text_of = llama_cpp.llama_vocab_type, llama_cpp.llama_vocab_get_text
    both = range(_FIRST_COMPARED_ID, min(own.n_vocab, target.n_vocab))
    if (
        type_of(own.vocab) != type_of(target.vocab)
        or (own.bos_id, own.eos_id) != (target.bos_id, target.eos_id)
        or abs(own.n_vocab - target.n_vocab) > _MAX_SIZE_DIFFERENCE
        or any(text_of(own.vocab, i) != text_of(target.vocab, i) for i in both)
    ):
        raise UnusableDraft(
            f"{path.name} cannot draft for this model: its vocabulary is another one.",
            "Give a smaller model of the same family, or --draft lookup, which needs none.",
        )
