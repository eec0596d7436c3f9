"""Commands about conversations that are kept."""

from __future__ import annotations

from dataclasses import replace

from llamachat.chat.export import FORMATS, export_session, form_of, other_branches, tree_of, write_export
from llamachat.chat.history import History, SessionTree
from llamachat.cli.chat_wishes import is_held_with
from llamachat.cli.context import keep_context, restore_context
from llamachat.cli.describing import WHO, describe_branches, describe_resumed
from llamachat.cli.format import count, moment
from llamachat.cli.live_chat import OpenChat
from llamachat.cli.terminal.commands.command import BadCommand, Command, Reply
from llamachat.errors import LlamachatError
from llamachat.paths import expand_user

_N_LISTED = 15
_REPLACE = " --force"


def _sessions(chat: OpenChat, _argument: str) -> Reply:
    newest = _history(chat).sessions(_N_LISTED + 1)
    lines = [f"{summary.id:>5}  {moment(summary.updated)}  {summary.title}" for summary in newest[:_N_LISTED]]
    if len(newest) > _N_LISTED:
        lines.append("There are more: /search WORDS finds them, llamachat sessions list shows all.")
    return Reply("\n".join(lines) or "There is no saved conversation yet.")


def session_words(chat: OpenChat) -> list[str]:
    """The ids that /resume takes, the one used last first."""
    try:
        return [str(summary.id) for summary in _history(chat).sessions(_N_LISTED)]
    except LlamachatError:  # Tab is no question that deserves an error
        return []


def _resume(chat: OpenChat, argument: str) -> Reply:
    history = _history(chat)
    others = (summary.id for summary in history.sessions(2) if chat.record and summary.id != chat.record.session_id)
    wanted = argument or str(next(others, ""))
    if not wanted:
        raise BadCommand("There is no other conversation.", "/sessions lists those that are kept.")
    stored = history.load(history.find(wanted))
    keep_context(chat)
    chat.resume(stored)
    there = ""
    if not is_held_with(chat.model, stored.facts):
        is_near = stored.facts.server == chat.model.server
        back = f"/model {stored.facts.model}" if is_near else f"llamachat chat --resume {stored.id}"
        there = f"\nIt was held with another model; back to that: {back}"
    said = [describe_resumed(stored) + there, restore_context(chat)]
    return Reply("\n".join(line for line in said if line))


def _search(chat: OpenChat, argument: str) -> Reply:
    if not argument:
        raise BadCommand("/search needs words.", "For example: /search dragons")
    hits = _history(chat).search(argument)
    lines = [f"{hit.session:>5}  {hit.title}\n       {WHO[hit.role]}: {hit.excerpt}" for hit in hits]
    return Reply("\n".join(lines) or f"Nothing that was said holds {argument!r}.")


def _title(chat: OpenChat, argument: str) -> Reply:
    session = _session_id(chat)
    if argument:
        _history(chat).set_title(session, argument)
    return Reply(_history(chat).load(session).title)


def _fork(chat: OpenChat, argument: str) -> Reply:
    """The conversation so far, in a session of its own; the one it comes from stays as it is."""
    history = _history(chat)
    tree = history.tree(_session_id(chat))
    if not chat.session.conversation.messages:
        raise BadCommand("There is nothing to copy.", "Ask something first.")
    head = chat.session.conversation.messages[-1].key
    copied = replace(tree, title=argument or tree.title, head=head, messages=tuple(tree.path(head)))
    stored = history.load(history.add_tree(copied))
    chat.adopt(stored)
    return Reply(f"Conversation {stored.id} begins as a copy of {tree.id} and goes its own way: {stored.title}")


def _branches(chat: OpenChat, argument: str) -> Reply:
    """What was undone, edited or answered otherwise: nothing of it is gone."""
    history, session = _history(chat), _session_id(chat)
    tree = history.tree(session)
    branches = other_branches(tree)
    if not argument:
        lines = [f"{i:>3}  {line}" for i, line in enumerate(describe_branches(tree, branches), 1)]
        return Reply("\n".join(lines) or "There is no other branch: nothing was undone, edited or answered anew.")
    if not (argument.isascii() and argument.isdecimal() and 0 < int(argument[:9]) <= len(branches)):
        raise BadCommand(f"There is no branch {argument}.", f"There are {len(branches)}; /branches lists them.")
    history.set_head(session, branches[int(argument[:9]) - 1][-1].key)
    chat.adopt(stored := history.load(session))
    return Reply(describe_resumed(stored))


def _export(chat: OpenChat, argument: str) -> Reply:
    path = expand_user(argument.removesuffix(_REPLACE).rstrip())
    form = form_of(path)
    if form is None:
        endings = ", ".join(f".{known}" for known in FORMATS)
        raise BadCommand(f"/export needs the name of a file that ends in {endings}.", "For example: /export talk.md")
    text = export_session(_tree(chat), form)
    is_sure = argument.endswith(_REPLACE)
    write_export(path, text, to_replace=None if is_sure else f"To replace it: /export {path}{_REPLACE}")
    return Reply(f"Written to {path}.")


def _tree(chat: OpenChat) -> SessionTree:
    """The conversation as it is kept, or else as it stands."""
    record, session = chat.record, chat.session
    if record and record.is_working:
        return record.history.tree(_session_id(chat))
    if not session.conversation.messages:
        raise BadCommand("Nothing has been said yet.", "Ask something first.")
    last = chat.last_answer
    is_cut_short = last is not None and last.finish_reason == "interrupted"
    return tree_of(session.conversation, chat.facts(), session.since, is_cut_short=is_cut_short)


def _copy(chat: OpenChat, _argument: str) -> Reply:
    messages = chat.session.conversation.messages
    if not messages:
        raise BadCommand("There is no answer yet.", "Ask something first.")
    answer = messages[-1].content
    return Reply(f"The last answer ({count(len(answer), 'character')}) is in the terminal's clipboard.", copy=answer)


def _history(chat: OpenChat) -> History:
    if chat.record is None:
        raise BadCommand("Conversations are not saved in this chat.", "Start it without --no-save.")
    return chat.record.history


def _session_id(chat: OpenChat) -> int:
    _history(chat)
    if chat.record is None or chat.record.session_id is None:
        raise BadCommand("Nothing has been said yet.", "Ask something first.")
    return chat.record.session_id


KEEP = (
    Command("fork", "[NAME]", "go on in a copy of this conversation", _fork),
    Command("branches", "[N]", "list what was undone or answered otherwise; go on with N of these", _branches),
    Command("sessions", "", "list the conversations that are kept", _sessions),
    Command("resume", "[ID]", "go on with another conversation; the newest other without ID", _resume),
    Command("search", "WORDS", "find what was said, in all conversations", _search),
    Command("title", "[TEXT]", "show or change what this conversation is called", _title),
    Command("export", "FILE.md|.json|.html [--force]", "write this conversation to a file", _export),
    Command("copy", "", "copy the last answer to the clipboard", _copy),
)
