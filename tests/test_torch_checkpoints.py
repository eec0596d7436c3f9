"""PyTorch checkpoints give the same GGUF as safetensors; hostile ones give one clear error, and never run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantize import FILE_TYPES, Provenance, QuantizeError, convert
from quantize.checkpoint.files import open_file
from quantize.checkpoint.tensor import count_elements
from quantize.checkpoint.torch_file import read_torch_file
from support.checkpoints import Dtype, LlamaShape, Tensor, write_random_checkpoint
from support.torch_files import (
    integer,
    integers,
    name,
    read_safetensors,
    state_program,
    tensor_program,
    text,
    turn_into_torch,
    write_torch_file,
    write_zip,
)

SHAPE = LlamaShape(n_vocab=600, n_embd=64, n_ff=96, n_layer=1, n_head=2, n_head_kv=1)
NORM = "model.norm.weight"
BIN = "pytorch_model.bin"


def gguf_of(directory: Path, out_path: Path, file_type: str = "f16") -> bytes:
    convert(directory, out_path, FILE_TYPES[file_type], provenance=Provenance("test"), n_threads=1)
    return out_path.read_bytes()


@pytest.fixture(scope="module")
def safetensors(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path) -> Path:
    directory = tmp_path_factory.mktemp("safetensors")
    write_random_checkpoint(directory, SHAPE, tokenizer=small_tokenizer)
    return directory


@pytest.fixture
def checkpoint(safetensors: Path, tmp_path: Path) -> Path:
    """A PyTorch checkpoint of one file."""
    directory = Path(shutil.copytree(safetensors, tmp_path / "checkpoint"))
    turn_into_torch(directory)
    return directory


def refuse(directory: Path, *words: str) -> QuantizeError:
    out_path = directory.parent / "refused.gguf"
    with pytest.raises(QuantizeError) as caught:
        convert(directory, out_path, FILE_TYPES["f16"], n_threads=1)
    sentence = str(caught.value)
    assert sentence.isprintable()
    assert len(sentence) < 500
    assert caught.value.next_step
    for word in words:
        assert word in sentence
    assert not out_path.exists()
    return caught.value


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("n_shards", [1, 3])
def test_equal_to_safetensors(dtype: Dtype, n_shards: int, small_tokenizer: Path, tmp_path: Path) -> None:
    directory = tmp_path / "checkpoint"
    write_random_checkpoint(directory, SHAPE, dtype=dtype, n_shards=n_shards, tokenizer=small_tokenizer)
    expected = gguf_of(directory, tmp_path / "a.gguf", "q8_0")
    turn_into_torch(directory, parameter=n_shards == 3)
    assert not list(directory.glob("*.safetensors*"))
    assert gguf_of(directory, tmp_path / "b.gguf", "q8_0") == expected


def test_safetensors_are_preferred(checkpoint: Path, safetensors: Path, tmp_path: Path) -> None:
    (checkpoint / BIN).write_bytes(b"rubbish")
    shutil.copy(safetensors / "model.safetensors", checkpoint)
    gguf_of(checkpoint, tmp_path / "out.gguf")


def test_views_of_one_storage_are_read_where_they_lie(checkpoint: Path, safetensors: Path, tmp_path: Path) -> None:
    """All vectors in one storage, as views with an offset; everything else as it was; a zip without zip64."""
    tensors = read_safetensors(safetensors / "model.safetensors")
    programs, storages, shared = {}, [], b""
    n_shared = sum(tensor.data.size for tensor in tensors.values() if tensor.data.ndim == 1)
    for number, (key, tensor) in enumerate(tensors.items()):
        n = tensor.data.size
        if tensor.data.ndim == 1:
            programs[key] = tensor_program("all", "BFloat16Storage", n_shared, (n,), offset=len(shared) // 2)
            shared += tensor.data.tobytes()
        else:
            programs[key] = tensor_program(str(number), "BFloat16Storage", n, tensor.data.shape)
            storages.append((f"x/data/{number}", tensor.data.tobytes()))
    pickle = state_program(programs, module_state=False)
    write_zip(checkpoint / BIN, [("x/data.pkl", pickle), ("x/data/all", shared), *storages], zip64=False)
    assert gguf_of(checkpoint, tmp_path / "a.gguf") == gguf_of(safetensors, tmp_path / "b.gguf")


# --- pickles ------------------------------------------------------------------------------------------------


def write_pickle(checkpoint: Path, program: bytes, *entries: tuple[str, bytes]) -> None:
    write_zip(checkpoint / BIN, [("archive/data.pkl", program), *entries])


def test_a_pickle_that_calls_something_is_not_run(checkpoint: Path, tmp_path: Path) -> None:
    trap = tmp_path / "it ran"
    call = text(f"touch '{trap}'") + b"\x85R"
    for called, said in (
        (name("os", "system"), "os.system"),
        (text("posix") + text("system") + b"\x93", "posix.system"),
        (name("builtins", "eval"), "builtins.eval"),
        (name("torch", "load"), "torch.load"),
        (name("torch._utils", "_rebuild_tensor_v2.__globals__"), "__globals__"),
    ):
        write_pickle(checkpoint, state_program({NORM: called + call}))
        refuse(checkpoint, said, "not run")
        assert not trap.exists()
    for program, said in ((b"\x80\x02(" + text("touch x") + b"ios\nsystem\n.", "INST"), (b"\x80\x02\x82\x01.", "EXT1"),
                          (b"\x80\x02\x8c\x01x" + b")\x81.", "NEWOBJ")):  # fmt: skip
        write_pickle(checkpoint, program)
        refuse(checkpoint, said, "not run")


DEEP = b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"K\x01s."
DOUBLED = b"\x80\x02})" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(200)) + b"K\x01s."
DAMAGED = {
    "empty": b"",
    "not a pickle": b"\xff" * 100,
    "stops early": b"\x80\x02}",
    "nothing on the stack": b"\x80\x02.",
    "not a dictionary": b"\x80\x02]q\0h\0a.",
    "a dictionary that holds itself": b"\x80\x02}q\0X\1\0\0\0xh\0s.",
    "nested key": DEEP,
    "exponential key": DOUBLED,
    "memo number": b"\x80\x02}r\xff\xff\xff\x7fX\1\0\0\0xj\xff\xff\xff\x7es.",
    "text that says it is huge": b"\x80\x02}X\xff\xff\xff\xffx.",
    "mark as a value": b"\x80\x02}X\1\0\0\0x(s.",
    "mark in a tuple": b"\x80\x02}(\x85K\1s.",
    "call of a text": b"\x80\x02X\1\0\0\0x)R.",
    "a persistent id of its own": b"\x80\x02}X\1\0\0\0x)Qs.",
    "pops too much": b"\x80\x02sssss.",
    "no tensor": state_program({"x": integer(1)}),
    "number as a name": b"\x80\x02}K\1K\1s.",
    "the same name twice": b"\x80\x02}(X\1\0\0\0xK\1X\1\0\0\0xK\2u.",
    "too long": b"\x80\x02" + b"N0"[:1] * 1_000_001 + b".",
}


@pytest.mark.parametrize("program", DAMAGED.values(), ids=DAMAGED)
def test_damaged_pickles(program: bytes, checkpoint: Path) -> None:
    write_pickle(checkpoint, program)
    refuse(checkpoint, BIN)


LIES = {
    "storage too short": (tensor_program("0", "FloatStorage", 64, (64,)), "bytes"),
    "more than its storage": (tensor_program("0", "FloatStorage", 4, (64,)), "more than its storage"),
    "past its storage": (tensor_program("0", "FloatStorage", 4, (4,), offset=1), "more than its storage"),
    "negative offset": (tensor_program("0", "FloatStorage", 4, (4,), offset=-1), "damaged description"),
    "negative shape": (tensor_program("0", "FloatStorage", 4, (-4,)), "impossible shape"),
    "no elements": (tensor_program("0", "FloatStorage", 4, (0,)), "impossible shape"),
    "huge shape": (tensor_program("0", "FloatStorage", 4, (2**62, 2**62)), "more than its storage"),
    "negative strides": (tensor_program("0", "FloatStorage", 4, (4,), strides=(-1,)), "impossible strides"),
    "one number repeated": (tensor_program("0", "FloatStorage", 4, (2**40,), strides=(0,)), "in pieces"),
    "transposed": (tensor_program("0", "FloatStorage", 4, (2, 2), strides=(1, 2)), "transposed"),
    "five dimensions": (tensor_program("0", "FloatStorage", 4, (4, 1, 1, 1, 1)), "impossible shape"),
    "no such storage": (tensor_program("1", "FloatStorage", 4, (4,)), "no storage"),
    "integers": (tensor_program("0", "LongStorage", 2, (2,)), "LongStorage"),
    "shape of text": (
        tensor_program("0", "FloatStorage", 4, (4,)).replace(integers((4,)), b"(" + text("4") + b"t", 1), "impossible",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("program", "said"), LIES.values(), ids=LIES)
def test_tensors_that_lie(program: bytes, said: str, checkpoint: Path) -> None:
    write_pickle(checkpoint, state_program({NORM: program}), ("archive/data/0", bytes(16)))
    refuse(checkpoint, BIN, NORM, said)


# --- archives -----------------------------------------------------------------------------------------------


def patched(content: bytes, start: int, new: bytes) -> bytes:
    return content[:start] + new + content[start + len(new) :]


ARCHIVE_LIES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "compressed": (lambda c: patched(c, c.index(b"PK\1\2") + 10, b"\x08\0"), "compressed"),
    "encrypted": (lambda c: patched(c, c.index(b"PK\1\2") + 8, b"\1\0"), "encrypted"),
    "packed size": (lambda c: patched(c, c.index(b"PK\1\2") + 20, b"\1\0\0\0"), "compressed"),
    "past the end": (lambda c: patched(c, c.index(b"PK\1\2") + 20, b"\xf0\xff\xff\x7f" * 2), "end"),
    "header past the end": (lambda c: patched(c, c.index(b"PK\1\2") + 42, b"\xf0\xff\xff\x7f"), "end"),
    "missing zip64 field": (lambda c: patched(c, c.index(b"PK\1\2") + 42, b"\xff" * 4), "damaged directory"),
    "overlapping": (lambda c: patched(c, c.rindex(b"PK\1\2") + 42, bytes(4)), "overlaps"),
    "number of entries": (lambda c: patched(c, c.rindex(b"PK\5\6") + 10, b"\1\0"), "damaged directory"),
    "zip64 disagrees": (lambda c: patched(c, c.rindex(b"PK\6\6") + 48, b"\1"), "damaged directory"),
    "zip64 elsewhere": (lambda c: patched(c, c.rindex(b"PK\6\7") + 8, b"\xff" * 8), "damaged directory"),
    "comment": (lambda c: c + b"x", "at its end"),
    "cut": (lambda c: c[:-1], "truncated"),
    "only the beginning": (lambda c: c[:10], "truncated"),
    "nothing": (lambda _: b"", "truncated"),
    "other file": (lambda c: b"GGUF" + c, "not a PyTorch file"),
    "old format": (lambda _: b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "before 1.6"),
    "big endian": (lambda c: c.replace(b"little", b"big   "), "big-endian"),
}


@pytest.mark.parametrize(("damage", "said"), ARCHIVE_LIES.values(), ids=ARCHIVE_LIES)
def test_archives_that_lie(damage: Callable[[bytes], bytes], said: str, checkpoint: Path) -> None:
    (checkpoint / BIN).write_bytes(damage((checkpoint / BIN).read_bytes()))
    refuse(checkpoint, BIN, said)


def test_archives_with_the_wrong_entries(checkpoint: Path) -> None:
    for entries, said in (
        ([("a/data.pkl", b""), ("a/data.pkl", b"")], "twice"),
        ([("a/data.pkl", b""), ("b/data.pkl", b"")], "not one of PyTorch's"),
        ([("a/b/data.pkl", b"")], "not one of PyTorch's"),
        ([("../data.pkl", b""), ("/data.pkl", b"")], "not one of PyTorch's"),
    ):
        write_zip(checkpoint / BIN, entries)
        refuse(checkpoint, BIN, said)


@pytest.mark.parametrize("shard", ["../x.bin", "/etc/x.bin", "a\\b.bin", "x.safetensors", "C:x.bin", "x\n.bin", 5])
def test_index_names_are_not_trusted(shard: object, checkpoint: Path) -> None:
    index = "pytorch_model.bin.index.json"
    (checkpoint / index).write_text(json.dumps({"weight_map": {NORM: shard}}))
    refuse(checkpoint, index, "not a plain bin file name")


def test_index_that_promises_what_the_shard_lacks(checkpoint: Path) -> None:
    (checkpoint / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"x": BIN}}))
    refuse(checkpoint, BIN, "lacks the tensor x")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutations_convert_or_are_refused(data: st.DataObject, tmp_path: Path) -> None:
    """Bytes of the pickle and of the zip directory are changed, dropped and repeated."""
    path = tmp_path / BIN
    tensors = {"a": Tensor("F32", np.ones((2, 3), "<f4")), "b": Tensor("F16", np.ones(4, "<f2"))}

    def mutate(content: bytes) -> bytes:
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(content)))
            n_dropped = data.draw(st.sampled_from([0, 1, 1, 1, 4]))
            content = content[:at] + data.draw(st.binary(max_size=4)) + content[at + n_dropped :]
        return content

    in_pickle = data.draw(st.booleans())
    write_torch_file(path, tensors, parameter=data.draw(st.booleans()), change=mutate if in_pickle else lambda p: p)
    if not in_pickle:
        content = path.read_bytes()
        start = data.draw(st.sampled_from([0, content.index(b"PK\1\2")]))
        path.write_bytes(content[:start] + mutate(content[start:]))
    fd = open_file(path)
    try:
        tensors_read = read_torch_file(path, fd)
        for tensor in tensors_read.values():
            n_rows = count_elements(tensor.shape[:-1])
            tensor.read_rows(0, n_rows, np.empty(tensor.size_bytes, np.uint8))
    except QuantizeError as error:
        sentence = str(error)
    else:
        sentence = ""
    finally:
        os.close(fd)
    assert not sentence or sentence.isprintable()
    assert len(sentence) < 500
