"""What is said about a conversation as it goes on: one line each, with numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llamachat.chat.compaction import Compacted, Compacting, NotCompacted
from llamachat.chat.events import Answer, LeftOut, Thought, ToolCalled, ToolReturned
from llamachat.chat.history import SessionTree, StoredMessage, StoredSession
from llamachat.chat.history.titles import make_title
from llamachat.chat.session import Session
from llamachat.chat.templates import Served
from llamachat.cli.format import count
from llamachat.engine.base import Tokenizer
from llamachat.errors import TokensUnknown

WHO: Mapping[str, str] = {"user": "you", "assistant": "model", "system": "system"}
"""What those who say something are called in lists."""

_RESULT_LINES = 3
_RESULT_COLUMNS = 200
_EXCERPT_COLUMNS = 60


def describe_left_out(left_out: LeftOut) -> str:
    """One line with numbers about turns that the context window has no room for any more."""
    turns = "the oldest turn" if left_out.n_turns == 1 else f"the {left_out.n_turns} oldest turns"
    again = "" if left_out.is_shifted else "; the rest is read again, which takes a moment"
    return (
        f"Left out {turns}, {count(left_out.n_tokens, 'token')}; "
        f"{left_out.n_prompt:,} of {left_out.n_ctx:,} in use{again}."
    )


def describe_compaction(event: Compacting | Compacted | NotCompacted) -> str:
    """One line with numbers about a summary that takes the place of older turns."""
    match event:
        case Compacting(n_turns, n_tokens, n_ctx):
            in_use = f"; {n_tokens:,} of {n_ctx:,} tokens are in use" if n_tokens and n_ctx else ""
            return f"Summing up {count(n_turns, 'turn')}{in_use} …"
        case NotCompacted(reason):
            return f"{reason} The conversation stays as it was."
        case Compacted(n_turns, n_unread, n_before, n_after, elapsed_s, is_cut):
            unread = f" {n_unread} of them had no room in the window any more and are not in it." if n_unread else ""
            cut = " The summary was cut at its limit." if is_cut else ""
            tokens = f": {count(n_after, 'token')} are in use instead of {n_before:,}" if n_before else ""
            return f"Summed up {count(n_turns, 'turn')} in {elapsed_s:.1f} s{tokens}.{unread}{cut}"


def describe_read_again(answer: Answer) -> str | None:
    """How long it took that turns were left out and the rest had to be evaluated again; None if it had not."""
    stats = answer.stats
    is_read = answer.finish_reason != "interrupted" or bool(stats.n_generated)
    if stats.prefill_s is None or stats.n_evaluated is None or not (answer.is_rest_read_again and is_read):
        return None
    return f"(The rest took {stats.prefill_s:.1f} s to read: {count(stats.n_evaluated, 'token')})"


def describe_tool(event: ToolCalled | ToolReturned) -> str:
    """A call with all its arguments, or the beginning of its result."""
    if isinstance(event, ToolCalled):
        return f"→ {event.call}"
    lines = str(event.result).splitlines() or [""]
    shown = [f"{line[:_RESULT_COLUMNS]}{'…' * (len(line) > _RESULT_COLUMNS)}" for line in lines[:_RESULT_LINES]]
    more = [f"  … ({count(len(lines) - len(shown), 'more line')})"] if len(lines) > len(shown) else []
    return "\n".join([f"← {shown[0]}", *(f"  {line}" for line in shown[1:]), *more])


def describe_stats(answer: Answer) -> str:
    """One line about an answer: why it ended, tokens and speeds, as far as they are known."""
    stats = answer.stats
    prompt = [
        f"prompt {stats.n_prompt} tokens" if stats.n_prompt is not None else "",
        f"{stats.n_reused} of them reused" if stats.n_prompt is not None and stats.n_reused is not None else "",
        f"{stats.prompt_tps:.1f} tok/s" if stats.prompt_tps is not None else "",
    ]
    generated = [
        f"answer {stats.n_generated} tokens" if stats.n_generated is not None else "",
        f"{stats.generation_tps:.1f} tok/s" if stats.generation_tps else "",
    ]
    figures = (", ".join(filter(None, part)) for part in (prompt, generated))
    first = f"first token after {stats.ttft_s:.2f} s" if stats.n_generated != 0 else ""
    drafts = f"drafted {stats.n_drafted:,}, accepted {stats.n_accepted:,}" if stats.n_drafted else ""
    return " · ".join(filter(None, [answer.finish_reason, *figures, first, drafts]))


def describe_length(text: str, tokenizer: Tokenizer) -> str:
    """How many tokens a text has; characters where nobody counts tokens."""
    try:
        return count(len(tokenizer.tokenize(text)), "token")
    except TokensUnknown:
        return count(len(text), "character")


def describe_resumed(stored: StoredSession) -> str:
    """Which conversation goes on, and where it stopped."""
    turns = stored.conversation.turns
    n_turns = sum(not question.n_summarized for question, *_ in turns)
    lines = [f"Conversation {stored.id} goes on after {count(n_turns, 'turn')}: {stored.title}"]
    if n_turns < len(turns):
        lines.append("A summary stands for the older ones; /context shows them.")
    if stored.unanswered:
        lines.append(
            f"Your last message was not answered; /retry asks it again: {make_title(stored.unanswered.content)}"
        )
    elif stored.finish_reason == "interrupted":
        lines.append("The last answer was cut short; /continue goes on with it.")
    return "\n".join(lines)


def describe_branches(tree: SessionTree, branches: Sequence[Sequence[StoredMessage]]) -> list[str]:
    """Where each of the `branches` begins and how: one line each."""
    lines = []
    for first, *others in branches:
        before = tree.path(first.parent)
        where = f"after “{make_title(before[-1].message.content, _EXCERPT_COLUMNS // 2)}”" if before else "at the start"
        said = make_title(first.message.content, _EXCERPT_COLUMNS)
        lines.append(f"{where}, {speaker(first)}: {said} ({count(1 + len(others), 'message')})")
    return lines


def speaker(stored: StoredMessage) -> str:
    """Who says it, for people."""
    if stored.message.role == "assistant" and stored.facts:
        return stored.facts.model
    if stored.message.n_summarized:
        return "llamachat"
    return WHO[stored.message.role]


def describe_thought(thought: Thought) -> str:
    """How long the model thought, and how much if that is known."""
    n_tokens = "" if thought.n_tokens is None else f", {count(thought.n_tokens, 'token')}"
    return f"(thought for {thought.elapsed_s:.1f} s{n_tokens})"


def describe_unmet(session: Session, reasoning: str) -> str | None:
    """Why a wish about thinking cannot be met as it was said; None if it can."""
    template = session.template
    thinks, can_switch = template.reasoning is not None, template.can_switch_thinking
    is_ours = not isinstance(template, Served)  # a server may let its model think before it holds the answer
    if session.is_held and thinks and is_ours and not (can_switch and reasoning != "on"):
        return "A grammar holds the answer from its first word: the model answers without thinking first."
    if reasoning == "on" and not can_switch:
        how = "has no switch for it: the model thinks when it does so by itself" if thinks else "does not know of it"
        return f"Thinking cannot be switched on: the template {how}."
    if reasoning == "off" and not session.can_answer_at_once:
        return "Thinking cannot be switched off: the template has no switch for it. What is thought is not shown."
    return None
