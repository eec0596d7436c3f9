"""Turn a PEFT LoRA or QLoRA adapter into a GGUF adapter, with the base it was trained for checked first.

The tensors are those of llama.cpp's convert_lora_to_gguf.py: for each tensor NAME of the base that the adapter changes
`NAME.lora_a` (rank × columns) and `NAME.lora_b` (rows × rank), with Q's and K's rows in ggml's order. llama.cpp adds
alpha / rank · B·A. What that cannot say is refused by name.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGML_QUANT_VERSION, GGUFType, GGUFWriter, Keys

from quantize.adapter.base import AdapterBase, open_base
from quantize.adapter.fit import AdapterFacts, check_adapter, read_adapter_facts
from quantize.adapter.pairs import LoraPair, pair_up
from quantize.adapter.settings import CONFIG_NAME, AdapterSettings, read_settings
from quantize.adapter.sources import ScaledRows, TransposedRows
from quantize.checkpoint.files import open_file
from quantize.checkpoint.safetensors import read_safetensors
from quantize.checkpoint.tensor import PermutedRows, StackedRows, TensorSource, count_elements
from quantize.checkpoint.torch_file import read_torch_file
from quantize.errors import CheckpointError, TensorError, UnsupportedAdapter, UnsupportedWeights, shown
from quantize.header import printable
from quantize.pipeline import ConversionReport, Prediction, Progress, predict_plan, run_plan
from quantize.plan import Outline, Plan
from quantize.recipe import FileType, QType

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_FILE_TYPES",
    "ADAPTER_WEIGHTS",
    "AdapterFacts",
    "AdapterSettings",
    "check_adapter",
    "convert_adapter",
    "is_adapter",
    "predict_adapter",
    "read_adapter_facts",
    "read_settings",
]

ADAPTER_FILE_TYPES = ("f32", "f16", "bf16", "q8_0")
"""Names of the file types an adapter can have, the default first."""

_WEIGHTS = {"adapter_model.safetensors": read_safetensors, "adapter_model.bin": read_torch_file}
"""By preference, as PEFT has it."""

ADAPTER_CONFIG = CONFIG_NAME
ADAPTER_WEIGHTS = tuple(_WEIGHTS)
"""What the files of an adapter are called; of the second kind one is enough, the first preferred."""


def is_adapter(path: Path) -> bool:
    """Whether this is the directory of a PEFT adapter, going by its config."""
    return (path / CONFIG_NAME).is_file()


def convert_adapter(
    directory: Path,
    base: Path,
    out_path: Path,
    file_type: FileType,
    *,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> ConversionReport:
    """Convert the PEFT adapter in `directory` to the GGUF adapter `out_path`.

    `base` is the model it was trained for: a checkpoint directory, of which only config.json is needed, or a GGUF file
    of any quant. Raises `QuantizeError` for an adapter that does not fit it, or that llama.cpp could not apply exactly;
    whatever is raised, `out_path` is then as it was before.
    """
    started = time.monotonic()
    with _planned(directory, base, file_type) as plan:
        return run_plan(plan, out_path, file_type, n_threads, progress, started)


def predict_adapter(directory: Path, base: Path, file_type: FileType) -> Prediction:
    """Return what `convert_adapter` will make, exact to the byte; checks the base, but reads no weights."""
    with _planned(directory, base, file_type) as plan:
        return predict_plan(plan, file_type)


@contextmanager
def _planned(directory: Path, base_path: Path, file_type: FileType) -> Iterator[Plan]:
    if file_type.name not in ADAPTER_FILE_TYPES:
        raise UnsupportedAdapter(
            f"An adapter cannot be made {file_type.name}: it is small, and loses more than a model by it.",
            f"Choose one of: {', '.join(ADAPTER_FILE_TYPES)}.",
        )
    settings = read_settings(directory)
    base = open_base(base_path)
    path = _weights_path(directory)
    fd = open_file(path)
    try:
        pairs = pair_up(_WEIGHTS[path.name](path, fd), base)
        if not pairs:
            raise CheckpointError(path, "holds no LoRA tensors")
        yield _plan(directory, settings, pairs, base, file_type)
    finally:
        os.close(fd)


def _weights_path(directory: Path) -> Path:
    for name in _WEIGHTS:
        if (directory / name).exists():
            return directory / name
    raise UnsupportedWeights(
        f"{directory.name} holds no adapter weights: neither {' nor '.join(_WEIGHTS)}.", "Download the adapter again."
    )


def _plan(
    directory: Path, settings: AdapterSettings, pairs: Sequence[LoraPair], base: AdapterBase, file_type: FileType
) -> Plan:
    alpha, factors = _fold_alphas(settings, pairs)
    by_target: dict[str, list[LoraPair]] = {}
    for pair in pairs:
        by_target.setdefault(pair.target.gguf_name, []).append(pair)
    sources: dict[str, TensorSource] = {}
    for tensor in base.tensors.values():
        if of_target := by_target.get(tensor.gguf_name):
            sources[f"{tensor.gguf_name}.lora_a"] = _stack([_a(pair) for pair in of_target], of_target)
            sources[f"{tensor.gguf_name}.lora_b"] = _stack([_b(pair, factors) for pair in of_target], of_target)
    outline = Outline(
        architecture=base.architecture.gguf_name,
        header=_header(base.architecture.gguf_name, printable(directory.resolve().name), alpha),
        shapes={name: source.shape for name, source in sources.items()},
        types={name: _tensor_type(source, file_type) for name, source in sources.items()},
        n_params=sum(count_elements(source.shape) for source in sources.values()),
        notes=_notes(settings, base),
    )
    return Plan(outline, sources)


def _fold_alphas(settings: AdapterSettings, pairs: Sequence[LoraPair]) -> tuple[float, dict[str, float]]:
    """One alpha for all, which is what the format has, and what the B of each module is multiplied with to make up.

    Only powers of two are: they change no digit. With one alpha for all, every factor is 1.
    """
    alphas: dict[str, float] = {}
    for pair in pairs:
        if pair.rank not in settings.ranks:
            problem = f"has the rank {pair.rank}, of which {CONFIG_NAME} does not speak"
            raise TensorError(pair.b.path, pair.b.name, problem)
        alphas[pair.module] = settings.llama_cpp_alpha(pair.module, pair.rank)
    (alpha, _), *_ = Counter(alphas.values()).most_common(1)
    for module, own in alphas.items():
        if math.frexp(own / alpha)[0] != 0.5 or not 2**-30 < own / alpha < 2**30:
            raise UnsupportedAdapter(
                f"The adapter scales its modules differently (alpha {own:g} for {shown(module)}, {alpha:g} for most), "
                "for which a GGUF adapter has no place."
            )
    return alpha, {module: own / alpha for module, own in alphas.items()}


def _a(pair: LoraPair) -> TensorSource:
    return TransposedRows(pair.a) if pair.is_embedding else pair.a


def _b(pair: LoraPair, factors: dict[str, float]) -> TensorSource:
    heads = pair.target.permute_heads
    rows: TensorSource = PermutedRows(pair.b, heads) if heads else pair.b
    return rows if set(factors.values()) == {1.0} else ScaledRows(rows, factors[pair.module])


def _stack(sources: list[TensorSource], pairs: Sequence[LoraPair]) -> TensorSource:
    """The one tensor, or those of all experts as one."""
    first, target = pairs[0], pairs[0].target
    if target.n_expert is None:
        return sources[0]
    if len(pairs) != target.n_expert:
        raise UnsupportedAdapter(
            f"{first.a.path.name}: {target.hf_name.format('*')} is adapted for {len(pairs)} of {target.n_expert} "
            "experts; llama.cpp needs all."
        )
    for pair, source in zip(pairs, sources, strict=True):
        if (source.shape, source.qtype) != (sources[0].shape, sources[0].qtype):
            raise TensorError(pair.b.path, source.name, f"differs from {sources[0].name} in rank or number format")
    return StackedRows(target.hf_name.format("*"), tuple(sources))


def _tensor_type(source: TensorSource, file_type: FileType) -> QType:
    """As the reference has it: F16 where rows are not whole blocks, which B's are of rank."""
    return QType.F16 if source.shape[-1] % GGML_QUANT_SIZES[file_type.default][0] else file_type.default


def _header(architecture: str, name: str, alpha: float) -> GGUFWriter:
    writer = GGUFWriter(None, architecture)
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_name(name)
    writer.add_float32(Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    return writer


def _notes(settings: AdapterSettings, base: AdapterBase) -> tuple[str, ...]:
    """A word where the base has another name than the trainer's; shapes fit, and names tell little."""
    if settings.may_be_for(base.names):
        return ()
    return (
        f"The adapter was trained on {shown(settings.base_name)}; make sure that {base.path.name} is the same model.",
    )
