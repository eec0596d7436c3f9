"""What the name of a GGUF file says, as people name them: the quant, and which shard of a split model it is.

llama-2-7b-chat.Q4_K_M.gguf    Qwen3-8B-UD-Q4_K_XL.gguf    qwen2.5-7b-instruct-q4_k_m-00001-of-00002.gguf
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import NamedTuple

_SHARD = re.compile(r"(?P<base>.+)-(?P<number>\d{5})-of-(?P<n_shards>\d{5})\.gguf", re.IGNORECASE)

_TYPE = r"(?:(?:IQ|TQ|Q)\d(?:_(?:K|S|M|L|XL|XS|XXS|NL|\d))*|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32)"
_PREFIX = r"(?:UD|i1)-"
"""UD of Unsloth's mixes, i1 of mradermacher's with an importance matrix."""

_QUANT = re.compile(rf"(?:^|(?<=[-._]))(?:{_PREFIX})?{_TYPE}(?=[-._]|$)", re.IGNORECASE)

_ALIASES = {"fp16": "f16", "fp32": "f32"}


class Shard(NamedTuple):
    """A file's place in a split model, counted from 1; `base` is its name without place and `.gguf`."""

    base: str
    number: int
    n_shards: int


def shard_of(name: str) -> Shard | None:
    """Which shard a file is by its name (which may have a folder), or None for one that is not split."""
    match = _SHARD.fullmatch(name)
    return Shard(match["base"], int(match["number"]), int(match["n_shards"])) if match else None


def shard_name(base: str, number: int, n_shards: int) -> str:
    """The name that llama.cpp looks for."""
    return f"{base}-{number:05}-of-{n_shards:05}.gguf" if n_shards > 1 else f"{base}.gguf"


def base_name(name: str) -> str:
    """A file's name without folder, place among shards, and `.gguf`."""
    name = PurePosixPath(name).name
    shard = shard_of(name)
    return shard.base if shard else name[: -len(".gguf")] if name.lower().endswith(".gguf") else name


def quant_of(name: str) -> str | None:
    """The quant in a file's name, in lower case; the folder counts if the file itself does not say it."""
    for part in (base_name(name), PurePosixPath(name).parent.name):
        if found := list(_QUANT.finditer(part)):
            quant = found[-1].group().lower()
            return _ALIASES.get(quant, quant)
    return None


def without_prefix(quant: str) -> str:
    """The quant without what a publisher puts before it."""
    return re.sub(rf"^{_PREFIX}", "", quant, flags=re.IGNORECASE)


def without_quant(base: str) -> str:
    """A base name without the quant at its end, which is what the model is called."""
    matches = list(_QUANT.finditer(base))
    if matches and matches[-1].end() == len(base):
        return base[: matches[-1].start()].rstrip("-._") or base
    return base
