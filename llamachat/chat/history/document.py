"""A session with all its branches as a JSON document, and back. What comes back is read as a stranger's.

    {"format": "llamachat conversation", "version": 1, "title", "created", "updated", "facts": {…}, "head": id | null,
     "messages": [{"id", "parent", "role", "content", "is_pinned", "n_summarized", "created",
                   "finish_reason", "facts", "seed", "stats", "steps"}, …]}

An answer with thoughts before it has "reasoning" as well. `steps` are there where tools were called: [{"text",
"reasoning", "calls": [{"name", "arguments", "id"}, …], "results": [{"text", "is_error"}, …]}, …]. Parents come before
their children. `facts` of an answer are null where it was made with the session's. `n_summarized`, and `options` in
`facts`, may be missing, as they are in older documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields, replace
from datetime import datetime, timezone
from typing import Any, TypeVar, get_args

from llamachat.chat.history.titles import make_title
from llamachat.chat.history.values import FOLLOWS, SessionFacts, SessionTree, StoredMessage
from llamachat.chat.message import Message, Role
from llamachat.chat.tools.values import ToolStep, steps_from_json, steps_to_json
from llamachat.engine.base import FinishReason, GenerationStats

FORMAT = "llamachat conversation"
VERSION = 1

_MAX_COUNT = 2**53
_MAX_CTX = 10_000_000
_TITLE_COLUMNS = 200
_SHA256_DIGITS = 64
_STATS_FIELDS = {field.name: str(field.type) for field in fields(GenerationStats) if field.default is MISSING}
"""Names and types of what is kept of an answer's statistics: those that every answer has."""

_Value = TypeVar("_Value")


class BadDocument(Exception):
    """A document that no session can be made of; the text goes on from the file's name."""


def to_document(tree: SessionTree) -> dict[str, Any]:
    """What is written to the file. Messages are numbered from 1."""
    ids = {stored.key: i for i, stored in enumerate(tree.messages, 1)}
    return {
        "format": FORMAT,
        "version": VERSION,
        "title": tree.title,
        "created": tree.created,
        "updated": tree.updated,
        "facts": _facts_to_json(tree.facts),
        "head": ids.get(tree.head) if tree.head is not None else None,
        "messages": [_message_to_json(stored, ids, tree.facts) for stored in tree.messages],
    }


def _facts_to_json(facts: SessionFacts) -> dict[str, Any]:
    adapters = [{"path": path, "scale": scale} for path, scale in facts.adapters]
    return {**asdict(facts), "sampling": dict(facts.sampling), "adapters": adapters, "options": dict(facts.options)}


def _message_to_json(stored: StoredMessage, ids: Mapping[int, int], facts: SessionFacts) -> dict[str, Any]:
    return {
        "id": ids[stored.key],
        "parent": ids[stored.parent] if stored.parent is not None else None,
        "role": stored.message.role,
        "content": stored.message.content,
        **({"reasoning": stored.message.reasoning} if stored.message.reasoning else {}),
        "is_pinned": stored.message.is_pinned,
        "n_summarized": stored.message.n_summarized,
        "created": stored.created,
        "finish_reason": stored.finish_reason,
        "facts": _facts_to_json(stored.facts) if stored.facts not in (None, facts) else None,
        "seed": stored.seed,
        "stats": {name: getattr(stored.stats, name) for name in _STATS_FIELDS} if stored.stats else None,
        **({"steps": steps_to_json(stored.message.steps)} if stored.message.steps else {}),
    }


def from_document(parsed: object) -> SessionTree:
    """A session from a parsed JSON document, with id 0; raise `BadDocument` if anything in it cannot be used."""
    table = _take(parsed, _is_object, "the document")
    if table.get("format") != FORMAT:
        raise BadDocument("is not an exported conversation")
    if table.get("version") != VERSION:
        raise BadDocument("was written by another version of llamachat, whose form this one does not know")
    facts = _facts(table.get("facts"), "facts")
    messages = _messages(_take(table.get("messages"), _is_list, "messages"), facts)
    head = table.get("head")
    if head is not None and (type(head) is not int or head not in {stored.key for stored in messages}):
        raise BadDocument("has a head that is none of its messages")
    title = _take(table.get("title"), _is_text, "title")
    times = (_time(table.get("created"), "created"), _time(table.get("updated"), "updated"))
    return SessionTree(0, make_title(title, _TITLE_COLUMNS), *times, facts, head, tuple(messages))


def _messages(entries: list[Any], facts: SessionFacts) -> list[StoredMessage]:
    roles: dict[int | None, str] = {}
    messages = []
    for i, entry in enumerate(entries, 1):
        stored = _message(_take(entry, _is_object, f"message {i}"), f"message {i}", facts)
        if stored.key in roles or (stored.parent is not None and stored.parent not in roles):
            raise BadDocument(f"has a message {i} whose id is taken, or whose parent does not come before it")
        if stored.message.role not in FOLLOWS[roles[stored.parent] if stored.parent is not None else None]:
            raise BadDocument(f"has a message {i} from {stored.message.role} when it is not the turn for one")
        roles[stored.key] = stored.message.role
        messages.append(stored)
    if "user" not in roles.values():
        raise BadDocument("holds no message of a user")
    return messages


def _message(entry: Mapping[str, Any], where: str, facts: SessionFacts) -> StoredMessage:
    role: Role = _take(entry.get("role"), _is_role, f"{where}: role")
    stored = StoredMessage(
        key=_take(entry.get("id"), _is_count, f"{where}: id"),
        parent=_take(entry.get("parent"), _optional(_is_count), f"{where}: parent"),
        message=Message(
            role,
            _take(entry.get("content"), _is_text, f"{where}: content"),
            is_pinned=_take(entry.get("is_pinned"), _is_flag, f"{where}: is_pinned"),
            n_summarized=_take(entry.get("n_summarized", 0), _is_count, f"{where}: n_summarized"),
        ),
        created=_time(entry.get("created"), f"{where}: created"),
    )
    if role != "assistant":
        return stored
    own = entry.get("facts")
    stats = entry.get("stats")
    reasoning = _take(entry.get("reasoning", ""), _is_text, f"{where}: reasoning")
    made_with = _facts(own, f"{where}: facts") if own is not None else facts
    return replace(
        stored,
        message=replace(stored.message, reasoning=reasoning, steps=_steps(entry.get("steps", []), f"{where}: steps")),
        finish_reason=_take(entry.get("finish_reason"), _optional(_is_finish_reason), f"{where}: finish_reason"),
        facts=made_with,
        seed=_take(entry.get("seed"), _optional(_is_count), f"{where}: seed"),
        stats=_stats(stats, f"{where}: stats", _SERVED_STATS if made_with.server else _STATS)
        if stats is not None
        else None,
    )


def _steps(value: object, where: str) -> tuple[ToolStep, ...]:
    try:
        return steps_from_json(value)
    except (ValueError, RecursionError):
        return _take(None, bool, where)  # type: ignore[no-any-return]


def _facts(value: object, where: str) -> SessionFacts:
    table = _take(value, _is_object, where)
    sampling = _take(table.get("sampling"), _is_object, f"{where}: sampling")
    for name, setting in sampling.items():
        _take(setting, _SAMPLING.get(name, _is_setting), f"{where}: sampling: {name[:40]}")
    options = _take(table.get("options", {}), _is_object, f"{where}: options")
    for name, setting in options.items():
        _take(setting, _OPTIONS.get(name, _is_setting), f"{where}: options: {name[:40]}")
    server = _take(table.get("server"), _optional(_is_name), f"{where}: server")
    adapters = [
        _take(entry, _is_object, f"{where}: adapters") for entry in _take(table.get("adapters"), _is_list, where)
    ]
    return SessionFacts(
        model=_take(table.get("model"), _is_name, f"{where}: model"),
        model_sha256=_take(table.get("model_sha256"), _optional(_is_sha256), f"{where}: model_sha256"),
        template=_take(table.get("template"), _is_name, f"{where}: template"),
        sampling=sampling,
        n_ctx=_take(table.get("n_ctx"), _within(int, 0 if server else 1, _MAX_CTX), f"{where}: n_ctx"),
        adapters=tuple(
            (_take(entry.get("path"), _is_name, where), float(_take(entry.get("scale"), _is_number, where)))
            for entry in adapters
        ),
        options=options,
        server=server,
    )


def _stats(value: object, where: str, expected: Mapping[str, Callable[[Any], bool]]) -> GenerationStats:
    table = _take(value, _is_object, where)
    return GenerationStats(**{
        name: _take(table.get(name), expected[kind], where) for name, kind in _STATS_FIELDS.items()
    })  # fmt: skip


def _time(value: object, where: str) -> str:
    """As the history writes times: UTC, with microseconds."""
    try:
        moment = datetime.fromisoformat(_take(value, _is_text, where))
        if moment.tzinfo is None:
            raise ValueError
        return moment.astimezone(timezone.utc).isoformat(timespec="microseconds")
    except (ValueError, OverflowError) as error:
        raise BadDocument(f"has a time that cannot be read ({where})") from error


def _take(value: Any, is_good: Callable[[Any], bool], where: str) -> Any:
    if not is_good(value):
        raise BadDocument(f"has something else than expected, or nothing, as {where}")
    return value


def _optional(is_good: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_good(value)


def _within(kind: type[int] | type[float], lowest: float, highest: float) -> Callable[[Any], bool]:
    """A finite number; a whole one will do as a float."""
    kinds = (int,) if kind is int else (int, float)
    return lambda value: type(value) in kinds and lowest <= value <= highest


def _is_object(value: Any) -> bool:
    return type(value) is dict


def _is_list(value: Any) -> bool:
    return type(value) is list


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_name(value: Any) -> bool:
    return type(value) is str and 0 < len(value) <= 4096 and value.isprintable()


def _is_flag(value: Any) -> bool:
    return type(value) is bool


def _is_role(value: Any) -> bool:
    return value in get_args(Role)


def _is_finish_reason(value: Any) -> bool:
    return value in get_args(FinishReason)


def _is_sha256(value: Any) -> bool:
    return type(value) is str and len(value) == _SHA256_DIGITS and set(value) <= set("0123456789abcdef")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= _MAX_COUNT and math.isfinite(value)


def _is_setting(value: Any) -> bool:
    if type(value) is list:
        return all(map(_is_text, value))
    return value is None or type(value) in (bool, str) or _is_number(value)


_is_count = _within(int, 0, _MAX_COUNT)
_is_duration = _within(float, 0, _MAX_COUNT)

_STATS: Mapping[str, Callable[[Any], bool]] = {
    "int | None": _is_count,
    "float | None": _is_duration,
    "float": _is_duration,
}
"""By the type of a field of `GenerationStats`. Only a server may leave something untold."""
_SERVED_STATS = {kind: _optional(is_good) if "None" in kind else is_good for kind, is_good in _STATS.items()}

_SAMPLING: Mapping[str, Callable[[Any], bool]] = {
    "temperature": _within(float, 0, 1000),
    "top_k": _within(int, 0, 2**31 - 1),
    "typical_p": _within(float, 0, 1),
    "top_p": _within(float, 0, 1),
    "min_p": _within(float, 0, 1),
    "repeat_penalty": _within(float, 0.1, 1000),
    "seed": _optional(_is_count),
}
"""What `SamplingParams` can be made of; other names are kept and mean nothing to it."""

_OPTIONS: Mapping[str, Callable[[Any], bool]] = {
    "max_tokens": _optional(_within(int, 1, _MAX_CTX)),
    "stop": lambda value: type(value) is list and all(map(_is_text, value)),
}
"""What must be as it says; a name that is unknown, or a word that is, means nothing to the program that goes on."""
