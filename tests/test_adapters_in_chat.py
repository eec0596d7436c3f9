"""Adapters in use: the engine computes with them; what does not fit the model is refused before llama.cpp sees it."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import typer
from conftest import RunCommand
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamachat.cli.options import parse_adapter
from llamachat.engine.base import EngineOptions, GenerationRequest, LoraAdapter, Token
from llamachat.engine.llamacpp import LlamaEngine
from llamachat.engine.sampling import SamplingParams
from llamachat.errors import UnusableAdapter
from llamachat.models import adapters
from quantize import FILE_TYPES, QuantizeError, check_adapter, convert, convert_adapter
from support.adapters import EMBED, delta, random_lora, write_adapter
from support.checkpoints import LlamaShape, Tensor, write_random_checkpoint, write_safetensors

SHAPE = LlamaShape(n_vocab=600, n_embd=64, n_ff=96, n_layer=1, n_head=4, n_head_kv=2)
TARGETS = ["lm_head", "model.layers.0.self_attn.k_proj", "model.layers.0.mlp.down_proj"]
PROMPT = [1, 300, 17, 42, 500]
SCALE = 2.0
F32 = FILE_TYPES["f32"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path) -> Path:
    """A model, an adapter for it, the model with half and all of it merged in, and models that it does not fit."""
    directory = tmp_path_factory.mktemp("files")
    weights = write_random_checkpoint(directory / "model", SHAPE, dtype="F32", tokenizer=small_tokenizer)
    tensors = random_lora(SHAPE.tensor_shapes(), dict.fromkeys(TARGETS, 4))
    write_adapter(directory / "lora", tensors, lora_alpha=4 * SCALE)
    convert_adapter(directory / "lora", directory / "model", directory / "lora.gguf", F32)
    convert(directory / "model", directory / "model.gguf", F32)
    for name, share in (("half", 0.5), ("merged", 1.0)):
        shutil.copytree(directory / "model", directory / name)
        merged = {key: Tensor("F32", weight) for key, weight in weights.items()}
        for module in TARGETS:
            weight = weights[f"{module}.weight"] + share * delta(tensors, module, SCALE)
            merged[f"{module}.weight"] = Tensor("F32", weight.astype(np.float32))
        write_safetensors(directory / name / "model.safetensors", merged)
        convert(directory / name, directory / f"{name}.gguf", F32)
    for name, shape in (
        ("wide", LlamaShape(600, 128, 96, 1, 4, 2)),
        ("tied", LlamaShape(600, 64, 96, 1, 4, 2, tied=True)),
    ):
        write_random_checkpoint(directory / name, shape, dtype="F32", tokenizer=small_tokenizer)
        convert(directory / name, directory / f"{name}.gguf", F32)
    write_adapter(directory / "embeddings", random_lora(SHAPE.tensor_shapes(), {EMBED: 4}))
    convert_adapter(directory / "embeddings", directory / "model", directory / "embeddings.gguf", F32)
    return directory


# --- the engine ---------------------------------------------------------------------------------------------


def answer(path: Path, adapters: Sequence[LoraAdapter] = ()) -> list[int]:
    """The 24 likeliest tokens after the prompt, one after the other."""
    engine = LlamaEngine(path, EngineOptions(n_ctx=256, n_threads=1, adapters=adapters))
    try:
        request = GenerationRequest(PROMPT, SamplingParams(temperature=0.0), max_tokens=24, ignore_eog=True)
        return [e.token_id for e in engine.generate(request, threading.Event()) if isinstance(e, Token)]
    finally:
        engine.close()


def test_the_engine_computes_with_adapters(files: Path) -> None:
    model, lora = files / "model.gguf", files / "lora.gguf"
    plain, half, merged = (answer(files / f"{name}.gguf") for name in ("model", "half", "merged"))
    assert plain != half != merged != plain
    assert answer(model, [LoraAdapter(lora)]) == merged
    assert answer(model, [LoraAdapter(lora, 0.5)]) == half
    assert answer(model, [LoraAdapter(lora, 0.25), LoraAdapter(lora, 0.75)]) == merged
    assert answer(model, [LoraAdapter(lora, 0.0)]) == plain
    assert answer(files / "merged.gguf", [LoraAdapter(lora, -1.0)]) == plain


def test_the_engine_says_which_adapter_does_not_fit(files: Path) -> None:
    for path in (files / "missing.gguf", files / "model.gguf", files / "lora" / "adapter_model.safetensors"):
        with pytest.raises(UnusableAdapter, match=path.name):
            answer(files / "model.gguf", [LoraAdapter(files / "lora.gguf"), LoraAdapter(path)])
    with pytest.raises(UnusableAdapter, match="incorrect shape"):
        answer(files / "wide.gguf", [LoraAdapter(files / "lora.gguf")])


# --- what fits ----------------------------------------------------------------------------------------------


def write_gguf(path: Path, tensors: dict[str, tuple[int, ...]], **keys: Any) -> Path:
    """An adapter file of zeros with `keys` (with `__` for a point) instead of the usual ones, or none where None."""
    usual = {
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": np.float32(8),
    }
    chosen = usual | {key.replace("__", "."): value for key, value in keys.items()}
    writer = gguf.GGUFWriter(path, chosen.pop("general.architecture", "llama"))
    for key, value in chosen.items():
        match value:
            case str():
                writer.add_string(key, value)
            case np.float32():
                writer.add_float32(key, float(value))
            case float():
                writer.add_float64(key, value)
            case list():
                writer.add_array(key, value)
    for name, shape in tensors.items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


Q = "blk.0.attn_q.weight"
GOOD = {f"{Q}.lora_a": (4, 64), f"{Q}.lora_b": (64, 4)}


def test_what_fits(files: Path, tmp_path: Path) -> None:
    model = files / "model.gguf"
    assert check_adapter(files / "lora.gguf", model) == ()
    assert check_adapter(files / "embeddings.gguf", model) == ()
    assert check_adapter(write_gguf(tmp_path / "good.gguf", GOOD), model) == ()
    assert (
        check_adapter(write_gguf(tmp_path / "one.gguf", {f"{Q}.lora_a": (1, 64), f"{Q}.lora_b": (64, 1)}), model) == ()
    )
    with_norm = write_gguf(tmp_path / "norm.gguf", GOOD | {"blk.0.attn_norm.weight": (64,)})
    (note,) = check_adapter(with_norm, model)
    assert "1 trained norm" in note
    for path in tmp_path.iterdir():
        answer(model, [LoraAdapter(path)])


@pytest.mark.parametrize(
    ("tensors", "keys", "says"),
    [
        (GOOD, {"general__type": "model"}, "is not a LoRA adapter"),
        (GOOD, {"general__type": None}, "is not a LoRA adapter"),
        (GOOD, {"general__type": np.float32(1)}, "is not a LoRA adapter"),
        (GOOD, {"adapter__type": "control_vector"}, "is not a LoRA adapter"),
        (GOOD, {"general__architecture": "qwen2"}, "qwen2"),
        (GOOD, {"adapter__lora__alpha": None}, "adapter.lora.alpha"),
        (GOOD, {"adapter__lora__alpha": "8"}, "adapter.lora.alpha"),
        (GOOD, {"adapter__lora__alpha": 8.0}, "adapter.lora.alpha"),
        (GOOD, {"adapter__lora__alpha": np.float32("nan")}, "adapter.lora.alpha"),
        (GOOD, {"adapter__alora__invocation_tokens": [1, 2]}, "aLoRA"),
        ({}, {}, "holds no LoRA tensors"),
        (GOOD | {"blk.0.attn_k.weight": (64, 64)}, {}, "neither"),
        ({f"{Q}.lora_a": (4, 64)}, {}, "lora_b is missing"),
        ({f"{Q}.lora_b": (64, 4)}, {}, "lora_a is missing"),
        ({f"{Q}.lora_a": (4, 32), f"{Q}.lora_b": (64, 4)}, {}, "do not fit"),
        ({f"{Q}.lora_a": (4, 64), f"{Q}.lora_b": (32, 4)}, {}, "do not fit"),
        ({f"{Q}.lora_a": (4, 64), f"{Q}.lora_b": (64, 8)}, {}, "do not fit"),
        ({f"{Q}.lora_a": (2, 4, 64), f"{Q}.lora_b": (2, 64, 4)}, {}, "do not fit"),
        ({"token_embd.weight.lora_a": (4, 600), "token_embd.weight.lora_b": (64, 4)}, {}, "do not fit"),
        ({"blk.7.attn_q.weight.lora_a": (4, 64), "blk.7.attn_q.weight.lora_b": (64, 4)}, {}, "does not have"),
    ],
)
def test_what_does_not_fit(
    tensors: dict[str, tuple[int, ...]], keys: dict[str, Any], says: str, files: Path, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "lora.gguf", tensors, **keys)
    with pytest.raises(QuantizeError, match=says) as caught:
        check_adapter(path, files / "model.gguf")
    check_sentence(caught.value)


def check_sentence(error: QuantizeError | UnusableAdapter) -> None:
    assert str(error).isprintable()
    assert error.next_step


def test_embeddings_that_are_the_output_as_well(files: Path) -> None:
    """llama.cpp would abort in the middle of the first answer."""
    with pytest.raises(QuantizeError, match="the embeddings alone"):
        check_adapter(files / "embeddings.gguf", files / "tied.gguf")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_adapters_load_or_are_refused(data: st.DataObject, files: Path, tmp_path: Path) -> None:
    content = bytearray((files / "lora.gguf").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, 700))] = data.draw(st.integers(0, 255))
    path = tmp_path / "lora.gguf"
    path.write_bytes(content)
    try:
        check_adapter(path, files / "model.gguf")
    except QuantizeError as error:
        check_sentence(error)
        return
    try:
        answer(files / "model.gguf", [LoraAdapter(path)])
    except UnusableAdapter as error:
        check_sentence(error)


# --- the command --------------------------------------------------------------------------------------------


def test_chat_with_an_adapter(files: Path, run: RunCommand) -> None:
    def content(model: str, *options: str) -> str:
        asked = ("chat", files / f"{model}.gguf", "-p", "The river", "--temperature", "0", "--max-tokens", "12")
        result = run(*asked, "--template", "none", "--json", *options)
        assert result.returncode == 0, result.stderr
        return str(json.loads(result.stdout)["content"])

    assert content("model", "--adapter", f"{files / 'lora.gguf'}:0.5") == content("half")


def test_adapters_that_cannot_be_used_are_one_sentence(files: Path, run: RunCommand) -> None:
    result = run("chat", files / "wide.gguf", "-p", "Hi", "--adapter", f"{files / 'lora.gguf'}:0.5")
    assert result.returncode == 1
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["Error", "Next"]
    assert "do not fit" in result.stderr
    with pytest.raises(UnusableAdapter, match="is a PEFT adapter") as caught:
        adapters.check_adapter(files / "lora", files / "model.gguf")
    assert "llamachat quantize" in caught.value.next_step


def test_scales_are_read(files: Path, tmp_path: Path) -> None:
    lora = files / "lora.gguf"
    assert parse_adapter(str(lora)) == (lora, 1.0)
    assert parse_adapter(f"{lora}:0.5") == (lora, 0.5)
    assert parse_adapter(f"{lora}:-1") == (lora, -1.0)
    odd = tmp_path / "lora:2"
    odd.write_bytes(lora.read_bytes())
    assert parse_adapter(str(odd)) == (odd, 1.0)
    assert parse_adapter("no:such") == (Path("no:such"), 1.0)
    for text in ("lora.gguf:nan", "lora.gguf:inf", "lora.gguf:1e30", ":2"):
        with pytest.raises(typer.BadParameter):
            parse_adapter(text)
