"""Plan the conversion of a checkpoint: its architecture promises tensors, and the checkpoint must keep the promise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gguf import size_label

from quantize.architectures import find_architecture
from quantize.architectures.base import Architecture, ExpectedTensor
from quantize.checkpoint import Checkpoint
from quantize.checkpoint.tensor import PermutedRows, StackedRows, TensorSource, count_elements
from quantize.choices import Choices
from quantize.errors import TensorError
from quantize.header import Provenance, build_header
from quantize.plan import Outline, Plan
from quantize.recipe import FileType, tensor_types
from quantize.vocab import read_vocabulary


def plan_from_checkpoint(
    checkpoint: Checkpoint,
    file_type: FileType,
    choices: Choices | None,
    provenance: Provenance | None,
    pre_tokenizer: str | None,
    has_imatrix: bool = False,
) -> Plan:
    """Pair every promised tensor with the one in the checkpoint; raise `QuantizeError` if they disagree."""
    architecture = find_architecture(checkpoint.config, checkpoint.config_path)
    sources = {**_match_tensors(checkpoint, architecture), **architecture.computed_tensors()}
    outline = _outline(checkpoint, architecture, file_type, choices, provenance, pre_tokenizer, has_imatrix)
    return Plan(outline, sources)


def outline_from_config(
    directory: Path,
    config: tuple[dict[str, object], Path],
    file_type: FileType,
    choices: Choices | None,
    provenance: Provenance | None,
    pre_tokenizer: str | None,
) -> Outline:
    """What `plan_from_checkpoint` comes to if the tensors are as promised; needs no weights."""
    architecture = find_architecture(*config)
    return _outline(Checkpoint(directory, *config, {}), architecture, file_type, choices, provenance, pre_tokenizer)


def _outline(
    checkpoint: Checkpoint,
    architecture: Architecture,
    file_type: FileType,
    choices: Choices | None,
    provenance: Provenance | None,
    pre_tokenizer: str | None,
    has_imatrix: bool = False,
) -> Outline:
    expected = architecture.expected_tensors()
    shapes = {tensor.gguf_name: tensor.gguf_shape for tensor in expected}
    n_params = sum(map(count_elements, shapes.values()))
    shapes |= {name: tensor.shape for name, tensor in architecture.computed_tensors().items()}
    vocabulary = read_vocabulary(checkpoint.directory, architecture.n_vocab, pre_tokenizer)
    label = _size_label(expected, n_params, architecture.traits.n_expert)
    return Outline(
        architecture=architecture.gguf_name,
        header=build_header(checkpoint, architecture, vocabulary, file_type, label, provenance),
        shapes=shapes,
        types=tensor_types(shapes, file_type, architecture.traits, choices=choices, has_imatrix=has_imatrix),
        n_params=n_params,
        notes=architecture.notes,
    )


def _size_label(expected: Sequence[ExpectedTensor], n_params: int, n_expert: int) -> str:
    """How people call the size: 7B, or 8x7B with eight experts."""
    n_expert_params = sum(count_elements(tensor.gguf_shape) for tensor in expected if tensor.n_expert)
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
