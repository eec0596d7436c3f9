"""Small GGUF files: models made by the converter from random checkpoints, whole or split as llama-gguf-split does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter, Keys

from quantize import convert, find_file_type
from support.checkpoints import LlamaShape, write_random_checkpoint

SHAPE = LlamaShape(n_vocab=600, n_embd=64, n_ff=128, n_layer=2, n_head=4, n_head_kv=2)


def write_models(directory: Path, tokenizer: Path, quants: Mapping[str, str]) -> Path:
    """Write a GGUF file for each name → quant of one random checkpoint; return the directory."""
    write_random_checkpoint(directory / "checkpoint", SHAPE, tokenizer=tokenizer)
    for name, quant in quants.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        convert(directory / "checkpoint", directory / name, find_file_type(quant))
    return directory


def rewrite(source: Path, target: Path, changes: Mapping[str, str | int | None], *, with_tensors: bool = True) -> None:
    """Copy a GGUF file with text and 32-bit keys changed, added, or (None) left out."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, _architecture(reader))
    _copy_keys(reader, writer, changes)
    if with_tensors:
        _copy_tensors(reader, writer)
    _write(writer)


def write_mamba(vocabulary: Path, target: Path) -> None:
    """Write a random Mamba model of one layer with the vocabulary of another GGUF file: its memory is a state."""
    reader, writer = GGUFReader(vocabulary), GGUFWriter(target, "mamba")
    _copy_keys(reader, writer, {})
    width, inner, state, kernel, rank = 32, 64, 8, 4, 4
    writer.add_context_length(256)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(1)
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    writer.add_layer_norm_rms_eps(1e-5)
    shapes = {
        "token_embd.weight": (len(reader.fields[Keys.Tokenizer.LIST].data), width),
        "output_norm.weight": (width,),
        "blk.0.attn_norm.weight": (width,),
        "blk.0.ssm_in.weight": (2 * inner, width),
        "blk.0.ssm_conv1d.weight": (inner, kernel),
        "blk.0.ssm_conv1d.bias": (inner,),
        "blk.0.ssm_x.weight": (rank + 2 * state, inner),
        "blk.0.ssm_dt.weight": (inner, rank),
        "blk.0.ssm_dt.bias": (inner,),
        "blk.0.ssm_d": (inner,),
        "blk.0.ssm_out.weight": (width, inner),
    }
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(name, random.normal(scale=0.3, size=shape).astype(np.float32))
    writer.add_tensor("blk.0.ssm_a", np.full((inner, state), -1, np.float32))
    _write(writer)


def split(source: Path, target: Path, n_tensors: int) -> list[Path]:
    """Write `source` as `target`-0000i-of-0000n.gguf with at most `n_tensors` tensors each."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, _architecture(reader), split_max_tensors=n_tensors)
    _copy_keys(reader, writer, {})
    _copy_tensors(reader, writer)
    _write(writer)
    return sorted(target.parent.glob(f"{target.stem}-*-of-*.gguf"))


def _architecture(reader: GGUFReader) -> str:
    return str(reader.fields[Keys.General.ARCHITECTURE].contents())


def _copy_keys(reader: GGUFReader, writer: GGUFWriter, changes: Mapping[str, str | int | None]) -> None:
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == Keys.General.ARCHITECTURE or name in changes:
            continue
        inner = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], inner)
    for name, value in changes.items():
        if name == Keys.General.ARCHITECTURE:
            writer.kv_data[0].pop(name)
        if value is not None:
            writer.add_key_value(name, value, GGUFValueType.STRING if isinstance(value, str) else GGUFValueType.UINT32)


def _copy_tensors(reader: GGUFReader, writer: GGUFWriter) -> None:
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)


def _write(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
