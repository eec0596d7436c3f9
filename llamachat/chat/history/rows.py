"""Rows of the database ↔ values. What a row holds is checked as far as SQLite's own checks do not reach."""

from __future__ import annotations

import json
from typing import Any

from llamachat.chat.history.values import SessionFacts, StoredMessage
from llamachat.chat.message import Message
from llamachat.chat.tools.values import ToolStep, steps_from_json, steps_to_json
from llamachat.engine.base import GenerationStats

FACTS_COLUMNS = "model, model_sha256, template, sampling, n_ctx, adapters, options, server"
STATS_COLUMNS = "n_prompt, n_reused, n_generated, prefill_s, ttft_s, decode_s"
MESSAGE_COLUMNS = (
    "key, parent, role, content, reasoning, steps, is_pinned, created, n_summarized, finish_reason, facts, seed, "
    f"{STATS_COLUMNS}"
)

_N_STATS = 6


def facts_row(facts: SessionFacts) -> tuple[str | int | None, ...]:
    """In the order of `FACTS_COLUMNS`."""
    sampling = json.dumps(dict(facts.sampling), sort_keys=True)
    adapters = json.dumps([list(adapter) for adapter in facts.adapters])
    options = json.dumps(dict(facts.options), sort_keys=True)
    return (facts.model, facts.model_sha256, facts.template, sampling, facts.n_ctx, adapters, options, facts.server)


def read_facts(row: tuple[Any, ...]) -> SessionFacts:
    """A row of `FACTS_COLUMNS`; raises ValueError or TypeError if it cannot be read."""
    model, sha256, template, sampling, n_ctx, adapters, options, server = row
    pairs = tuple((str(path), float(scale)) for path, scale in json.loads(adapters))
    others = dict(json.loads(options))
    return SessionFacts(model, sha256, template, dict(json.loads(sampling)), n_ctx, pairs, others, server)


def stats_row(stats: GenerationStats | None) -> tuple[int | float | None, ...]:
    """In the order of `STATS_COLUMNS`."""
    if stats is None:
        return (None,) * _N_STATS
    return (stats.n_prompt, stats.n_reused, stats.n_generated, stats.prefill_s, stats.ttft_s, stats.decode_s)


def steps_row(steps: tuple[ToolStep, ...]) -> str | None:
    """One column; None where no tool was called."""
    return json.dumps(steps_to_json(steps)) if steps else None


def _read_steps(column: str | None) -> tuple[ToolStep, ...]:
    return steps_from_json(json.loads(column)) if column is not None else ()


def read_message(row: tuple[Any, ...], facts: dict[int, SessionFacts]) -> StoredMessage:
    """A row of `MESSAGE_COLUMNS`; `facts` by id."""
    key, parent, role, content, reasoning, steps, is_pinned, *about = row
    created, n_summarized, finish_reason, facts_id, seed, *stats = about
    message = Message(
        role,
        content,
        is_pinned=bool(is_pinned),
        reasoning=reasoning,
        key=key,
        n_summarized=n_summarized,
        steps=_read_steps(steps),
    )
    return StoredMessage(
        key=key,
        parent=parent,
        message=message,
        created=created,
        finish_reason=finish_reason,
        facts=facts.get(facts_id),
        seed=seed,
        stats=GenerationStats(*stats) if stats[-1] is not None else None,
    )
