"""`llamachat pull MODEL --adapter`: what is fetched and stored, and what becomes of it when the model is replaced."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import RunCommand

from llamachat.errors import (
    BadReference,
    CannotWrite,
    ConversionFailed,
    HubOffline,
    LlamachatError,
    UnknownModel,
    UnusableAdapter,
    UnusableRepository,
)
from llamachat.models import pull as puller
from llamachat.models import store
from llamachat.models.adapters import find_adapter
from llamachat.models.leftovers import find_leftovers
from llamachat.models.pull import PullRequest, PullResult
from llamachat.models.verify import check
from quantize import FILE_TYPES, convert_adapter
from support.adapters import random_lora, write_adapter
from support.checkpoints import LlamaShape, write_random_checkpoint
from support.hub import Corrupt, HubStandIn, Truncate
from support.stored import Silent

SHAPE = LlamaShape(n_vocab=600, n_embd=64, n_ff=96, n_layer=1, n_head=4, n_head_kv=2)
WIDE = dataclasses.replace(SHAPE, n_embd=128)
TARGETS = ["lm_head", "model.layers.0.self_attn.k_proj", "model.layers.0.mlp.down_proj"]
BASE, LORA = "someone/tiny", "alice/tiny-lora"
BASE_FILES = {"config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json"}


class Notes(Silent):
    """A `Progress` that remembers what is said."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def arrived(self, name: str, size_bytes: int) -> None:
        """Say nothing."""

    def notice(self, text: str) -> None:
        """Remember it."""
        self.texts.append(text)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path) -> Path:
    """Two versions of a model, one of another width, and adapters for it."""
    directory = tmp_path_factory.mktemp("files")
    for name, shape, seed in (("model", SHAPE, 0), ("newer", SHAPE, 1), ("wide", WIDE, 2)):
        write_random_checkpoint(directory / name, shape, seed=seed, tokenizer=small_tokenizer)
    for name, seed, shape in (("lora", 0, SHAPE), ("lora2", 1, SHAPE), ("wide-lora", 2, WIDE)):
        tensors = random_lora(shape.tensor_shapes(), dict.fromkeys(TARGETS, 4), seed=seed)
        write_adapter(directory / name, tensors, base_model_name_or_path="someone/Tiny")
    return directory


@pytest.fixture
def hub(files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    with HubStandIn() as stand_in:
        stand_in.add_repo(BASE, files / "model")
        stand_in.add_repo(LORA, files / "lora")
        monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", stand_in.url)
        yield stand_in


def pull(*adapters: object, model: str = BASE, revision: str | None = None, notes: Notes | None = None) -> PullResult:
    request = PullRequest(model, "f16", revision, adapters=[str(adapter) for adapter in adapters])
    return puller.pull(request, notes or Notes())


def fetched(hub: HubStandIn) -> list[str]:
    return [request.file_name for request in hub.requests if request.file_name and request.method == "GET"]


# --- on the Hub ---------------------------------------------------------------------------------------------


def test_an_adapter_is_pulled_with_its_model_and_chatted_with(hub: HubStandIn, run: RunCommand) -> None:
    done = run("pull", BASE, "--quant", "f16", "--adapter", LORA, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    (adapter,) = result["adapters"]
    path = Path(result["path"]).parent / "adapters" / "alice--tiny-lora.gguf"
    assert (adapter["name"], adapter["path"], adapter["already_here"]) == (LORA, str(path), False)
    assert (adapter["alpha"], adapter["ranks"], adapter["sha256"]) == (16.0, [4], sha256(path))
    order = list(dict.fromkeys(fetched(hub)))
    assert (order[0], set(order[1:-1]), order[-1]) == ("adapter_config.json", BASE_FILES, "adapter_model.safetensors")

    def answer(*options: object) -> str:
        asked = ("chat", BASE, "-p", "Hi", "--temperature", "0", "--max-tokens", "12", "--template", "none", "--json")
        return str(json.loads(run(*asked, *options).stdout)["content"])

    assert answer("--adapter", "tiny-lora:0.5") != answer()
    shown = run("show", BASE).stdout
    assert f"{LORA} (" in shown
    assert f"rank 4, alpha 16, {LORA}@{adapter['revision']}" in shown


def test_what_is_stored(hub: HubStandIn, files: Path, tmp_path: Path, home: Path) -> None:
    commit = hub.add_repo(LORA, files / "lora")
    result = pull(LORA)
    (added,) = result.adapters
    named = shutil.copytree(files / "lora", tmp_path / "tiny-lora")
    convert_adapter(named, files / "model", tmp_path / "expected.gguf", FILE_TYPES["f32"])
    assert added.adapter.path.read_bytes() == (tmp_path / "expected.gguf").read_bytes()
    known = json.loads(added.adapter.path.with_suffix(".json").read_text())
    assert (known["repo"], known["revision"], known["base"]) == (LORA, commit, "someone/Tiny")
    sources = {path.name: {"size_bytes": path.stat().st_size, "sha256": sha256(path)} for path in named.iterdir()}
    assert known["sources"] == sources
    assert not list((home / "staging").iterdir())
    assert not check(result.model, lambda _: None).problems


def test_the_same_commit_is_here_and_another_replaces_it(hub: HubStandIn, files: Path) -> None:
    first = pull(LORA).adapters[0]
    hub.requests.clear()
    again = pull(LORA)
    assert again.was_here
    assert again.adapters[0].was_here
    assert again.adapters[0].manifest == first.manifest
    assert set(fetched(hub)) <= {"adapter_config.json"}
    newer = hub.add_repo(LORA, files / "lora2")
    second = pull(LORA).adapters[0]
    assert (second.was_here, second.manifest.revision) == (False, newer)
    assert second.manifest.sha256 != first.manifest.sha256
    assert len(again.model.adapters) == 1
    assert first.manifest.revision
    old = pull(f"{LORA}@{first.manifest.revision}").adapters[0]
    assert old.manifest.sha256 == first.manifest.sha256 == sha256(old.adapter.path)


@pytest.mark.usefixtures("hub")
def test_a_dry_run_leaves_nothing(run: RunCommand, home: Path) -> None:
    dry = run("pull", BASE, "--quant", "q8_0", "--adapter", LORA, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert f"The adapter {LORA}:" in dry.stderr
    assert "It fits." in dry.stderr
    assert not home.exists()


def test_several_at_once_and_one_model_under_another_name(hub: HubStandIn, files: Path) -> None:
    hub.add_repo("bob/tiny-lora", files / "lora2")
    puller.pull(PullRequest(BASE, "f16", name="mine"), Notes())
    hub.requests.clear()
    result = pull(LORA, "bob/tiny-lora", model="mine")
    assert "model.safetensors" not in fetched(hub)
    assert [adapter.name for adapter in result.model.adapters] == [LORA, "bob/tiny-lora"]
    assert find_adapter("Bob/tiny-lora", result.model) == result.model.adapters[1].path
    for text, says in (("tiny-lora", "several adapters"), ("tiny", "no adapter of mine:f16")):
        with pytest.raises(UnusableAdapter, match=says) as caught:
            find_adapter(text, result.model)
        assert f"{LORA}" in caught.value.next_step


@pytest.mark.parametrize(("name", "notes"), [("someone/Tiny", 0), ("meta/Llama-7b", 1), ("../../etc\x1b[2J", 1)])
def test_another_base_is_a_note(name: str, notes: int, hub: HubStandIn, tmp_path: Path) -> None:
    tensors = random_lora(SHAPE.tensor_shapes(), dict.fromkeys(TARGETS, 4))
    hub.add_repo(LORA, write_adapter(tmp_path / "lora", tensors, base_model_name_or_path=name))
    said = Notes()
    pull(LORA, notes=said)
    assert ["was trained on" in text for text in said.texts] == [True] * notes
    assert all(text.isprintable() for text in said.texts)


def test_what_cannot_be_used_is_refused_before_anything_large_moves(
    hub: HubStandIn, files: Path, tmp_path: Path, home: Path
) -> None:
    tensors = random_lora(SHAPE.tensor_shapes(), dict.fromkeys(TARGETS, 4))
    hub.add_repo("alice/dora", write_adapter(tmp_path / "dora", tensors, use_dora=True))
    (tmp_path / "empty").mkdir()
    shutil.copy(files / "lora" / "adapter_config.json", tmp_path / "empty")
    hub.add_repo("alice/empty", tmp_path / "empty")
    refusals: list[tuple[object, type[LlamachatError], str]] = [
        ("alice/dora", ConversionFailed, "DoRA"),
        ("alice/empty", UnusableRepository, "adapter_model.safetensors"),
        (BASE, UnusableRepository, "not a PEFT adapter"),
        ("lora", BadReference, "is not an adapter"),
        ("alice/lora:q4_k_m", BadReference, "is not an adapter"),
        ("./no-such", BadReference, "is not a directory"),
        (tmp_path / "no.gguf", UnusableAdapter, "No such file"),
    ]
    for text, kind, says in refusals:
        with pytest.raises(kind, match=says) as caught:
            pull(text)
        assert caught.value.next_step
    with pytest.raises(UnknownModel):
        pull(LORA, model="no-such-model")
    assert not {"model.safetensors", "adapter_model.safetensors"} & set(fetched(hub))
    assert not (home / "models").exists()


def test_a_gate_is_met_before_the_model_moves(hub: HubStandIn, files: Path, run: RunCommand) -> None:
    hub.add_repo(LORA, files / "lora", gated=True)
    result = run("pull", BASE, "--adapter", LORA)
    assert (result.returncode, result.stderr.splitlines()[0]) == (
        1,
        f"Error: {LORA} is gated: its authors ask you to accept a licence, and no token was found.",
    )
    assert not fetched(hub)


def test_one_that_does_not_fit_leaves_all_as_it_was(hub: HubStandIn, files: Path) -> None:
    hub.add_repo("alice/wide", files / "wide-lora")
    model = pull(LORA).model
    before = {path: sha256(path) for path in model.path.parent.rglob("*") if path.is_file()}
    with pytest.raises(ConversionFailed):
        pull("alice/wide")
    hub.add_repo(LORA, files / "lora2")
    hub.faults["adapter_model.safetensors"] = Corrupt(700)
    with pytest.raises(LlamachatError, match=r"adapter_model\.safetensors"):
        pull(LORA)
    assert {path: sha256(path) for path in model.path.parent.rglob("*") if path.is_file()} == before
    hub.faults["adapter_model.safetensors"] = Truncate(5000, times=1)
    assert not pull(LORA).adapters[0].was_here


def test_of_a_large_one_that_does_not_fit_only_the_first_range_moves(hub: HubStandIn, tmp_path: Path) -> None:
    tensors = random_lora(WIDE.tensor_shapes(), {"lm_head": 4096})
    hub.add_repo(LORA, write_adapter(tmp_path / "lora", tensors, r=4096))
    with pytest.raises(ConversionFailed):
        pull(LORA)
    name = "adapter_model.safetensors"
    n_sent = sum(request.bytes_sent for request in hub.requests if request.file_name == name and request.status == 206)
    assert 0 < n_sent <= 8 << 20 < (tmp_path / "lora" / "adapter_model.safetensors").stat().st_size


def test_a_cut_while_one_is_replaced_leaves_nothing_that_lies(
    hub: HubStandIn, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pull(LORA).model
    hub.add_repo(LORA, files / "lora2")
    move = Path.replace
    for cut_at in (f"{LORA.replace('/', '--')}.gguf", f"{LORA.replace('/', '--')}.json"):

        def cut(self: Path, target: Path, name: str = cut_at) -> Path:
            if Path(target).name == name:
                raise OSError(errno.ENOSPC, "No space left on device")
            return move(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", cut)
            with pytest.raises(CannotWrite):
                pull(LORA)
        assert not check(model, lambda _: None).problems
        assert [adapter.manifest for adapter in model.adapters] == [None]
        assert [leftover.kind for leftover in find_leftovers()[0]] == ["downloaded weights"]
    assert not pull(LORA).adapters[0].was_here
    assert model.adapters[0].manifest


def test_offline_what_is_here_is_here(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    pull(LORA)
    hub.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert pull(LORA).adapters[0].was_here
    with pytest.raises(HubOffline):
        pull("alice/other")
    assert not hub.requests


# --- on this machine ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hub")
def test_directories_and_files(files: Path, tmp_path: Path) -> None:
    convert_adapter(files / "lora2", files / "model", tmp_path / "style.gguf", FILE_TYPES["f16"])
    result = pull(files / "lora", tmp_path / "style.gguf")
    assert [adapter.name for adapter in result.model.adapters] == ["lora", "style"]
    assert result.model.adapters[1].path.read_bytes() == (tmp_path / "style.gguf").read_bytes()
    assert [added.was_here for added in pull(files / "lora", tmp_path / "style.gguf").adapters] == [True, True]
    shutil.copy(tmp_path / "style.gguf", tmp_path / "a b.gguf")
    convert_adapter(files / "wide-lora", files / "wide", tmp_path / "wide.gguf", FILE_TYPES["f16"])
    (tmp_path / "torn.gguf").write_bytes((tmp_path / "style.gguf").read_bytes()[:500])
    for name, kind in (("a b", BadReference), ("wide", ConversionFailed), ("torn", ConversionFailed)):
        with pytest.raises(kind):
            pull(tmp_path / f"{name}.gguf")
    assert len(result.model.adapters) == 2
    imported = shutil.copy(result.model.path, tmp_path / "base.gguf")
    request = PullRequest(str(imported), name="imported", adapters=[str(files / "lora")])
    assert [adapter.name for adapter in puller.pull(request, Notes()).model.adapters] == ["lora"]


@pytest.mark.usefixtures("hub")
def test_an_adapter_that_lies_there_by_its_name(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of the name is no adapter that could be used; a file is, and comes first."""
    monkeypatch.chdir(files)
    model = pull("./lora").model
    assert find_adapter("lora", model) == model.adapters[0].path
    assert find_adapter("lora/adapter_config.json", model) == Path("lora/adapter_config.json")


# --- what becomes of them -----------------------------------------------------------------------------------


def test_a_new_version_of_the_model_keeps_what_fits(hub: HubStandIn, files: Path) -> None:
    first = pull(LORA)
    (first.model.path.parent / "adapters" / "style.gguf").write_bytes(b"GGUF")
    newer, notes = hub.add_repo(BASE, files / "newer"), Notes()
    result = pull(LORA, revision=newer, notes=notes)
    assert (result.was_here, result.adapters[0].was_here) == (False, True)
    kept, dropped = notes.texts
    assert "alice/tiny-lora fits" in kept
    assert "style does not fit" in dropped
    assert result.model.adapters == first.model.adapters
    assert not check(result.model, lambda _: None).problems
    other, notes = hub.add_repo(BASE, files / "wide"), Notes()
    wide = puller.pull(PullRequest(BASE, "f16", other), notes)
    assert wide.model.adapters == []
    (dropped,) = notes.texts
    assert "alice/tiny-lora does not fit the new model and is gone" in dropped
    assert {path.name for path in wide.model.path.parent.iterdir()} == {"manifest.json", wide.model.path.name}


@pytest.mark.usefixtures("hub")
def test_verify_names_a_damaged_adapter_and_pulling_mends_it() -> None:
    model = pull(LORA).model
    (adapter,) = model.adapters
    assert adapter.manifest
    content, notes = adapter.path.read_bytes(), adapter.path.with_suffix(".json")
    command = f"llamachat pull {BASE}:f16 --adapter {LORA}@{adapter.manifest.revision}"
    damages = [content[:-1] + bytes([content[-1] ^ 1]), content[:-1], None]
    for damage, says in zip(damages, ("is damaged", "bytes instead of", "is missing"), strict=True):
        if damage is None:
            adapter.path.unlink()
        else:
            adapter.path.write_bytes(damage)
        found = check(model, lambda _: None)
        assert [(problem.file, says in problem.text) for problem in found.problems] == [
            ("adapters/alice--tiny-lora.gguf", True)
        ]
        assert found.mend == command
        assert not pull(f"{LORA}@{adapter.manifest.revision}").adapters[0].was_here
        assert adapter.path.read_bytes() == content
    table = json.loads(notes.read_text())
    for change in ({"name": "../x"}, {"name": "other"}, {"ranks": ["4"]}, {"sha256": 5}, {"alpha": None}, {"extra": 1}):
        notes.write_text(json.dumps({**table, **change}))
        (problem,) = check(model, lambda _: None).problems
        assert problem.file == "adapters/alice--tiny-lora.json"
        assert store.list_stored()[0].adapters[0].manifest is None
    assert not pull(LORA).adapters[0].was_here
    assert json.loads(notes.read_text())["sha256"] == table["sha256"]
    with model.path.open("r+b") as file:
        file.truncate(100)
    model.path.write_bytes(b"x" * model.size_bytes)
    mend = check(model, lambda _: None).mend
    assert mend
    assert mend.endswith(f"--adapter {LORA}@{adapter.manifest.revision}")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
