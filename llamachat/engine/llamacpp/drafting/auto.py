"""Drafts from what was said before, where they are expected to save time on this machine.

How often a guess is right is known without drafting: each token that comes is compared with what the lookup would have
said. How long batches take is known from those that were tried. Both are kept from one answer to the next.

A batch may round otherwise than a single step, so an answer that is to come out the same every time is drafted for by
what stands in it alone, at costs that are fixed and rather too high.
"""

from __future__ import annotations

import statistics
import threading
from collections import deque
from collections.abc import Sequence

from llamachat.engine.base import GenerationRequest
from llamachat.engine.llamacpp.drafting.lookup import Lookup

_SIZES = (3, 7, 15)
"""Lengths of drafts: with the token before it a batch of 4, 8 or 16, of which each has times of its own."""
_MIN_GAIN = 1.1
_FIRST_GUESS = 0.5
"""How often a guess is right, and what a further id of a batch costs in single steps, before anything is known."""
_N_TIMES = 9
_N_COUNTED = 64
_N_TOKENS_BETWEEN_TRIES = 256
_FIXED_COST = 0.7
"""What a further id of a batch is taken to cost where the clock has no say. On a few CPU cores it is 0.5 to 0.7."""


class Acceptance:
    """How often a guess is right, by how many ids matched before it: the more, the more often.

    Lengths are counted by powers of two. What a length has not shown yet is taken from the next shorter one.
    """

    def __init__(self) -> None:
        self._rows: list[list[float]] = []  # right, all

    def note(self, n_matched: int, *, is_right: bool) -> None:
        """A guess with so many ids before it came true, or not."""
        i = n_matched.bit_length()
        self._rows += [[0.0, 0.0] for _ in range(len(self._rows), i + 1)]
        row = self._rows[i]
        row[0] += is_right
        row[1] += 1
        if row[1] > _N_COUNTED:  # what was lately counts more
            row[:] = row[0] / 2, row[1] / 2

    def n_expected(self, n_matched: int, n_draft: int) -> float:
        """Tokens that a draft is expected to give: those accepted, and the one that is sampled behind them."""
        shares = self._shares()
        total = probability = 1.0
        for i in range(n_draft):
            probability *= shares[min((n_matched + i).bit_length(), len(shares) - 1)]
            total += probability
        return total

    def _shares(self) -> list[float]:
        share = _FIRST_GUESS
        shares = [share]
        for right, n in self._rows:
            share = (right + 2 * share) / (n + 2)
            shares.append(share)
        return shares[1:] or shares


class BatchCosts:
    """How long the model takes for a batch, in single steps of the same moment."""

    def __init__(self) -> None:
        self._steps_s: deque[float] = deque(maxlen=_N_TIMES)
        self._costs: dict[int, deque[float]] = {}
        self._n_since_batch = 0

    def note(self, n_ids: int, elapsed_s: float) -> None:
        """So many ids at once took so long."""
        if n_ids == 1:
            self._steps_s.append(elapsed_s)
            self._n_since_batch += 1
            if self._n_since_batch == _N_TOKENS_BETWEEN_TRIES:  # batches may have been slow for a passing reason
                self._costs.clear()
        elif self._steps_s:
            cost = elapsed_s / statistics.median(self._steps_s)
            self._costs.setdefault(n_ids, deque(maxlen=_N_TIMES)).append(cost)
            self._n_since_batch = 0

    def cost(self, n_ids: int) -> float:
        """Of a batch, in single steps; that of a size that was never tried is guessed from the largest that was."""
        if n_ids in self._costs:
            return statistics.median(self._costs[n_ids])
        if not self._costs:
            return 1 + _FIRST_GUESS * (n_ids - 1)
        largest = max(self._costs)
        return 1 + (self.cost(largest) - 1) / (largest - 1) * (n_ids - 1)


class AutoDrafts:
    """`Drafter` that looks up drafts, of the length that promises most, if that is worth it."""

    def __init__(self) -> None:
        self._known = Acceptance()
        self._costs = BatchCosts()

    def begin(self, request: GenerationRequest, cancel: threading.Event) -> None:  # noqa: ARG002
        """See `Drafter`."""
        self._lookup = Lookup(request.prompt_ids)
        if request.is_repeatable or request.sampling.temperature <= 0:
            self._acceptance, self._cost = Acceptance(), _fixed_cost
        else:
            self._acceptance, self._cost = self._known, self._costs.cost

    def propose(self, n_max: int) -> Sequence[int]:
        """See `Drafter`."""
        n_matched = self._lookup.n_matched
        sizes = [n for n in _SIZES if n <= n_max] if n_matched else []
        if not sizes:
            return ()
        gains = {n: self._acceptance.n_expected(n_matched, n) / self._cost(n + 1) for n in sizes}
        best = max(sizes, key=lambda n: gains[n])
        return self._lookup.propose(best) if gains[best] >= _MIN_GAIN else ()

    def hear(self, token_id: int) -> None:
        """See `Drafter`."""
        n_matched = self._lookup.n_matched
        is_right = self._lookup.append(token_id)
        if n_matched:
            self._acceptance.note(n_matched, is_right=is_right)

    def hear_time(self, n_ids: int, elapsed_s: float) -> None:
        """See `Drafter`."""
        self._costs.note(n_ids, elapsed_s)

    def close(self) -> None:
        """See `Drafter`."""


def _fixed_cost(n_ids: int) -> float:
    return 1 + _FIXED_COST * (n_ids - 1)
