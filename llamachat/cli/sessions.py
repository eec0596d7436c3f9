"""`llamachat sessions`: saved conversations, listed, shown, searched, exported, imported and removed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamachat.cli.confirm import confirm
from llamachat.cli.format import moment
from llamachat.cli.output import out
from llamachat.errors import UnknownSession
from llamachat.paths import history_path

if TYPE_CHECKING:
    from llamachat.chat.history import History

_JSON = typer.Option("--json", help="Print JSON.")
_ID = typer.Argument(metavar="ID", help='A number, the beginning of a title, or "last".')

app = typer.Typer(
    help="""Saved conversations: list, show, search, export, import, remove.

    \b
    Examples:
      llamachat sessions list
      llamachat sessions show last
      llamachat sessions search "frozen lake"
      llamachat chat --resume 3
    """,
    no_args_is_help=True,
    rich_markup_mode=None,
)


@contextmanager
def _history() -> Iterator[History | None]:
    """The history, with what there is to say about it; None if nothing was ever saved."""
    if not history_path().exists():
        yield None
        return
    from llamachat.chat.history import History

    with History(history_path()) as history:
        for notice in history.notices:
            out.warning(notice)
        yield history


@contextmanager
def _found(text: str) -> Iterator[tuple[History, int]]:
    with _history() as history:
        if history is None:
            raise UnknownSession("", ())
        yield history, history.find(text)


@app.command("list")
def list_(as_json: Annotated[bool, _JSON] = False) -> None:
    r"""List saved conversations, the one used last first.

    \b
    Examples:
      llamachat sessions list
      llamachat sessions list --json
    """
    with _history() as history:
        summaries = history.sessions() if history else []
    if as_json:
        out.json({"sessions": [asdict(summary) for summary in summaries]})
        return
    rows = [
        [str(summary.id), moment(summary.updated), summary.title, str(summary.n_messages), summary.model]
        for summary in summaries
    ]
    out.table([">ID", "LAST USED", "TITLE", ">MESSAGES?", "MODEL?"], rows)
    if not summaries:
        out.note("Nothing here yet. Conversations are saved when you chat: llamachat chat")


@app.command("show")
def show(session: Annotated[str, _ID] = "last", as_json: Annotated[bool, _JSON] = False) -> None:
    r"""Show a saved conversation as it stands, and how its other branches begin.

    \b
    Examples:
      llamachat sessions show
      llamachat sessions show 3
      llamachat sessions show "How do lakes" --json                  (with all branches)
    """
    from llamachat.chat.export import other_branches
    from llamachat.chat.history.document import to_document
    from llamachat.chat.tools.values import describe_steps
    from llamachat.cli.describing import describe_branches, speaker

    with _found(session) as (history, id_):
        tree = history.load(id_).tree
    if as_json:
        out.json({"id": tree.id, **to_document(tree)})
        return
    out.text(f"{tree.id} · {tree.title}")
    out.text(f"{tree.facts.model} · template {tree.facts.template} · {moment(tree.created)} to {moment(tree.updated)}")
    for stored in tree.path(tree.head):
        out.text(f"\n{speaker(stored)}:")
        for text in describe_steps(stored.message.steps):
            out.text(text)
        if stored.message.reasoning:
            out.faint(indent(f"Thoughts:\n{stored.message.reasoning.strip()}", "  "))
        out.text(f"{stored.message.content}{' (interrupted)' if stored.is_cut_short else ''}")
    if branches := other_branches(tree):
        out.text(f"\n{len(branches)} other branch{'es' if len(branches) > 1 else ''}:")
        out.text(indent("\n".join(describe_branches(tree, branches)), "  "))


@app.command("search")
def search(
    words: Annotated[list[str], typer.Argument(metavar="WORDS...", help="What a message must hold, in any case.")],
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    r"""Find messages that hold all of the words, newest first.

    \b
    Examples:
      llamachat sessions search frozen lake
      llamachat sessions search 湖水 --json
    """
    from llamachat.cli.describing import WHO

    with _history() as history:
        hits = history.search(" ".join(words)) if history else []
    if as_json:
        out.json({"hits": [asdict(hit) for hit in hits]})
        return
    rows = [[str(hit.session), moment(hit.created), WHO[hit.role], hit.excerpt, hit.title] for hit in hits]
    out.table([">ID", "WHEN", "WHO", "MESSAGE", "TITLE?"], rows)
    if not hits:
        out.note("Nothing found.")


@app.command("export")
def export(
    session: Annotated[str, _ID],
    file: Annotated[Path | None, typer.Argument(help="FILE.md, FILE.json or FILE.html; default: print it.")] = None,
    form: Annotated[str | None, typer.Option("--format", help="md, json or html, whatever the file's name.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    r"""Write a conversation to a file: Markdown or HTML to read, JSON with all branches to import again.

    \b
    Examples:
      llamachat sessions export 3 lakes.md
      llamachat sessions export last lakes.html
      llamachat sessions export 3 --format json | jq .title
    """
    from llamachat.chat.export import FORMATS, export_session, form_of, write_export

    form = form.lower() if form else (form_of(file) if file else "md")
    if form is None or form not in FORMATS:
        raise typer.BadParameter(f"Choose --format {', '.join(FORMATS)}, or a file that ends so.")
    with _found(session) as (history, id_):
        text = export_session(history.load(id_).tree, form)
    if file is None:
        out.text(text, end="")
        return
    write_export(file, text, to_replace=None if force else "Give another name, or --force.")
    out.note(f"Written to {file}.")


@app.command("import")
def import_(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Made with: sessions export ID FILE.json")],
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    r"""Take conversations from exported JSON files; each becomes a new one, with all its branches.

    \b
    Examples:
      llamachat sessions import lakes.json
      llamachat sessions import *.json --json
    """
    from llamachat.chat.export import read_export
    from llamachat.chat.history import History

    trees = [read_export(file) for file in files]  # all are read before the first is kept
    with History(history_path()) as history:
        for notice in history.notices:
            out.warning(notice)
        taken: list[dict[str, Any]] = []
        for tree in trees:
            id_ = history.add_tree(tree)
            taken.append({"id": id_, "title": history.tree(id_).title})
    if as_json:
        out.json({"sessions": taken})
        return
    for entry in taken:
        out.text(f"{entry['id']} · {entry['title']}")


@app.command("rm")
def rm(
    sessions: Annotated[list[str], typer.Argument(metavar="ID...", help='Numbers, or "last".')],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    r"""Remove saved conversations, with all their branches and for good.

    \b
    Examples:
      llamachat sessions rm 3
      llamachat sessions rm 3 4 --yes
    """
    from llamachat.models.contexts import forget_context

    with _history() as history:
        if history is None:
            raise UnknownSession("", ())
        titles = {summary.id: summary.title for summary in history.sessions()}
        found = {id_: titles[id_] for id_ in map(history.find, sessions)}
        confirm(f"Remove {', '.join(f'{id_} ({title})' for id_, title in found.items())}?", yes=yes)
        for id_, title in found.items():
            history.remove(id_)
            forget_context(id_)
            out.text(f"Removed {id_} ({title}).")
