"""Importance matrices: bytes, types and header as llama.cpp has them, in both formats, and what is refused."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
from conftest import RunCommand

from quantize import FILE_TYPES, QuantizeError, convert, predict
from support.checkpoints import LlamaShape, write_random_checkpoint
from support.imatrix_files import write_gguf_imatrix, write_legacy_imatrix
from support.llama_cpp_oracle import quantize_with_imatrix, read_tensors, write_f32_gguf

SHAPES = {
    "wide": LlamaShape(n_vocab=600, n_embd=256, n_ff=256, n_layer=1, n_head=2, n_head_kv=1),
    "deep": LlamaShape(n_vocab=600, n_embd=64, n_ff=256, n_layer=9, n_head=4, n_head_kv=1),
    "narrow": LlamaShape(n_vocab=600, n_embd=144, n_ff=256, n_layer=2, n_head=4, n_head_kv=2, head_dim=40, tied=True),
    "small": LlamaShape(n_vocab=600, n_embd=64, n_ff=32, n_layer=1, n_head=2, n_head_kv=1),
}
EXPERTS = {
    "eight": LlamaShape(n_vocab=600, n_embd=64, n_ff=32, n_layer=8, n_head=4, n_head_kv=2, n_expert=8),
    "four, 288 columns": LlamaShape(n_vocab=600, n_embd=256, n_ff=288, n_layer=1, n_head=4, n_head_kv=1, n_expert=4),
}
PLAIN = {"f32", "f16", "bf16", "q8_0"}
"""Quants whose bytes no importance changes."""

LAYERED = ("q4_0", "q5_0", "iq4_nl", "iq4_xs", "q2_k", "q4_k_m")
"""Mixes that differ by layer, some of them only with importance."""

Rows = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def sources(small_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sources")
    for name, shape in SHAPES.items():
        write_random_checkpoint(directory / name, shape, tokenizer=small_tokenizer)
        for quant in ("f32", "bf16"):
            convert(directory / name, directory / f"{name}-{quant}.gguf", FILE_TYPES[quant])
    return directory


def random_sums(source: Path, *, without: str = "nothing", seed: int = 0) -> Rows:
    """For each matrix of a GGUF file, sums of squares as they come: a few columns count much more than the rest."""
    rng = np.random.default_rng(seed)
    sums = {}
    for tensor in gguf.GGUFReader(source).tensors:
        *experts, _, n_columns = (1, 1, *(int(n) for n in tensor.shape[::-1]))
        if len(tensor.shape) > 1 and "ffn_gate_inp" not in tensor.name and without not in tensor.name:
            sums[tensor.name] = (1000 * rng.standard_exponential((experts[-1], n_columns)) ** 3).astype(np.float32)
    return sums


def write_as_gguf(path: Path, sums: Rows) -> tuple[Rows, dict[str, str | int]]:
    """Write with a count for each expert, some of them 0; return what llama-quantize would hand to llama.cpp."""
    counts = {name: np.resize([96, 1, 0, 2049], len(rows)).astype(np.float32) for name, rows in sums.items()}
    counts["blk.0.attn_q.weight"] = np.zeros(1, np.float32)
    write_gguf_imatrix(path, {name: (rows, counts[name]) for name, rows in sums.items()})
    means = {
        name: np.stack([np.ones_like(row) if n == 0 else row / n for row, n in zip(rows, counts[name], strict=True)])
        for name, rows in sums.items()
    }
    return means, keys_of(path, sums, 7)


def write_as_legacy(path: Path, sums: Rows) -> tuple[Rows, dict[str, str | int]]:
    """The same for the older format, where one number of calls divides all, and 0 nothing."""
    n_calls = {name: i % 4 for i, name in enumerate(sums)}
    write_legacy_imatrix(path, {name: (rows, n_calls[name]) for name, rows in sums.items()})
    means = {name: rows / np.float32(n_calls[name] or 1) for name, rows in sums.items()}
    return means, keys_of(path, sums, 11)


def keys_of(path: Path, entries: Mapping[str, object], n_chunks: int) -> dict[str, str | int]:
    return {
        "quantize.imatrix.file": str(path)[:127],
        "quantize.imatrix.dataset": "calibration.txt",
        "quantize.imatrix.entries_count": len(entries),
        "quantize.imatrix.chunks_count": n_chunks,
    }


FORMATS = {"gguf": write_as_gguf, "dat": write_as_legacy}
Write = Callable[[Path, Rows], tuple[Rows, dict[str, str | int]]]


# --- exact --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "form", "quants"),
    [
        ("wide", "gguf", FILE_TYPES),
        ("wide", "dat", ("q5_k_s", "q3_k_l", "q6_k")),
        ("narrow", "gguf", LAYERED),
        ("narrow", "dat", FILE_TYPES),
        ("deep", "gguf", LAYERED),
        ("deep", "dat", LAYERED),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_whole_file_is_llama_cpps(
    name: str, form: str, quants: Iterable[str], sources: Path, tmp_path: Path
) -> None:
    source, matrix = sources / f"{name}-bf16.gguf", tmp_path / "matrix"
    rows, keys = FORMATS[form](matrix, random_sums(source))
    for quant in quants:
        file_type = FILE_TYPES[quant]
        quantize_with_imatrix(source, tmp_path / "theirs.gguf", file_type.ftype, rows, keys)
        report = convert(source, tmp_path / "ours.gguf", file_type, imatrix=matrix)
        ours = (tmp_path / "ours.gguf").read_bytes()
        assert ours == (tmp_path / "theirs.gguf").read_bytes(), quant
        assert predict(source, file_type, imatrix=matrix).size_bytes == len(ours)
        assert (report.n_weighted == 0) == (quant in PLAIN)


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("shape", EXPERTS.values(), ids=EXPERTS)
def test_each_expert_has_its_own_row(shape: LlamaShape, write: Write, small_tokenizer: Path, tmp_path: Path) -> None:
    source, matrix = tmp_path / "f32.gguf", tmp_path / "matrix"
    write_f32_gguf(source, shape, write_random_checkpoint(tmp_path / "model", shape, tokenizer=small_tokenizer))
    rows, keys = write(matrix, random_sums(source))
    assert rows["blk.0.ffn_down_exps.weight"].shape == (shape.n_expert, shape.n_ff)
    for quant in ("q4_0", "q4_k_m", "iq4_xs", "q2_k"):
        quantize_with_imatrix(source, tmp_path / "theirs.gguf", FILE_TYPES[quant].ftype, rows, keys)
        convert(tmp_path / "model", tmp_path / "ours.gguf", FILE_TYPES[quant], imatrix=matrix)
        assert read_tensors(tmp_path / "ours.gguf") == read_tensors(tmp_path / "theirs.gguf"), quant
        header = gguf.GGUFReader(tmp_path / "ours.gguf").fields
        assert {key: header[key].contents() for key in keys} == keys


def test_one_count_may_stand_for_all_experts(small_tokenizer: Path, tmp_path: Path) -> None:
    shape = EXPERTS["four, 288 columns"]
    source, matrix = tmp_path / "f32.gguf", tmp_path / "matrix"
    write_f32_gguf(source, shape, write_random_checkpoint(tmp_path / "model", shape, tokenizer=small_tokenizer))
    sums = random_sums(source)
    write_gguf_imatrix(matrix, {name: (rows, np.array([3.0])) for name, rows in sums.items()})
    rows = {name: values / np.float32(3) for name, values in sums.items()}
    quantize_with_imatrix(source, tmp_path / "theirs.gguf", FILE_TYPES["q4_0"].ftype, rows, keys_of(matrix, rows, 7))
    convert(tmp_path / "model", tmp_path / "ours.gguf", FILE_TYPES["q4_0"], imatrix=matrix)
    assert read_tensors(tmp_path / "ours.gguf") == read_tensors(tmp_path / "theirs.gguf")


def test_importance_changes_the_bytes_it_should(sources: Path, tmp_path: Path) -> None:
    """So that the comparisons above cannot pass with both sides ignoring the matrix."""
    source, matrix = sources / "wide-bf16.gguf", tmp_path / "matrix.gguf"
    write_as_gguf(matrix, random_sums(source, without="attn_k"))
    for quant in ("q6_k", "q4_k_m", "q4_0", "iq4_nl"):
        convert(source, tmp_path / "without.gguf", FILE_TYPES[quant])
        report = convert(source, tmp_path / "with.gguf", FILE_TYPES[quant], imatrix=matrix)
        without, weighted = read_tensors(tmp_path / "without.gguf"), read_tensors(tmp_path / "with.gguf")
        different = {name for name in without if without[name] != weighted[name]}
        assert {"blk.0.attn_v.weight", "blk.0.ffn_up.weight", "output.weight"} <= different
        assert not any("attn_k" in name or "norm" in name for name in different)
        assert report.n_weighted == 6 + 2


def test_mixes_that_depend_on_it(sources: Path, tmp_path: Path) -> None:
    matrix = tmp_path / "matrix.dat"
    write_legacy_imatrix(matrix, {"blk.3.attn_q.weight": (np.ones(64), 1)})
    for quant, without, weighted in (("q4_0", "Q4_0", "Q4_1"), ("q5_0", "Q5_0", "Q5_1"), ("iq4_xs", "Q5_K", "IQ4_XS")):
        for imatrix, first in ((None, without), (matrix, weighted)):
            path = tmp_path / "out.gguf"
            report = convert(sources / "deep", path, FILE_TYPES[quant], imatrix=imatrix)
            prediction = predict(sources / "deep", FILE_TYPES[quant], imatrix=imatrix)
            assert prediction.tensor_types == report.tensor_types
            assert prediction.size_bytes == path.stat().st_size
            assert prediction.n_weighted == report.n_weighted == (imatrix is not None)
            types = read_tensors(path)
            assert types["blk.0.ffn_down.weight"][0].name == first
            assert types["blk.1.ffn_down.weight"][0].name == quant.upper()


def test_a_partial_matrix_and_odd_embeddings(sources: Path, tmp_path: Path) -> None:
    """Tensors that it does not know, tensors that the model has not, embeddings of another size: as in llama.cpp."""
    source, matrix = sources / "narrow-f32.gguf", tmp_path / "matrix.gguf"
    sums = random_sums(source, without="ffn_gate") | {
        "token_embd.weight": np.ones((1, 5), np.float32),
        "blk.99.attn_q.weight": np.ones((1, 3), np.float32),
        "output_norm.weight": np.ones((1, 7), np.float32),
    }
    rows, keys = write_as_gguf(matrix, sums)
    quantize_with_imatrix(source, tmp_path / "theirs.gguf", FILE_TYPES["q4_k_m"].ftype, rows, keys)
    convert(source, tmp_path / "ours.gguf", FILE_TYPES["q4_k_m"], imatrix=matrix)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_the_header_says_what_is_known(sources: Path, tmp_path: Path) -> None:
    """Texts are cut as llama-quantize cuts them, what is not known is left out, older keys are replaced."""
    source = sources / "small-f32.gguf"
    sums = random_sums(source)
    values = {name: (rows, 1) for name, rows in sums.items()}
    bare = write_legacy_imatrix(tmp_path / ("long" * 40 + ".dat"), values, dataset=None, n_chunks=None)
    named = write_legacy_imatrix(tmp_path / "named.dat", values, dataset="d" * 126 + "é", n_chunks=-3)
    expected = {"quantize.imatrix.file": str(bare)[:127], "quantize.imatrix.entries_count": len(sums)}
    quantize_with_imatrix(source, tmp_path / "theirs.gguf", FILE_TYPES["q4_0"].ftype, sums, expected)
    convert(source, tmp_path / "ours.gguf", FILE_TYPES["q4_0"], imatrix=bare)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
    again = tmp_path / "again.gguf"
    convert(tmp_path / "ours.gguf", again, FILE_TYPES["q5_0"], requantize=True, imatrix=named)
    header = {key: field.contents() for key, field in gguf.GGUFReader(again).fields.items()}
    assert header["quantize.imatrix.file"] == str(named)
    assert header["quantize.imatrix.dataset"] == "d" * 126
    assert "quantize.imatrix.chunks_count" not in header
    assert [key for key in header if key.startswith("quantize.")] == list(header)[-3:]


# --- refused ------------------------------------------------------------------------------------------------

Q = "blk.0.attn_q.weight"
"""64 columns in the small model."""
FLOATS = np.ones(64, np.float32)


def damaged(index: int, value: float) -> np.ndarray:
    values = FLOATS.copy()
    values[index] = value
    return values


BAD_LEGACY = {
    "no entries": ({}, {}, "it would have 0 entries"),
    "too many entries": ({Q: (FLOATS, 1)}, {"n_entries": 2**31 - 1}, "it would have 2147483647 entries"),
    "a negative number of entries": ({Q: (FLOATS, 1)}, {"n_entries": -1}, "it would have -1 entries"),
    "more entries than there are": ({Q: (FLOATS, 1)}, {"n_entries": 3}, "no importance matrix, or"),
    "no name": ({b"\xff\xfe": (FLOATS, 1)}, {}, "a name is not UTF-8"),
    "negative calls": ({Q: (FLOATS, -1)}, {}, rf"-1 calls and 64 values for tensor {Q}"),
    "no values": ({Q: (FLOATS[:0], 1)}, {}, rf"1 calls and 0 values for tensor {Q}"),
    "other size": ({Q: (FLOATS[:32], 1)}, {}, rf"has 32 values for tensor {Q}, which takes 64"),
    "NaN": ({Q: (damaged(63, np.nan), 1)}, {}, rf"holds NaN, infinite or negative values for tensor {Q}"),
    "infinity": ({Q: (damaged(0, np.inf), 1)}, {}, rf"holds NaN, infinite or negative values for tensor {Q}"),
    "negative": ({Q: (damaged(5, -1), 1)}, {}, rf"holds NaN, infinite or negative values for tensor {Q}"),
    "other model": ({"blk.7.attn_q.weight": (FLOATS, 1)}, {}, "knows none of this model's tensors, but blk.7.attn_q"),
}
BAD_GGUF = {
    "NaN sum": (damaged(3, np.nan), [1.0], rf"holds NaN, infinite or negative values for tensor {Q}"),
    "NaN count": (FLOATS, [np.nan], rf"impossible counts for tensor {Q}"),
    "negative count": (FLOATS, [-1.0], rf"impossible counts for tensor {Q}"),
    "enormous count": (FLOATS, [1e30], rf"impossible counts for tensor {Q}"),
    "counts for three experts": (FLOATS, [1.0] * 3, rf"impossible counts for tensor {Q}"),
    "more counts than values": (FLOATS, [1.0] * 128, rf"impossible counts for tensor {Q}"),
    "other size": (np.ones(128, np.float32), [1.0], rf"has 128 values for tensor {Q}, which takes 64"),
}


def assert_refused(path: Path, problem: str, sources: Path, directory: Path) -> None:
    out = directory / "out.gguf"
    for source in (sources / "small-f32.gguf", sources / "small"):
        with pytest.raises(QuantizeError, match=problem) as caught:
            convert(source, out, FILE_TYPES["q4_0"], imatrix=path)
        with pytest.raises(QuantizeError, match=problem):
            predict(source, FILE_TYPES["q4_0"], imatrix=path)
        assert str(caught.value).startswith(f"{path.name}: ")
        assert "imatrix" in caught.value.next_step
        assert not out.exists()


@pytest.mark.parametrize(("entries", "changes", "problem"), BAD_LEGACY.values(), ids=BAD_LEGACY)
def test_older_files_that_are_refused(
    entries: dict, changes: dict, problem: str, sources: Path, tmp_path: Path
) -> None:
    assert_refused(write_legacy_imatrix(tmp_path / "m.dat", entries, **changes), problem, sources, tmp_path)


@pytest.mark.parametrize(("sums", "counts", "problem"), BAD_GGUF.values(), ids=BAD_GGUF)
def test_gguf_files_that_are_refused(
    sums: np.ndarray, counts: list[float], problem: str, sources: Path, tmp_path: Path
) -> None:
    path = write_gguf_imatrix(tmp_path / "m.gguf", {Q: (sums, np.array(counts))})
    assert_refused(path, problem, sources, tmp_path)


def test_other_files_are_refused(sources: Path, tmp_path: Path) -> None:
    assert_refused(tmp_path / "missing.dat", "is missing", sources, tmp_path)
    assert_refused(tmp_path, "is not a file", sources, tmp_path)
    assert_refused(sources / "small-f32.gguf", "has no key imatrix.datasets", sources, tmp_path)
    (tmp_path / "empty").write_bytes(b"")
    assert_refused(tmp_path / "empty", "truncated", sources, tmp_path)
    crowded = tmp_path / "crowded.gguf"
    keys = b"".join(b"\x08" + bytes(7) + b"%08d" % i + bytes(5) for i in range(100_001))  # one byte each
    crowded.write_bytes(b"GGUF\x03" + bytes(3) + struct.pack("<QQ", 0, 100_001) + keys)
    assert_refused(crowded, "it would have 0 tensors and 100001 keys", sources, tmp_path)
    half = tmp_path / "half.gguf"
    write_gguf_imatrix(half, {Q: (FLOATS, np.ones(1))})
    half.write_bytes(half.read_bytes().replace(f"{Q}.counts".encode(), f"{Q}.county".encode()))
    assert_refused(half, f"only one of .in_sum2 and .counts for tensor {Q}", sources, tmp_path)


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
def test_truncated_files_are_refused_wherever_they_end(write: Write, sources: Path, tmp_path: Path) -> None:
    whole, path = tmp_path / "whole", tmp_path / "cut"
    write(whole, random_sums(sources / "small-f32.gguf"))
    content = whole.read_bytes()
    ends_of_parts = {len(content) - n for n in (19, 23)} if write is write_as_legacy else set()  # dataset, chunks
    end = len(content) - (28 if write is write_as_gguf else 0)  # what follows is only there to fill the file up
    for n_kept in (0, 1, 3, 4, 7, 8, 24, 60, 400, *range(end - 30, end)):
        path.write_bytes(content[:n_kept])
        if n_kept in ends_of_parts:
            predict(sources / "small-f32.gguf", FILE_TYPES["q4_0"], imatrix=path)
        else:
            with pytest.raises(QuantizeError, match=r"^cut: "):
                predict(sources / "small-f32.gguf", FILE_TYPES["q4_0"], imatrix=path)


_MUTATE = """
import random, resource, struct, sys
from pathlib import Path
from quantize import FILE_TYPES, QuantizeError, convert, predict
from quantize.errors import OutputError

source, original, directory = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
content_before = original.read_bytes()
resource.setrlimit(resource.RLIMIT_AS, (2_000_000_000, 2_000_000_000))
predict(source, FILE_TYPES["q4_0"], imatrix=original)
outcomes = {"refused": 0, "taken": 0}
for seed in range(600):
    rng = random.Random(seed)
    content = bytearray(content_before)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(min(len(content), rng.choice((40, 900, 10**9))))
        new = rng.choice((bytes([rng.randrange(256)]), struct.pack("<i", rng.choice((0, -1, 2**31 - 1, -2**31, 9)))))
        content[at : at + len(new)] = new
    if rng.random() < 0.2:
        del content[at : at + rng.randrange(1, 20)]
    (directory / "mutated").write_bytes(content)
    quant = FILE_TYPES[rng.choice(("q4_0", "q8_0", "iq4_nl"))]
    try:
        predict(source, quant, imatrix=directory / "mutated")
        if seed % 8 == 0:
            convert(source, directory / "out.gguf", quant, imatrix=directory / "mutated", n_threads=1)
        outcomes["taken"] += 1
    except QuantizeError as error:
        assert not isinstance(error, OutputError), (seed, error)
        assert str(error).isprintable() and len(str(error)) < 500, (seed, error)
        outcomes["refused"] += 1
assert min(outcomes.values()) > 20, outcomes
"""

_EXTREMES = """
import sys
from pathlib import Path
import numpy as np
from quantize import FILE_TYPES, QuantizeError, convert
from support.imatrix_files import write_gguf_imatrix

source, directory = Path(sys.argv[1]), Path(sys.argv[2])
rng, outcomes = np.random.default_rng(1), {"refused": 0, "converted": 0}
extremes = np.array([0, 1e-45, 1e-38, 1, 1e20, 3e38], np.float32)
for quant in ("q6_k", "q5_k_m", "q5_1", "q5_0", "q4_k_m", "q4_1", "q4_0", "iq4_nl", "iq4_xs", "q3_k_m", "q2_k"):
    for values in (np.zeros(256), rng.choice(extremes, 256), rng.choice(extremes[:3], 256)):
        entries = {f"blk.0.{kind}.weight": (values, np.ones(1)) for kind in ("attn_k", "ffn_down")}
        write_gguf_imatrix(directory / "matrix", entries)
        try:
            convert(source, directory / "out.gguf", FILE_TYPES[quant], imatrix=directory / "matrix")
            outcomes["converted"] += 1
        except QuantizeError as error:
            assert "with these importances" in str(error), error
            outcomes["refused"] += 1
assert outcomes["converted"] > 20, outcomes
"""


def run_alone(script: str, *arguments: Path) -> None:
    """In a process of its own: nothing crashes it."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{script}"]
    result = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
def test_mutated_files_are_taken_or_refused(write: Write, sources: Path, tmp_path: Path) -> None:
    source = sources / "small-f32.gguf"
    write(tmp_path / "matrix", random_sums(source))
    run_alone(_MUTATE, source, tmp_path / "matrix", tmp_path)


def test_extreme_importances_are_taken_or_refused(sources: Path, tmp_path: Path) -> None:
    run_alone(_EXTREMES, sources / "wide-bf16.gguf", tmp_path)


# --- the command --------------------------------------------------------------------------------------------


def test_the_command(sources: Path, tmp_path: Path, run: RunCommand) -> None:
    matrix = tmp_path / "matrix.gguf"
    write_as_gguf(matrix, random_sums(sources / "wide-bf16.gguf", without="token_embd"))
    command = ("quantize", sources / "wide", "--quant", "iq4_xs", "-o", tmp_path / "out.gguf")
    made = json.loads(run(*command, "--imatrix", matrix, "--json").stdout)
    assert made["n_weighted"] == 7 + 1
    predicted = run(*command, "--imatrix", matrix, "--dry-run").stdout
    assert f"({made['size_bytes']:,} bytes)" in predicted
    assert "8 tensors weighted by importance" in predicted
    refused = run(*command, "--force", "--imatrix", sources / "wide-bf16.gguf")
    assert refused.returncode == 1
    assert [line.split(":")[0] for line in refused.stderr.splitlines()] == ["Error", "Next"]
