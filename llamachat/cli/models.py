"""`llamachat list` and `rm`: what is here, and what could be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamachat.cli.confirm import confirm
from llamachat.cli.format import parameters, size
from llamachat.cli.output import out
from llamachat.errors import BadReference
from llamachat.models import resolve, store
from llamachat.models.catalog import ModelSpec, load_catalog
from llamachat.models.embedded import find_embedded
from llamachat.models.locks import locked, writing

if TYPE_CHECKING:
    from llamachat.models.memory import Need

_JSON = typer.Option("--json", help="Print JSON.")
_SHOWN_QUANTS = ("q4_k_m", "q8_0")


def list_(
    available: Annotated[bool, typer.Option("--available", help="Show the catalogue: what could be pulled.")] = False,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    r"""List the models on this machine, or the catalogue.

    \b
    Examples:
      llamachat list
      llamachat list --available
      llamachat list --json
    """
    if available:
        _list_catalog(as_json)
    else:
        _list_stored(as_json)


def _list_stored(as_json: bool) -> None:
    from llamachat.cli.memory import fits, need_of_stored

    models, broken = store.scan()
    embedded = find_embedded(load_catalog())
    if embedded:
        models.append(embedded)
    needs = [need_of_stored(model) for model in models]
    if as_json:
        more = [{"needs_bytes": needed.total_bytes if needed else None, "fits": fits(needed)} for needed in needs]
        out.json({"models": [{**summary(model), **add} for model, add in zip(models, more, strict=True)]})
    else:
        rows = [
            [model.name, model.quant, size(model.size_bytes), _size(needed), fits(needed) or "?", _created(model)]
            for model, needed in zip(models, needs, strict=True)
        ]
        out.table(["NAME", "QUANT", ">SIZE", ">MEMORY?", "FITS HERE", "PULLED?"], rows)
    for entry in broken:
        out.note(f"{entry.label} cannot be used ({entry.file} {entry.problem}). To mend it: llamachat verify")
    if not models:
        out.note("Nothing here yet. See what there is: llamachat list --available")


def _list_catalog(as_json: bool) -> None:
    specs = list(load_catalog().specs.values())
    if as_json:
        out.json({"models": [{**asdict(spec), **_memory_of_spec(spec)} for spec in specs]})
        return
    about = [">PARAMETERS?", ">CONTEXT?", "ACCESS?", "LICENSE?", "REPOSITORY?"]
    columns = ["NAME", ">4 BIT", "FITS 4", ">8 BIT?", "FITS 8?", *about]
    out.table(columns, [_catalog_row(spec) for spec in specs])
    out.note(
        "4 and 8 bit: about the memory needed with up to 8,192 tokens of context, and whether it fits this machine."
    )


def _catalog_row(spec: ModelSpec) -> list[str]:
    from llamachat.cli.memory import fits, need_of_spec

    cells = [spec.name]
    for quant in _SHOWN_QUANTS:
        needed = need_of_spec(spec, quant)
        cells += [_size(needed), fits(needed) or "?"]
    size_and_length = [parameters(spec.n_params), f"{spec.n_ctx:,}"]
    return [*cells, *size_and_length, "gated" if spec.gated else "", spec.license, spec.repo]


def _memory_of_spec(spec: ModelSpec) -> dict[str, Any]:
    from llamachat.cli.memory import fits, need_of_spec

    needs = {quant: need_of_spec(spec, quant) for quant in _SHOWN_QUANTS}
    return {
        "needs_bytes": {quant: needed.total_bytes if needed else None for quant, needed in needs.items()},
        "fits": {quant: fits(needed) for quant, needed in needs.items()},
    }


def _size(needed: Need | None) -> str:
    return size(needed.total_bytes) if needed else "?"


def rm(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Stored models, such as llama-2-7b:q8_0.")],
    adapter: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this adapter of the model; repeatable.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    r"""Remove stored models, and the adapters that lie with them; or just adapters.

    \b
    Examples:
      llamachat rm llama-2-7b-chat:q4_k_m
      llamachat rm llama-2-7b-chat:q4_k_m --yes
      llamachat rm llama-2-7b-chat:q8_0 tinyllama-1.1b-chat
      llamachat rm llama-2-7b-chat --adapter ORG/REPO
    """
    if adapter and len(models) > 1:
        raise typer.BadParameter("--adapter goes with one model; name one.")
    found = {model.path: model for model in map(resolve.resolve, models)}.values()
    for model in found:
        if model.manifest is None:
            raise BadReference(
                f"{model.label} was not pulled by llamachat.", f"It lies at {model.path}; remove it the way it came."
            )
    if adapter:
        _remove_adapters(next(iter(found)), adapter, yes=yes)
        return
    confirm(f"Remove {', '.join(map(_what_goes, found))}?", yes=yes)
    for model in found:
        with locked(model.name), writing():
            store.remove(model)
        out.text(f"Removed {model.label}.")


def _remove_adapters(model: store.StoredModel, names: Sequence[str], *, yes: bool) -> None:
    from llamachat.models.adapters import find_stored_adapter
    from llamachat.models.stored_adapters import remove_adapter

    found = {adapter.path: adapter for adapter in (find_stored_adapter(name, model) for name in names)}.values()
    what = ", ".join(f"{adapter.name} ({size(adapter.path.stat().st_size)})" for adapter in found)
    confirm(f"Remove {what} from {model.label}?", yes=yes)
    for adapter in found:
        with locked(model.name), writing():
            remove_adapter(adapter)
        out.text(f"Removed {adapter.name} from {model.label}.")


def _what_goes(model: store.StoredModel) -> str:
    n_adapters = len(model.adapters)
    adapters = f", with {n_adapters} adapter{'s' * (n_adapters > 1)}" if n_adapters else ""
    return f"{model.label} ({size(model.size_bytes)}{adapters})"


def summary(model: store.StoredModel) -> dict[str, Any]:
    """What scripts rely on, for each model of the list."""
    manifest = model.manifest
    return {
        "name": model.name,
        "quant": model.quant,
        "size_bytes": model.size_bytes,
        "path": str(model.path),
        "repo": manifest.repo if manifest else None,
        "revision": manifest.revision if manifest else None,
        "sha256": manifest.sha256 if manifest else None,
        "created": manifest.created if manifest else None,
    }


def _created(model: store.StoredModel) -> str:
    if model.manifest is None:
        return "comes with the demo extra"
    return model.manifest.created[:16].replace("T", " ")
