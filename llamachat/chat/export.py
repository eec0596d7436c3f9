"""A stored conversation as a file: Markdown and HTML to read, JSON with all branches to import again."""

from __future__ import annotations

import html
import json
import os
import re
import textwrap
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from llamachat.chat.history.document import BadDocument, from_document, to_document
from llamachat.chat.history.titles import make_title
from llamachat.chat.history.values import SessionFacts, SessionTree, StoredMessage
from llamachat.chat.message import Conversation, Message
from llamachat.chat.tools.values import describe_steps
from llamachat.errors import AlreadyThere, CannotWrite, UnusableSessionFile, describe_os_error

_MAX_BYTES = 256 << 20
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")


def export_session(tree: SessionTree, form: str) -> str:
    """The text of a file in one of `FORMATS`."""
    return FORMATS[form](tree)


def tree_of(
    conversation: Conversation, facts: SessionFacts, began: datetime, *, is_cut_short: bool = False
) -> SessionTree:
    """A conversation that is not kept, as the history would have it: one branch, whose messages have the time it began.

    `is_cut_short` tells that its last answer was interrupted.
    """
    created = began.astimezone(timezone.utc).isoformat(timespec="microseconds")
    system = (Message("system", conversation.system),) if conversation.system is not None else ()
    messages = [
        StoredMessage(i, i - 1 or None, message, created, *(("stop", facts) if message.role == "assistant" else ()))
        for i, message in enumerate((*system, *conversation.messages), 1)
    ]
    if is_cut_short and messages:
        messages[-1] = replace(messages[-1], finish_reason="interrupted")
    title = next((make_title(message.content) for message in conversation.messages), "")
    return SessionTree(0, title, created, created, facts, len(messages) or None, tuple(messages))


def form_of(path: Path) -> str | None:
    """The format a file's name asks for, if it is one of `FORMATS`."""
    suffix = path.suffix.lower().removeprefix(".")
    return _SUFFIXES.get(suffix)


def write_export(path: Path, text: str, *, to_replace: str | None = None) -> None:
    """Write a file whole or not at all, in place of one that is there. Raises `CannotWrite`.

    With `to_replace`, the step by which a user may say so, such a one is not replaced: `AlreadyThere` tells that step.
    """
    if to_replace and path.is_file():
        raise AlreadyThere(path, to_replace)
    partial = path.with_name(f".{path.name[:100]}.{os.getpid()}.part")
    try:
        if path.exists() and not path.is_file():
            raise FileExistsError(0, "it is there and is not a file")
        try:
            with partial.open("w", encoding="utf-8", errors="replace", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise CannotWrite(path, error, "Give the name of a file in a directory that can be written.") from error


def read_export(path: Path) -> SessionTree:
    """A session from a JSON file. Raises `UnusableSessionFile`, whatever the file holds."""
    try:
        if not path.is_file():
            raise UnusableSessionFile(path, "is not a file" if path.exists() else "is not there")
        if path.stat().st_size > _MAX_BYTES:
            raise UnusableSessionFile(path, "is far too large for a conversation")
        return from_document(json.loads(path.read_bytes(), parse_constant=_refuse_constant))
    except OSError as error:
        raise UnusableSessionFile(path, f"cannot be read ({describe_os_error(error)})") from error
    except (ValueError, RecursionError) as error:
        raise UnusableSessionFile(path, "is not JSON") from error
    except BadDocument as error:
        raise UnusableSessionFile(path, str(error)) from error


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _to_json(tree: SessionTree) -> str:
    return json.dumps(to_document(tree), ensure_ascii=False, indent=2) + "\n"


def _to_markdown(tree: SessionTree) -> str:
    parts = [f"# {_escape_markdown(tree.title)}", f"*{_escape_markdown(_about(tree))}*"]
    for stored in tree.path(tree.head):
        parts.append(f"## {_escape_markdown(_speaker(stored))}")
        parts += [textwrap.indent(text, " " * 4) for text in describe_steps(stored.message.steps)]  # a code block each
        if stored.message.reasoning:
            parts += ["*Thoughts:*", _quote(stored.message.reasoning)]
        parts.append(_close_fence(stored.message.content.strip("\n")))
        if stored.is_cut_short:
            parts.append("*(interrupted)*")
    if note := _note_on_branches(tree):
        parts += ["---", f"*{note}*"]
    return "\n\n".join(parts) + "\n"


def _to_html(tree: SessionTree) -> str:
    articles = "\n".join(_articles(tree))
    note = _note_on_branches(tree)
    return _PAGE.format(
        title=_escape_html(tree.title),
        about=_escape_html(_about(tree)),
        articles=articles,
        note=f"<p class=about>{_escape_html(note)}</p>" if note else "",
    )


def _articles(tree: SessionTree) -> Iterator[str]:
    for stored in tree.path(tree.head):
        ending = "\n<p class=about>(interrupted)</p>" if stored.is_cut_short else ""
        steps = "".join(
            f'<div dir="auto" class=about>{_escape_html(text)}</div>\n' for text in describe_steps(stored.message.steps)
        )
        yield (
            f"<article class={stored.message.role}>\n<h2>{_escape_html(_speaker(stored))}</h2>\n"
            f"{steps}{_thoughts(stored)}"
            f'<div dir="auto">{_escape_html(stored.message.content)}</div>{ending}\n</article>'
        )


def _thoughts(stored: StoredMessage) -> str:
    text = stored.message.reasoning.strip()
    body = f'<div class=about dir="auto">{_escape_html(text)}</div>'
    return f"<details>\n<summary>Thoughts</summary>\n{body}\n</details>\n" if text else ""


_PAGE = """<!DOCTYPE html>
<html>
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 48em; margin: 2em auto; padding: 0 1em; }}
article {{ margin: 1.5em 0; padding-left: 1em; border-left: 3px solid #8888; }}
article.user {{ border-color: #48f; }}
h2 {{ font-size: 1em; margin: 0; }}
div {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
.about {{ color: #888; font-size: 0.9em; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p class=about>{about}</p>
{articles}
{note}
</body>
</html>
"""


def _about(tree: SessionTree) -> str:
    return f"{tree.facts.model} · template {tree.facts.template} · begun {tree.created[:16].replace('T', ' ')} UTC"


def _speaker(stored: StoredMessage) -> str:
    if stored.message.role == "assistant":
        return stored.facts.model if stored.facts else "Model"
    if stored.message.n_summarized:
        return "llamachat"
    return {"system": "System", "user": "You"}[stored.message.role]


def _note_on_branches(tree: SessionTree) -> str:
    n_others = len(other_branches(tree))
    return f"{n_others} other branch{'es are' if n_others > 1 else ' is'} not shown." if n_others else ""


def other_branches(tree: SessionTree) -> list[list[StoredMessage]]:
    """For every leaf that is not the head: the messages that the head's conversation does not hold."""
    shown = {stored.key for stored in tree.path(tree.head)}
    paths = [[stored for stored in tree.path(leaf.key) if stored.key not in shown] for leaf in tree.leaves()]
    return [path for path in paths if path]


def _close_fence(text: str) -> str:
    """Close a code block that an answer was cut short in, so that what follows is not taken for code."""
    fence = ""
    for line in text.splitlines():
        found = _FENCE.match(line)
        if found and not fence and not ("`" in found[1] and "`" in found[2]):
            fence = found[1]
        elif found and fence and found[1].startswith(fence) and not found[2].strip():
            fence = ""
    return f"{text}\n{fence}" if fence else text


def _quote(text: str) -> str:
    """Nothing in it, such as a code block that is never closed, reaches beyond the quote."""
    return "\n".join(f"> {line}".rstrip() for line in text.strip().splitlines())


def _escape_markdown(line: str) -> str:
    return re.sub(r"([\\`*_\[\]<>#|~&!])", r"\\\1", line)


def _escape_html(text: str) -> str:
    """Nothing in it is markup, and nothing is a character that HTML does not have."""
    lines = text.replace("\r\n", "\n")
    return html.escape("".join(character if _is_html(character) else "\ufffd" for character in lines))


def _is_html(character: str) -> bool:
    return character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs")


FORMATS: Mapping[str, Callable[[SessionTree], str]] = {"md": _to_markdown, "json": _to_json, "html": _to_html}
"""By name, which is also the file name's ending."""

_SUFFIXES = {**{form: form for form in FORMATS}, "markdown": "md", "htm": "html"}
