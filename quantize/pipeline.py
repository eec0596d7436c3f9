"""A checkpoint goes in at the top, a GGUF file comes out at the bottom: plan → read → quantize → write → publish.

Tensors are cut into runs of rows that a few threads read, widen to F32, quantize and write back, each in its own
small buffers. So memory stays the same whatever the size of the model, all cores work, and nothing but the
final file touches the disk. Every row is quantized by itself, which is why the cuts do not change a byte.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantize import ggml
from quantize.architectures import find_architecture
from quantize.checkpoint import open_checkpoint, read_config
from quantize.checkpoint.files import reading
from quantize.checkpoint.merged import files_of, find_not_finite, origin
from quantize.checkpoint.tensor import TensorSource
from quantize.choices import Choices
from quantize.errors import BadPreTokenizer, TensorError, WeightedTensorError
from quantize.from_checkpoint import outline_from_config, plan_from_checkpoint
from quantize.from_gguf import plan_from_gguf
from quantize.gguf_reader import open_gguf
from quantize.header import Provenance
from quantize.imatrix import open_imatrix, with_importance
from quantize.plan import Outline, Plan
from quantize.recipe import FileType, QType
from quantize.schedule import Block, Schedule
from quantize.supply import Ledger, Supply
from quantize.vocab import read_vocabulary
from quantize.writer import GGUFFile, predict_size

_REPORT_EVERY_S = 0.1

Progress = Callable[[int, int], None]
"""Called now and then in the caller's thread with (elements done, elements in all)."""


@dataclass(frozen=True)
class Prediction:
    """What a conversion comes to."""

    file_type: FileType
    architecture: str
    size_bytes: int
    n_params: int
    tensor_types: Mapping[str, int]
    """How many tensors have each type, by its name (`Q4_K`), most frequent first."""
    notes: tuple[str, ...]
    """What the user should know, a sentence each."""
    n_weighted: int
    """How many tensors are quantized with an importance matrix."""

    @property
    def bits_per_weight(self) -> float:
        """Bits of file per parameter, header included."""
        return self.size_bytes * 8 / self.n_params


@dataclass(frozen=True)
class ConversionReport(Prediction):
    """What was made, and from how much."""

    path: Path
    sha256: str
    elapsed_s: float


def convert(
    source: Path,
    out_path: Path,
    file_type: FileType,
    *,
    requantize: bool = False,
    choices: Choices | None = None,
    imatrix: Path | None = None,
    provenance: Provenance | None = None,
    pre_tokenizer: str | None = None,
    n_threads: int | None = None,
    progress: Progress | None = None,
    journal: Path | None = None,
    supply: Supply | None = None,
) -> ConversionReport:
    """Convert and quantize `source` to the GGUF file `out_path` in one pass.

    `source` is the directory of a Hugging Face checkpoint or of a release of Meta's, or a GGUF file, which keeps its
    header and may hold quantized tensors only with `requantize`. `choices` change the mix. `imatrix` is the file of an
    importance matrix, in either of llama-imatrix's formats. `provenance` and `pre_tokenizer`, llama.cpp's name for a
    pre-tokenizer that is not recognized, are for checkpoints. `n_threads` defaults to the cores this process may use.
    Raises `QuantizeError`; whatever is raised, `out_path` is then as it was before.

    With a `journal`, what was done when the work was cut short is kept, and the next call with the same arguments
    goes on from there, if the weights are still the same by size and time; the caller removes that file when the result
    has found its place. `supply` hands out weight files that are still arriving.
    """
    started = time.monotonic()
    with _planned(source, file_type, requantize, choices, imatrix, provenance, pre_tokenizer) as plan:
        return run_plan(plan, out_path, file_type, n_threads, progress, started, journal, supply)


def run_plan(
    plan: Plan,
    out_path: Path,
    file_type: FileType,
    n_threads: int | None,
    progress: Progress | None,
    started: float,
    journal: Path | None = None,
    supply: Supply | None = None,
) -> ConversionReport:
    """Do what was planned; the time is counted from `started`, on the monotonic clock."""
    made_from = _describe_inputs(plan, supply) if journal else b""
    with GGUFFile(out_path, plan.outline.header, plan.outline.tensors, journal, made_from) as out:
        _quantize_all(plan, out, n_threads or _usable_cores(), progress, supply)
        sha256 = out.publish()
    return ConversionReport(
        **vars(_predict(plan.outline, file_type, out.size_bytes, plan)),
        path=out_path,
        sha256=sha256,
        elapsed_s=time.monotonic() - started,
    )


def _describe_inputs(plan: Plan, supply: Supply | None) -> bytes:
    """What tells these weights and importances from others of the same shapes, without reading all of them.

    Files that are still arriving say nothing yet; whoever supplies them knows that they are the same.
    """
    files = sorted(set().union(*map(files_of, plan.sources.values()))) if supply is None else []
    digest = hashlib.sha256()
    for path in files:
        with reading(path):
            found = path.stat()
        digest.update(repr((str(path), found.st_size, found.st_mtime_ns)).encode())
    for name in sorted(plan.importance):
        digest.update(plan.importance[name].tobytes())
    return digest.digest()


def predict(
    source: Path,
    file_type: FileType,
    *,
    requantize: bool = False,
    choices: Choices | None = None,
    imatrix: Path | None = None,
    provenance: Provenance | None = None,
    pre_tokenizer: str | None = None,
) -> Prediction:
    """Return what `convert` with the same arguments will make, exact to the byte, without reading weights.

    But whether the output matrix of a release of Meta's is the embeddings again is seen by comparing the two.
    """
    with _planned(source, file_type, requantize, choices, imatrix, provenance, pre_tokenizer) as plan:
        return predict_plan(plan, file_type)


def predict_plan(plan: Plan, file_type: FileType) -> Prediction:
    """Return what `run_plan` will make; the plan's header is used up."""
    return _predict(plan.outline, file_type, predict_size(plan.outline.header, plan.outline.tensors), plan)


def predict_from_config(
    directory: Path,
    file_type: FileType,
    *,
    choices: Choices | None = None,
    provenance: Provenance | None = None,
    pre_tokenizer: str | None = None,
) -> Prediction:
    """Return what `convert` will make of a checkpoint whose weights are not here yet, exact to the byte.

    Raises `QuantizeError` if config and tokenizer already show that it cannot be converted.
    """
    outline = outline_from_config(directory, read_config(directory), file_type, choices, provenance, pre_tokenizer)
    return _predict(outline, file_type, predict_size(outline.header, outline.tensors))


def _predict(outline: Outline, file_type: FileType, size_bytes: int, plan: Plan | None = None) -> Prediction:
    counts = dict(Counter(qtype.name for qtype in outline.types.values()).most_common())
    n_weighted = len(plan.importance) if plan else 0
    return Prediction(file_type, outline.architecture, size_bytes, outline.n_params, counts, outline.notes, n_weighted)


def check(directory: Path, pre_tokenizer: str | None = None) -> None:
    """Raise `QuantizeError` if config and tokenizer already show that the checkpoint cannot be converted.

    Needs no weights, so it can be asked before they are downloaded.
    """
    read_vocabulary(directory, find_architecture(*read_config(directory)).n_vocab, pre_tokenizer)


@contextmanager
def _planned(
    source: Path,
    file_type: FileType,
    requantize: bool,
    choices: Choices | None,
    imatrix_path: Path | None,
    provenance: Provenance | None,
    pre_tokenizer: str | None,
) -> Iterator[Plan]:
    """Open `source` for the length of the context, and decide everything that can be decided before reading weights."""
    with ExitStack() as stack:
        imatrix = stack.enter_context(open_imatrix(imatrix_path)) if imatrix_path else None
        has_imatrix = imatrix is not None
        if source.is_file():
            if pre_tokenizer is not None:
                raise BadPreTokenizer("A GGUF file keeps its pre-tokenizer.", "Leave --pre-tokenizer out.")
            contents = stack.enter_context(open_gguf(source))
            plan = plan_from_gguf(contents, file_type, requantize=requantize, choices=choices, has_imatrix=has_imatrix)
        else:
            checkpoint = stack.enter_context(open_checkpoint(source))
            plan = plan_from_checkpoint(checkpoint, file_type, choices, provenance, pre_tokenizer, has_imatrix)
        yield with_importance(plan, imatrix) if imatrix else plan


def _quantize_all(plan: Plan, out: GGUFFile, n_threads: int, progress: Progress | None, supply: Supply | None) -> None:
    """Run the threads over all blocks; the first error stops them and is raised here."""
    schedule = Schedule(plan.sources, out.finished)
    ledger = Ledger(plan.sources, out, supply)
    with ThreadPoolExecutor(n_threads, thread_name_prefix="quantize") as pool:
        workers = {pool.submit(_work, schedule, plan, out, supply) for _ in range(n_threads)}
        try:
            while workers:
                done, workers = wait(workers, timeout=_REPORT_EVERY_S, return_when=FIRST_EXCEPTION)
                if progress:
                    progress(schedule.n_done, schedule.n_elements)
                for worker in done:
                    worker.result()
                ledger.enter(schedule.take_finished())
        finally:
            schedule.close()


def _work(schedule: Schedule, plan: Plan, out: GGUFFile, supply: Supply | None) -> None:
    buffers = _Buffers()
    while block := schedule.take():
        source, qtype = plan.sources[block.name], plan.outline.types[block.name]
        if supply and not _wait_for(source, supply, schedule):
            return
        importance = plan.importance[block.name][block.i_matrix] if block.name in plan.importance else None
        out.write(block.name, block.first_row, _quantize_block(source, qtype, block, importance, buffers))
        schedule.finish(block)


def _wait_for(source: TensorSource, supply: Supply, schedule: Schedule) -> bool:
    """Wait until the files of `source` are here; False if the work is called off meanwhile."""
    for path in files_of(source):
        while not supply.wait_for(path, _REPORT_EVERY_S):
            if schedule.is_closed:
                return False
    return True


def _quantize_block(
    source: TensorSource, qtype: QType, block: Block, importance: ggml.Floats | None, buffers: _Buffers
) -> ggml.Buffer:
    """Read a block and return its bytes in the target type, in a buffer that the next call reuses."""
    n_columns = source.shape[-1]
    n_elements = block.n_rows * n_columns
    raw = buffers.take("raw", block.n_rows * ggml.row_size(source.qtype, n_columns))
    source.read_rows(block.first_row, block.n_rows, raw)
    if not ggml.is_finite(raw, source.qtype):
        raise TensorError(*find_not_finite(source, block.first_row, block.n_rows), "holds NaN or infinite values")
    if qtype == source.qtype:
        return raw
    quantized = buffers.take("quantized", block.n_rows * ggml.row_size(qtype, n_columns))
    if (source.qtype, qtype) == (QType.BF16, QType.F16):
        ggml.bf16_to_f16(raw, quantized)
    else:
        rows = raw.view(np.float32)
        if source.qtype != QType.F32:
            rows = buffers.take("f32", n_elements * 4).view(np.float32)
            ggml.to_f32(raw, source.qtype, rows)
        ggml.quantize_rows(rows.reshape(block.n_rows, n_columns), qtype, quantized, importance)
    if not ggml.is_finite(quantized, qtype):
        if importance is not None:
            problem = f"cannot be quantized to {qtype.name} with these importances"
            raise WeightedTensorError(*origin(source, block.first_row, block.n_rows), problem)
        raise TensorError(*origin(source, block.first_row, block.n_rows), f"holds values too large for {qtype.name}")
    return quantized


class _Buffers:
    """Memory of one thread, grown to the largest block and reused."""

    def __init__(self) -> None:
        self._arrays: dict[str, ggml.Buffer] = {}

    def take(self, name: str, n_bytes: int) -> ggml.Buffer:
        """Return `n_bytes` of uninitialized memory, 64-byte aligned as far as NumPy does it."""
        array = self._arrays.get(name)
        if array is None or array.size < n_bytes:
            array = self._arrays[name] = np.empty(n_bytes, np.uint8)
        return array[:n_bytes]


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
