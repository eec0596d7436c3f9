"""Drafts by a smaller model of the same vocabulary."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from llamachat.engine.base import Engine, GenerationRequest, Token
from llamachat.engine.sampling import SamplingParams

_GREEDY = SamplingParams(temperature=0.0)
_FIRST_DRAFT, _LONGEST_DRAFT = 4, 15


class ModelDrafts:
    """`Drafter` that lets another model go on greedily.

    Drafts grow by two while they are right to the end and shrink by one where they are not, as assisted generation in
    transformers does it (`num_assistant_tokens_schedule="heuristic"`).
    """

    def __init__(self, engine: Engine, n_vocab: int) -> None:
        """`engine` is for drafts alone; ids from `n_vocab` on are unknown to the model that is drafted for."""
        self._engine, self._n_vocab = engine, n_vocab

    def begin(self, request: GenerationRequest, cancel: threading.Event) -> None:
        """See `Drafter`."""
        self._ids, self._cancel = list(request.prompt_ids), cancel
        self._n_draft = _FIRST_DRAFT
        self._draft: list[int] = []
        self._begun_at = 0

    def propose(self, n_max: int) -> Sequence[int]:
        """See `Drafter`. None where the context has outgrown the window of the drafting model."""
        if self._draft:
            heard = self._ids[self._begun_at :]
            self._n_draft += 2 if heard[: len(self._draft)] == self._draft else -1
            self._n_draft = min(max(self._n_draft, 1), _LONGEST_DRAFT)
        self._begun_at = len(self._ids)
        n_draft = min(n_max, self._n_draft)
        if n_draft < 1 or len(self._ids) + n_draft > self._engine.info.n_ctx:
            self._draft = []
        else:
            request = GenerationRequest(self._ids, _GREEDY, n_draft, ignore_eog=True)
            events = self._engine.generate(request, self._cancel)
            self._draft = [event.token_id for event in events if isinstance(event, Token)]
        unknown = (i for i, token_id in enumerate(self._draft) if token_id >= self._n_vocab)
        return self._draft[: next(unknown, len(self._draft))]

    def hear(self, token_id: int) -> None:
        """See `Drafter`."""
        self._ids.append(token_id)

    def hear_time(self, n_ids: int, elapsed_s: float) -> None:
        """See `Drafter`."""

    def close(self) -> None:
        """See `Drafter`."""
        self._engine.close()
