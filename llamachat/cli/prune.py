"""`llamachat prune`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from llamachat.cli.confirm import confirm
from llamachat.cli.format import size
from llamachat.cli.output import out
from llamachat.errors import StoreBusy

if TYPE_CHECKING:
    from llamachat.models.leftovers import InUse, Leftover


def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    r"""Remove what interrupted work has left behind, and downloads that were kept.

    These are unfinished downloads and models, weights kept with --keep-checkpoint, models whose removal was cut
    short, and context windows kept so that conversations go on at once. Stored models and conversations stay, and so
    does whatever a running llamachat is working on.

    \b
    Examples:
      llamachat prune --dry-run
      llamachat prune
      llamachat prune --yes
    """
    from llamachat.models.leftovers import find_leftovers
    from llamachat.models.store import scan

    found, in_use = find_leftovers()
    for busy in in_use:
        out.note(
            f"Left alone: {busy.path}, which another llamachat is working on ({busy.holder or 'not known which'})."
        )
    for entry in scan()[1]:
        out.note(f"Left alone: {entry.directory} is no usable model ({entry.file} {entry.problem}): llamachat verify")
    total = size(sum(leftover.size_bytes for leftover in found))
    if not as_json:
        out.table(["WHAT", ">ON DISK", "PATH"], [[item.kind, size(item.size_bytes), str(item.path)] for item in found])
    if found and not dry_run:
        things = f"this, {total}" if len(found) == 1 else f"these {len(found)}, {total} in all"
        confirm(f"Remove {things}?", yes=yes)
    removed = [] if dry_run else _remove(found)
    if as_json:
        out.json(_as_json(found, removed, in_use))
    elif not found:
        out.note("Nothing is left behind.")
    elif not dry_run:
        out.note(f"Freed {size(sum(leftover.size_bytes for leftover in removed))}.")


def _remove(found: Sequence[Leftover]) -> list[Leftover]:
    from llamachat.models.leftovers import remove

    removed = []
    for leftover in found:
        try:
            remove(leftover)
            removed.append(leftover)
        except StoreBusy as busy:  # since it was found
            out.note(f"Left alone: {leftover.path}. {busy}")
    return removed


def _as_json(found: Sequence[Leftover], removed: Sequence[Leftover], in_use: Sequence[InUse]) -> dict[str, object]:
    return {
        "leftovers": [
            {
                "path": str(leftover.path),
                "kind": leftover.kind,
                "size_bytes": leftover.size_bytes,
                "removed": leftover in removed,
            }
            for leftover in found
        ],
        "in_use": [{"path": str(busy.path), "holder": busy.holder} for busy in in_use],
        "freed_bytes": sum(leftover.size_bytes for leftover in removed),
    }
