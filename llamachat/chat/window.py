"""Which turns fit the context window: a pure function over a conversation.

The oldest turns go first, whole: a user message with its answer. The system prompt, pinned turns and the open turn
stay. If that is not enough the prompt is refused; nothing is ever cut. A summary of older turns stands in their place.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

from llamachat.chat.message import Conversation
from llamachat.chat.prompt import Prompt
from llamachat.engine.base import Cut
from llamachat.errors import PromptTooLong

Render = Callable[[Conversation], Prompt]

_FILLED_AGAIN = 0.75


class Room(NamedTuple):
    """How much is kept for an answer: so many tokens, and of a small window one part in `share`."""

    n_tokens: int
    share: int


_FOR_ANSWER, _FOR_THOUGHTS_TOO = Room(512, 8), Room(2048, 4)


@dataclass(frozen=True)
class Window:
    """How many tokens there are, and how many of them are kept for the answer."""

    n_ctx: int
    n_reserved: int
    room: Room = _FOR_ANSWER

    @property
    def n_prompt_max(self) -> int:
        """The longest prompt, in tokens."""
        return self.n_ctx - self.n_reserved

    def n_ctx_for(self, n_prompt: int) -> int:
        """A window in which a prompt of so many tokens fits; what is kept for the answer may grow with the window."""
        n_tokens, share = self.room
        n_answer = self.n_reserved if self.n_reserved < self.n_ctx // share else n_tokens
        return min(n_prompt + n_answer, -(-n_prompt * share // (share - 1)))

    @property
    def n_filled_again(self) -> int:
        """How long a prompt may be that is evaluated again because turns were left out."""
        n_for_thoughts = self.n_reserved - min(self.n_reserved, _FOR_ANSWER.n_tokens, self.n_ctx // _FOR_ANSWER.share)
        return int(self.n_ctx * _FILLED_AGAIN) - n_for_thoughts


def make_window(n_ctx: int, max_tokens: int | None, *, thinks: bool = False) -> Window:
    """Room for an answer: 512 tokens, or fewer if no answer gets as long or the window is small.

    One that `thinks` before it needs more: 2,048 tokens, or a quarter of the window.

    A window that nobody knows (0) holds all: what is too long is then refused by whoever does.
    """
    n_ctx = n_ctx or sys.maxsize
    room = _FOR_THOUGHTS_TOO if thinks else _FOR_ANSWER
    return Window(n_ctx, min(max_tokens or room.n_tokens, room.n_tokens, n_ctx // room.share), room)


@dataclass(frozen=True)
class Fit:
    """A prompt that fits, and what it leaves out."""

    prompt: Prompt
    left_out: frozenset[int]
    """The places of the turns that are not in it, in the conversation."""
    n_turns: int = 0
    """How many turns are left out that were not before; and how many tokens that saved."""
    n_tokens: int = 0
    cut: Cut | None = None
    """Set if all that changed before the open turn is that a run of ids is gone."""


def places_shown(conversation: Conversation, left_out: Collection[int]) -> list[int]:
    """The places of the turns that a prompt has, in its order: without those of `left_out`.

    The last summary that is there stands for the turns it is a summary of; pinned ones stay, before it. Earlier
    summaries count for nothing any more.
    """
    turns = conversation.turns
    summaries = [i for i, turn in enumerate(turns) if turn[0].n_summarized and len(turn) > 1]
    if not summaries:
        return [i for i in range(len(turns)) if i not in left_out]
    *earlier, last = summaries
    n_summarized = min(turns[last][0].n_summarized, last)
    before = [i for i in range(n_summarized) if turns[i][0].is_pinned]
    after = [i for i in range(n_summarized, len(turns)) if i != last]
    return [i for i in (*before, last, *after) if i not in left_out and i not in earlier]


def shown(conversation: Conversation, left_out: Collection[int]) -> Conversation:
    """What a prompt has of a conversation; see `places_shown`."""
    turns = conversation.turns
    return conversation.with_turns(turns[i] for i in places_shown(conversation, left_out))


def fit(
    conversation: Conversation, window: Window, render: Render, left_out: frozenset[int], *, can_shift: bool
) -> Fit:
    """Leave out as many turns, besides those of `left_out`, as it takes for the prompt to fit.

    Where the ids that remain are the ones of a fresh rendering, and the KV cache `can_shift`, no more than needed go.
    Otherwise the remaining prompt has to be evaluated again; so that this happens rarely, the prompt is then brought
    down to three quarters of the window. Raises `PromptTooLong` with what cannot be left out.
    """
    full = render(shown(conversation, left_out))
    if len(full.ids) <= window.n_prompt_max:
        return Fit(full, left_out)
    candidates = _Candidates(conversation, left_out, render)
    n_least = candidates.fewest(window.n_prompt_max)
    prompt = candidates.prompt(n_least)
    if len(prompt.ids) > window.n_prompt_max:
        n_prompt = len(prompt.ids)
        raise PromptTooLong(n_prompt, window.n_ctx, window.n_reserved, window.n_ctx_for(n_prompt))
    cut = _find_cut(full.ids, prompt.ids) if can_shift else None
    if cut is None:
        n_least = candidates.fewest(window.n_filled_again)
        prompt = candidates.prompt(n_least)
    gone = candidates.first(n_least)
    return Fit(prompt, left_out | gone, len(gone), len(full.ids) - len(prompt.ids), cut)


class _Candidates:
    """The prompts that are left when the first n of the turns that may go are gone."""

    def __init__(self, conversation: Conversation, left_out: frozenset[int], render: Render) -> None:
        self._conversation, self._left_out, self._render = conversation, left_out, render
        turns = conversation.turns
        closed = [i for i in places_shown(conversation, left_out) if i < len(turns) - 1 and not turns[i][0].is_pinned]
        self._may_go = sorted(closed, key=lambda i: turns[i][0].n_summarized > 0)  # a summary stays as long as it can
        self._known: dict[int, Prompt] = {}

    def fewest(self, n_max: int) -> int:
        """The smallest n with a prompt of at most `n_max` tokens; all of them if there is none."""
        n_turns = range(len(self._may_go))
        return bisect_left(n_turns, -n_max, key=lambda n: -len(self.prompt(n).ids))

    def prompt(self, n: int) -> Prompt:
        if n not in self._known:
            self._known[n] = self._render(shown(self._conversation, self._left_out | self.first(n)))
        return self._known[n]

    def first(self, n: int) -> frozenset[int]:
        return frozenset(self._may_go[:n])


def _find_cut(before: tuple[int, ...], after: tuple[int, ...]) -> Cut | None:
    """The one run of ids that `after` lacks, if nothing else is different."""
    n_gone = len(before) - len(after)
    start = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(after))
    return Cut(start, start + n_gone) if before[start + n_gone :] == after[start:] else None
