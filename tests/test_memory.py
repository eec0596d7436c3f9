"""What a model needs: held against llama.cpp's own figures, the catalogue's exact parameter counts, and real limits."""

from __future__ import annotations

import json
import re
import sys
from itertools import product
from pathlib import Path

import pytest
from conftest import RunCommand

from llamachat.engine import hardware
from llamachat.models.catalog import load_catalog
from llamachat.models.memory import (
    Shape,
    compute_bytes,
    fit,
    kv_bytes_per_token,
    kv_cache_bytes,
    need,
    read_shape,
    weights_bytes,
)
from support.stored import N_HEAD, N_HEAD_KV, N_VOCAB, add_model, write_gguf
from support.terminal import Terminal

LLAMA_2_7B = load_catalog().specs["llama-2-7b"].shape
LLAMA_2_70B = load_catalog().specs["llama-2-70b"].shape
MIB = 1 << 20


@pytest.mark.parametrize("kv_type", ["f16", "q4_0"])
def test_the_kv_cache_is_as_large_as_llama_cpp_says(
    kv_type: str, run: RunCommand, demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMACHAT_DEBUG", "1")
    n_ctx = 3000  # not a multiple of 256
    options = ("--max-tokens", 1, "--threads", 1, "--ctx", n_ctx, "--kv-type", kv_type)
    log = run("chat", "-p", "Hi", *options).stderr
    read = read_shape(demo_model)
    assert read
    shape, n_ctx_train = read
    assert n_ctx_train == 8192
    said = re.search(r"KV buffer size = +([\d.]+) MiB", log)
    assert said, log[-2000:]
    assert float(said[1]) == pytest.approx(kv_cache_bytes(shape, n_ctx, kv_type) / MIB, abs=0.006)
    computed = re.search(r"compute buffer size = +([\d.]+) MiB", log)
    assert computed
    assert float(computed[1]) == pytest.approx(compute_bytes(shape, n_ctx) / MIB, rel=0.1)  # an estimate


def test_known_figures() -> None:
    """Llama 2: 7B takes 512 KiB a token at f16, 2 GiB for 4096; 70B with an eighth of the KV heads takes 320 KiB."""
    assert LLAMA_2_7B
    assert LLAMA_2_70B
    assert kv_bytes_per_token(LLAMA_2_7B) == 512 << 10
    assert kv_cache_bytes(LLAMA_2_7B, 4096) == 2 << 30
    assert kv_bytes_per_token(LLAMA_2_70B) == 320 << 10
    assert kv_bytes_per_token(LLAMA_2_70B, n_head_kv=LLAMA_2_70B.n_head) == 8 * (320 << 10)
    assert kv_cache_bytes(LLAMA_2_7B, 4096, "q4_0") * 32 == kv_cache_bytes(LLAMA_2_7B, 4096) * 9
    whole = need(weights_bytes(6_738_415_616, "q4_k_m"), LLAMA_2_7B, 4096)
    assert whole.total_bytes == pytest.approx(4.08e9 + 2.147e9 + 0.1e9, rel=0.01)


@pytest.mark.parametrize("spec", load_catalog().specs.values(), ids=lambda spec: spec.name)
def test_every_shape_of_the_catalogue_gives_the_exact_parameter_count(spec: object) -> None:
    """Embeddings, attention with or without biases, feed-forward, norms; no two shapes come to the same sum.

    Qwen3 has no biases, but norms of its query and key heads.
    """
    shape = spec.shape  # type: ignore[attr-defined]
    assert shape
    width_q, width_kv = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
    counts = set()
    for n_matrices, has_bias in product((1, 2), (False, True)):
        attention = 2 * shape.n_embd * (width_q + width_kv) + has_bias * (width_q + 2 * width_kv)
        attention += 2 * shape.head_dim * spec.name.startswith("qwen3-")  # type: ignore[attr-defined]
        layer = attention + 3 * shape.n_embd * shape.n_ff + 2 * shape.n_embd
        counts.add(n_matrices * shape.n_vocab * shape.n_embd + shape.n_layer * layer + shape.n_embd)
    assert spec.n_params in counts  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("total", "available", "verdict"),
    [(16, 12, "yes"), (16, 10, "yes"), (16, 9, "tight"), (10, 1, "tight"), (9, 9, "no"), (9, None, "no"),
     (12, None, "tight"), (14, None, "yes"), (None, None, None), (None, 20, None)],
)  # fmt: skip
def test_fits(total: int | None, available: int | None, verdict: str | None) -> None:
    assert fit(10, total, available) == verdict


# --- headers ------------------------------------------------------------------------------------------------


def test_the_shape_of_a_file(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    expected = Shape(N_VOCAB, n_embd=64, n_ff=128, n_layer=4, n_head=N_HEAD, n_head_kv=N_HEAD_KV, head_dim=8)
    assert read_shape(tmp_path / "tiny.gguf") == (expected, 4096)


def test_a_header_that_is_cut_short_or_lies_gives_no_shape(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    data = (tmp_path / "tiny.gguf").read_bytes()
    broken = tmp_path / "broken.gguf"
    end_of_numbers = data.index(b"tokenizer.ggml.tokens")
    for length in range(0, end_of_numbers, 7):
        broken.write_bytes(data[:length])
        assert read_shape(broken) is None
    count = data.index(b"block_count") + len("block_count") + 4
    for n_layer in (0, 2**32 - 1):
        broken.write_bytes(data[:count] + n_layer.to_bytes(4, "little") + data[count + 4 :])
        assert read_shape(broken) is None
    broken.write_bytes(data.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba", 1))
    assert read_shape(broken) is None
    assert read_shape(tmp_path / "absent.gguf") is None


# --- this machine -------------------------------------------------------------------------------------------


def _control_group(directory: Path, **files: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text + "\n")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(hardware, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(hardware, "_OWN_CGROUPS", tmp_path / "own")
    return tmp_path


def test_the_limit_of_a_container_is_the_memory_there_is(groups: Path) -> None:
    """Version 2: the nearest limit above counts; a cache of files can be given back and is not counted."""
    (groups / "own").write_text("0::/pod/container\n")
    statistics = "anon 100\nactive_file 2000\ninactive_file 30000"
    _control_group(groups / "cgroup/pod", memory__max=str(90 * MIB), memory__current="40000", memory__stat=statistics)
    _control_group(groups / "cgroup/pod/container", memory__max="max", memory__current="1", memory__stat=statistics)
    assert hardware.total_memory_bytes() == 90 * MIB
    assert hardware.available_memory_bytes() == 90 * MIB - 8000


def test_the_limit_of_an_old_container(groups: Path) -> None:
    """Version 1, as Docker shows it: the path is the host's, the files are at the root."""
    (groups / "own").write_text("5:cpu:/docker/1\n4:memory,hugetlb:/docker/1\n0::/docker/1\n")
    statistics = "total_active_file 10\ntotal_inactive_file 20\nactive_file 7"
    _control_group(
        groups / "cgroup/memory",
        memory__limit_in_bytes=str(70 * MIB),
        memory__usage_in_bytes=str(80 * MIB),
        memory__stat=statistics,
    )
    assert hardware.total_memory_bytes() == 70 * MIB
    assert hardware.available_memory_bytes() == 0


@pytest.mark.parametrize("text", ["", "nonsense", "0::", "4:memory:/x\n\xff", "0::/a/b/c"])
def test_without_limits_it_is_the_machines_memory(text: str, groups: Path) -> None:
    (groups / "own").write_bytes(text.encode("latin-1"))
    _control_group(groups / "cgroup/a/b", memory__max="a lot", memory__current="", memory__stat="odd")
    total, available = hardware.total_memory_bytes(), hardware.available_memory_bytes()
    assert total
    assert total > 256 * MIB
    assert available is None or 0 < available <= total


# --- the commands -------------------------------------------------------------------------------------------


def test_list_tells_what_is_needed_and_whether_it_fits(run: RunCommand) -> None:
    add_model(filler_bytes=1000)
    first, _ = json.loads(run("list", "--json").stdout)["models"]
    read = read_shape(Path(first["path"]))
    assert read
    assert first["needs_bytes"] == need(first["size_bytes"], read[0], 4096).total_bytes
    assert first["fits"] == "yes"
    assert run("list").stdout.splitlines()[1].split("\t")[:2] == ["someone/tiny", "q8_0"]


def test_the_catalogue_tells_what_is_needed_and_whether_it_fits(run: RunCommand) -> None:
    models = {model["name"]: model for model in json.loads(run("list", "--available", "--json").stdout)["models"]}
    needs = models["llama-2-7b-chat"]["needs_bytes"]
    assert needs["q4_k_m"] == pytest.approx(6.3e9, rel=0.02)
    assert needs["q8_0"] == pytest.approx(9.4e9, rel=0.02)
    assert models["llama-2-7b-chat"]["fits"].keys() == {"q4_k_m", "q8_0"}
    assert models["smollm2-135m-instruct"]["fits"]["q4_k_m"] == "yes"
    assert models["llama-2-7b-chat"]["shape"]["n_layer"] == 32


def test_a_model_without_a_shape_is_listed_all_the_same(home: Path, run: RunCommand) -> None:
    home.mkdir()
    (home / "models.toml").write_text(
        '[models.mine]\nrepo = "me/mine"\ntemplate = "none"\nn_params = 1\nn_ctx = 2048\nlicense = "mit"\n'
        'gated = false\nquant = "q4_0"\n'
    )
    result = run("list", "--available")
    assert "mine\t?\t?\t?\t?\t1e-06M\t2,048\t" in result.stdout


def test_show_tells_everything(run: RunCommand, demo_model: Path) -> None:
    """Memory at several context lengths, what grouped-query attention saves, where it came from, adapters."""
    directory = add_model(link_to=demo_model, sampling={"temperature": 0.6})
    (directory / "adapters").mkdir()
    (directory / "adapters" / "style.gguf").write_bytes(bytes(1234))
    shown = json.loads(run("show", "someone/tiny", "--json").stdout)
    memory = shown["memory"]
    assert [row["n_ctx"] for row in memory["kv_cache"]] == [2048, 4096, 8192]
    assert memory["kv_cache"][2]["f16"] == 180 * MIB
    assert memory["kv_cache"][2]["f16_full_heads"] == 540 * MIB
    assert (memory["n_head"], memory["n_head_kv"], memory["kv_bytes_per_token"]) == (9, 3, 23040)
    parts = ("weights_bytes", "kv_cache_bytes", "compute_bytes_estimate")
    assert memory["total_bytes"] == sum(memory[part] for part in parts)
    assert (shown["repo"], shown["license"], shown["revision"][:8]) == ("someone/tiny", "mit", "01234567")
    assert shown["sampling"]["temperature"] == 0.6
    assert [adapter["size_bytes"] for adapter in shown["adapters"]] == [1234]
    text = run("show", "someone/tiny").stdout
    assert "3 KV heads serve 9 heads, so the KV cache takes\n  33% of what full heads would take" in text
    assert "8,192\t189 MB\t100 MB\t53.1 MB\t566 MB" in text
    assert "  style (1.23 kB)" in text


def test_a_linked_model_goes_without_what_it_links_to(run: RunCommand, demo_model: Path) -> None:
    directory = add_model(link_to=demo_model)
    assert run("rm", "someone/tiny", "--yes").returncode == 0
    assert not directory.exists()
    assert demo_model.exists()


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_the_catalogue_on_terminals_of_any_width(columns: int) -> None:
    """What matters most is shown, one line a model; the rest as far as there is room."""
    command = [sys.executable, "-m", "llamachat", "list", "--available"]
    with Terminal(command, columns=columns, lines=200) as terminal:
        assert terminal.wait_for_exit() == 0
        lines = terminal.text.splitlines()
    line = next(line for line in lines if line.startswith("llama-2-7b-chat "))
    assert "6.38 GB" in line
    assert ("REPOSITORY" in lines[0]) == (columns == 160)
    assert ("CONTEXT" in lines[0]) == (columns >= 80)
    assert "FITS 4" in lines[0]
    assert all(len(line) <= columns for line in lines)
