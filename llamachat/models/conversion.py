"""Turn weights that are on this machine into a GGUF file, and the converter's errors into the program's.

The store is not touched: `models.pull` puts models there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import quantize
from llamachat.errors import AlreadyThere, ConversionFailed

ConversionReport = quantize.ConversionReport
Prediction = quantize.Prediction


@dataclass(frozen=True)
class QuantizeRequest:
    """What to make of which weights. An empty `out_path` means a name made of the source's and the quant's, here."""

    source: Path
    quant: str
    out_path: Path | None = None
    n_threads: int | None = None
    force: bool = False
    requantize: bool = False
    tensor_types: Sequence[str] = ()
    output_type: str | None = None
    embedding_type: str | None = None
    pure: bool = False


@contextmanager
def conversion_errors() -> Iterator[None]:
    """Raise `ConversionFailed` for what the converter refuses, in its own words."""
    try:
        yield
    except quantize.QuantizeError as error:
        raise ConversionFailed(str(error), error.next_step) from error


def file_types() -> tuple[quantize.FileType, ...]:
    """Every file type on offer, as the table lists them."""
    return tuple(quantize.FILE_TYPES.values())


def choose_out_path(request: QuantizeRequest) -> Path:
    """Return where the result goes; raise `AlreadyThere` if something is there that may not be replaced."""
    source = request.source.resolve()
    out_path = request.out_path or Path(f"{_base_name(source)}-{request.quant.lower()}.gguf")
    if out_path.is_dir() or (out_path.exists() and (not request.force or out_path.resolve() == source)):
        raise AlreadyThere(out_path)
    return out_path


def _base_name(source: Path) -> str:
    """A directory's name, or a file's without `.gguf` and the number format that it says it has."""
    if source.is_dir():
        return source.name
    base, _, number_format = source.stem.rpartition("-")
    return base if base and number_format.lower() in ("f32", "f16", "bf16") else source.stem


def _choices(request: QuantizeRequest) -> quantize.Choices:
    return quantize.parse_choices(request.tensor_types, request.output_type, request.embedding_type, request.pure)


def predict(request: QuantizeRequest) -> quantize.Prediction:
    """Return what `run` will make, without doing it. Raises `LlamachatError`."""
    with conversion_errors():
        return quantize.predict(
            request.source,
            quantize.find_file_type(request.quant),
            requantize=request.requantize,
            choices=_choices(request),
        )


def run(request: QuantizeRequest, progress: Callable[[int, int], None]) -> quantize.ConversionReport:
    """Convert and quantize; `progress` is called with (weights done, weights in all). Raises `LlamachatError`."""
    with conversion_errors():
        file_type = quantize.find_file_type(request.quant)
        return quantize.convert(
            request.source,
            choose_out_path(request),
            file_type,
            requantize=request.requantize,
            choices=_choices(request),
            n_threads=request.n_threads,
            progress=progress,
        )
