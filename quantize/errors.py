"""What can go wrong on the way from a checkpoint to a GGUF file.

Every error a user can meet is a `QuantizeError`: one sentence in `str(error)`, one next step in
`error.next_step`, and the facts as attributes. Anything else that is raised is a bug.
"""

from __future__ import annotations

import reprlib
from pathlib import Path


class QuantizeError(Exception):
    """Base of everything this library raises on purpose."""

    next_step = "Check that the checkpoint was downloaded completely and comes from a source you trust."


class CheckpointError(QuantizeError):
    """A file of the checkpoint is missing, damaged, or disagrees with another one."""

    def __init__(self, path: Path, problem: str, next_step: str | None = None) -> None:
        super().__init__(f"{path.name}: {problem}")
        self.path = path
        self.problem = problem
        self.next_step = next_step or self.next_step

    next_step = "Download the checkpoint again; if it stays like this, the repository itself is damaged."


class TensorError(CheckpointError):
    """A tensor is missing, has an unexpected shape, or holds NaN or infinity."""

    def __init__(self, path: Path, tensor: str, problem: str) -> None:
        super().__init__(path, f"tensor {shown(tensor)} {problem}")
        self.tensor = tensor


class WeightedTensorError(TensorError):
    """A tensor cannot be quantized with the importances it was given."""

    next_step = "Leave the importance matrix out; if that helps, it is damaged or belongs to another model."


class ImatrixError(QuantizeError):
    """An importance matrix is missing, damaged, or does not fit the model."""

    def __init__(self, path: Path, problem: str, next_step: str | None = None) -> None:
        super().__init__(f"{path.name}: {problem}")
        self.path = path
        self.problem = problem
        self.next_step = next_step or "Download it again, or make it anew with llama-imatrix; or leave --imatrix out."


class UnsupportedArchitecture(QuantizeError):
    """config.json names an architecture there is no file for in `quantize/architectures`."""

    def __init__(self, architecture: str, supported: list[str]) -> None:
        super().__init__(f"The architecture {shown(architecture)} is not supported.")
        self.architecture = architecture
        self.supported = supported
        self.next_step = f"Supported are: {', '.join(supported)}."


class UnsupportedTokenizer(QuantizeError):
    """The tokenizer is of a kind, or has a pre-tokenizer, that is not known to be exact in llama.cpp."""

    def __init__(self, problem: str, next_step: str | None = None) -> None:
        super().__init__(f"The tokenizer cannot be converted exactly: {problem}.")
        self.problem = problem
        self.next_step = next_step or self.next_step

    next_step = "Look for a checkpoint of the same model with the original tokenizer files."


class BadPreTokenizer(QuantizeError):
    """A pre-tokenizer that llama.cpp does not have, or one named for weights that take none."""

    def __init__(self, problem: str, next_step: str) -> None:
        super().__init__(problem)
        self.next_step = next_step


class UnsupportedWeights(QuantizeError):
    """The weights are in a container or number format that is not read here."""

    def __init__(self, problem: str, next_step: str) -> None:
        super().__init__(problem)
        self.next_step = next_step


class UnsupportedAdapter(QuantizeError):
    """An adapter that llama.cpp cannot apply exactly, or that was trained for another base."""

    def __init__(self, problem: str, next_step: str | None = None) -> None:
        super().__init__(problem)
        self.next_step = next_step or (
            "Merge the adapter into its base with PEFT (merge_and_unload, save_pretrained), or look for a merged "
            "version, and convert that model."
        )


class UnknownFileType(QuantizeError):
    """A file type (`Q4_K_M`, …) that is not offered."""

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(f"There is no quant named {name!r}.")
        self.name = name
        self.next_step = f"Choose one of: {', '.join(known)}."


class BadTensorType(QuantizeError):
    """A choice of tensor types that cannot be read, or that does not fit a tensor."""

    def __init__(self, problem: str, next_step: str) -> None:
        super().__init__(problem)
        self.next_step = next_step


class OutputError(QuantizeError):
    """The GGUF file could not be written, or did not survive being read back."""

    def __init__(self, path: Path, problem: str, next_step: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.next_step = next_step


class DiskFull(OutputError):
    """There is no room for the GGUF file, of which nothing has been written yet; `needed_bytes` is its size."""

    def __init__(self, path: Path, needed_bytes: int) -> None:
        super().__init__(path, "the disk is full", "Free some space, then run the same command again.")
        self.needed_bytes = needed_bytes


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def shown(value: object) -> str:
    """`value`, which came from a file, as text for a sentence.

    A plain name is shown as it is; anything else as a short `repr` without control characters, however long or
    deeply nested the value is.
    """
    if isinstance(value, str) and value.isascii() and value.isprintable() and 0 < len(value) <= 100:
        return value
    return _SHORT.repr(value)
