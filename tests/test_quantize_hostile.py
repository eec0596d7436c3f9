"""Damaged, lying and hostile checkpoints end in one clear error, and leave the output directory as it was."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import resource
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import quantize.pipeline
from quantize import FILE_TYPES, QuantizeError, check, convert
from quantize.checkpoint.tensor import FileTensor
from quantize.errors import CheckpointError, OutputError, TensorError
from support.checkpoints import LlamaShape, train_sentencepiece, write_bpe_tokenizer, write_random_checkpoint

SHAPE = LlamaShape(n_vocab=600, n_embd=64, n_ff=32, n_layer=1, n_head=2, n_head_kv=1)
SHARD = "model.safetensors"
FIRST_SHARD, SECOND_SHARD = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
NORM = "model.norm.weight"
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"

OLD_CONTENT = b"an older model"

Damage = Callable[[Path], object]


# --- checkpoints to damage ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pristine")
    train_sentencepiece(directory / "tokenizer.model", SHAPE.n_vocab)
    for dtype in ("F32", "F16", "BF16"):
        write_random_checkpoint(directory / dtype, SHAPE, dtype=dtype, tokenizer=directory / "tokenizer.model")
    write_random_checkpoint(directory / "two shards", SHAPE, n_shards=2, tokenizer=directory / "tokenizer.model")
    n_vocab = write_bpe_tokenizer(directory / "bpe", "llama-3")
    write_random_checkpoint(directory / "bpe", LlamaShape(n_vocab, 64, 32, 1, 2, 1), tokenizer=None)
    return directory


@pytest.fixture
def copy(pristine: Path, tmp_path: Path) -> Callable[[str], Path]:
    def copy(kind: str) -> Path:
        return Path(shutil.copytree(pristine / kind, tmp_path / "checkpoint"))

    return copy


@pytest.fixture
def checkpoint(copy: Callable[[str], Path]) -> Path:
    return copy("BF16")


@pytest.fixture
def out_path(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "model.gguf"
    path.write_bytes(OLD_CONTENT)
    return path


def refuse(directory: Path, out_path: Path, *names: str, file_type: str = "q8_0") -> QuantizeError:
    """Convert `directory`, which must fail in one sentence with all of `names`, at once and without a trace."""
    started, memory_before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    n_open = count_open_files()
    with pytest.raises(QuantizeError) as caught:
        convert(directory, out_path, FILE_TYPES[file_type], n_threads=2)
    assert time.monotonic() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_before < 500_000  # KiB
    assert count_open_files() == n_open
    check_error(caught.value, *names)
    check_untouched(out_path)
    return caught.value


def count_open_files() -> int:
    """Only Linux tells."""
    table = Path("/proc/self/fd")
    return len(list(table.iterdir())) if table.exists() else 0


def check_untouched(out_path: Path) -> None:
    assert list(out_path.parent.iterdir()) == [out_path]
    assert out_path.read_bytes() == OLD_CONTENT


def check_error(error: QuantizeError, *names: str) -> None:
    sentence = str(error)
    assert sentence.isprintable()
    assert len(sentence) < 500
    assert error.next_step
    for name in names:
        assert name in sentence


# --- safetensors headers ------------------------------------------------------------------------------------


def read_header(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    n_header = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + n_header]), content[8 + n_header :]


def write_header(path: Path, header: object, data: bytes) -> None:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def test_the_pristine_checkpoints_convert(pristine: Path, tmp_path: Path) -> None:
    for kind in ("F32", "F16", "BF16", "two shards", "bpe"):
        convert(pristine / kind, tmp_path / "out.gguf", FILE_TYPES["q8_0"])
        check(pristine / kind)


@pytest.mark.parametrize("n_kept", [0, 1, 7, 8, 9, 500, -1, -1000])
def test_truncated_shard(n_kept: int, checkpoint: Path, out_path: Path) -> None:
    shard = checkpoint / SHARD
    shard.write_bytes(shard.read_bytes()[:n_kept])
    refuse(checkpoint, out_path, SHARD)


@pytest.mark.parametrize("length", [0, 1, 2**16, 2**31, 2**32, 2**63, 2**64 - 1])
def test_header_length_lies(length: int, checkpoint: Path, out_path: Path) -> None:
    shard = checkpoint / SHARD
    shard.write_bytes(length.to_bytes(8, "little") + shard.read_bytes()[8:])
    refuse(checkpoint, out_path, SHARD)


HEADERS: dict[str, bytes] = {
    "not JSON": b"not JSON at all",
    "half of it": b'{"model.norm.weight": {"dtype":',
    "not UTF-8": b'{"\xff\xfe": 1}',
    "a list": b"[1, 2, 3]",
    "a number": b"7",
    "null": b"null",
    "nothing": b"{}",
    "deep lists": b"[" * 200_000,
    "deep lists, closed": b"[" * 200_000 + b"]" * 200_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "depth at the limit": b'{"a":' * 900 + b"1" + b"}" * 900,
    "a number of 10,000 digits": b'{"a":' + b"1" * 10_000 + b"}",
    "many empty lists": b"[" + b"[]," * 5_000_000 + b"[]]",
    "duplicate names": b'{"a": {"dtype": "F32"}, "a": {"dtype": "F32"}}',
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_header_is_not_a_table_of_tensors(header: bytes, checkpoint: Path, out_path: Path) -> None:
    _, data = read_header(checkpoint / SHARD)
    write_header(checkpoint / SHARD, header, data)
    refuse(checkpoint, out_path, SHARD)


def test_header_that_is_too_large_to_parse(checkpoint: Path, out_path: Path) -> None:
    write_header(checkpoint / SHARD, b"[" + b"[]," * 10_000_000 + b"[]]", b"")
    refuse(checkpoint, out_path, SHARD)


ENTRIES: dict[str, Any] = {
    "null": None,
    "a list": [1, 2],
    "empty": {},
    "no dtype": {"shape": [64], "data_offsets": [0, 128]},
    "no offsets": {"dtype": "BF16", "shape": [64]},
    "dtype a number": {"dtype": 7},
    "dtype a list": {"dtype": ["BF16"]},
    "shape negative": {"shape": [-64]},
    "shape twice negative": {"shape": [-1, -64]},
    "shape zero": {"shape": [0]},
    "shape float": {"shape": [64.0]},
    "shape bool": {"shape": [True, 64]},
    "shape string": {"shape": "64"},
    "shape of strings": {"shape": ["64"]},
    "shape null": {"shape": None},
    "shape huge": {"shape": [2**40, 2**40]},
    "shape that wraps around at 64 bits": {"shape": [2**32, 2**32, 64]},
    "shape beyond 64 bits": {"shape": [10**100]},
    "shape of a million dimensions": {"shape": [2] * 1_000_000},
    "shape NaN": {"shape": [float("nan")]},
    "shape deep": {"shape": json.loads("[" * 500 + "]" * 500)},
    "offsets negative": {"data_offsets": [-128, 0]},
    "offsets backwards": {"data_offsets": [128, 0]},
    "offsets float": {"data_offsets": [0.0, 128.0]},
    "offsets bool": {"data_offsets": [False, True]},
    "offsets strings": {"data_offsets": ["0", "128"]},
    "offsets one": {"data_offsets": [0]},
    "offsets three": {"data_offsets": [0, 64, 128]},
    "offsets too short": {"data_offsets": [0, 127]},
    "offsets overlapping": {"data_offsets": [2, 130]},
    "offsets past the end": {"data_offsets": [10**9, 10**9 + 128]},
    "offsets beyond 64 bits": {"data_offsets": [2**70, 2**70 + 128]},
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_damaged_entry(entry: Any, checkpoint: Path, out_path: Path) -> None:
    header, data = read_header(checkpoint / SHARD)
    replaces = not isinstance(entry, dict) or not entry or len(entry) == 2
    header[NORM] = entry if replaces else header[NORM] | entry
    write_header(checkpoint / SHARD, header, data)
    refuse(checkpoint, out_path, SHARD, "tensor ")


@pytest.mark.parametrize("move", ["to the start of another", "a byte further", "to the end"])
def test_entry_in_the_wrong_place(move: str, checkpoint: Path, out_path: Path) -> None:
    header, data = read_header(checkpoint / SHARD)
    start, end = header[Q_PROJ]["data_offsets"]
    shift = {"to the start of another": -start, "a byte further": 1, "to the end": len(data) - end}[move]
    header[Q_PROJ]["data_offsets"] = [start + shift, end + shift]
    write_header(checkpoint / SHARD, header, data)
    refuse(checkpoint, out_path, SHARD)


def test_bytes_that_belong_to_no_tensor(checkpoint: Path, out_path: Path) -> None:
    with (checkpoint / SHARD).open("ab") as shard:
        shard.write(b"more")
    refuse(checkpoint, out_path, SHARD)


@pytest.mark.parametrize(
    "dtype", ["I8", "I64", "U8", "BOOL", "F64", "F8_E4M3", "F8_E5M2", "bf16", "", "\x1b[2J", "x" * 10**6]
)
def test_number_format_that_is_not_read(dtype: str, checkpoint: Path, out_path: Path) -> None:
    header, data = read_header(checkpoint / SHARD)
    header[NORM]["dtype"] = dtype
    write_header(checkpoint / SHARD, header, data)
    refuse(checkpoint, out_path, SHARD, NORM)


def test_name_twice_in_one_shard(checkpoint: Path, out_path: Path) -> None:
    header, data = read_header(checkpoint / SHARD)
    again = f'{{"{NORM}": {json.dumps(header[NORM])}, '.encode()
    write_header(checkpoint / SHARD, again + json.dumps(header).encode()[1:], data)
    refuse(checkpoint, out_path, SHARD)


def test_name_in_two_shards(copy: Callable[[str], Path], out_path: Path) -> None:
    checkpoint = copy("two shards")
    header, data = read_header(checkpoint / SECOND_SHARD)
    first_header, _ = read_header(checkpoint / FIRST_SHARD)
    name = next(name for name in first_header if name.endswith("norm.weight"))
    header[name] = {"dtype": "BF16", "shape": [64], "data_offsets": [len(data), len(data) + 128]}
    write_header(checkpoint / SECOND_SHARD, header, data + bytes(128))
    refuse(checkpoint, out_path, SECOND_SHARD, name)


@pytest.mark.parametrize("name", ["model.surplus.weight", "", "\x1b[31mred\x07", "a\nb", "\ud800", "x" * 100_000])
def test_surplus_tensor(name: str, checkpoint: Path, out_path: Path) -> None:
    header, data = read_header(checkpoint / SHARD)
    header[name] = {"dtype": "BF16", "shape": [2], "data_offsets": [len(data), len(data) + 4]}
    write_header(checkpoint / SHARD, header, data + bytes(4))
    refuse(checkpoint, out_path, SHARD, "is not part of this architecture")


def test_missing_tensor(checkpoint: Path, out_path: Path) -> None:
    header, data = read_header(checkpoint / SHARD)
    header["model.layers.0.rotary_emb.inv_freq"] = header.pop(NORM)
    write_header(checkpoint / SHARD, header, data)
    refuse(checkpoint, out_path, NORM, "is missing")


def test_wrong_shape(checkpoint: Path, out_path: Path) -> None:
    header, data = read_header(checkpoint / SHARD)
    header[Q_PROJ]["shape"] = [32, 128]
    write_header(checkpoint / SHARD, header, data)
    refuse(checkpoint, out_path, SHARD, Q_PROJ, "[32, 128]", "[64, 64]")


# --- the files of the weights -------------------------------------------------------------------------------


INDEXED_NAMES: dict[str, Any] = {
    "parent": "../model.safetensors",
    "parent of a folder": "a/../../model.safetensors",
    "dots": "..",
    "absolute": "/etc/model.safetensors",
    "in a folder": "folder/model.safetensors",
    "backslash": "..\\model.safetensors",
    "drive": "C:model.safetensors",
    "missing": "model-00003-of-00002.safetensors",
    "other kind": "pytorch_model.bin",
    "NUL": "model\0.safetensors",
    "control character": "\x1b[2J.safetensors",
    "surrogate": "\ud800.safetensors",
    "too long": "x" * 5000 + ".safetensors",
    "empty": "",
    "number": 1,
    "null": None,
    "list": ["model.safetensors"],
    "deep": json.loads("[" * 500 + "]" * 500),
}


@pytest.mark.parametrize("name", INDEXED_NAMES.values(), ids=INDEXED_NAMES)
def test_index_names_something_else(name: Any, copy: Callable[[str], Path], out_path: Path) -> None:
    checkpoint = copy("two shards")
    index = json.loads((checkpoint / INDEX).read_text())
    index["weight_map"][NORM] = name
    (checkpoint / INDEX).write_text(json.dumps(index))
    refuse(checkpoint, out_path, ".safetensors")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": 1}'])
def test_damaged_index(text: str, copy: Callable[[str], Path], out_path: Path) -> None:
    checkpoint = copy("two shards")
    (checkpoint / INDEX).write_text(text)
    refuse(checkpoint, out_path, INDEX)


@pytest.mark.parametrize("tensor", ["model.invented.weight", NORM])
def test_index_names_a_tensor_the_shard_lacks(tensor: str, copy: Callable[[str], Path], out_path: Path) -> None:
    checkpoint = copy("two shards")
    index = json.loads((checkpoint / INDEX).read_text())
    has_it = index["weight_map"].get(tensor)
    index["weight_map"][tensor] = FIRST_SHARD if has_it != FIRST_SHARD else SECOND_SHARD
    (checkpoint / INDEX).write_text(json.dumps(index))
    refuse(checkpoint, out_path, index["weight_map"][tensor], tensor)


def _unlink(path: Path) -> None:
    path.unlink()


def _replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _replace_by_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _replace_by_link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _replace_by_endless_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _grow_beyond_belief(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(10**11)


NO_FILES: tuple[Damage, ...] = (
    _unlink,
    _replace_by_directory,
    _replace_by_dangling_link,
    _replace_by_link_to_itself,
    _replace_by_pipe,
    _replace_by_endless_device,
    _empty,
    _grow_beyond_belief,
)


REQUIRED = ("config.json", SECOND_SHARD, INDEX, "tokenizer.model")


@pytest.mark.parametrize("damage", NO_FILES)
@pytest.mark.parametrize("name", REQUIRED)
def test_file_that_is_none(name: str, damage: Damage, copy: Callable[[str], Path], out_path: Path) -> None:
    checkpoint = copy("two shards")
    damage(checkpoint / name)
    # Without an index a single shard is looked for, and without tokenizer.model a tokenizer.json.
    refuse(checkpoint, out_path, "safetensors" if name == INDEX else name)


@pytest.mark.parametrize("damage", NO_FILES[-4:])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "added_tokens.json", "generation_config.json"])
def test_optional_file_that_is_none(name: str, damage: Damage, checkpoint: Path, out_path: Path) -> None:
    (checkpoint / name).touch()
    damage(checkpoint / name)
    refuse(checkpoint, out_path, name)


@pytest.mark.parametrize("name", ["config.json", SHARD, "tokenizer.model"])
def test_file_that_may_not_be_read(
    name: str, checkpoint: Path, out_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests may run as root, whom no permission stops: so the refusal is made here."""
    real_open = os.open

    def guarded(path: Any, *args: Any, **kwargs: Any) -> int:
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", guarded)
    assert isinstance(refuse(checkpoint, out_path, name, "Permission denied"), CheckpointError)


@pytest.mark.parametrize("during", ["header", "weights"])
def test_disk_that_fails(during: str, checkpoint: Path, out_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread" if during == "header" else "preadv", fail)
    assert isinstance(refuse(checkpoint, out_path, SHARD, "Input/output error"), CheckpointError)


def test_shard_that_becomes_shorter(checkpoint: Path, out_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_read = FileTensor.read_rows

    def truncate_then_read(self: FileTensor, first: int, n_rows: int, out: Any) -> None:
        os.truncate(checkpoint / SHARD, 1000)
        real_read(self, first, n_rows, out)

    monkeypatch.setattr(FileTensor, "read_rows", truncate_then_read)
    refuse(checkpoint, out_path, SHARD, "shorter")


def test_no_weights_at_all(checkpoint: Path, out_path: Path) -> None:
    (checkpoint / SHARD).rename(checkpoint / "tf_model.h5")
    refuse(checkpoint, out_path, "safetensors")


def test_directory_that_is_none(tmp_path: Path, out_path: Path) -> None:
    """A path that is nothing is taken for a checkpoint, a file for a GGUF."""
    refuse(tmp_path / "nowhere", out_path, "config.json")
    refuse(out_path, out_path, "is not a GGUF file")


# --- config.json --------------------------------------------------------------------------------------------

CONFIGS: dict[str, Any] = {
    "list": [],
    "number": 1,
    "null": None,
    "empty": {},
    "no vocab_size": {"vocab_size": None},
    "vocab_size beyond belief": {"vocab_size": 2**31 - 1},
    "number as string": {"hidden_size": "64"},
    "number as float": {"hidden_size": 64.0},
    "number as bool": {"num_hidden_layers": True},
    "number as list": {"hidden_size": [64]},
    "number deep": {"hidden_size": json.loads("[" * 500 + "]" * 500)},
    "number of 4,000 digits": {"hidden_size": int("9" * 4000)},
    "hidden_size zero": {"hidden_size": 0},
    "hidden_size negative": {"hidden_size": -64},
    "hidden_size NaN": {"hidden_size": float("nan")},
    "hidden_size infinite": {"hidden_size": float("inf")},
    "heads do not divide": {"num_attention_heads": 3},
    "heads do not divide, evenly": {"num_attention_heads": 10},
    "more heads than columns": {"num_attention_heads": 128},
    "key-value heads do not divide": {"num_attention_heads": 4, "num_key_value_heads": 3},
    "odd head size": {"num_attention_heads": 64},
    "zero layers": {"num_hidden_layers": 0},
    "a layer too many": {"num_hidden_layers": 2},
    "a billion layers": {"num_hidden_layers": 10**9},
    "a billion columns": {"hidden_size": 2**30},
    "a billion inner columns": {"intermediate_size": 2**30},
    "a head of a billion": {"head_dim": 2**30},
    "rms_norm_eps NaN": {"rms_norm_eps": float("nan")},
    "rms_norm_eps zero": {"rms_norm_eps": 0},
    "rms_norm_eps tiny": {"rms_norm_eps": 5e-324},
    "rms_norm_eps string": {"rms_norm_eps": "1e-5"},
    "rope_theta infinite": {"rope_theta": float("inf")},
    "rope_theta negative": {"rope_theta": -1.0},
    "rope_scaling list": {"rope_scaling": [1]},
    "rope_scaling string": {"rope_scaling": "linear"},
    "rope_scaling unknown": {"rope_scaling": {"type": "longrope", "factor": 2.0}},
    "rope_scaling without its context": {"rope_scaling": {"type": "yarn", "factor": 2.0}},
    "rope_scaling with more": {
        "rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64, "attention_factor": 0.5}
    },
    "rope_scaling type list": {"rope_scaling": {"type": ["linear"]}},
    "rope_scaling type deep": {"rope_scaling": {"type": json.loads("[" * 500 + "]" * 500)}},
    "rope_scaling factor zero": {"rope_scaling": {"type": "linear", "factor": 0}},
    "rope_scaling factor string": {"rope_scaling": {"rope_type": "llama3", "factor": "8"}},
    "rope_scaling inverted": {"rope_scaling": {"rope_type": "llama3", "low_freq_factor": 4, "high_freq_factor": 1}},
    "other activation": {"hidden_act": "gelu"},
    "activation with escapes": {"hidden_act": "\x1b[2J" * 1000},
    "biases": {"attention_bias": True},
    "architecture unknown": {"architectures": ["GPT2LMHeadModel"]},
    "architecture with escapes": {"architectures": ["\x1b[2J" + "x" * 10**6]},
    "architecture a number": {"architectures": [1]},
    "architecture deep": {"architectures": [json.loads("[" * 500 + "]" * 500)]},
    "architectures not a list": {"architectures": "LlamaForCausalLM", "model_type": None},
}


@pytest.mark.parametrize("change", CONFIGS.values(), ids=CONFIGS)
def test_config_that_makes_no_sense(change: Any, checkpoint: Path, out_path: Path) -> None:
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | change if isinstance(change, dict) and change else change))
    refuse(checkpoint, out_path)


def test_dynamic_rope_scaling_can_be_taken_out(checkpoint: Path, out_path: Path) -> None:
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}))
    assert "Take rope_scaling out of config.json" in refuse(checkpoint, out_path, "dynamic").next_step


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 200_000, b'{"vocab_size": ' + b"9" * 10**5 + b"}"])
def test_config_that_is_not_json(content: bytes, checkpoint: Path, out_path: Path) -> None:
    (checkpoint / "config.json").write_bytes(content)
    refuse(checkpoint, out_path, "config.json")


def test_check_finds_the_same_without_weights(checkpoint: Path) -> None:
    (checkpoint / SHARD).unlink()
    check(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    for change in ({"num_attention_heads": 3}, {"vocab_size": 2**31 - 1}, {"vocab_size": 599}, {"architectures": []}):
        (checkpoint / "config.json").write_text(json.dumps(config | change | {"model_type": "other"}))
        with pytest.raises(QuantizeError) as caught:
            check(checkpoint)
        check_error(caught.value)


# --- tokenizers ---------------------------------------------------------------------------------------------


def test_no_tokenizer(checkpoint: Path, out_path: Path) -> None:
    (checkpoint / "tokenizer.model").unlink()
    refuse(checkpoint, out_path, "tokenizer.model", "tokenizer.json")


DEEP = json.loads("[" * 500 + "]" * 500)
TOKENIZERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no model": lambda t: t.pop("model"),
    "model a list": lambda t: t.update(model=[]),
    "unigram": lambda t: t["model"].update(type="Unigram"),
    "no vocab": lambda t: t["model"].pop("vocab"),
    "vocab a list": lambda t: t["model"].update(vocab=[["a", 0.0]]),
    "id out of range": lambda t: t["model"]["vocab"].update(zz=10**9),
    "id negative": lambda t: t["model"]["vocab"].update(zz=-1),
    "id a string": lambda t: t["model"]["vocab"].update(zz="5"),
    "id a bool": lambda t: t["model"]["vocab"].update(zz=True),
    "id twice": lambda t: t["model"]["vocab"].update(zz=5),
    "id deep": lambda t: t["model"]["vocab"].update(zz=DEEP),
    "text with escapes": lambda t: t["model"]["vocab"].update({"\x1b[2J" * 1000: -1}),
    "text not Unicode": lambda t: t["model"]["vocab"].update({"\ud800": t["model"]["vocab"].pop("Z")}),
    "no merges": lambda t: t["model"].pop("merges"),
    "merges empty": lambda t: t["model"].update(merges=[]),
    "merges a string": lambda t: t["model"].update(merges="a b"),
    "merges numbers": lambda t: t["model"].update(merges=[1, 2]),
    "merges mixed": lambda t: t["model"].update(merges=["a b", 7]),
    "merges triples": lambda t: t["model"].update(merges=[["a", "b", "c"]]),
    "merges pairs of numbers": lambda t: t["model"].update(merges=[["a", "b"], [1, 2]]),
    "merges not Unicode": lambda t: t["model"].update(merges=["\ud800 b"]),
    "pre-tokenizer missing": lambda t: t.pop("pre_tokenizer"),
    "pre-tokenizer a string": lambda t: t.update(pre_tokenizer="ByteLevel"),
    "pre-tokenizer unknown": lambda t: t.update(pre_tokenizer={"type": "Whitespace"}),
    "another pattern": lambda t: t["pre_tokenizer"]["pretokenizers"][0].update(pattern={"String": "x"}),
    "pre-tokenizer with escapes": lambda t: t.update(pre_tokenizer={"type": "\x1b[2J" * 10_000}),
    "pre-tokenizer steps a number": lambda t: t["pre_tokenizer"].update(pretokenizers=1),
    "pre-tokenizer steps null": lambda t: t["pre_tokenizer"].update(pretokenizers=None),
    "pre-tokenizer steps deep": lambda t: t["pre_tokenizer"].update(pretokenizers=DEEP),
    "pre-tokenizer steps many": lambda t: t["pre_tokenizer"].update(pretokenizers=[{}] * 100_000),
    "normalizer unknown": lambda t: t.update(normalizer={"type": "Lowercase"}),
    "normalizer deep": lambda t: t.update(normalizer=DEEP),
    "added tokens a number": lambda t: t.update(added_tokens=1),
    "added tokens an object": lambda t: t.update(added_tokens={"a": 1}),
    "added token a string": lambda t: t.update(added_tokens=["<s>"]),
    "added token null": lambda t: t.update(added_tokens=[None]),
    "added token without content": lambda t: t.update(added_tokens=[{"id": 1}]),
    "added token without id": lambda t: t["added_tokens"][0].pop("id"),
    "added token id negative": lambda t: t["added_tokens"][0].update(id=-1),
    "added token id a string": lambda t: t["added_tokens"][0].update(id="1"),
    "added token id deep": lambda t: t["added_tokens"][0].update(id=DEEP),
    "added token not Unicode": lambda t: t["added_tokens"][0].update(content="\ud800"),
    "added token repeats another": lambda t: t["added_tokens"][0].update(content="Z"),
    "post-processor a list": lambda t: t.update(post_processor=[1]),
    "post-processor steps numbers": lambda t: t.update(post_processor={"processors": [1]}),
}  # fmt: skip


@pytest.mark.parametrize("damage", TOKENIZERS.values(), ids=TOKENIZERS)
def test_damaged_tokenizer_json(
    damage: Callable[[dict[str, Any]], object], copy: Callable[[str], Path], out_path: Path
) -> None:
    checkpoint = copy("bpe")
    path = checkpoint / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    damage(tokenizer)
    path.write_text(json.dumps(tokenizer))
    refuse(checkpoint, out_path, "token")


@pytest.mark.parametrize(
    "config",
    [
        [],
        {"chat_template": [1]},
        {"chat_template": [{"name": 1, "template": "x"}]},
        {"chat_template": [{"name": "default", "template": 1}]},
        {"chat_template": "\ud800"},
        {"added_tokens_decoder": []},
        {"added_tokens_decoder": {"one": {"content": "x"}}},
        {"added_tokens_decoder": {"-1": {"content": "x"}}},
        {"added_tokens_decoder": {"9" * 5000: {"content": "x"}}},
        {"added_tokens_decoder": {"5": "x"}},
        {"added_tokens_decoder": {"5": {"content": 5}}},
        {"added_tokens_decoder": {"5": {"content": "\ud800"}}},
        {"added_tokens_decoder": {"5": {"content": "a byte token lost"}}},
    ],
    ids=lambda config: ascii(config)[:60],
)
def test_damaged_tokenizer_config(config: Any, checkpoint: Path, out_path: Path) -> None:
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config))
    refuse(checkpoint, out_path, "token")


@pytest.mark.parametrize("added", [[], {"x": "600"}, {"x": -1}, {"x": True}, {"x": None}, {"\ud800": 5}], ids=ascii)
def test_damaged_added_tokens(added: Any, checkpoint: Path, out_path: Path) -> None:
    (checkpoint / "added_tokens.json").write_text(json.dumps(added))
    refuse(checkpoint, out_path, "added_tokens.json")


@pytest.mark.parametrize("seed", range(40))
def test_damaged_sentencepiece_model(seed: int, checkpoint: Path) -> None:
    """Random bytes, and a real model with some bytes changed: an error, or a model that is different but whole."""
    rng = random.Random(seed)
    path = checkpoint / "tokenizer.model"
    content = bytearray(path.read_bytes())
    if seed < 8:
        content = bytearray(rng.randbytes(rng.choice([1, 10, 1000, 100_000])))
    else:
        content = mutate(content, rng, len(content))
    path.write_bytes(content)
    try:
        check(checkpoint)
    except QuantizeError as error:
        check_error(error)
    else:
        assert seed >= 8


def test_sentencepiece_piece_that_is_not_unicode(checkpoint: Path, out_path: Path) -> None:
    path = checkpoint / "tokenizer.model"
    content = path.read_bytes()
    for piece in (b"<0x42>", b"the"):
        path.write_bytes(content.replace(piece, b"\xff" + piece[1:]))
        refuse(checkpoint, out_path, "tokenizer.model")


# --- weights ------------------------------------------------------------------------------------------------

BAD_VALUES = {
    "F32": {"NaN": struct.pack("<f", np.nan), "infinity": struct.pack("<f", -np.inf)},
    "F16": {"NaN": struct.pack("<e", np.nan), "infinity": struct.pack("<e", np.inf)},
    "BF16": {"NaN": b"\xc0\x7f", "infinity": b"\x80\x7f"},
}


@pytest.mark.parametrize("file_type", ["f16", "q8_0", "q4_k_m"])
@pytest.mark.parametrize("tensor", [NORM, Q_PROJ, "model.embed_tokens.weight"])
@pytest.mark.parametrize(("dtype", "value"), [(dtype, value) for dtype in BAD_VALUES for value in BAD_VALUES[dtype]])
def test_weight_that_is_no_number(
    dtype: str, value: str, tensor: str, file_type: str, copy: Callable[[str], Path], out_path: Path
) -> None:
    checkpoint = copy(dtype)
    put_value(checkpoint / SHARD, tensor, BAD_VALUES[dtype][value])
    error = refuse(checkpoint, out_path, SHARD, tensor, "NaN or infinite", file_type=file_type)
    assert isinstance(error, TensorError)
    assert (error.path.name, error.tensor) == (SHARD, tensor)


@pytest.mark.parametrize(
    ("dtype", "value", "file_type"),
    [
        ("F32", struct.pack("<f", 70000.0), "f16"),
        ("BF16", b"\x89\x47", "f16"),
        ("F32", struct.pack("<f", 1e38), "q8_0"),
    ],
)
def test_weight_that_is_too_large(
    dtype: str, value: bytes, file_type: str, copy: Callable[[str], Path], out_path: Path
) -> None:
    checkpoint = copy(dtype)
    put_value(checkpoint / SHARD, Q_PROJ, value)
    refuse(checkpoint, out_path, SHARD, Q_PROJ, "too large", file_type=file_type)


def put_value(path: Path, tensor: str, value: bytes) -> None:
    """Overwrite the last element of `tensor`."""
    header, data = read_header(path)
    end = header[tensor]["data_offsets"][1]
    write_header(path, header, data[: end - len(value)] + value + data[end:])


@pytest.mark.parametrize("kind", ["model-*.safetensors", "pytorch_model-*.bin"])
def test_shards_without_an_index(kind: str, copy: Callable[[str], Path], out_path: Path) -> None:
    checkpoint = copy("two shards")
    (checkpoint / INDEX).unlink()
    for name in (FIRST_SHARD, SECOND_SHARD):
        stem, _, suffix = kind.partition("-*")
        (checkpoint / name).rename(checkpoint / name.replace("model", stem).replace(".safetensors", suffix))
    error = refuse(checkpoint, out_path, f"{kind.replace('-*', '')}.index.json", "missing")
    assert isinstance(error, CheckpointError)


# --- the output ---------------------------------------------------------------------------------------------


def test_output_directory_that_is_missing(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught:
        convert(checkpoint, tmp_path / "missing" / "model.gguf", FILE_TYPES["q8_0"])
    check_error(caught.value, "model.gguf")
    assert not (tmp_path / "missing").exists()


def test_output_directory_that_is_a_file(checkpoint: Path, out_path: Path) -> None:
    with pytest.raises(OutputError) as caught:
        convert(checkpoint, out_path / "model.gguf", FILE_TYPES["q8_0"])
    check_error(caught.value, "model.gguf")


@pytest.mark.parametrize("name", ["x" * 250 + ".gguf", "directory"])
def test_output_name_that_cannot_be(name: str, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "directory").mkdir(parents=True)
    with pytest.raises(OutputError) as caught:
        convert(checkpoint, tmp_path / "out" / name, FILE_TYPES["q8_0"])
    assert caught.value.next_step
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / "directory"]


def test_output_directory_that_is_read_only(checkpoint: Path, out_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made by hand, because root may write everywhere."""

    real_open = os.open

    def refuse_it(path: Any, *args: Any) -> int:
        if str(path).endswith(".partial"):
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, *args)

    monkeypatch.setattr(os, "open", refuse_it)
    assert isinstance(refuse(checkpoint, out_path, "model.gguf", "Permission denied"), OutputError)


def test_output_that_is_a_device_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "device"
    path.symlink_to(os.devnull)
    with pytest.raises(OutputError, match="not a file"):
        convert(checkpoint, path, FILE_TYPES["q8_0"])
    assert path.is_char_device()


def test_leftovers_of_a_killed_process_are_removed(checkpoint: Path, out_path: Path) -> None:
    """Those of one that is still at work are not, nor is anything else."""
    killed = out_path.with_name(f".{out_path.name}.999999998.partial")
    alive = out_path.with_name(f".{out_path.name}.999999999.partial")
    others = [out_path.with_name(name) for name in (f".{out_path.name}.x.partial", ".other.gguf.1.partial")]
    for path in (killed, alive, *others):
        path.touch()
    with alive.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        convert(checkpoint, out_path, FILE_TYPES["q8_0"])
    assert not killed.exists()
    assert all(path.exists() for path in (alive, *others))


def test_many_at_once_to_the_same_place(checkpoint: Path, out_path: Path) -> None:
    expected = convert(checkpoint, out_path, FILE_TYPES["q8_0"]).sha256
    with ThreadPoolExecutor(6) as pool:
        reports = pool.map(lambda _: convert(checkpoint, out_path, FILE_TYPES["q8_0"], n_threads=1), range(24))
        assert {report.sha256 for report in reports} == {expected}
    assert hashlib.sha256(out_path.read_bytes()).hexdigest() == expected
    assert list(out_path.parent.glob(".*")) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    mounted: list[Path] = []

    def mount(size_kib: int) -> Path:
        path = tmp_path / "disk"
        path.mkdir()
        if os.geteuid() != 0 or shutil.which("mount") is None:
            pytest.skip("only root can mount a small disk")
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(path)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("no tmpfs can be mounted here")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("size_kib", [8, 64])
def test_full_disk(size_kib: int, checkpoint: Path, small_disk: Callable[[int], Path]) -> None:
    """Too small for the header, or for the tensors."""
    out_path = small_disk(size_kib) / "model.gguf"
    out_path.write_bytes(OLD_CONTENT)
    error = refuse(checkpoint, out_path, "model.gguf", "the disk is full")
    assert isinstance(error, OutputError)
    shutil.disk_usage(out_path.parent)


# --- interruption -------------------------------------------------------------------------------------------


def test_interrupt_from_the_progress_callback(checkpoint: Path, out_path: Path) -> None:
    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, out_path, FILE_TYPES["q8_0"], progress=interrupt)
    check_untouched(out_path)


@pytest.mark.parametrize(
    "step",
    [
        "_lay_out",
        "_reserve",
        "read_tensor_table",
        "GGUFFile._sync_and_hash",
        "OrderedDigest.add",
        "OrderedDigest.finish",
    ],
)
def test_interrupt_while_writing(step: str, checkpoint: Path, out_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"quantize.writer.{step}", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, out_path, FILE_TYPES["q8_0"])
    check_untouched(out_path)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_error_in_a_thread_is_raised_in_the_caller(
    n_threads: int, checkpoint: Path, out_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class BugError(Exception):
        pass

    def fail(*_: object) -> None:
        raise BugError

    monkeypatch.setattr(quantize.pipeline.ggml, "quantize_rows", fail)
    with pytest.raises(BugError):
        convert(checkpoint, out_path, FILE_TYPES["q8_0"], n_threads=n_threads)
    check_untouched(out_path)


# --- random damage ------------------------------------------------------------------------------------------

_TELLING = [
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"-",
    b"0",
    b"9",
    b"e9",
    b"null",
    b"1.5",
    b"\\ud800",
    b"\0",
    b"\xff",
]


def mutate(content: bytearray, rng: random.Random, n_bytes: int) -> bytearray:
    """One to four changes within the first `n_bytes`."""
    for _ in range(rng.randint(1, 4)):
        position = rng.randrange(min(n_bytes, len(content)))
        match rng.randrange(4):
            case 0:
                content[position] ^= 1 << rng.randrange(8)
            case 1:
                content[position:position] = rng.choice(_TELLING)
            case 2:
                del content[position : position + rng.randint(1, 8)]
            case 3:
                content[position : position + 1] = rng.choice(_TELLING)
    return content


@pytest.mark.parametrize("fits", [False, True], ids=["length as it was", "length made to fit"])
@settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_random_damage_to_the_header(fits: bool, seed: int, pristine: Path, tmp_path: Path) -> None:
    checkpoint, out_path = tmp_path / "checkpoint", tmp_path / "out" / "model.gguf"
    if not checkpoint.exists():
        shutil.copytree(pristine / "BF16", checkpoint)
        out_path.parent.mkdir()
    content = (pristine / "BF16" / SHARD).read_bytes()
    n_header = int.from_bytes(content[:8], "little")
    if fits:
        header = mutate(bytearray(content[8 : 8 + n_header]), random.Random(seed), n_header)
        write_header(checkpoint / SHARD, bytes(header), content[8 + n_header :])
    else:
        (checkpoint / SHARD).write_bytes(mutate(bytearray(content), random.Random(seed), 8 + n_header))
    try:
        convert(checkpoint, out_path, FILE_TYPES["q8_0"], n_threads=1)
    except QuantizeError as error:
        check_error(error)
        assert not any(out_path.parent.iterdir())
    else:
        out_path.unlink()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
@settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_random_damage_to_the_rest(name: str, seed: int, pristine: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    if not checkpoint.exists():
        shutil.copytree(pristine / "bpe", checkpoint)
    content = bytearray((pristine / "bpe" / name).read_bytes())
    (checkpoint / name).write_bytes(mutate(content, random.Random(seed), len(content)))
    try:
        check(checkpoint)
    except QuantizeError as error:
        check_error(error)
