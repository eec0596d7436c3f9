"""The GGUF header: where the model comes from, its hyperparameters, its vocabulary, its preferred sampling.

Key names are those of the GGUF specification and llama.cpp's converter.
"""

from __future__ import annotations

from dataclasses import dataclass

from gguf import GGML_QUANT_VERSION, GGUFType, GGUFWriter, Keys

from quantize.architectures.base import Architecture
from quantize.checkpoint import Checkpoint, read_json
from quantize.recipe import FileType
from quantize.vocab import Vocabulary


@dataclass(frozen=True)
class Provenance:
    """Where a checkpoint was published."""

    name: str
    repository: str | None = None
    revision: str | None = None
    license: str | None = None


_SAMPLING_KEYS: dict[str, tuple[str, type]] = {
    "temperature": (Keys.General.SAMPLING_TEMP, float),
    "top_k": (Keys.General.SAMPLING_TOP_K, int),
    "top_p": (Keys.General.SAMPLING_TOP_P, float),
    "min_p": (Keys.General.SAMPLING_MIN_P, float),
    "repetition_penalty": (Keys.General.SAMPLING_PENALTY_REPEAT, float),
}
"""generation_config.json → GGUF."""


def build_header(
    checkpoint: Checkpoint,
    architecture: Architecture,
    vocabulary: Vocabulary,
    file_type: FileType,
    size_label: str,
    provenance: Provenance | None,
) -> GGUFWriter:
    """Return a writer that holds the whole header; the tensors are still to be added."""
    writer = GGUFWriter(None, architecture.gguf_name)
    writer.add_type(GGUFType.MODEL)
    _add_provenance(writer, provenance or Provenance(printable(checkpoint.directory.resolve().name)))
    writer.add_size_label(size_label)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_file_type(file_type.ftype)
    _add_sampling(writer, checkpoint)
    for entry in architecture.header():
        writer.add_key_value(entry.key, entry.value, entry.vtype)
    vocabulary.write_to(writer)
    return writer


def printable(name: str) -> str:
    """A directory name is any bytes; a GGUF string is Unicode."""
    return name.encode(errors="replace").decode()


def _add_provenance(writer: GGUFWriter, provenance: Provenance) -> None:
    writer.add_name(provenance.name)
    if provenance.license:
        writer.add_license(provenance.license)
    if provenance.repository:
        url = f"https://huggingface.co/{provenance.repository}"
        writer.add_source_repo_url(url)
        if provenance.revision:
            writer.add_source_url(f"{url}/tree/{provenance.revision}")


def _add_sampling(writer: GGUFWriter, checkpoint: Checkpoint) -> None:
    """Keep the sampling parameters that the authors recommend, so that a chat can start from them."""
    path = checkpoint.directory / "generation_config.json"
    if not path.exists():
        return
    recommended = read_json(path)
    if recommended.get("do_sample") is False:
        return
    for name, (key, kind) in _SAMPLING_KEYS.items():
        value = recommended.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e6:
            if kind is int:
                writer.add_uint32(key, int(value))
            else:
                writer.add_float32(key, float(value))
