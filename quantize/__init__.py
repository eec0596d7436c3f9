"""Turn checkpoints into GGUF files: exact, in one pass, in memory that does not grow with the model.

    from quantize import convert, find_file_type
    report = convert(Path("Llama-2-7b-chat-hf"), Path("llama-2-7b-chat.gguf"), find_file_type("q4_k_m"))

A library of its own: it knows nothing of the program around it.
"""

from __future__ import annotations

from quantize.adapter import (
    ADAPTER_CONFIG,
    ADAPTER_FILE_TYPES,
    ADAPTER_WEIGHTS,
    AdapterFacts,
    AdapterSettings,
    check_adapter,
    convert_adapter,
    is_adapter,
    predict_adapter,
    read_adapter_facts,
)
from quantize.adapter import read_settings as read_adapter_settings
from quantize.choices import Choices, parse_choices
from quantize.errors import DiskFull, QuantizeError
from quantize.gguf_model import GGUFModel, read_gguf_model
from quantize.gguf_reader import read_hyperparameters
from quantize.header import Provenance
from quantize.pipeline import ConversionReport, Prediction, check, convert, predict, predict_from_config
from quantize.recipe import DEFAULT_FILE_TYPE, FILE_TYPES, FileType, find_file_type
from quantize.supply import Supply

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_FILE_TYPES",
    "ADAPTER_WEIGHTS",
    "DEFAULT_FILE_TYPE",
    "FILE_TYPES",
    "AdapterFacts",
    "AdapterSettings",
    "Choices",
    "ConversionReport",
    "DiskFull",
    "FileType",
    "GGUFModel",
    "Prediction",
    "Provenance",
    "QuantizeError",
    "Supply",
    "check",
    "check_adapter",
    "convert",
    "convert_adapter",
    "find_file_type",
    "is_adapter",
    "parse_choices",
    "predict",
    "predict_adapter",
    "predict_from_config",
    "read_adapter_facts",
    "read_adapter_settings",
    "read_gguf_model",
    "read_hyperparameters",
]
