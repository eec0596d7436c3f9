"""`llamachat verify`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from llamachat.cli.output import out
from llamachat.errors import DamagedModels

if TYPE_CHECKING:
    from llamachat.models.verify import Check


def verify(
    model: Annotated[str | None, typer.Argument(help="A stored model; without one, all of them.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    r"""Hash stored models again; name what is damaged or missing, and how to mend it.

    \b
    Examples:
      llamachat verify
      llamachat verify llama-2-7b-chat:q4_k_m
      llamachat verify --json
    """
    from llamachat.cli.progress import pull_progress
    from llamachat.models.verify import check, choose_entries, count_bytes

    entries = choose_entries(model)
    n_total, n_done = count_bytes(entries), 0
    with pull_progress() as progress:

        def advance(n_bytes: int) -> None:
            nonlocal n_done
            n_done += n_bytes
            progress("verify", n_done, n_total)

        checks = [check(entry, advance) for entry in entries]
    if as_json:
        out.json({"models": [_as_json(result) for result in checks]})
    else:
        _say(checks)
    if damaged := [result for result in checks if result.problems]:
        raise DamagedModels(
            [result.label for result in damaged], len(checks), [result.mend or "" for result in damaged]
        )


def _say(checks: Sequence[Check]) -> None:
    for result in checks:
        for problem in result.problems:
            out.text(f"{result.label}: {problem.file} {problem.text}")
        if not result.problems:
            out.text(f"{result.label}: whole")
    if not checks:
        out.note("Nothing here yet. See what there is: llamachat list --available")


def _as_json(result: Check) -> dict[str, object]:
    return {
        "model": result.label,
        "path": str(result.directory),
        "ok": not result.problems,
        "problems": [{"file": problem.file, "problem": problem.text} for problem in result.problems],
        "mend": result.mend,
    }
