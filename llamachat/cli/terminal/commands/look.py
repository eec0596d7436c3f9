"""Commands that only show something."""

from __future__ import annotations

from dataclasses import replace

from llamachat.chat.message import Conversation, Message
from llamachat.chat.window import places_shown
from llamachat.cli.live_chat import OpenChat
from llamachat.cli.terminal.commands.command import BadCommand, Command, Reply
from llamachat.cli.terminal.size import wrapped

_SHOWN_CHARACTERS = 50
_NO_COUNT = "/stats tells the tokens of the last prompt as a whole, if the server does."


def _context(chat: OpenChat, _argument: str) -> Reply:
    """What is in the window, a line a turn. Tokens are those by which the prompt grows with it."""
    session = chat.session
    conversation = session.conversation
    if not _is_counted(chat):
        raise BadCommand("Only the server could tell what takes how much of its window, and it does not.", _NO_COUNT)
    window = session.window
    turns = conversation.turns
    kept = places_shown(conversation, session.left_out)
    before = [_without_thoughts(turns[i]) for i in kept[:-1]] + [turns[i] for i in kept[-1:]]
    sizes = [_n_tokens(chat, conversation.with_turns(before[: n + 1])) for n in range(len(kept))]
    first = conversation.with_turns([before[0] if kept else (Message("user", ""),)])
    n_bare = _n_tokens(chat, replace(first, system=None, tools=()))
    n_system = _n_tokens(chat, replace(first, tools=())) - n_bare
    n_tools = _n_tokens(chat, first) - n_system - n_bare
    lines = [f"{name}{n:>{13 - len(name)},}" for name, n in (("system", n_system), ("tools", n_tools)) if n]
    sizes = [n_system + n_tools, *sizes]
    for i, turn in enumerate(turns):
        place = kept.index(i) if i in kept else None
        absent = "left out" if i in session.left_out else "summary"
        tokens = absent if place is None else f"{sizes[place + 1] - sizes[place]:,}"
        mark = "*" if turn[0].is_pinned else " "
        lines.append(f"{i + 1:>4} {mark}{tokens:>7}  {_beginning(turn)}")
    if session.engine.info.n_ctx:
        lines.append(f"{sizes[-1]:,} of {window.n_ctx:,} tokens in use; {window.n_reserved:,} are kept for the answer.")
    if any(turn[0].is_pinned for turn in turns):
        lines.append("* pinned")
    return Reply("\n".join(lines))


def _without_thoughts(turn: tuple[Message, ...]) -> tuple[Message, ...]:
    """An earlier turn as families that think see it. Where a template keeps thoughts, they count for the last turn."""
    return tuple(replace(message, reasoning="") for message in turn)


def _beginning(turn: tuple[Message, ...]) -> str:
    question, *answer = turn
    is_summary = question.n_summarized and answer
    line = " ".join((answer[0] if is_summary else question).content.split())[:_SHOWN_CHARACTERS]
    return f"(summary of turns 1 to {question.n_summarized}) {line}" if is_summary else line


def _n_tokens(chat: OpenChat, conversation: Conversation) -> int:
    return len(chat.session.template.render(conversation, chat.session.engine.tokenizer).ids)


def _is_counted(chat: OpenChat) -> bool:
    seen = chat.session.seen()
    return seen is None or seen.is_counted


def _prompt(chat: OpenChat, _argument: str) -> Reply:
    prompt = chat.session.seen()
    if prompt is None:
        raise BadCommand("The model has seen nothing yet.", "Ask something first.")
    if not prompt.is_counted:
        return Reply(f"{prompt.text}\n\n(What the server makes of these messages is not told.)")
    return Reply(f"{prompt.text}\n{' '.join(map(str, prompt.ids))}\n{len(prompt.ids):,} tokens")


def _stats(chat: OpenChat, _argument: str) -> Reply:
    if chat.last_answer is None:
        raise BadCommand("There are no figures yet.", "Ask something first.")
    return Reply(f"{wrapped(chat.describe())}\n{wrapped(chat.describe_stats(chat.last_answer))}")


LOOK = (
    Command("context", "", "what is in the context window, tokens a turn", _context),
    Command("prompt", "", "what the model sees: text and token ids", _prompt),
    Command("stats", "", "speed and tokens of the last answer", _stats),
)
