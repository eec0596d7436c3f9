"""GGUF sources and the options of `llamachat quantize`, byte for byte as llama_model_quantize has them."""

from __future__ import annotations

import ctypes
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest

from quantize import FILE_TYPES, QuantizeError, convert, parse_choices, predict
from support.checkpoints import LlamaShape, write_random_checkpoint
from support.llama_cpp_oracle import quantize_with_llama_cpp, read_tensors, write_f32_gguf

SHAPE = LlamaShape(n_vocab=600, n_embd=256, n_ff=512, n_layer=9, n_head=4, n_head_kv=1, head_dim=16)
NARROW = LlamaShape(n_vocab=600, n_embd=144, n_ff=256, n_layer=2, n_head=4, n_head_kv=2, head_dim=36, tied=True)
SMALL = LlamaShape(n_vocab=600, n_embd=64, n_ff=32, n_layer=1, n_head=2, n_head_kv=1)


@pytest.fixture(scope="module")
def sources(small_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GGUF files at each number format, with everything a real header holds."""
    directory = tmp_path_factory.mktemp("sources")
    for name, shape in (("deep", SHAPE), ("narrow", NARROW), ("small", SMALL)):
        write_random_checkpoint(directory / name, shape, tokenizer=small_tokenizer)
        for quant in ("f32", "f16", "bf16"):
            convert(directory / name, directory / f"{name}-{quant}.gguf", FILE_TYPES[quant])
    return directory


def assert_same_file(source: Path, quant: str, directory: Path, *, requantize: bool = False) -> None:
    quantize_with_llama_cpp(source, directory / "theirs.gguf", FILE_TYPES[quant].ftype, allow_requantize=requantize)
    convert(source, directory / "ours.gguf", FILE_TYPES[quant], requantize=requantize)
    assert (directory / "ours.gguf").read_bytes() == (directory / "theirs.gguf").read_bytes()


# --- GGUF files as sources ----------------------------------------------------------------------------------


@pytest.mark.parametrize("quant", FILE_TYPES)
@pytest.mark.parametrize("name", ["narrow-f32", "narrow-bf16", "small-f16"])
def test_the_whole_file_is_llama_cpps(name: str, quant: str, sources: Path, tmp_path: Path) -> None:
    assert_same_file(sources / f"{name}.gguf", quant, tmp_path)


@pytest.mark.parametrize("quant", ["q4_k_m", "q2_k", "iq4_xs"])
def test_mixes_by_layer(quant: str, sources: Path, tmp_path: Path) -> None:
    assert_same_file(sources / "deep-bf16.gguf", quant, tmp_path)


def test_a_quantized_file_is_refused_or_quantized_again(sources: Path, tmp_path: Path) -> None:
    for first in ("q8_0", "q4_k_m", "iq4_nl"):
        convert(sources / "deep-f16.gguf", tmp_path / "first.gguf", FILE_TYPES[first])
        with pytest.raises(QuantizeError, match=r"first\.gguf is quantized already") as caught:
            convert(tmp_path / "first.gguf", tmp_path / "out.gguf", FILE_TYPES["q4_0"])
        assert "--requantize" in caught.value.next_step
        assert not (tmp_path / "out.gguf").exists()
        for quant in ("q4_0", "q4_k_m"):
            assert_same_file(tmp_path / "first.gguf", quant, tmp_path, requantize=True)


def test_the_prediction_for_a_gguf_is_exact(sources: Path, tmp_path: Path) -> None:
    for quant in ("f16", "q4_k_s"):
        prediction = predict(sources / "narrow-f32.gguf", FILE_TYPES[quant])
        report = convert(sources / "narrow-f32.gguf", tmp_path / "out.gguf", FILE_TYPES[quant])
        assert prediction.size_bytes == report.size_bytes == (tmp_path / "out.gguf").stat().st_size
        assert prediction.tensor_types == report.tensor_types
        assert prediction.n_params == report.n_params == predict(sources / "narrow", FILE_TYPES[quant]).n_params


@pytest.mark.parametrize(("architecture", "n_head_kv"), [("qwen2", 2), ("qwen3", 1)])
def test_the_70b_rule_is_that_of_the_architecture(architecture: str, n_head_kv: int, tmp_path: Path) -> None:
    """At 80 layers: in `qwen2` always, in `qwen3` never, and not by the number of heads as in `llama`."""
    shape = LlamaShape(n_vocab=32, n_embd=256, n_ff=32, n_layer=80, n_head=2, n_head_kv=n_head_kv, head_dim=8)
    weights = write_random_checkpoint(tmp_path / "checkpoint", shape, tokenizer=None)
    write_f32_gguf(tmp_path / "f32.gguf", shape, weights, architecture=architecture)
    assert_same_file(tmp_path / "f32.gguf", "q4_k_s", tmp_path)
    expected = {"qwen2": {"Q5_K": 80}, "qwen3": {"Q5_K": 4, "Q4_K": 76}}[architecture]
    tensors = read_tensors(tmp_path / "ours.gguf")
    assert Counter(qtype.name for name, (qtype, *_) in tensors.items() if "attn_v" in name) == expected


def test_odd_shapes_types_and_alignment(tmp_path: Path) -> None:
    """Leading ones, tensors of whole numbers, vectors at 16 bit: as llama.cpp takes them."""
    write_f32_gguf(
        tmp_path / "plain.gguf", SMALL, write_random_checkpoint(tmp_path / "checkpoint", SMALL, tokenizer=None)
    )
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "llama")
    for field in gguf.GGUFReader(tmp_path / "plain.gguf").fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    writer.add_array("odd.numbers", [1, 2, 3])
    writer.add_array("odd.texts", ["a", "", "é"])
    for tensor in gguf.GGUFReader(tmp_path / "plain.gguf").tensors:
        writer.add_tensor(tensor.name, tensor.data.astype(np.float16) if "norm" in tensor.name else tensor.data)
    writer.add_tensor("blk.0.table", np.arange(6, dtype=np.int32).reshape(2, 3))
    writer.add_tensor("blk.0.row.weight", np.ones((1, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for quant in ("q8_0", "q4_k_m", "f16"):
        assert_same_file(tmp_path / "odd.gguf", quant, tmp_path)


@pytest.mark.parametrize("name", ["blk.0.attn_qkv.weight", "blk.0.ffn_down_exps.weight", "mystery.weight"])
def test_tensors_without_a_rule_are_refused_by_name(name: str, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "in.gguf", "phi3")
    writer.add_tensor(name, np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(QuantizeError, match=name):
        convert(tmp_path / "in.gguf", tmp_path / "out.gguf", FILE_TYPES["q4_0"])
    convert(tmp_path / "in.gguf", tmp_path / "out.gguf", FILE_TYPES["f16"])
    assert read_tensors(tmp_path / "out.gguf")[name][0].name == "F16"


# --- hostile GGUF files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_kept", [0, 3, 4, 23, 24, 40, 1000, -1, -40_000])
def test_a_truncated_file(n_kept: int, sources: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.gguf"
    path.write_bytes((sources / "small-f16.gguf").read_bytes()[:n_kept])
    with pytest.raises(QuantizeError, match=r"in\.gguf"):
        convert(path, tmp_path / "out.gguf", FILE_TYPES["q8_0"])
    assert list(tmp_path.iterdir()) == [path]


_MUTATE = """
import random, resource, sys
from pathlib import Path
from quantize import FILE_TYPES, QuantizeError, convert
from quantize.errors import OutputError

source, directory = Path(sys.argv[1]), Path(sys.argv[2])
original = source.read_bytes()
n_header = original.index(b"blk.0.attn_k.weight") + 1000
resource.setrlimit(resource.RLIMIT_AS, (2_000_000_000, 2_000_000_000))
outcomes = {"refused": 0, "converted": 0}
for seed in range(400):
    rng = random.Random(seed)
    content = bytearray(original)
    start = rng.choice((0, n_header - 1400))
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(start, n_header)
        if rng.random() < 0.5:
            content[at] = rng.randrange(256)
        else:
            content[at : at + 8] = rng.choice((0, 1, 2**31, 2**32, 2**62, 2**63, 2**64 - 1)).to_bytes(8, "little")
    if rng.random() < 0.2:
        del content[at : at + rng.randrange(1, 20)]
    (directory / "in.gguf").write_bytes(content)
    try:
        convert(directory / "in.gguf", directory / "out.gguf", FILE_TYPES[rng.choice(("f16", "q4_k_m"))], n_threads=1)
        outcomes["converted"] += 1
    except QuantizeError as error:
        assert not isinstance(error, OutputError), (seed, error)
        assert str(error).isprintable() and len(str(error)) < 500, (seed, error)
        outcomes["refused"] += 1
assert min(outcomes.values()) > 20, outcomes
"""


def test_mutated_headers_convert_or_are_refused(sources: Path, tmp_path: Path) -> None:
    """In a process of its own, with little memory: nothing crashes it."""
    command = [sys.executable, "-c", _MUTATE, str(sources / "small-f16.gguf"), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize("shape", [(2**31,), (2, 2**31)])
def test_rows_larger_than_memory_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    """A file of zeros takes no room on a disk."""
    path = tmp_path / "in.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor_info("output_norm.weight", shape, np.dtype(np.float16), 2 * math.prod(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, path.stat().st_size + 2 * math.prod(shape) + 32)
    with pytest.raises(QuantizeError, match="rows of"):
        convert(path, tmp_path / "out.gguf", FILE_TYPES["f16"])


def test_not_a_number_is_refused_by_name(tmp_path: Path) -> None:
    weights = write_random_checkpoint(tmp_path / "checkpoint", SMALL, tokenizer=None)
    weights["model.layers.0.mlp.up_proj.weight"][3, 5] = np.nan
    write_f32_gguf(tmp_path / "in.gguf", SMALL, weights)
    with pytest.raises(QuantizeError, match=r"blk\.0\.ffn_up\.weight holds NaN"):
        convert(tmp_path / "in.gguf", tmp_path / "out.gguf", FILE_TYPES["q8_0"])


# --- types chosen by hand -----------------------------------------------------------------------------------

CHOICES = {
    "patterns": {"tensor_types": [r"attn_[kv]=q8_0", "attn_v=f16", r"blk\.[02]\.ffn_down=Q4_0"]},
    "some of the layers that count": {"tensor_types": [r"blk\.[0-3]\.attn_v=q5_1", "blk.1.ffn_down=q3_k"]},
    "output": {"output_type": "q4_0"},
    "embeddings": {"embedding_type": "f16"},
    "pure": {"pure": True},
    "all at once": {
        "pure": True, "output_type": "f32", "embedding_type": "bf16", "tensor_types": ["token_embd|output=q5_0"],
    },
}  # fmt: skip


@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("source", ["deep-bf16", "narrow-f32"])
def test_chosen_types_are_llama_cpps(source: str, choices: dict, sources: Path, tmp_path: Path) -> None:
    parsed = parse_choices(**choices)
    overrides = (llama_cpp.llama_model_tensor_override * (len(parsed.overrides) + 1))()
    for slot, (pattern, qtype) in zip(overrides, parsed.overrides, strict=False):
        slot.pattern, slot.type = pattern.pattern.encode(), qtype
    changes = {
        "pure": parsed.pure,
        "tt_overrides": ctypes.cast(overrides, ctypes.POINTER(llama_cpp.llama_model_tensor_override)),
    }
    if parsed.output_type is not None:
        changes["output_tensor_type"] = parsed.output_type
    if parsed.embedding_type is not None:
        changes["token_embedding_type"] = parsed.embedding_type
    for quant in ("q4_k_m", "q4_k_s", "f16"):
        path = sources / f"{source}.gguf"
        quantize_with_llama_cpp(path, tmp_path / "theirs.gguf", FILE_TYPES[quant].ftype, **changes)
        convert(path, tmp_path / "ours.gguf", FILE_TYPES[quant], choices=parsed)
        assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


@pytest.mark.parametrize("text", ["attn_v", "=q8_0", "attn_v=", "attn_v=q9", "(=q8_0", "attn_v=iq1_s"])
def test_what_is_no_choice(text: str) -> None:
    with pytest.raises(QuantizeError):
        parse_choices([text])


def test_a_type_that_does_not_fit_is_refused(sources: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match=r"token_embd\.weight cannot be Q4_K"):
        convert(
            sources / "narrow-f32.gguf", tmp_path / "out.gguf", FILE_TYPES["q8_0"],
            choices=parse_choices(embedding_type="q4_k"),
        )  # fmt: skip


# --- notes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "n_notes"), [(128, 1), (None, 0), (256, 0), ("x", 0)])
def test_a_sliding_window_that_llama_cpp_ignores_is_said(
    window: object, n_notes: int, small_tokenizer: Path, tmp_path: Path
) -> None:
    write_random_checkpoint(tmp_path, LlamaShape(600, 64, 96, 1, 4, 2), tokenizer=small_tokenizer)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"architectures": ["MistralForCausalLM"], "sliding_window": window}
    (tmp_path / "config.json").write_text(json.dumps(config))
    notes = predict(tmp_path, FILE_TYPES["q8_0"]).notes
    assert [("sliding window of 128" in note) for note in notes] == [True] * n_notes
