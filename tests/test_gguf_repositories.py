"""`llamachat pull ORG/REPO:Q4_K_M` of a repository of GGUF files, however its publisher lays them out."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCommand
from huggingface_hub import HfApi

from llamachat.errors import ChooseQuant, UnusableRepository
from llamachat.models.gguf_repository import choose, is_gguf_repository, list_choices
from llamachat.models.hub import RemoteFile, Repository
from support.gguf_files import rewrite, split, write_models
from support.hub import Corrupt, HubStandIn, Status

REPO = "someone/Tiny-GGUF"


def listing(*names: str) -> Repository:
    files = {name: RemoteFile(name, 1000 + len(name), "", "0" * 64) for name in names}
    return Repository("someone/model", "c" * 40, files, None)


BARTOWSKI = listing(
    ".gitattributes",
    "Meta-Llama-3.1-70B-Instruct-IQ4_XS.gguf",
    "Meta-Llama-3.1-70B-Instruct-Q4_K_M.gguf",
    "Meta-Llama-3.1-70B-Instruct-Q6_K_L/Meta-Llama-3.1-70B-Instruct-Q6_K_L-00001-of-00002.gguf",
    "Meta-Llama-3.1-70B-Instruct-Q6_K_L/Meta-Llama-3.1-70B-Instruct-Q6_K_L-00002-of-00002.gguf",
    "Meta-Llama-3.1-70B-Instruct.imatrix",
    "README.md",
)
UNSLOTH = listing(
    "BF16/Qwen3-30B-A3B-BF16-00001-of-00002.gguf",
    "BF16/Qwen3-30B-A3B-BF16-00002-of-00002.gguf",
    "Qwen3-30B-A3B-Q4_K_M.gguf",
    "Qwen3-30B-A3B-UD-Q2_K_XL.gguf",
    "Qwen3-30B-A3B-UD-Q4_K_XL.gguf",
    "config.json",
    "imatrix_unsloth.gguf",
    "mmproj-BF16.gguf",
)
THEBLOKE = listing(
    "config.json", "llama-2-7b-chat.Q2_K.gguf", "llama-2-7b-chat.Q4_K_M.gguf", "llama-2-7b-chat.Q4_0.gguf"
)
QWEN = listing(
    "qwen2.5-7b-instruct-fp16-00001-of-00002.gguf",
    "qwen2.5-7b-instruct-fp16-00002-of-00002.gguf",
    "qwen2.5-7b-instruct-q4_k_m-00001-of-00002.gguf",
    "qwen2.5-7b-instruct-q4_k_m-00002-of-00002.gguf",
    "qwen2.5-7b-instruct-q2_k.gguf",
)
MAZIYAR = listing("Mistral-7B-v0.3.IQ3_XS.gguf", "Mistral-7B-v0.3.Q8_0.gguf", "Mistral-7B-v0.3.fp16.gguf")
MRADERMACHER = listing("Model.i1-Q4_K_M.gguf", "Model.i1-IQ3_XXS.gguf", "imatrix.dat", "Model.imatrix.gguf")
LMSTUDIO = listing("gemma-3-4b-it-Q4_K_M.gguf", "gemma-3-4b-it-Q8_0.gguf", "mmproj-model-f16.gguf")
FOLDERS = listing("Q4_K_M/model-00001-of-00002.gguf", "Q4_K_M/model-00002-of-00002.gguf", "Q8_0/model.gguf")
UNNAMED = listing("gemma-2b-it.gguf", "extra.txt")
SEVERAL = listing("v1/Model-A.Q8_0.gguf", "Model-B.Q8_0.gguf", "Model-B.Q4_0.gguf")


@pytest.mark.parametrize(
    ("repository", "wanted", "files"),
    [
        (BARTOWSKI, "Q4_K_M", ["Meta-Llama-3.1-70B-Instruct-Q4_K_M.gguf"]),
        (BARTOWSKI, "iq4_xs", ["Meta-Llama-3.1-70B-Instruct-IQ4_XS.gguf"]),
        (BARTOWSKI, "q6_k_l", [name for name in BARTOWSKI.files if "Q6_K_L" in name]),
        (UNSLOTH, "q4_k_m", ["Qwen3-30B-A3B-Q4_K_M.gguf"]),
        (UNSLOTH, "Q4_K_XL", ["Qwen3-30B-A3B-UD-Q4_K_XL.gguf"]),
        (UNSLOTH, "UD-Q4_K_XL", ["Qwen3-30B-A3B-UD-Q4_K_XL.gguf"]),
        (UNSLOTH, "bf16", [name for name in UNSLOTH.files if name.startswith("BF16/")]),
        (THEBLOKE, "q4_0", ["llama-2-7b-chat.Q4_0.gguf"]),
        (QWEN, "Q4_K_M", [name for name in QWEN.files if "q4_k_m" in name]),
        (QWEN, "f16", [name for name in QWEN.files if "fp16" in name]),
        (MAZIYAR, "f16", ["Mistral-7B-v0.3.fp16.gguf"]),
        (MAZIYAR, "iq3_xs", ["Mistral-7B-v0.3.IQ3_XS.gguf"]),
        (MRADERMACHER, "q4_k_m", ["Model.i1-Q4_K_M.gguf"]),
        (LMSTUDIO, "q8_0", ["gemma-3-4b-it-Q8_0.gguf"]),
        (FOLDERS, "q4_k_m", ["Q4_K_M/model-00001-of-00002.gguf", "Q4_K_M/model-00002-of-00002.gguf"]),
        (FOLDERS, "q8_0", ["Q8_0/model.gguf"]),
        (UNNAMED, "gemma-2b-it", ["gemma-2b-it.gguf"]),
        (SEVERAL, "v1-model-a-q8_0", ["v1/Model-A.Q8_0.gguf"]),
        (SEVERAL, "q4_0", ["Model-B.Q4_0.gguf"]),
    ],
)
def test_a_quant_picks_its_file_in_every_layout(repository: Repository, wanted: str, files: list[str]) -> None:
    assert is_gguf_repository(repository.files)
    assert [file.name for file in choose(repository, wanted).files] == files


@pytest.mark.parametrize(
    ("repository", "wanted", "offers"),
    [
        (LMSTUDIO, "f16", {"q4_k_m", "q8_0"}),
        (MRADERMACHER, "imatrix", {"i1-q4_k_m", "i1-iq3_xxs"}),
        (UNSLOTH, None, {"bf16", "q4_k_m", "ud-q2_k_xl", "ud-q4_k_xl"}),
        (SEVERAL, "q8_0", {"v1-model-a-q8_0", "model-b-q8_0", "q4_0"}),
        (UNNAMED, None, {"gemma-2b-it"}),
    ],
)
def test_what_could_not_be_meant_is_not_guessed(repository: Repository, wanted: str | None, offers: set[str]) -> None:
    with pytest.raises(ChooseQuant) as asked:
        choose(repository, wanted)
    assert {offer.quant for offer in asked.value.offers} == offers
    assert any(asked.value.next_step.endswith(f"llamachat pull someone/model:{quant}") for quant in offers)


def test_a_shard_that_is_not_there() -> None:
    repository = listing("model-Q4_K_M-00001-of-00003.gguf", "model-Q4_K_M-00003-of-00003.gguf")
    with pytest.raises(UnusableRepository, match=r"lacks model-Q4_K_M-00002-of-00003\.gguf"):
        choose(repository, "q4_k_m")


@pytest.mark.parametrize(
    ("names", "is_gguf"),
    [
        (["config.json", "model.safetensors", "model-Q4_K_M.gguf"], False),
        (["config.json", "model.safetensors.index.json", "model-Q4_K_M.gguf"], False),
        (["config.json", "pytorch_model.bin", "model.gguf"], False),
        (["config.json", "tokenizer.json", "model.gguf"], True),
        (["model.safetensors", "model.gguf"], True),
        (["config.json", "mmproj-model-f16.gguf"], False),
        (["README.md"], False),
    ],
)
def test_where_there_is_a_checkpoint_it_is_converted(names: list[str], is_gguf: bool) -> None:
    assert is_gguf_repository(listing(*names).files) is is_gguf


# --- through the command --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path) -> Path:
    """A repository's folder: two quants, one of them in three shards in a folder, and an image encoder."""
    directory = tmp_path_factory.mktemp("models")
    write_models(directory, small_tokenizer, {"Tiny.Q8_0.gguf": "q8_0", "whole.gguf": "f16"})
    (directory / "repo" / "F16").mkdir(parents=True)
    split(directory / "whole.gguf", directory / "repo" / "F16" / "Tiny-F16.gguf", 10)
    rewrite(directory / "Tiny.Q8_0.gguf", directory / "repo" / "mmproj-f16.gguf", {"general.type": "mmproj"})
    (directory / "Tiny.Q8_0.gguf").rename(directory / "repo" / "Tiny.Q8_0.gguf")
    return directory / "repo"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, models: Path) -> Iterator[HubStandIn]:
    with HubStandIn() as stand_in:
        stand_in.add_repo(REPO, models)
        monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
        yield stand_in


def pull(run: RunCommand, *arguments: object) -> dict[str, Any]:
    done = run("pull", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_without_a_quant_it_shows_what_there_is(hub: HubStandIn, run: RunCommand, home: Path) -> None:
    asked = run("pull", REPO)
    assert asked.returncode == 1
    header, first, second = asked.stdout.splitlines()
    assert header.split("\t") == ["QUANT", "SIZE", "FILES", "MEMORY", "FITS HERE"]
    assert (first.split("\t")[0], first.split("\t")[-1]) == ("q8_0", "yes")
    assert second.split("\t")[0::2][:2] == ["f16", "3"]
    assert asked.stderr.splitlines()[-1] == f"Next: Choose one, for example: llamachat pull {REPO}:q8_0"
    as_json = json.loads(run("pull", f"{REPO}:q2_k", "--json").stdout)
    assert [offer["quant"] for offer in as_json["offers"]] == ["q8_0", "f16"]
    assert not (home / "models").exists()
    assert [request.method for request in hub.requests] == ["GET", "GET"]


def test_a_file_is_pulled_checked_and_found_again(hub: HubStandIn, run: RunCommand, models: Path, home: Path) -> None:
    result = pull(run, f"{REPO}:Q8_0")
    digest = hashlib.sha256((models / "Tiny.Q8_0.gguf").read_bytes()).hexdigest()
    assert (result["name"], result["quant"], result["sha256"]) == (REPO, "q8_0", digest)
    assert result["revision"] == hub.add_repo(REPO, models)
    assert not list((home / "staging").iterdir())
    hub.requests.clear()
    assert pull(run, REPO, "--bits", "8")["already_here"]
    assert len(hub.requests) == 1
    answer = json.loads(run("chat", f"{REPO}:q8_0", "-p", "Hi", "--max-tokens", "2", "--json").stdout)
    assert answer["model"] == f"{REPO}:q8_0"


def test_all_shards_are_pulled(hub: HubStandIn, run: RunCommand, models: Path) -> None:
    result = pull(run, f"{REPO}:f16", "--name", "tiny")
    assert result["size_bytes"] == sum(path.stat().st_size for path in (models / "F16").iterdir())
    assert {request.file_name for request in hub.requests if request.file_name} == {
        f"F16/Tiny-F16-0000{number}-of-00003.gguf" for number in (1, 2, 3)
    }
    answer = run("chat", "tiny:f16", "-p", "Hi", "--max-tokens", "2", "--json")
    assert json.loads(answer.stdout)["completion_tokens"] == 2


def test_shards_that_are_the_same_in_a_repository_that_changed_are_used_again(
    hub: HubStandIn, run: RunCommand, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [f"F16/Tiny-F16-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    hub.faults[shards[2]] = Status(503)
    monkeypatch.setenv("LLAMACHAT_RETRIES", "0")
    assert run("pull", f"{REPO}:f16").returncode == 1
    shutil.copytree(models, tmp_path / "changed")
    (tmp_path / "changed" / "README.md").write_text("# Better\n")
    commit = hub.add_repo(REPO, tmp_path / "changed")
    hub.faults.clear()
    hub.requests.clear()
    pulled = run("pull", f"{REPO}:f16", "--json")
    assert json.loads(pulled.stdout)["revision"] == commit
    n_bytes = sum((models / name).stat().st_size for name in shards[:2])
    assert f"What is the same is used again: 2 files, {n_bytes:,} bytes." in pulled.stderr
    assert {request.file_name for request in hub.requests if request.file_name} == {shards[2]}


def test_a_file_that_arrives_damaged_is_refused(hub: HubStandIn, run: RunCommand, home: Path) -> None:
    hub.faults["Tiny.Q8_0.gguf"] = Corrupt(5000)
    refused = run("pull", f"{REPO}:q8_0")
    assert refused.returncode == 1
    assert "Tiny.Q8_0.gguf" in refused.stderr
    assert not (home / "models").exists()


def test_a_file_that_is_no_model_is_refused(hub: HubStandIn, run: RunCommand, models: Path, tmp_path: Path) -> None:
    (tmp_path / "Adapter.Q8_0.gguf").write_bytes((models / "mmproj-f16.gguf").read_bytes())
    hub.add_repo("someone/other", tmp_path)
    refused = run("pull", "someone/other:q8_0")
    assert refused.returncode == 1
    assert "Adapter.Q8_0.gguf holds no model" in refused.stderr


def test_a_gate_is_met_before_anything_moves(hub: HubStandIn, run: RunCommand, models: Path) -> None:
    hub.add_repo(REPO, models, gated=True)
    refused = run("pull", f"{REPO}:q8_0")
    assert "no token was found" in refused.stderr
    assert [request.method for request in hub.requests] == ["GET", "HEAD"]


@pytest.fixture
def cached(hub: HubStandIn, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of `REPO` as huggingface_hub itself caches it; from now on without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
    cache = home.with_name("huggingface") / "hub"
    snapshot = Path(HfApi(endpoint=hub.url, token=False).snapshot_download(REPO, cache_dir=cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return snapshot


def test_a_cached_file_is_linked_into_the_store(cached: Path, run: RunCommand, home: Path) -> None:
    plan = pull(run, f"{REPO}:Q8_0", "--dry-run")
    assert (plan["label"], plan["download_bytes"]) == (f"{REPO}:q8_0", 0)
    assert not home.exists()
    result = pull(run, f"{REPO}:Q8_0")
    assert Path(result["path"]).samefile(cached / "Tiny.Q8_0.gguf")
    assert result["revision"] == cached.name


def test_a_cached_file_on_another_file_system_is_planned_as_a_copy(
    cached: Path, run: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_disk = Path("/dev/shm")
    if not other_disk.is_dir() or other_disk.stat().st_dev == cached.stat().st_dev:
        pytest.skip("needs a second file system")
    with tempfile.TemporaryDirectory(dir=other_disk) as home:
        monkeypatch.setenv("LLAMACHAT_HOME", home)
        plan = pull(run, f"{REPO}:Q8_0", "--dry-run")
        assert (plan["download_bytes"], plan["needed_bytes"]) == (0, plan["output_bytes"])
        monkeypatch.setenv("LLAMACHAT_HOME", str(cached.parent))
        assert pull(run, f"{REPO}:Q8_0", "--dry-run")["needed_bytes"] == 0


def test_a_damaged_file_in_the_cache_is_named(cached: Path, run: RunCommand, home: Path) -> None:
    blob = (cached / "Tiny.Q8_0.gguf").resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    refused = run("pull", f"{REPO}:Q8_0")
    assert refused.returncode == 1
    assert f"{blob}: is damaged" in refused.stderr
    assert "Delete that file" in refused.stderr
    assert not (home / "models").exists()


def test_choices_come_smallest_first() -> None:
    sizes = [choice.size_bytes for choice in list_choices(UNSLOTH.files)]
    assert sizes == sorted(sizes)
