"""`llamachat list`, `show` and `rm`: what is here, and what could be."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from llamachat.cli.confirm import confirm
from llamachat.cli.format import parameters, size
from llamachat.cli.output import out
from llamachat.errors import BadReference
from llamachat.models import resolve, store
from llamachat.models.catalog import load_catalog
from llamachat.models.embedded import find_embedded
from llamachat.models.locks import locked, writing

_MODEL = typer.Argument(help="A stored model, such as llama-2-7b-chat or llama-2-7b-chat:q4_k_m.")
_JSON = typer.Option("--json", help="Print JSON.")


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
    models = store.list_stored()
    embedded = find_embedded(load_catalog())
    if embedded:
        models.append(embedded)
    if as_json:
        out.json({"models": [_summary(model) for model in models]})
        return
    rows = [[model.name, model.quant, size(model.size_bytes), _created(model)] for model in models]
    out.table(["NAME", "QUANT", ">SIZE", "PULLED"], rows)
    if not models:
        out.note("Nothing here yet. See what there is: llamachat list --available")


def _list_catalog(as_json: bool) -> None:
    specs = load_catalog().specs.values()
    if as_json:
        out.json({"models": [asdict(spec) for spec in specs]})
        return
    rows = [
        [
            spec.name,
            parameters(spec.n_params),
            f"{spec.n_ctx:,}",
            f"{size(spec.n_params * 4.9 / 8)}",
            "gated" if spec.gated else "",
            spec.license,
            spec.repo,
        ]
        for spec in specs
    ]
    out.table(["NAME", ">PARAMETERS", ">CONTEXT", ">4-BIT SIZE", "ACCESS", "LICENSE", "REPOSITORY"], rows)


def show(model: Annotated[str, _MODEL], as_json: Annotated[bool, _JSON] = False) -> None:
    r"""Show everything known about a model.

    \b
    Examples:
      llamachat show llama-2-7b-chat
      llamachat show ./model.gguf --json
    """
    found = resolve.resolve(model)
    facts = _facts(found)
    if as_json:
        out.json(facts)
        return
    for key, value in facts.items():
        if isinstance(value, dict):
            out.text(f"{key}:")
            for inner_key, inner in value.items():
                out.text(f"  {inner_key}: {_shorten(inner)}")
        else:
            out.text(f"{key}: {_shorten(value)}")


def rm(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Stored models, such as llama-2-7b:q8_0.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    r"""Remove stored models, and the adapters that lie with them.

    \b
    Examples:
      llamachat rm llama-2-7b-chat:q4_k_m
      llamachat rm llama-2-7b-chat:q4_k_m --yes
      llamachat rm llama-2-7b-chat:q8_0 tinyllama-1.1b-chat
    """
    found = {model.path: model for model in map(resolve.resolve, models)}.values()
    for model in found:
        if model.manifest is None:
            raise BadReference(
                f"{model.label} was not pulled by llamachat.", f"It lies at {model.path}; remove it the way it came."
            )
    confirm(f"Remove {', '.join(map(_what_goes, found))}?", yes=yes)
    for model in found:
        with locked(model.name), writing():
            store.remove(model)
        out.text(f"Removed {model.label}.")


def _what_goes(model: store.StoredModel) -> str:
    n_adapters = len(model.adapters)
    adapters = f", with {n_adapters} adapter{'s' * (n_adapters > 1)}" if n_adapters else ""
    return f"{model.label} ({size(model.size_bytes)}{adapters})"


def _summary(model: store.StoredModel) -> dict[str, Any]:
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


def _facts(model: store.StoredModel) -> dict[str, Any]:
    from llamachat.chat.templates import choose_template
    from llamachat.engine.llamacpp import open_tokenizer

    with open_tokenizer(model.path) as (tokenizer, metadata):
        choice = choose_template(None, model.template, metadata)
        facts = {
            **_summary(model),
            "template": choice.template.name,
            "template_reason": choice.reason,
            "system": model.system,
            "n_vocab": tokenizer.n_vocab,
        }
    if model.manifest:
        facts["license"] = model.manifest.license
        facts["n_params"] = model.manifest.n_params
        facts["versions"] = dict(model.manifest.versions)
        facts["sources"] = dict(model.manifest.sources)
    return {**facts, "header": dict(sorted(metadata.items()))}


def _created(model: store.StoredModel) -> str:
    if model.manifest is None:
        return "comes with the demo extra"
    return model.manifest.created[:16].replace("T", " ")


def _shorten(value: object) -> str:
    line = " ".join(str(value).split())
    return line if len(line) <= 100 else f"{line[:99]}…"
