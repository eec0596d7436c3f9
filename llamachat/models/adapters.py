"""Adapters that users give: which model they belong to, and whether they fit it."""

from __future__ import annotations

import shlex
from pathlib import Path

from llamachat.errors import UnusableAdapter
from llamachat.models.resolve import resolve
from llamachat.models.store import StoredModel
from llamachat.models.stored_adapters import StoredAdapter


def find_adapter(text: str, model: StoredModel) -> Path:
    """The adapter of `model` called `text` (an adapter ORG/REPO also by its REPO); a file of that name comes first.

    Raises `UnusableAdapter` for what is neither; what else may be at that place, `check_adapter` says.
    """
    if Path(text).is_file():
        return Path(text)
    if found := _find_named(text, model):
        return found.path
    if not Path(text).exists():
        raise UnusableAdapter(f"{text[:80]!r} is no file, and no adapter of {model.label}.", _those_of(model))
    return Path(text)


def find_stored_adapter(text: str, model: StoredModel) -> StoredAdapter:
    """The adapter of `model` called `text`, whatever files there are. Raises `UnusableAdapter` if it has none such."""
    if found := _find_named(text, model):
        return found
    raise UnusableAdapter(f"{model.label} has no adapter called {text[:80]!r}.", _those_of(model))


def _find_named(text: str, model: StoredModel) -> StoredAdapter | None:
    wanted = text.lower()
    named = [adapter for adapter in model.adapters if wanted in (adapter.name.lower(), _last(adapter.name).lower())]
    exact = [adapter for adapter in named if adapter.name.lower() == wanted] or named
    if len(exact) > 1:
        names = " or ".join(adapter.name for adapter in exact)
        raise UnusableAdapter(f"{model.label} has several adapters called {text}.", f"Say which one: {names}")
    return exact[0] if exact else None


def _those_of(model: StoredModel) -> str:
    names = ", ".join(adapter.name for adapter in model.adapters)
    return (
        f"Those it has: {names}" if names else f"It has none; llamachat pull {model.label} --adapter ORG/REPO adds one."
    )


def check_adapter(path: Path, model_path: Path) -> tuple[str, ...]:
    """Compare a GGUF adapter with the GGUF model it is to be used with; return what the user should know.

    Raises `UnusableAdapter` for one that is not there, is damaged or does not fit. llama.cpp would tell less, and
    abort over some.
    """
    import quantize  # takes a while to load, and most chats have no adapter

    if quantize.is_adapter(path):
        argument = shlex.quote(str(path))
        raise UnusableAdapter(
            f"{path} is a PEFT adapter, not a GGUF file.",
            f"Convert it first: llamachat quantize {argument} --base MODEL -o adapter.gguf",
        )
    try:
        return quantize.check_adapter(path, model_path)
    except quantize.QuantizeError as error:
        raise UnusableAdapter(str(error), error.next_step) from error


def find_base(adapter: Path, base: str | None) -> Path:
    """Return the checkpoint directory or GGUF file of the model that `adapter` is to be converted for.

    `base` is a path, or whatever names a model that is here. Raises `UnusableAdapter` without one.
    """
    if base is None:
        raise UnusableAdapter(
            f"{adapter} is an adapter, and cannot be converted without the model it was trained on.",
            f"llamachat quantize {shlex.quote(str(adapter))} --base MODEL; {adapter / 'adapter_config.json'} names it.",
        )
    path = Path(base)
    return path if path.exists() else resolve(base).path


def _last(name: str) -> str:
    return name.rpartition("/")[2]
