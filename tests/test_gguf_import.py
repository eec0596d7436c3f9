"""`llamachat pull ./model.gguf`: into the store by a hard link or a copy, checked, and never moved."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCommand

from llamachat.errors import BadReference, LlamachatError, NameTaken
from llamachat.models.pull import PullRequest, PullResult
from llamachat.models.pull import pull as run_pull
from support.gguf_files import rewrite, split, write_models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path) -> Path:
    """tiny.Q8_0.gguf, and tiny-f16.gguf, whole and split in three."""
    directory = tmp_path_factory.mktemp("models")
    write_models(directory, small_tokenizer, {"tiny.Q8_0.gguf": "q8_0", "tiny-f16.gguf": "f16"})
    split(directory / "tiny-f16.gguf", directory / "split.gguf", 10)
    return directory


def pull(run: RunCommand, *arguments: object) -> dict[str, Any]:
    done = run("pull", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def manifest(result: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(Path(result["path"]).with_name("manifest.json").read_text()))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_is_linked_checked_and_registered(models: Path, run: RunCommand, home: Path) -> None:
    source = models / "tiny.Q8_0.gguf"
    result = pull(run, source)
    assert (result["name"], result["quant"], result["already_here"]) == ("tiny", "q8_0", False)
    assert result["sha256"] == sha256(source)
    assert Path(result["path"]).samefile(source)
    assert manifest(result)["architecture"] == "llama"
    assert result["n_params"] == manifest(result)["n_params"] > 100_000
    assert not list((home / "staging").iterdir())

    listed = json.loads(run("list", "--json").stdout)["models"][0]
    assert (listed["name"], listed["repo"], listed["size_bytes"]) == ("tiny", None, source.stat().st_size)
    answer = run("chat", "tiny", "-p", "Hi", "--max-tokens", "2", "--json")
    assert json.loads(answer.stdout)["completion_tokens"] == 2, answer.stderr
    assert run("rm", "tiny:q8_0", "--yes").returncode == 0
    assert source.exists()


def import_file(path: Path, name: str | None = None) -> PullResult:
    return run_pull(PullRequest(str(path), name=name), lambda *_: None)


def test_the_same_content_again_is_seen(models: Path, run: RunCommand, tmp_path: Path) -> None:
    """By the file itself, and by its hash where it is a copy under another name."""
    first = pull(run, models / "tiny.Q8_0.gguf")
    assert "already here" in run("pull", models / "tiny.Q8_0.gguf").stdout
    shutil.copy(models / "tiny.Q8_0.gguf", tmp_path / "copy.gguf")
    again = import_file(tmp_path / "copy.gguf", "tiny")
    assert (again.was_here, again.elapsed_s, str(again.model.path)) == (True, 0, first["path"])


def test_other_content_does_not_take_a_name(models: Path, tmp_path: Path) -> None:
    import_file(models / "tiny.Q8_0.gguf")
    rewrite(models / "tiny.Q8_0.gguf", tmp_path / "tiny.gguf", {"general.name": "Other"})
    with pytest.raises(NameTaken, match="tiny:q8_0 is here already, and it is another model") as refused:
        import_file(tmp_path / "tiny.gguf")
    assert "--name" in refused.value.next_step
    assert import_file(tmp_path / "tiny.gguf", "someone/other").model.label == "someone/other:q8_0"


@pytest.fixture
def other_disk(models: Path) -> Iterator[Path]:
    directory = Path("/dev/shm")
    if not directory.is_dir() or directory.stat().st_dev == models.stat().st_dev:
        pytest.skip("needs a second file system")
    with tempfile.TemporaryDirectory(dir=directory) as name:
        yield Path(name)


def test_on_another_file_system_it_is_copied(models: Path, other_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMACHAT_HOME", str(other_disk))
    source = models / "tiny.Q8_0.gguf"
    result = import_file(source)
    assert result.model.path.read_bytes() == source.read_bytes()
    assert not result.model.path.samefile(source)
    assert result.manifest.sha256 == sha256(source)
    assert import_file(source).was_here


def test_what_a_link_leads_to_is_imported(models: Path, tmp_path: Path) -> None:
    (tmp_path / "linked-model.gguf").symlink_to(models / "tiny.Q8_0.gguf")
    result = import_file(tmp_path / "linked-model.gguf")
    assert result.model.name == "linked-model"
    assert not result.model.path.is_symlink()


def test_all_shards_are_imported_whichever_is_named(models: Path, run: RunCommand) -> None:
    shards = sorted(models.glob("split-*.gguf"))
    assert len(shards) > 2
    result = pull(run, shards[1])
    assert (result["name"], result["quant"]) == ("split", "f16")
    assert result["size_bytes"] == sum(path.stat().st_size for path in shards)
    stored = manifest(result)["shards"]
    assert [facts["sha256"] for facts in stored.values()] == [sha256(path) for path in shards]
    assert sorted(path.name for path in Path(result["path"]).parent.glob("*.gguf")) == list(stored)
    assert result["n_params"] == import_file(models / "tiny-f16.gguf").manifest.n_params
    answer = run("chat", "split", "-p", "Hi", "--max-tokens", "2", "--temperature", "0", "--json")
    same = run("chat", "tiny:f16", "-p", "Hi", "--max-tokens", "2", "--temperature", "0", "--json")
    assert json.loads(answer.stdout)["content"] == json.loads(same.stdout)["content"], answer.stderr
    assert import_file(shards[0]).was_here


def test_a_quant_is_not_made_on_the_way(models: Path, run: RunCommand, home: Path) -> None:
    refused = run("pull", models / "tiny-f16.gguf", "--quant", "q4_k_m")
    assert refused.returncode == 1
    assert f"llamachat quantize {models / 'tiny-f16.gguf'} --quant q4_k_m" in refused.stderr
    assert not home.exists()


def _truncate(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes()[:-1000])


def _shard_missing(source: Path, target: Path) -> None:
    split(source, target, 10)[2].unlink()


def _shards_swapped(source: Path, target: Path) -> None:
    shards = split(source, target, 10)
    shards[1].rename(target.with_suffix(".aside"))
    shards[2].rename(shards[1])
    target.with_suffix(".aside").rename(shards[2])


def _lone_shard(source: Path, target: Path) -> None:
    first, *others = split(source, target, 10)
    first.rename(target)
    for path in others:
        path.unlink()


def _directory(_source: Path, target: Path) -> None:
    target.mkdir()


def _nothing(_source: Path, _target: Path) -> None:
    pass


def _text(_source: Path, target: Path) -> None:
    target.write_text("not a model")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_nothing, "No such file"),
        (_directory, "is not a file"),
        (_text, "is not a GGUF file"),
        (_truncate, "past the end of the file"),
        (lambda source, target: rewrite(source, target, {"general.type": "adapter"}), "of type adapter"),
        (lambda source, target: rewrite(source, target, {"general.type": "mmproj"}), "of type mmproj"),
        (lambda source, target: rewrite(source, target, {"general.architecture": "clip"}), "of type mmproj"),
        (lambda source, target: rewrite(source, target, {"general.architecture": None}), "no key general.architecture"),
        (lambda source, target: rewrite(source, target, {}, with_tensors=False), "holds no tensors"),
        (_shard_missing, "is missing"),
        (_shards_swapped, "it is part 2 (counted from 0) of"),
        (_lone_shard, "it is part 0 (counted from 0) of"),
    ],
)
def test_what_is_not_a_whole_model_is_refused(
    spoil: Callable[[Path, Path], object], says: str, models: Path, tmp_path: Path, home: Path
) -> None:
    spoil(models / "tiny-f16.gguf", tmp_path / "model.gguf")
    named = next(iter(sorted(tmp_path.glob("model-*.gguf"))), tmp_path / "model.gguf")
    with pytest.raises(LlamachatError, match=re.escape(says)) as refused:
        run_pull(PullRequest(str(named)), lambda *_: None)
    assert refused.value.next_step
    assert not (home / "models").exists()
    assert not any(path.is_file() for path in (home / "staging").rglob("*"))


def test_a_pipe_does_not_hang(run: RunCommand, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.gguf")
    refused = run("pull", tmp_path / "model.gguf", timeout_s=30)
    assert refused.returncode == 1
    assert "model.gguf: is not a file" in refused.stderr
    assert len(refused.stderr.splitlines()) == 2, refused.stderr


def test_contradictions(models: Path) -> None:
    source = models / "tiny.Q8_0.gguf"
    for request, says in [
        (PullRequest(str(source), name="a--b"), "cannot be a model's name"),
        (PullRequest(str(source), revision="main"), "has no revisions"),
        (PullRequest(str(source), quant="q4_k_m"), "imported as it is"),
    ]:
        with pytest.raises(BadReference, match=says):
            run_pull(request, lambda *_: None)
