"""Drafts from what was said before: where the last ids have occurred already, what followed them may follow again."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from llamachat.engine.base import GenerationRequest

_N_KEY = 3
"""How many ids in a row have to occur again."""
_N_DRAFT = 7


class Lookup:
    """The ids so far, and the earlier place that they go on like.

    Prompt lookup decoding (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding). A place is followed as long as
    it is right; then the latest one with the same `_N_KEY` ids before it is looked up, in constant time.
    """

    def __init__(self, ids: Sequence[int] = ()) -> None:
        self._ids = list(ids)
        latest = range(_N_KEY, len(self._ids))  # the last ids of all have nothing behind them yet
        self._places = {tuple(self._ids[i - _N_KEY : i]): i for i in latest}
        self._place = 0
        self.n_matched = 0
        """How many of the last ids are known to be those before the place, too; 0: there is no such place."""
        self._find()

    def propose(self, n_ids: int) -> list[int]:
        """What followed there; where that ends at the present, it is a period, which goes on."""
        if not self.n_matched:
            return []
        found = self._ids[self._place : self._place + n_ids]
        return [found[i % len(found)] for i in range(n_ids)]

    def append(self, token_id: int) -> bool:
        """Go on with the next id; return whether it was the one to be expected."""
        is_right = bool(self.n_matched) and self._ids[self._place] == token_id
        if len(self._ids) >= _N_KEY:
            self._places[tuple(self._ids[-_N_KEY:])] = len(self._ids)
        self._ids.append(token_id)
        if is_right:
            self._place += 1
            self.n_matched += 1
        else:
            self._find()
        return is_right

    def _find(self) -> None:
        self._place = self._places.get(tuple(self._ids[-_N_KEY:]), 0)
        self.n_matched = _N_KEY if self._place else 0


class LookupDrafts:
    """`Drafter` that proposes whatever is found."""

    def begin(self, request: GenerationRequest, cancel: threading.Event) -> None:  # noqa: ARG002
        """See `Drafter`."""
        self._lookup = Lookup(request.prompt_ids)

    def propose(self, n_max: int) -> Sequence[int]:
        """See `Drafter`."""
        return self._lookup.propose(min(n_max, _N_DRAFT))

    def hear(self, token_id: int) -> None:
        """See `Drafter`."""
        self._lookup.append(token_id)

    def hear_time(self, n_ids: int, elapsed_s: float) -> None:
        """See `Drafter`."""

    def close(self) -> None:
        """See `Drafter`."""
