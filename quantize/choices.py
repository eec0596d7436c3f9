"""What a user wants otherwise than the mix has it, as llama-quantize's options of the same names say it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from gguf import GGMLQuantizationType as QType

from quantize.errors import BadTensorType

TENSOR_TYPES = {
    name.lower(): QType[name]
    for name in (
        "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0",
        "IQ4_NL", "IQ4_XS", "Q3_K", "Q2_K",
    )
}  # fmt: skip
"""Types a tensor can be given by name: all that need no importance matrix."""


@dataclass(frozen=True)
class Choices:
    """`overrides`: the first pattern found in a tensor's name counts. `pure`: one type for all, no mix."""

    overrides: tuple[tuple[re.Pattern[str], QType], ...] = ()
    output_type: QType | None = None
    embedding_type: QType | None = None
    pure: bool = False

    def override(self, name: str) -> QType | None:
        """The type that a pattern gives the tensor `name`."""
        return next((qtype for pattern, qtype in self.overrides if pattern.search(name)), None)


def parse_choices(
    tensor_types: Iterable[str] = (),
    output_type: str | None = None,
    embedding_type: str | None = None,
    pure: bool = False,
) -> Choices:
    """Read PATTERN=TYPE texts and names of types; raise `BadTensorType` for what cannot be read."""
    return Choices(
        overrides=tuple(_parse_override(text) for text in tensor_types),
        output_type=find_tensor_type(output_type) if output_type else None,
        embedding_type=find_tensor_type(embedding_type) if embedding_type else None,
        pure=pure,
    )


def find_tensor_type(name: str) -> QType:
    """Look a tensor type up by name, in any case; raise `BadTensorType` otherwise."""
    if name.lower() not in TENSOR_TYPES:
        raise BadTensorType(f"There is no tensor type named {name!r}.", f"Choose one of: {', '.join(TENSOR_TYPES)}.")
    return TENSOR_TYPES[name.lower()]


def _parse_override(text: str) -> tuple[re.Pattern[str], QType]:
    pattern, _, name = text.rpartition("=")
    try:
        if not pattern:
            raise re.error("there is none before a =")
        return re.compile(pattern), find_tensor_type(name)
    except re.error as error:
        raise BadTensorType(
            f"{text!r} is not PATTERN=TYPE: the pattern cannot be read ({error}).", "For example: attn_v=q8_0"
        ) from None
