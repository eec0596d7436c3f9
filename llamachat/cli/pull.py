"""`llamachat pull`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from llamachat.cli.format import duration, parameters, size
from llamachat.cli.output import out
from llamachat.errors import ChooseQuant

if TYPE_CHECKING:
    from llamachat.models.adapter_pull import AdapterResult
    from llamachat.models.locks import Holder
    from llamachat.models.plan import PullPlan
    from llamachat.models.pull import PullResult

_BITS = {4: "q4_k_m", 8: "q8_0"}

_BESIDE_WEIGHTS_BYTES = 400_000_000
"""Roughly what the program and the KV cache of a short chat take."""


def pull(
    model: Annotated[
        str, typer.Argument(help="A catalogue name, ORG/REPO[@REVISION], ./checkpoint-directory, or ./file.gguf.")
    ],
    quant: Annotated[str | None, typer.Option(help="q4_k_m, q8_0, f16, …; default: the catalogue's.")] = None,
    bits: Annotated[int | None, typer.Option(help="4 means q4_k_m, 8 means q8_0.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit; default: the newest.")] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="ORG/REPO[@REVISION]", help="LoRA adapter to keep with it, or a path; repeatable."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Keep it under this name.")] = None,
    keep_checkpoint: Annotated[bool, typer.Option("--keep-checkpoint", help="Keep the downloaded weights.")] = False,
    pre_tokenizer: Annotated[str | None, typer.Option(help="llama.cpp's name for one that is not recognized.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would download and take.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    r"""Download a model, convert and quantize it in one go.

    \b
    Examples:
      llamachat pull llama-2-7b-chat
      llamachat pull llama-3.2-1b-instruct --bits 8
      llamachat pull Qwen/Qwen2.5-0.5B-Instruct@main --quant q8_0
      llamachat pull bartowski/Llama-3.2-1B-Instruct-GGUF            (what is there)
      llamachat pull bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M
      llamachat pull llama-2-13b-chat --dry-run
      llamachat pull llama-2-7b-chat --adapter ORG/REPO
      llamachat pull ./my-fine-tune --name mine
      llamachat pull ./model.Q4_K_M.gguf
    """
    if bits is not None and bits not in _BITS:
        raise typer.BadParameter("--bits is 4 or 8; for others use --quant.")
    if bits is not None and quant is not None:
        raise typer.BadParameter("--bits and --quant say the same thing; give one of them.")
    from llamachat.cli.progress import pull_progress
    from llamachat.models import pull as puller

    quant = _BITS[bits] if bits else quant
    adapters = tuple(adapter or ())
    request = puller.PullRequest(model, quant, revision, name, keep_checkpoint, pre_tokenizer, adapters)
    try:
        with pull_progress() as progress:
            result = puller.plan(request, progress) if dry_run else puller.pull(request, progress, _say_waiting)
    except ChooseQuant as choice:
        _offer(choice, as_json)
        raise
    if not isinstance(result, puller.PullResult):
        _say_plan(result, as_json)
    elif as_json:
        out.json(_as_json(result))
    else:
        _say(result)


def _say_plan(plan: PullPlan, as_json: bool) -> None:
    if as_json:
        out.json({**asdict(plan), "directory": str(plan.directory), "fits": plan.fits, "dry_run": True})
        return
    rows = [
        ("download", size(plan.download_bytes)),
        ("weights on disk at a time", size(plan.temporary_bytes)),
        ("the model", f"{size(plan.output_bytes)} ({plan.output_bytes:,} bytes)"),
        ("needed now", size(plan.needed_bytes)),
        ("free", size(plan.free_bytes)),
    ]
    out.table((f"{plan.label} IN {plan.directory}", ">SIZE"), rows)
    out.note("It fits." if plan.fits else "It does not fit.")


def _offer(choice: ChooseQuant, as_json: bool) -> None:
    """What there is to choose; the error that it comes with says how."""
    from llamachat.engine.hardware import total_memory_bytes

    memory = total_memory_bytes()
    needs = [int(offer.size_bytes * 1.1) + _BESIDE_WEIGHTS_BYTES for offer in choice.offers]
    fits = [need <= memory if memory else None for need in needs]
    if as_json:
        offers = [
            {"quant": offer.quant, "size_bytes": offer.size_bytes, "n_files": offer.n_files, "fits": fit}
            for offer, fit in zip(choice.offers, fits, strict=True)
        ]
        out.json({"repo": choice.repo, "offers": offers})
        return
    words = {True: "yes", False: "no", None: "unknown"}
    rows = [
        [offer.quant, size(offer.size_bytes), str(offer.n_files), size(need), words[fit]]
        for offer, need, fit in zip(choice.offers, needs, fits, strict=True)
    ]
    out.table(["QUANT", ">SIZE", ">FILES", ">MEMORY", "FITS HERE"], rows)


def _as_json(result: PullResult) -> dict[str, object]:
    manifest = result.manifest
    return {
        "name": manifest.name,
        "path": str(result.model.path),
        "quant": manifest.quant,
        "size_bytes": manifest.size_bytes,
        "n_params": manifest.n_params,
        "bits_per_weight": round(manifest.size_bytes * 8 / manifest.n_params, 4),
        "sha256": manifest.sha256,
        "repo": manifest.repo,
        "revision": manifest.revision,
        "already_here": result.was_here,
        "elapsed_s": round(result.elapsed_s, 3),
        "adapters": [_adapter_as_json(added) for added in result.adapters],
    }


def _adapter_as_json(added: AdapterResult) -> dict[str, object]:
    known = added.manifest
    return {
        "name": known.name,
        "path": str(added.adapter.path),
        "size_bytes": known.size_bytes,
        "sha256": known.sha256,
        "alpha": known.alpha,
        "ranks": known.ranks,
        "repo": known.repo,
        "revision": known.revision,
        "already_here": added.was_here,
        "elapsed_s": round(added.elapsed_s, 3),
    }


def _say_waiting(name: str, holder: Holder | None) -> None:
    """Waiting is what two pulls of one model want, at a terminal and in scripts: the second finds it here then."""
    who = f" ({holder})" if holder else ""
    out.note(f"Waiting for another llamachat{who} to finish with {name}. Ctrl-C ends the wait.")


def _say(result: PullResult) -> None:
    manifest = result.manifest
    what = f"{result.model.label}: {size(manifest.size_bytes)}, {parameters(manifest.n_params)} parameters"
    out.text(f"{what}, already here." if result.was_here else f"{what}, in {duration(result.elapsed_s)}.")
    for added in result.adapters:
        ranks = ", ".join(map(str, added.manifest.ranks))
        what = f"  with {added.manifest.name}: {size(added.manifest.size_bytes)}, rank {ranks}"
        out.text(f"{what}, already here." if added.was_here else f"{what}, in {duration(added.elapsed_s)}.")
    options = "".join(f" --adapter {added.manifest.name}" for added in result.adapters)
    out.note(f"Talk to it: llamachat chat {result.model.label}{options}")
