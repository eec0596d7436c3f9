"""A model put into the store the way a pull does it, without pulling: a tiny GGUF and its manifest."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import gguf

from llamachat.models import store
from llamachat.models.manifest import Manifest
from llamachat.models.plan import PullPlan
from llamachat.paths import staging_dir

SHAPE = {"block_count": 4, "embedding_length": 64, "feed_forward_length": 128, "context_length": 4096}
N_HEAD, N_HEAD_KV, N_VOCAB = 8, 2, 100


class Silent:
    """A `Progress` that shows nothing."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """See `Progress`."""

    def planned(self, plan: PullPlan) -> None:
        """See `Progress`."""

    def file(self, name: str, done: int, total: int) -> None:
        """See `Progress`."""

    def paused(self, name: str) -> None:
        """See `Progress`."""

    def arrived(self, name: str, size_bytes: int) -> None:
        """Say nothing."""

    def notice(self, text: str) -> None:
        """See `Progress`."""


def write_gguf(path: Path, *, filler_bytes: int = 0) -> None:
    """A GGUF file with a Llama header and no tensors, as long as is wanted."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in SHAPE.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_uint32("llama.attention.head_count", N_HEAD)
    writer.add_uint32("llama.attention.head_count_kv", N_HEAD_KV)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{i}" for i in range(N_VOCAB)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with path.open("ab") as file:
        file.write(bytes(filler_bytes))


def add_model(
    name: str = "someone/tiny",
    quant: str = "q8_0",
    *,
    filler_bytes: int = 0,
    link_to: Path | None = None,
    **changes: Any,
) -> Path:
    """Publish a model, a tiny one or a link to a real one; return its directory. `changes` go into its manifest."""
    staged = staging_dir() / f"{name.replace('/', '--')}--{quant}"
    staged.mkdir(parents=True)
    path = staged / f"{name.rpartition('/')[2]}-{quant}.gguf"
    if link_to:
        path.symlink_to(link_to)
    else:
        write_gguf(path, filler_bytes=filler_bytes)
    manifest = Manifest(
        name=name,
        quant=quant,
        file=path.name,
        size_bytes=path.stat().st_size,
        n_params=1000,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        architecture="llama",
        repo="someone/tiny",
        revision="0123456789abcdef0123456789abcdef01234567",
        license="mit",
        template=None,
        system=None,
        created="2026-11-21T12:00:00.000000+00:00",
    )
    return store.publish(staged, dataclasses.replace(manifest, **changes), Silent()).path.parent
