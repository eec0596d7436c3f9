"""models.toml: complete, consistent, overlaid by the user's own; and what MODEL can mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamachat.chat.templates import TEMPLATES
from llamachat.errors import BadReference, DamagedCatalogue
from llamachat.models.catalog import load_catalog
from llamachat.models.names import is_valid_name
from llamachat.models.reference import (
    CheckpointDirectory,
    LocalName,
    ModelFile,
    NamedModel,
    parse_reference,
)
from quantize import FILE_TYPES

WANTED = """
llama-7b llama-13b llama-30b llama-65b llama-2-7b llama-2-13b llama-2-70b llama-2-7b-chat llama-2-13b-chat
llama-2-70b-chat codellama-7b codellama-13b codellama-34b codellama-70b codellama-7b-python
codellama-13b-python codellama-34b-python codellama-70b-python codellama-7b-instruct codellama-13b-instruct
codellama-34b-instruct codellama-70b-instruct llama-3-8b llama-3-70b llama-3-8b-instruct llama-3-70b-instruct
llama-3.1-8b llama-3.1-70b llama-3.1-405b llama-3.1-8b-instruct llama-3.1-70b-instruct llama-3.1-405b-instruct
llama-3.2-1b llama-3.2-3b llama-3.2-1b-instruct llama-3.2-3b-instruct llama-3.3-70b-instruct vicuna-7b-v1.5
vicuna-13b-v1.5 wizardlm-13b-v1.2 wizardlm-70b-v1.0 alpaca-7b chinese-alpaca-2-7b chinese-alpaca-2-13b
llama2-chinese-7b-chat llama2-chinese-13b-chat mistral-7b-v0.1 mistral-7b-v0.2 mistral-7b-v0.3
mistral-7b-instruct-v0.1 mistral-7b-instruct-v0.2 mistral-7b-instruct-v0.3 qwen2.5-0.5b-instruct
qwen2.5-1.5b-instruct qwen2.5-3b-instruct qwen2.5-7b-instruct qwen2.5-14b-instruct qwen2.5-32b-instruct
qwen2.5-72b-instruct tinyllama-1.1b-chat smollm2-135m-instruct smollm2-360m-instruct smollm2-1.7b-instruct
qwen3-0.6b qwen3-1.7b qwen3-4b qwen3-8b qwen3-14b qwen3-32b deepseek-r1-llama-8b deepseek-r1-llama-70b
deepseek-r1-qwen-1.5b deepseek-r1-qwen-7b deepseek-r1-qwen-14b deepseek-r1-qwen-32b
""".split()  # noqa: SIM905


def test_every_wanted_model_is_there_and_consistent() -> None:
    catalog = load_catalog()
    assert not set(WANTED) - set(catalog.specs)
    names = [name for spec in catalog.specs.values() for name in (spec.name, *spec.aliases)]
    assert len(names) == len(set(names))
    for spec in catalog.specs.values():
        assert spec.name == spec.name.lower()
        assert spec.repo.count("/") == 1
        assert spec.quant in FILE_TYPES
        assert spec.template in TEMPLATES
        assert 1e8 < spec.n_params < 1e12
        assert 2048 <= spec.n_ctx <= 131072
        assert spec.mirror != spec.repo
        parse_reference(spec.name, catalog)


def test_known_parameter_counts() -> None:
    specs = load_catalog().specs
    assert specs["llama-2-7b-chat"].n_params == 6_738_415_616
    assert specs["llama-3-8b"].n_params == 8_030_261_248
    assert specs["tinyllama-1.1b-chat"].n_params == 1_100_048_384
    assert specs["smollm2-135m-instruct"].n_params == 134_515_008
    assert specs["qwen3-0.6b"].n_params == 596_049_920
    assert specs["deepseek-r1-qwen-1.5b"].n_params == 1_777_088_000


def test_the_users_file_overlays_key_by_key(home: Path) -> None:
    home.mkdir()
    (home / "models.toml").write_text(
        '[models.llama-2-7b-chat]\nquant = "q8_0"\n'
        '[models.mine]\nrepo = "me/mine"\ntemplate = "llama-2"\nn_params = 1\nn_ctx = 2048\nlicense = "mit"\n'
        'gated = false\nquant = "q4_0"\naliases = ["my-own"]\n'
    )
    catalog = load_catalog()
    assert catalog.specs["llama-2-7b-chat"].quant == "q8_0"
    assert catalog.specs["llama-2-7b-chat"].template == "llama-2"
    own = catalog.find("My-Own")
    assert own
    assert own.repo == "me/mine"


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "schema = 9",
        "models = 3",
        "[models.x]\nrepo = 'a/b'",
        "[models.x]\nodd = 1",
        "[models.'../x']\nrepo = 'a/b'",
        "[models.llama-7b]\nn_ctx = -5",
        "[models.llama-7b]\nn_ctx = true",
        "[models.llama-7b]\naliases = [3]",
        "[models.llama-7b]\nsampling = {temperature = 'hot'}",
        "[models.llama-7b]\nsampling = {temperatur = 0.1}",
        "[models.llama-7b]\nsampling = {top_p = nan}",
    ],
)
def test_a_catalogue_that_cannot_be_used_is_named(text: str, home: Path) -> None:
    home.mkdir()
    (home / "models.toml").write_text(text)
    with pytest.raises(DamagedCatalogue, match=r"models\.toml"):
        load_catalog()


def test_what_a_reference_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = load_catalog()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    named = parse_reference("Llama-2-7B-chat:Q8_0", catalog)
    assert isinstance(named, NamedModel)
    assert (named.name, named.repo, named.quant) == ("llama-2-7b-chat", "meta-llama/Llama-2-7b-chat-hf", "q8_0")
    hub = parse_reference("someone/some-model@v1.0:Q4_K_M", catalog)
    assert hub == NamedModel("someone/some-model", "someone/some-model", None, "v1.0", "q4_k_m")
    mirror = parse_reference("NousResearch/Llama-2-7b-chat-hf", catalog)
    assert isinstance(mirror, NamedModel)
    assert mirror.spec
    assert mirror.spec.template == "llama-2"
    assert parse_reference("./checkpoint", catalog) == CheckpointDirectory(Path("checkpoint"))
    assert parse_reference("checkpoint", catalog) == CheckpointDirectory(Path("checkpoint"))
    assert parse_reference("a/b.gguf", catalog) == ModelFile(Path("a/b.gguf"))
    assert parse_reference("mine:q8_0", catalog) == LocalName("mine", "q8_0")


@pytest.mark.parametrize(
    "text", ["", "a b", "a/b/c", "../x", "a/..", "x:", "a--b/c", "./nowhere", "/nowhere", "a/b@", "-x"]
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(BadReference):
        parse_reference(text, load_catalog())


@pytest.mark.parametrize(
    "name", ["..", "a/../b", "a--b", "/a", "a\\b", "", "a/b/c", ".hidden", "a:b", "x.gguf", "x" * 130]
)
def test_names_that_could_leave_the_store_are_refused(name: str) -> None:
    assert not is_valid_name(name)
