"""`llamachat show`: everything known about one model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamachat.cli.format import parameters, size
from llamachat.cli.output import out

if TYPE_CHECKING:
    from llamachat.models.store import StoredModel
    from llamachat.models.stored_adapters import StoredAdapter

_SHORTEST_CTX = 2048


def show(
    model: Annotated[str, typer.Argument(help="A stored model, such as llama-2-7b-chat:q4_k_m, or a .gguf file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    r"""Show everything known about a model, and the memory it needs.

    \b
    Examples:
      llamachat show llama-2-7b-chat
      llamachat show ./model.gguf --json
    """
    from llamachat.models import resolve

    facts = _facts(resolve.resolve(model))
    if as_json:
        out.json(facts)
        return
    memory, header = facts.pop("memory"), facts.pop("header")
    for key, value in facts.items():
        _say(key, value)
    if memory:
        _say_memory(memory)
    _say("header", header)


def _facts(model: StoredModel) -> dict[str, Any]:
    from llamachat.chat.templates import choose_template
    from llamachat.cli.models import summary
    from llamachat.engine.llamacpp import open_tokenizer
    from llamachat.engine.sampling import recommended

    with open_tokenizer(model.path) as (tokenizer, metadata):
        choice = choose_template(None, model.template, metadata)
        facts = {
            **summary(model),
            "template": choice.template.name,
            "template_reason": choice.reason,
            "system": model.system or choice.template.system,
            "sampling": {**recommended(metadata), **choice.template.sampling, **model.sampling},
            "n_vocab": tokenizer.n_vocab,
        }
    if model.manifest:
        facts["license"] = model.manifest.license
        facts["n_params"] = model.manifest.n_params
        facts["versions"] = dict(model.manifest.versions)
        facts["sources"] = dict(model.manifest.sources)
    facts["adapters"] = [_adapter_facts(adapter) for adapter in model.adapters]
    return {**facts, "memory": _memory_facts(model), "header": dict(sorted(metadata.items()))}


def _adapter_facts(adapter: StoredAdapter) -> dict[str, Any]:
    known = adapter.manifest
    return {
        "name": adapter.name,
        "path": str(adapter.path),
        "size_bytes": adapter.path.stat().st_size,
        "repo": known.repo if known else None,
        "revision": known.revision if known else None,
        "base": known.base if known else None,
        "alpha": known.alpha if known else None,
        "ranks": known.ranks if known else None,
    }


def _memory_facts(model: StoredModel) -> dict[str, Any] | None:
    from llamachat.cli.memory import fits, need_of_stored
    from llamachat.models.memory import KV_TYPES, kv_bytes_per_token, kv_cache_bytes, read_shape

    needed, read = need_of_stored(model), read_shape(model.path)
    if needed is None or read is None:
        return None
    shape, n_ctx_train = read
    return {
        "weights_bytes": needed.weights_bytes,
        "kv_cache_bytes": needed.kv_cache_bytes,
        "compute_bytes_estimate": needed.compute_bytes,
        "total_bytes": needed.total_bytes,
        "n_ctx": needed.n_ctx,
        "fits": fits(needed),
        "kv_bytes_per_token": kv_bytes_per_token(shape),
        "n_layer": shape.n_layer,
        "n_head": shape.n_head,
        "n_head_kv": shape.n_head_kv,
        "head_dim": shape.head_dim,
        "kv_cache": [
            {
                "n_ctx": n_ctx,
                **{kv_type: kv_cache_bytes(shape, n_ctx, kv_type) for kv_type in KV_TYPES},
                "f16_full_heads": kv_cache_bytes(shape, n_ctx, n_head_kv=shape.n_head),
            }
            for n_ctx in _context_lengths(n_ctx_train)
        ],
    }


def _context_lengths(n_ctx_train: int) -> list[int]:
    """2k, 4k, 8k, …, and the length it was trained for."""
    doubled = [_SHORTEST_CTX << i for i in range(32)]
    return [n_ctx for n_ctx in doubled if n_ctx < n_ctx_train] + [n_ctx_train]


def _say_memory(memory: dict[str, Any]) -> None:
    n_head, n_head_kv = memory["n_head"], memory["n_head_kv"]
    fits = {"yes": "fits this machine", "tight": "a tight fit here", "no": "does not fit this machine"}
    verdict = f" ({fits[memory['fits']]})" if memory["fits"] else ""
    out.text("memory:")
    out.text(f"  with {memory['n_ctx']:,} tokens of context: {size(memory['total_bytes'])}{verdict}")
    out.text(f"  weights: {size(memory['weights_bytes'])}")
    out.text(f"  KV cache: {size(memory['kv_cache_bytes'])}, {size(memory['kv_bytes_per_token'])} a token at f16")
    out.text(f"  buffers for computing: about {size(memory['compute_bytes_estimate'])}")
    kinds = ["f16", "q8_0", "q4_0"]
    if n_head_kv < n_head:
        out.text(f"  grouped-query attention: {n_head_kv} KV heads serve {n_head} heads, so the KV cache takes")
        out.text(f"  {n_head_kv / n_head:.0%} of what full heads would take")
        kinds.append("f16_full_heads")
    titles = [">" + kind.upper().replace("_FULL_HEADS", ", FULL HEADS") for kind in kinds]
    out.table(
        [">CONTEXT", *titles],
        [[f"{row['n_ctx']:,}", *(size(row[kind]) for kind in kinds)] for row in memory["kv_cache"]],
    )


def _say(key: str, value: object) -> None:
    if key.endswith("_bytes") and isinstance(value, int):
        out.text(f"{key.removesuffix('_bytes')}: {size(value)} ({value:,} bytes)")
    elif key == "n_params" and isinstance(value, int):
        out.text(f"parameters: {parameters(value)} ({value:,})")
    elif isinstance(value, dict):
        out.text(f"{key}:")
        for inner_key, inner in value.items():
            out.text(f"  {inner_key}: {_shorten(inner)}")
    elif isinstance(value, list):
        out.text(f"{key}:{'' if value else ' none'}")
        for item in value:
            ranks = ", ".join(map(str, item["ranks"] or ()))
            scale = f", rank {ranks}, alpha {item['alpha']:g}" if ranks else ""
            commit = f", {item['repo']}@{item['revision']}" if item["repo"] else ""
            out.text(f"  {item['name']} ({size(item['size_bytes'])}{scale}{commit}): {item['path']}")
    else:
        out.text(f"{key}: {_shorten(value)}")


def _shorten(value: object) -> str:
    if value is None:
        return "—"
    line = " ".join(str(value).split())
    return line if len(line) <= 100 else f"{line[:99]}…"
