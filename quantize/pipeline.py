"""A checkpoint goes in at the top, a GGUF file comes out at the bottom: plan → read → quantize → write → publish.

Tensors are cut into runs of rows that a few threads read, widen to F32, quantize and write back, each in its own
small buffers. So memory stays the same whatever the size of the model, all cores work, and nothing but the
final file touches the disk. Every row is quantized by itself, which is why the cuts do not change a byte.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from gguf import size_label

from quantize import ggml
from quantize.architectures import find_architecture
from quantize.architectures.base import Architecture, ExpectedTensor
from quantize.checkpoint import Checkpoint, open_checkpoint, read_config
from quantize.checkpoint.merged import find_not_finite, origin
from quantize.checkpoint.tensor import PermutedRows, StackedRows, TensorSource, count_elements
from quantize.choices import Choices
from quantize.errors import BadPreTokenizer, TensorError
from quantize.from_gguf import plan_from_gguf
from quantize.gguf_reader import open_gguf
from quantize.header import Provenance, build_header
from quantize.plan import Plan
from quantize.recipe import FileType, QType, tensor_types
from quantize.vocab import read_vocabulary
from quantize.writer import GGUFFile, predict_size

_BLOCK_ELEMENTS = 1 << 18
"""Elements worked on at a time per thread: 1 MiB of F32, which stays in a core's own cache."""

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
    provenance: Provenance | None = None,
    pre_tokenizer: str | None = None,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> ConversionReport:
    """Convert and quantize `source` to the GGUF file `out_path` in one pass.

    `source` is the directory of a Hugging Face checkpoint or of a release of Meta's, or a GGUF file, which keeps its
    header and may hold quantized tensors only with `requantize`. `choices` change the mix. `provenance` and
    `pre_tokenizer`, llama.cpp's name for a pre-tokenizer that is not recognized, are for checkpoints. `n_threads`
    defaults to the cores this process may use. Raises `QuantizeError`; whatever is raised, `out_path` is then as it
    was before.
    """
    started = time.monotonic()
    with _planned(source, file_type, requantize, choices, provenance, pre_tokenizer) as plan:
        return run_plan(plan, out_path, file_type, n_threads, progress, started)


def run_plan(
    plan: Plan,
    out_path: Path,
    file_type: FileType,
    n_threads: int | None,
    progress: Progress | None,
    started: float,
) -> ConversionReport:
    """Do what was planned; the time is counted from `started`, on the monotonic clock."""
    with GGUFFile(out_path, plan.header, plan.tensors) as out:
        _quantize_all(plan, out, n_threads or _usable_cores(), progress)
        sha256 = out.publish()
    return ConversionReport(
        **vars(_predict(plan, file_type, out.size_bytes)),
        path=out_path,
        sha256=sha256,
        elapsed_s=time.monotonic() - started,
    )


def predict(
    source: Path,
    file_type: FileType,
    *,
    requantize: bool = False,
    choices: Choices | None = None,
    provenance: Provenance | None = None,
    pre_tokenizer: str | None = None,
) -> Prediction:
    """Return what `convert` with the same arguments will make, exact to the byte, without reading weights.

    But whether the output matrix of a release of Meta's is the embeddings again is seen by comparing the two.
    """
    with _planned(source, file_type, requantize, choices, provenance, pre_tokenizer) as plan:
        return predict_plan(plan, file_type)


def predict_plan(plan: Plan, file_type: FileType) -> Prediction:
    """Return what `run_plan` will make; the plan's header is used up."""
    return _predict(plan, file_type, predict_size(plan.header, plan.tensors))


def _predict(plan: Plan, file_type: FileType, size_bytes: int) -> Prediction:
    counts = Counter(qtype.name for qtype in plan.types.values())
    return Prediction(file_type, plan.architecture, size_bytes, plan.n_params, dict(counts.most_common()), plan.notes)


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
    provenance: Provenance | None,
    pre_tokenizer: str | None,
) -> Iterator[Plan]:
    """Open `source` for the length of the context, and decide everything that can be decided before reading weights."""
    if source.is_file():
        if pre_tokenizer is not None:
            raise BadPreTokenizer("A GGUF file keeps its pre-tokenizer.", "Leave --pre-tokenizer out.")
        with open_gguf(source) as contents:
            yield plan_from_gguf(contents, file_type, requantize=requantize, choices=choices)
        return
    with open_checkpoint(source) as checkpoint:
        yield _plan(checkpoint, file_type, choices, provenance, pre_tokenizer)


def _plan(
    checkpoint: Checkpoint,
    file_type: FileType,
    choices: Choices | None,
    provenance: Provenance | None,
    pre_tokenizer: str | None,
) -> Plan:
    architecture = find_architecture(checkpoint.config, checkpoint.config_path)
    sources = _match_tensors(checkpoint, architecture)
    n_params = sum(count_elements(source.shape) for source in sources.values())
    sources.update(architecture.computed_tensors())
    shapes = {name: source.shape for name, source in sources.items()}
    vocabulary = read_vocabulary(checkpoint.directory, architecture.n_vocab, pre_tokenizer)
    label = _size_label(sources, n_params, architecture.traits.n_expert)
    return Plan(
        architecture=architecture.gguf_name,
        header=build_header(checkpoint, architecture, vocabulary, file_type, label, provenance),
        sources=sources,
        types=tensor_types(shapes, file_type, architecture.traits, choices=choices),
        n_params=n_params,
    )


def _size_label(sources: Mapping[str, TensorSource], n_params: int, n_expert: int) -> str:
    """How people call the size: 7B, or 8x7B with eight experts."""
    n_expert_params = sum(count_elements(s.shape) for s in sources.values() if isinstance(s, StackedRows))
    return size_label(n_params, n_params - n_expert_params, n_expert_params // max(1, n_expert), n_expert)


def _match_tensors(checkpoint: Checkpoint, architecture: Architecture) -> dict[str, TensorSource]:
    """Pair every promised tensor with the one in the checkpoint; nothing missing, misshapen or left over."""
    sources: dict[str, TensorSource] = {}
    left_over = dict(checkpoint.tensors)
    for expected in architecture.expected_tensors():
        found: list[TensorSource] = []
        for name in expected.hf_names:
            tensor = left_over.pop(name, None)
            if tensor is None:
                raise TensorError(checkpoint.directory, name, "is missing")
            if tensor.shape != expected.shape:
                promise = f"{checkpoint.config_path.name} promises {list(expected.shape)}"
                raise TensorError(tensor.path, tensor.name, f"has shape {list(tensor.shape)}, but {promise}")
            found.append(tensor)
        sources[expected.gguf_name] = _in_order(expected, found)
    for name, tensor in left_over.items():
        if not architecture.is_redundant(name):
            raise TensorError(tensor.path, name, "is not part of this architecture")
    return sources


def _in_order(expected: ExpectedTensor, tensors: Sequence[TensorSource]) -> TensorSource:
    """The tensors of the checkpoint as the one that goes into the GGUF."""
    first, heads = tensors[0], expected.permute_heads
    if expected.n_expert is None:
        return PermutedRows(first, heads) if heads else first
    for tensor in tensors:
        if tensor.qtype != first.qtype:
            problem = f"is stored as {tensor.qtype.name}, but {first.name} as {first.qtype.name}"
            raise TensorError(tensor.path, tensor.name, problem)
    return StackedRows(expected.hf_name.format("*"), tuple(tensors))


def _quantize_all(plan: Plan, out: GGUFFile, n_threads: int, progress: Progress | None) -> None:
    """Run the threads over all blocks; the first error stops them and is raised here."""
    queue = _BlockQueue(_blocks(plan.sources))
    n_elements = sum(count_elements(source.shape) for source in plan.sources.values())
    with ThreadPoolExecutor(n_threads, thread_name_prefix="quantize") as pool:
        workers = {pool.submit(_work, queue, plan, out) for _ in range(n_threads)}
        try:
            while workers:
                done, workers = wait(workers, timeout=_REPORT_EVERY_S, return_when=FIRST_EXCEPTION)
                if progress:
                    progress(queue.n_done, n_elements)
                for worker in done:
                    worker.result()
                if first := queue.first_unfinished:
                    out.hash_up_to(first.name, first.first_row)
        finally:
            queue.close()


@dataclass(frozen=True)
class _Block:
    """A run of rows of one tensor."""

    name: str
    first_row: int
    n_rows: int


class _BlockQueue:
    """Hands blocks to the threads and counts the elements that are done."""

    def __init__(self, blocks: Iterator[_Block]) -> None:
        self._blocks = blocks
        self._lock = threading.Lock()
        self._closed = False
        self._in_work: list[_Block] = []
        self.n_done = 0

    @property
    def first_unfinished(self) -> _Block | None:
        """A block being worked on, with everything before it done: blocks are handed out in the order of the file."""
        with self._lock:
            return self._in_work[0] if self._in_work else None

    def take(self) -> _Block | None:
        with self._lock:
            block = None if self._closed else next(self._blocks, None)
            if block:
                self._in_work.append(block)
            return block

    def finish(self, block: _Block, n_elements: int) -> None:
        with self._lock:
            self._in_work.remove(block)
            self.n_done += n_elements

    def close(self) -> None:
        with self._lock:
            self._closed = True


def _blocks(sources: Mapping[str, TensorSource]) -> Iterator[_Block]:
    """Cut all tensors; a block never reaches from one expert into the next."""
    for name, source in sources.items():
        n_matrices = count_elements(source.shape[:-2])
        n_rows, n_columns = count_elements(source.shape[:-1]) // n_matrices, source.shape[-1]
        groups = max(1, _BLOCK_ELEMENTS // (n_columns * source.row_group))
        step = groups * source.row_group
        for i_matrix, first in product(range(n_matrices), range(0, n_rows, step)):
            yield _Block(name, i_matrix * n_rows + first, min(step, n_rows - first))


def _work(queue: _BlockQueue, plan: Plan, out: GGUFFile) -> None:
    buffers = _Buffers()
    while block := queue.take():
        source, qtype = plan.sources[block.name], plan.types[block.name]
        out.write(block.name, block.first_row, _quantize_block(source, qtype, block, buffers))
        queue.finish(block, block.n_rows * source.shape[-1])


def _quantize_block(source: TensorSource, qtype: QType, block: _Block, buffers: _Buffers) -> ggml.Buffer:
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
        ggml.quantize_rows(rows.reshape(block.n_rows, n_columns), qtype, quantized)
    if not ggml.is_finite(quantized, qtype):
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
