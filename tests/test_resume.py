"""Conversions that are cut short go on where they stopped, and weight files may still be arriving."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantize import (
    FileType,
    Provenance,
    QuantizeError,
    convert,
    find_file_type,
    ggml,
    predict,
    predict_from_config,
    schedule,
    supply,
    writer,
)
from quantize.checkpoint import open_checkpoint
from quantize.checkpoint.tensor import FileTensor
from support.checkpoints import LlamaShape, write_random_checkpoint

N_LAYER = 6
SHAPE = LlamaShape(600, 64, 96, N_LAYER, 4, 2)
Q8_0 = find_file_type("q8_0")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path) -> Path:
    directory = tmp_path_factory.mktemp("resume") / "model"
    write_random_checkpoint(directory, SHAPE, n_shards=3, tokenizer=small_tokenizer)
    return directory


@pytest.fixture(scope="module")
def expected(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return convert(checkpoint, tmp_path_factory.mktemp("whole") / "model.gguf", Q8_0).sha256


class Counted:
    """Counts the tensors that are quantized, each of which is one block here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n_calls = 0
        self._original = ggml.quantize_rows
        monkeypatch.setattr(ggml, "quantize_rows", self)

    def __call__(self, *arguments: Any) -> None:
        self.n_calls += 1
        self._original(*arguments)


class Interrupted(Counted):
    """Interrupts the work after twelve tensors, once six of them are in the journal."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, journal: Path) -> None:
        super().__init__(monkeypatch)
        self._journal = journal

    def __call__(self, *arguments: Any) -> None:
        if self.n_calls >= 12:
            while _n_secured(self._journal) < 6:
                time.sleep(0.01)
            raise KeyboardInterrupt
        super().__call__(*arguments)


def _n_secured(journal: Path) -> int:
    lines = journal.read_text().splitlines()[1:] if journal.exists() else []
    return sum(len(json.loads(line)) for line in lines)


@pytest.fixture
def secure_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supply, "_SECURE_EVERY_S", 0.0)
    monkeypatch.setattr("quantize.pipeline._REPORT_EVERY_S", 0.0)


def _paths(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "model.gguf", tmp_path / "model.journal"


def _cut_short(checkpoint: Path, tmp_path: Path, file_type: FileType = Q8_0) -> None:
    """Leave behind what an interrupted conversion leaves."""
    out_path, journal = _paths(tmp_path)
    with pytest.MonkeyPatch.context() as monkeypatch:
        Interrupted(monkeypatch, journal)
        with pytest.raises(KeyboardInterrupt):
            convert(checkpoint, out_path, file_type, journal=journal, n_threads=1)
    assert not out_path.exists()


@pytest.mark.usefixtures("secure_often")
def test_what_is_secured_is_not_done_again(
    checkpoint: Path, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_path, journal = _paths(tmp_path)
    _cut_short(checkpoint, tmp_path)
    n_secured = _n_secured(journal)
    again = Counted(monkeypatch)
    report = convert(checkpoint, out_path, Q8_0, journal=journal)
    assert report.sha256 == expected == hashlib.sha256(out_path.read_bytes()).hexdigest()
    assert n_secured >= 6
    assert again.n_calls == 3 + 9 * N_LAYER - n_secured  # a call for each tensor


def test_finished_but_not_put_to_use(
    checkpoint: Path, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_path, journal = _paths(tmp_path)
    convert(checkpoint, out_path, Q8_0, journal=journal)
    again = Counted(monkeypatch)
    assert convert(checkpoint, out_path, Q8_0, journal=journal).sha256 == expected
    assert again.n_calls == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf", "model.journal"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:0],
        lambda text: "{}\n" + text,
        lambda text: text.replace("blk.1.", "blk.99."),
        lambda text: text[: len(text) // 2] + "\n",
        lambda text: text + '{"a": 1}\n7\n',
        lambda text: "\x00" * len(text),
    ],
)
@pytest.mark.usefixtures("secure_often")
def test_damaged_journals_cost_time_only(
    damage: Callable[[str], str], checkpoint: Path, expected: str, tmp_path: Path
) -> None:
    out_path, journal = _paths(tmp_path)
    _cut_short(checkpoint, tmp_path)
    journal.write_text(damage(journal.read_text()))
    assert convert(checkpoint, out_path, Q8_0, journal=journal).sha256 == expected


@pytest.mark.usefixtures("secure_often")
def test_a_journal_of_another_file_is_not_believed(checkpoint: Path, expected: str, tmp_path: Path) -> None:
    out_path, journal = _paths(tmp_path)
    _cut_short(checkpoint, tmp_path, find_file_type("q4_0"))
    assert convert(checkpoint, out_path, Q8_0, journal=journal).sha256 == expected


def test_a_crash_while_beginning_anew_leaves_no_journal_that_lies(
    checkpoint: Path, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_path, journal = _paths(tmp_path / "before")
    out_path.parent.mkdir()
    convert(checkpoint, out_path, Q8_0, journal=journal)
    out_path.unlink()
    reserve, crashed = writer._reserve, tmp_path / "crashed"

    def reserve_and_copy(fd: int, size: int) -> None:
        reserve(fd, size)
        shutil.copytree(out_path.parent, crashed)  # all that a crash at this moment would leave

    monkeypatch.setattr(writer, "_reserve", reserve_and_copy)
    convert(checkpoint, out_path, Q8_0, journal=journal)
    monkeypatch.undo()
    out_path, journal = _paths(crashed)
    assert convert(checkpoint, out_path, Q8_0, journal=journal).sha256 == expected


@pytest.mark.usefixtures("secure_often")
def test_a_file_that_is_not_the_journals_is_not_taken_over(
    checkpoint: Path, expected: str, small_tokenizer: Path, tmp_path: Path
) -> None:
    out_path, journal = _paths(tmp_path)
    other = tmp_path / "other" / checkpoint.name  # of the same shape and name, with other weights
    write_random_checkpoint(other, SHAPE, seed=1, tokenizer=small_tokenizer)
    _cut_short(checkpoint, tmp_path)
    (tmp_path / ".model.gguf.partial").unlink()
    before = convert(other, out_path, Q8_0).sha256

    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, out_path, Q8_0, journal=journal, progress=interrupt)
    assert hashlib.sha256(out_path.read_bytes()).hexdigest() == before
    assert convert(checkpoint, out_path, Q8_0, journal=journal).sha256 == expected


@pytest.mark.usefixtures("secure_often")
def test_weights_that_changed_meanwhile_are_not_mixed(small_tokenizer: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    write_random_checkpoint(checkpoint, SHAPE, tokenizer=small_tokenizer)
    _cut_short(checkpoint, tmp_path)
    write_random_checkpoint(checkpoint, SHAPE, seed=1, tokenizer=small_tokenizer)
    out_path, journal = _paths(tmp_path)
    resumed = convert(checkpoint, out_path, Q8_0, journal=journal)
    assert resumed.sha256 == convert(checkpoint, tmp_path / "fresh.gguf", Q8_0).sha256


def test_one_journal_for_one_process_at_a_time(checkpoint: Path, expected: str, tmp_path: Path) -> None:
    out_path, journal = _paths(tmp_path)

    def convert_again(_done: int, _total: int) -> None:
        with pytest.raises(QuantizeError, match="another process"):
            convert(checkpoint, out_path, Q8_0, journal=journal)

    assert convert(checkpoint, out_path, Q8_0, journal=journal, progress=convert_again).sha256 == expected


class Arriving:
    """Shards that arrive one after the other when the one before the last was given back."""

    def __init__(self, checkpoint: Path) -> None:
        self.shards = sorted(checkpoint.glob("*.safetensors"))
        self.events: list[tuple[str, Path]] = []
        self._condition = threading.Condition()

    @property
    def released(self) -> list[Path]:
        return [path for kind, path in self.events if kind == "release"]

    def wait_for(self, path: Path, timeout_s: float) -> bool:
        with self._condition:
            if self.shards.index(path) > len(self.released) + 1:
                self._condition.wait(timeout_s)
                return False
            self.events.append(("use", path))
            return True

    def release(self, path: Path) -> None:
        with self._condition:
            self.events.append(("release", path))
            self._condition.notify_all()


def test_each_shard_is_given_back_and_never_needed_again(checkpoint: Path, expected: str, tmp_path: Path) -> None:
    out_path, journal = _paths(tmp_path)
    arriving = Arriving(checkpoint)
    assert convert(checkpoint, out_path, Q8_0, journal=journal, supply=arriving).sha256 == expected
    assert arriving.released == arriving.shards
    for path in arriving.shards:
        uses = [i for i, event in enumerate(arriving.events) if event == ("use", path)]
        assert max(uses) < arriving.events.index(("release", path))


class Failing(Arriving):
    def wait_for(self, path: Path, timeout_s: float) -> bool:
        if path == self.shards[1]:
            raise ConnectionError("the line is dead")
        return super().wait_for(path, timeout_s)


@pytest.mark.usefixtures("secure_often")
def test_a_shard_that_does_not_come_loses_nothing(checkpoint: Path, expected: str, tmp_path: Path) -> None:
    out_path, journal = _paths(tmp_path)
    with pytest.raises(ConnectionError):
        convert(checkpoint, out_path, Q8_0, journal=journal, supply=Failing(checkpoint))
    arriving = Arriving(checkpoint)
    assert convert(checkpoint, out_path, Q8_0, journal=journal, supply=arriving).sha256 == expected


def test_interrupt_while_waiting_for_a_shard(checkpoint: Path, tmp_path: Path) -> None:
    class Never(Arriving):
        def wait_for(self, _path: Path, timeout_s: float) -> bool:
            threading.Event().wait(timeout_s)
            return False

    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    out_path, journal = _paths(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, out_path, Q8_0, journal=journal, supply=Never(checkpoint), progress=interrupt)


def test_damaged_weights_leave_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out_path, journal = _paths(tmp_path)
    monkeypatch.setattr(ggml, "is_finite", lambda *_: False)
    with pytest.raises(QuantizeError, match="NaN"):
        convert(checkpoint, out_path, Q8_0, journal=journal)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["model.journal"])


@pytest.mark.parametrize("quant", ["q8_0", "q4_k_m", "f16"])
def test_size_is_known_before_the_weights_are(quant: str, checkpoint: Path, tmp_path: Path) -> None:
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    file_type = find_file_type(quant)
    foretold = predict_from_config(tmp_path, file_type, provenance=Provenance("model"))
    assert foretold == predict(checkpoint, file_type, provenance=Provenance("model"))


def test_blocks_come_in_the_order_of_the_shards(checkpoint: Path) -> None:

    with open_checkpoint(checkpoint) as opened:
        plan = schedule.Schedule(opened.tensors, ())
        paths = []
        while block := plan.take():
            source = opened.tensors[block.name]
            assert isinstance(source, FileTensor)
            paths.append(source.path)
    assert paths == sorted(paths)
