"""How a sentencepiece model was trained, which its library does not tell: read from the file itself.

The file is one protobuf message; only the few fields that decide whether llama.cpp gives the same ids are read.
Source: `ModelProto` in sentencepiece's src/sentencepiece_model.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantize.errors import CheckpointError

_TRAINER, _MODEL_TYPE, _SPACE_IS_SUFFIX = 2, 3, 24
_NORMALIZER, _CHARSMAP, _ADD_DUMMY_PREFIX, _REMOVE_EXTRA_SPACES, _ESCAPE_SPACES = 3, 2, 3, 4, 5
_BPE = 2


@dataclass(frozen=True)
class Settings:
    """What a sentencepiece model does besides merging."""

    is_bpe: bool
    normalizes: bool
    adds_space_prefix: bool


def read_settings(path: Path, proto: bytes) -> Settings:
    """Read the settings in `proto`, the content of `path`; absent ones have the defaults of the format."""
    try:
        fields = list(_fields(proto))
        trainer = list(_fields(_join(fields, _TRAINER)))
        normalizer = list(_fields(_join(fields, _NORMALIZER)))
    except (IndexError, ValueError) as error:
        raise CheckpointError(path, "is not a sentencepiece model") from error
    return Settings(
        is_bpe=_number(trainer, _MODEL_TYPE, 1) == _BPE and not _number(trainer, _SPACE_IS_SUFFIX, 0),
        normalizes=bool(_join(normalizer, _CHARSMAP))
        or bool(_number(normalizer, _REMOVE_EXTRA_SPACES, 1))
        or not _number(normalizer, _ESCAPE_SPACES, 1),
        adds_space_prefix=bool(_number(normalizer, _ADD_DUMMY_PREFIX, 1)),
    )


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of a message; fixed-size numbers stay bytes. Format: protobuf.dev, "Encoding"."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire_type == 2:
            size, position = _varint(message, position)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"wire type {wire_type}")
        yield number, message[position : position + size]
        position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """The number at `position`, seven bits a byte, and the position after it."""
    value = 0
    for i in range(10):
        byte = message[position + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, position + i + 1
    raise ValueError("a number of more than ten bytes")


def _join(fields: list[tuple[int, int | bytes]], number: int) -> bytes:
    """The bytes of a field; repeated messages count as one."""
    return b"".join(value for n, value in fields if n == number and isinstance(value, bytes))


def _number(fields: list[tuple[int, int | bytes]], number: int, default: int) -> int:
    """The last value of a field."""
    return next((value for n, value in reversed(fields) if n == number and isinstance(value, int)), default)
