"""The file that is being made: its hash while it is written in any order."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantize import digest
from quantize.digest import OrderedDigest

CONTENT = np.random.default_rng(0).integers(0, 256, 3_000_001, np.uint8)


@given(st.permutations(range(12)), st.sets(st.integers(0, 11)), st.integers(0, 40), st.integers(0, 3))
def test_hash_of_pieces_in_any_order(order: list[int], there_before: set[int], n_kept: int, n_idle: int) -> None:
    content = CONTENT[:120]
    ordered = OrderedDigest(lambda position, n: content[position : position + min(n, 3)].data)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(digest, "_MAX_KEPT", n_kept)
        for i in there_before:
            ordered.note(i * 10, 10)
        for i in order:
            if i not in there_before:
                scratch = content[i * 10 : i * 10 + 10].copy()
                ordered.add(i * 10, scratch)
                scratch[:] = 0  # the next block's
            if i % 4 == n_idle:
                ordered.go_on(15)
        assert ordered.finish(content.size) == hashlib.sha256(content).hexdigest()
