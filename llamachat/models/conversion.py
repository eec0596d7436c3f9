"""Turn weights that are on this machine into a GGUF file, and the converter's errors into the program's.

The store is not touched: `models.pull` puts models there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import quantize
from llamachat.errors import AlreadyThere, ConversionFailed, UnusableAdapter
from llamachat.models.adapters import find_base

ConversionReport = quantize.ConversionReport
Prediction = quantize.Prediction


@dataclass(frozen=True)
class QuantizeRequest:
    """What to make of which weights. An empty `out_path` means a name made of the source's and the quant's, here.

    `base` is the model of an adapter; what comes after it is for models alone.
    """

    source: Path
    quant: str
    out_path: Path | None = None
    n_threads: int | None = None
    force: bool = False
    base: str | None = None
    requantize: bool = False
    tensor_types: Sequence[str] = ()
    output_type: str | None = None
    embedding_type: str | None = None
    pure: bool = False
    pre_tokenizer: str | None = None
    imatrix: Path | None = None


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


def default_quant(source: Path) -> str | None:
    """The quant that weights get when none is named: adapters lose nothing, for models it is the user's choice."""
    return quantize.ADAPTER_FILE_TYPES[0] if quantize.is_adapter(source) else None


def _find_base(request: QuantizeRequest) -> Path | None:
    """The model of an adapter, None where the source is not one; raise `UnusableAdapter` where the options mix both."""
    if not quantize.is_adapter(request.source):
        if request.base is not None:
            raise UnusableAdapter(
                f"{request.source} is not an adapter, which --base is for: it has no adapter_config.json.",
                "Leave --base out to convert a model.",
            )
        return None
    if request.requantize or request.pure or request.tensor_types or request.output_type or request.embedding_type:
        raise UnusableAdapter(
            f"{request.source} is an adapter, whose tensors all get one type.",
            "Leave --requantize, --pure, --tensor-type, --output-type and --embedding-type out.",
        )
    return find_base(request.source, request.base)


def predict(request: QuantizeRequest) -> quantize.Prediction:
    """Return what `run` will make, without doing it. Raises `LlamachatError`."""
    base = _find_base(request)
    with conversion_errors():
        if base is not None:
            return quantize.predict_adapter(request.source, base, quantize.find_file_type(request.quant))
        return quantize.predict(
            request.source,
            quantize.find_file_type(request.quant),
            requantize=request.requantize,
            choices=_choices(request),
            pre_tokenizer=request.pre_tokenizer,
            imatrix=request.imatrix,
        )


def run(request: QuantizeRequest, progress: Callable[[int, int], None]) -> quantize.ConversionReport:
    """Convert and quantize; `progress` is called with (weights done, weights in all). Raises `LlamachatError`."""
    base = _find_base(request)
    with conversion_errors():
        file_type = quantize.find_file_type(request.quant)
        out_path = choose_out_path(request)
        if base is not None:
            return quantize.convert_adapter(
                request.source, base, out_path, file_type, n_threads=request.n_threads, progress=progress
            )
        return quantize.convert(
            request.source,
            out_path,
            file_type,
            requantize=request.requantize,
            choices=_choices(request),
            pre_tokenizer=request.pre_tokenizer,
            imatrix=request.imatrix,
            n_threads=request.n_threads,
            progress=progress,
        )
