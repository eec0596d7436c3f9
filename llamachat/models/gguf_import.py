"""GGUF files that are on this machine → a stored model: linked into the store where that can be, else copied.

The files stay where they are. A hard link costs no room and no time; what it shares is the content, so whoever writes
into the file afterwards writes into the store.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import BinaryIO

import quantize
from llamachat.errors import (
    BadReference,
    CacheDamaged,
    NameTaken,
    NotAModelFile,
    describe_os_error,
)
from llamachat.models import store
from llamachat.models.gguf_names import base_name, shard_name, shard_of, without_quant
from llamachat.models.manifest import Manifest
from llamachat.models.names import is_valid_name
from llamachat.models.plan import free_bytes, no_room
from llamachat.models.progress import Progress
from llamachat.paths import home_dir, staging_dir

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class GGUFSource:
    """The GGUF file of a model, or all its shards in order, and what is known of where it comes from.

    `quant` is what its publisher calls it, which may differ from the file type in the header. `sources` describes
    the files of a repository. What has a sha256 in `known` was verified already; in `expected`, it must have that.
    """

    name: str
    paths: Sequence[Path]
    quant: str | None = None
    repo: str | None = None
    revision: str | None = None
    license: str | None = None
    template: str | None = None
    system: str | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)
    sources: Mapping[str, Mapping[str, str | int | None]] = field(default_factory=dict)
    known: Mapping[Path, str] = field(default_factory=dict)
    expected: Mapping[Path, str] = field(default_factory=dict)


def local_source(path: Path, name: str | None) -> GGUFSource:
    """The model that `path` is, or is a shard of, called `name` or after the file."""
    if not path.exists():
        raise NotAModelFile(path, "No such file")
    name = name or without_quant(base_name(path.name))
    if not is_valid_name(name):
        raise BadReference(
            f"{name[:80]!r} cannot be a model's name.", "Give one of letters, digits, '.', '_' and '-' with --name."
        )
    shard = shard_of(path.name)
    if shard is None:
        return GGUFSource(name, [path])
    names = [shard_name(shard.base, number, shard.n_shards) for number in range(1, shard.n_shards + 1)]
    return GGUFSource(name, [path.with_name(name) for name in names])


def store_gguf(source: GGUFSource, progress: Progress, *, replace: bool) -> tuple[store.StoredModel, bool]:
    """Put a model into the store; return it, and whether it was there already.

    Without `replace`, a model of the same name and quant but other content raises `NameTaken`. The caller holds the
    model's lock. Raises `QuantizeError` for what is no model.
    """
    found = quantize.read_gguf_model(source.paths)
    quant = source.quant or found.quant
    stored = store.find_stored(source.name, quant)
    sizes = [path.stat().st_size for path in source.paths]
    counter = _Counter(partial(progress, "import"), sum(sizes))
    if stored and _is_same(stored, source, counter):
        return stored, True
    if stored and not replace:
        raise NameTaken(stored.label)
    staged = staging_dir() / f"{source.name.replace('/', '--')}--{quant}"
    shutil.rmtree(staged, ignore_errors=True)  # what a killed import left behind; the lock keeps others out
    staged.mkdir(parents=True)
    try:
        base = f"{source.name.rpartition('/')[2]}-{quant}"
        files: dict[str, dict[str, str | int]] = {}
        for number, path in enumerate(source.paths, start=1):
            target = staged / shard_name(base, number, len(source.paths))
            sha256 = _take(path, target, source.known.get(path), counter.advance)
            if sha256 != source.expected.get(path, sha256):
                raise CacheDamaged(path.resolve())
            files[target.name] = {"size_bytes": path.stat().st_size, "sha256": sha256}
        return store.publish(staged, _manifest(source, quant, found, files), progress), False
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _manifest(
    source: GGUFSource, quant: str, found: quantize.GGUFModel, files: Mapping[str, Mapping[str, str | int]]
) -> Manifest:
    first = next(iter(files))
    return Manifest(
        name=source.name,
        quant=quant,
        file=first,
        size_bytes=sum(int(facts["size_bytes"]) for facts in files.values()),
        n_params=found.n_params,
        sha256=str(files[first]["sha256"]),
        architecture=found.architecture,
        repo=source.repo,
        revision=source.revision,
        license=source.license,
        template=source.template,
        system=source.system,
        sampling=source.sampling,
        created=datetime.now(timezone.utc).isoformat(timespec="microseconds"),
        sources=source.sources,
        shards=files if len(files) > 1 else {},
        versions={"llamachat": importlib.metadata.version("llamachat")},
    )


def _is_same(stored: store.StoredModel, source: GGUFSource, counter: _Counter) -> bool:
    """Whether the store has this very content: the same files, which is seen at once, or files of the same hashes."""
    manifest = stored.manifest
    assert manifest is not None
    here = [stored.path.with_name(file.name) for file in manifest.contents]
    if len(here) != len(source.paths):
        return False
    if all(ours.exists() and ours.samefile(theirs) for ours, theirs in zip(here, source.paths, strict=True)):
        return True
    if manifest.size_bytes != counter.total:
        return False
    return [file.sha256 for file in manifest.contents] == [
        source.known.get(path) or _take(path, None, None, counter.advance) for path in source.paths
    ]


class _Counter:
    """Adds up bytes for a progress callback; what is read twice does not count twice."""

    def __init__(self, progress: Callable[[int, int], None], total: int) -> None:
        self._progress = progress
        self.total = total
        self._done = 0

    def advance(self, n_bytes: int) -> None:
        self._done = min(self.total, self._done + n_bytes)
        self._progress(self._done, self.total)


def _take(source: Path, target: Path | None, sha256: str | None, advance: Callable[[int], None]) -> str:
    """Link or copy `source` to `target` (None: read it only) and return its sha256, which may be known."""
    linked = target is not None and _link(source, target)
    if linked and sha256:
        return sha256
    if target is not None and not linked:
        _require_room(source)
    digest = hashlib.sha256()
    copying = nullcontext(None) if target is None or linked else target.open("xb")
    with _opened(source) as data, copying as out:
        while piece := _read(source, data):
            digest.update(piece)
            if out:
                out.write(piece)
            advance(len(piece))
        if target is not None:  # a file that was linked may have been written just before
            os.fsync((out or data).fileno())
    return digest.hexdigest()


def _link(source: Path, target: Path) -> bool:
    """Try to make a hard link; what the source itself links to is what is linked."""
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, one without links, somebody else's file, or too many links
        return False
    return True


def _require_room(source: Path) -> None:
    needed, free = source.stat().st_size, free_bytes(home_dir())
    if needed > free:
        raise no_room(home_dir(), needed, free)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise NotAModelFile(path, describe_os_error(error)) from error
    with file:
        yield file


def _read(path: Path, file: BinaryIO) -> bytes:
    try:
        return file.read(_PIECE_BYTES)
    except OSError as error:
        raise NotAModelFile(path, f"cannot be read ({describe_os_error(error)})") from error
