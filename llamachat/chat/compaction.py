"""A summary in the place of older turns: which turns, what the model is asked, and what is told about it.

The summary is a turn like others, said after those it stands for: a question, which knows how many turns that are, and
the model's answer. Nothing is moved or written over; `window.places_shown` puts it in their place in the prompt, and
taking the turn back brings them back.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from dataclasses import dataclass

from llamachat.chat.message import Conversation
from llamachat.chat.window import Render, places_shown

FULL_SHARE = 0.8
"""How full the window may get before older turns are summed up by themselves: the summary needs room beside them."""

_N_KEPT = 2
_KEPT_SHARE = 4
_CHINESE_SHARE = 0.3


@dataclass(frozen=True)
class Compacting:
    """The model begins to sum up the first `n_turns` turns; the prompt has `n_tokens` of `n_ctx` tokens now.

    Either is 0 where nobody tells.
    """

    n_turns: int
    n_tokens: int
    n_ctx: int


@dataclass(frozen=True)
class Compacted:
    """A summary is in the place of the first `n_turns` turns from now on.

    Counts of tokens are those of the prompt; 0 where nobody tells.
    """

    n_turns: int
    n_unread: int
    """Turns among them that the model could not see any more, as the window had no room for them."""
    n_before: int
    n_after: int
    elapsed_s: float
    is_cut: bool
    """Whether the summary reached its limit before its end."""


@dataclass(frozen=True)
class NotCompacted:
    """There is no summary, for a reason that is a whole sentence; everything is as it was."""

    reason: str


def n_to_sum_up(conversation: Conversation, n_ctx: int, render: Render) -> int:
    """How many of the first turns a summary would stand for; 0 if there is nothing new to sum up.

    The last two turns stay as they are, if they do not take more than a quarter of the window. What is pinned stays
    anyway, and a summary is not summed up alone.
    """
    turns = conversation.turns
    said = [i for i in places_shown(conversation, ()) if not turns[i][0].n_summarized]
    kept: list[int] = []
    for i in said[: -_N_KEPT - 1 : -1]:
        if len(render(conversation.with_turns(turns[j] for j in [i, *kept])).ids) > n_ctx // _KEPT_SHARE:
            break
        kept.insert(0, i)
    n_turns = kept[0] if kept else len(turns)
    return n_turns if any(i < n_turns and not turns[i][0].is_pinned for i in said) else 0


def n_in_turns(conversation: Conversation, n_turns: int, left_out: Collection[int], render: Render) -> int:
    """How many tokens of the prompt the first turns take, without those that are pinned."""
    turns = conversation.turns
    places = places_shown(conversation, left_out)
    stay = [i for i in places if i >= n_turns or turns[i][0].is_pinned]
    n_all, n_stay = (len(render(conversation.with_turns(turns[i] for i in some)).ids) for some in (places, stay))
    return n_all - n_stay


def summary_request(conversation: Conversation, n_tokens: int, focus: str) -> str:
    """What the model is asked for, in the language of the conversation; `focus` is what to keep in mind."""
    request, keeping = _CHINESE if _is_chinese(conversation) else _ENGLISH
    return request.format(n_tokens // 2) + (keeping.format(focus) if focus else "")


_ENGLISH = (
    "Summarize our conversation so far, so that it can go on from the summary alone: my wishes, facts, names, numbers, "
    "decisions, open questions. Nothing but the summary, in our language, at most {} words.",
    " Above all keep in mind: {}",
)
_CHINESE = (
    "请总结我们到目前为止的对话，使对话仅凭这份总结就能继续下去：我的要求、事实、人名、数字、已作的决定，以及尚未解决的问题。"
    "只写总结，不超过{}字。",
    "尤其要记住：{}",
)


def _is_chinese(conversation: Conversation) -> bool:
    """Whether people write Chinese in it: Han characters, and no kana, which would make it Japanese."""
    letters = [c for message in conversation.messages if message.role == "user" for c in message.content if c.isalpha()]
    names = [unicodedata.name(letter, "") for letter in letters]
    is_kana = any(name.startswith(("HIRAGANA", "KATAKANA")) for name in names)
    return not is_kana and sum(name.startswith("CJK UNIFIED") for name in names) > _CHINESE_SHARE * len(letters)
