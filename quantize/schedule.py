"""The order of work: which block of which tensor is next, and which tensors are finished.

Tensors are taken in the order in which their files arrive, so that a file that is still being downloaded holds up
nothing that could be done before, and each file is needed for one short while only.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from quantize.checkpoint.merged import files_of
from quantize.checkpoint.tensor import TensorSource, count_elements

_BLOCK_ELEMENTS = 1 << 18
"""Elements worked on at a time per thread: 1 MiB of F32, which stays in a core's own cache."""


@dataclass(frozen=True)
class Block:
    """A run of rows of one tensor, all of one matrix."""

    name: str
    first_row: int
    n_rows: int
    n_elements: int
    i_matrix: int
    """Which expert of a layer; 0 for a tensor that is one matrix."""


class Schedule:
    """Hands blocks to the threads and counts what is done. Safe from several threads."""

    def __init__(self, sources: Mapping[str, TensorSource], finished: Collection[str]) -> None:
        """Plan the work on all of `sources`, by tensor name, except for those `finished` before."""
        self._lock = threading.Lock()
        self._closed = False
        self._n_left: dict[str, int] = {}
        self._finished: list[str] = []
        self._blocks = self._cut_all([(name, sources[name]) for name in _by_arrival(sources) if name not in finished])
        self.n_elements = sum(count_elements(source.shape) for source in sources.values())
        self.n_done = sum(count_elements(sources[name].shape) for name in finished)

    @property
    def is_closed(self) -> bool:
        """Whether the work was called off."""
        return self._closed

    def take(self) -> Block | None:
        """The next block to work on; None when there is none, or the work was called off."""
        with self._lock:
            return None if self._closed else next(self._blocks, None)

    def finish(self, block: Block) -> None:
        """Count a block as written."""
        with self._lock:
            self.n_done += block.n_elements
            self._n_left[block.name] -= 1
            if not self._n_left[block.name]:
                self._finished.append(block.name)

    def take_finished(self) -> list[str]:
        """The tensors that were finished since the last call."""
        with self._lock:
            finished, self._finished = self._finished, []
            return finished

    def close(self) -> None:
        """Call the work off: no more blocks."""
        with self._lock:
            self._closed = True

    def _cut_all(self, tensors: list[tuple[str, TensorSource]]) -> Iterator[Block]:
        for name, source in tensors:
            n_matrices, n_rows, step = _measure(source)
            self._n_left[name] = n_matrices * -(-n_rows // step)
            yield from _cut(name, source)


def _by_arrival(sources: Mapping[str, TensorSource]) -> list[str]:
    """Names by the last of the files that a tensor needs, which arrive in the order of their names."""
    last = {name: max(map(str, files_of(source)), default="") for name, source in sources.items()}
    return sorted(sources, key=last.__getitem__)


def _cut(name: str, source: TensorSource) -> Iterator[Block]:
    """Cut a tensor into blocks; none reaches from one expert into the next."""
    n_matrices, n_rows, step = _measure(source)
    # Not `itertools.product`, which would first make a list of millions for a file that has as many.
    for i_matrix in range(n_matrices):
        for first in range(0, n_rows, step):
            n_here = min(step, n_rows - first)
            yield Block(name, i_matrix * n_rows + first, n_here, n_here * source.shape[-1], i_matrix)


def _measure(source: TensorSource) -> tuple[int, int, int]:
    """Number of matrices, rows of each, and rows of a block."""
    n_matrices = count_elements(source.shape[:-2])
    n_rows = count_elements(source.shape[:-1]) // n_matrices
    groups = max(1, _BLOCK_ELEMENTS // (source.shape[-1] * source.row_group))
    return n_matrices, n_rows, groups * source.row_group
