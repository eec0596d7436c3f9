"""What is kept on this machine: list, show, verify, prune and rm, and a store that others have had their hands in."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCommand

from llamachat.models import store
from llamachat.models.durable import exchange
from llamachat.models.locks import locked
from llamachat.models.names import is_safe_file, is_valid_name
from support.stored import add_model
from support.terminal import Terminal

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _edit_manifest(directory: Path, **changes: Any) -> None:
    path = directory / "manifest.json"
    table = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in {**table, **changes}.items() if value != "DELETE"}))


def _flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# --- verify -------------------------------------------------------------------------------------------------


def test_verify_says_that_all_is_whole(run: RunCommand) -> None:
    add_model()
    add_model("mine", "q4_k_m")
    result = run("verify")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "mine:q4_k_m: whole\nsomeone/tiny:q8_0: whole\n"


def test_verify_names_a_damaged_file_and_the_command_that_mends_it(run: RunCommand) -> None:
    add_model("mine", "q4_k_m")
    _flip_a_bit(add_model() / "tiny-q8_0.gguf")
    result = run("verify", "--json")
    assert result.returncode == 1
    assert "1 of 2 stored models is not whole: someone/tiny:q8_0." in result.stderr
    mend = f"llamachat rm someone/tiny:q8_0 --yes && llamachat pull someone/tiny --revision {COMMIT} --quant q8_0"
    assert f"Next: {mend}\n" in result.stderr
    whole, damaged = json.loads(result.stdout)["models"]
    assert (whole["model"], whole["ok"], whole["mend"]) == ("mine:q4_k_m", True, None)
    assert damaged["mend"] == mend
    assert [(found["file"], "sha256" in found["problem"]) for found in damaged["problems"]] == [
        ("tiny-q8_0.gguf", True)
    ]
    assert run("verify", "mine").returncode == 0
    assert run("verify", "someone/tiny:q8_0").returncode == 1


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_what_is_missing_or_short_is_not_offered_as_a_model(damage: str, run: RunCommand) -> None:
    path = add_model() / "tiny-q8_0.gguf"
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:-1])
    listed = run("list", "--json")
    assert "someone/tiny" not in [model["name"] for model in json.loads(listed.stdout)["models"]]
    result = run("verify", "someone/tiny")
    assert result.returncode == 1
    assert ("is missing" if damage == "missing" else "bytes instead of") in result.stdout
    assert f"Next: llamachat pull someone/tiny --revision {COMMIT} --quant q8_0\n" in result.stderr


def test_verify_knows_other_names_and_other_sources(run: RunCommand) -> None:
    (add_model("mine", "q4_0") / "mine-q4_0.gguf").unlink()
    (add_model("from-here", "q8_0", repo=None, revision=None) / "from-here-q8_0.gguf").unlink()
    imported = {"repo": None, "revision": None, "versions": {"llamachat": "0.1.0"}}
    (add_model("imported", "q8_0", **imported) / "imported-q8_0.gguf").unlink()
    repo = "Qwen/Qwen2.5-0.5B-Instruct"
    (add_model("qwen2.5-0.5b-instruct", "q8_0", repo=repo) / "qwen2.5-0.5b-instruct-q8_0.gguf").unlink()
    mends = {model["model"]: model["mend"] for model in json.loads(run("verify", "--json").stdout)["models"]}
    assert mends == {
        "mine:q4_0": f"llamachat pull someone/tiny --revision {COMMIT} --quant q4_0 --name mine",
        "from-here:q8_0": "llamachat pull ./CHECKPOINT-DIRECTORY --quant q8_0 --name from-here",
        "imported:q8_0": "llamachat pull ./MODEL.gguf --name imported",
        "qwen2.5-0.5b-instruct:q8_0": f"llamachat pull qwen2.5-0.5b-instruct --revision {COMMIT} --quant q8_0",
    }


def test_verify_says_what_it_cannot_check(run: RunCommand) -> None:
    embedded = run("verify", "smollm2-135m-instruct")
    assert embedded.returncode == 1
    assert "no hash of it was kept" in embedded.stderr
    absent = run("verify", "llama-2-7b-chat")
    assert absent.returncode == 1
    assert "llamachat pull llama-2-7b-chat" in absent.stderr
    assert run("verify").returncode == 0


# --- prune --------------------------------------------------------------------------------------------------


def _leave_behind(home: Path) -> dict[str, Path]:
    """Something of each kind that interrupted work leaves; the shard is mostly holes."""
    left = {
        "unfinished download": home / "staging" / f"someone--tiny@{COMMIT}",
        "downloaded weights": home / "staging" / f"someone--kept@{COMMIT}",
        "unfinished model": home / "staging" / "someone--tiny--q8_0",
        "removed model": home / "models" / ".someone--old--q4_0.4711.removed",
        "unfinished file": home / "models" / "someone--tiny--q8_0" / ".tiny-q8_0.gguf.4711.partial",
        "note of a dead process": home / "locks" / "someone--tiny.who",
        "kept context": home / "contexts" / "7.kv",
        "unfinished context": home / "contexts" / ".7.kv.4711.partial",
    }
    for path in left.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}") if path.suffix in (".partial", ".who", ".kv") else path.mkdir()
    with (left["unfinished download"] / "model.safetensors").open("wb") as file:
        file.write(bytes(100_000))
        file.truncate(10**12)
    (left["unfinished download"] / "model.safetensors.journal").write_text("{}")
    (left["downloaded weights"] / "model.safetensors").write_bytes(bytes(50_000))
    (left["removed model"] / "old.gguf").write_bytes(bytes(10_000))
    return left


def test_prune_finds_what_is_left_behind_and_leaves_models_alone(run: RunCommand, home: Path) -> None:
    directory = add_model()
    left = _leave_behind(home)
    before = sorted(home.rglob("*"))
    planned = json.loads(run("prune", "--dry-run", "--json").stdout)
    assert {item["kind"]: Path(item["path"]) for item in planned["leftovers"]} == left
    assert not any(item["removed"] for item in planned["leftovers"])
    sizes = {item["kind"]: item["size_bytes"] for item in planned["leftovers"]}
    assert 100_000 <= sizes["unfinished download"] < 200_000  # 1 TB to the eye
    assert set(before) <= set(home.rglob("*"))

    refused = run("prune")
    assert refused.returncode == 1
    assert "Remove these 8, " in refused.stderr
    assert "Add --yes." in refused.stderr

    done = json.loads(run("prune", "--yes", "--json").stdout)
    assert done["freed_bytes"] >= 160_000
    assert not any(path.exists() for path in left.values())
    assert (directory / "tiny-q8_0.gguf").exists()
    assert "Nothing is left behind" in run("prune").stderr


def test_prune_counts_what_it_frees(run: RunCommand, home: Path) -> None:
    """A GGUF that was kept is the same content as the stored model."""
    kept = home / "staging" / f"someone--tiny@{COMMIT}"
    stored = add_model(filler_bytes=500_000) / "tiny-q8_0.gguf"
    kept.mkdir(parents=True)
    (kept / "tiny.Q8_0.gguf").hardlink_to(stored)
    assert json.loads(run("prune", "--yes", "--json").stdout)["freed_bytes"] < 100_000
    assert not kept.exists()
    assert stored.exists()


def test_prune_does_not_touch_what_a_live_process_holds(run: RunCommand, home: Path) -> None:
    left = _leave_behind(home)
    with locked("someone/tiny"), locked(f"someone--tiny@{COMMIT}"):
        result = json.loads(run("prune", "--yes", "--json").stdout)
    held = {"unfinished download", "unfinished model", "unfinished file"}
    assert {kind for kind, path in left.items() if path.exists()} == held
    assert {Path(item["path"]) for item in result["in_use"]} == {left[kind] for kind in held}
    assert {item["holder"].partition(",")[0] for item in result["in_use"]} == {f"process {os.getpid()}"}


def test_prune_follows_no_links_and_only_reports_what_it_does_not_know(run: RunCommand, home: Path) -> None:
    precious = home.parent / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    for name in ("staging/a--b--q8_0", "models/.a--b--q8_0.1.removed"):
        (home / name).parent.mkdir(parents=True)
        (home / name).symlink_to(precious)
    (home / "models" / "notes").mkdir()
    result = run("prune", "--yes")
    assert result.returncode == 0, result.stderr
    assert "notes is no usable model (manifest.json is missing): llamachat verify" in " ".join(result.stderr.split())
    assert (precious / "file").exists()
    assert [path.name for path in (home / "models").iterdir()] == ["notes"]
    assert not list((home / "staging").iterdir())


# --- rm -----------------------------------------------------------------------------------------------------


def test_rm_asks_once_for_all_and_takes_adapters_along(home: Path) -> None:
    directory = add_model()
    (directory / "adapters").mkdir()
    (directory / "adapters" / "style.gguf").write_bytes(b"GGUF")
    add_model("mine", "q4_0")
    command = [sys.executable, "-m", "llamachat", "rm", "someone/tiny", "mine:q4_0", "mine"]
    with Terminal(command, columns=120) as terminal:
        terminal.wait_for("with 1 adapter")
        terminal.enter("n")
        terminal.wait_for("Nothing was removed")
    assert len(list((home / "models").iterdir())) == 2
    with Terminal(command, columns=120) as terminal:
        terminal.wait_for("[y/N]")
        terminal.enter("y")
        terminal.wait_for("Removed mine:q4_0")
    assert not list((home / "models").iterdir())


def test_rm_takes_one_adapter_away(run: RunCommand) -> None:
    """Its manifest goes with it, the model and other adapters stay."""
    adapters = add_model() / "adapters"
    adapters.mkdir()
    for name in ("alice--style.gguf", "alice--style.json", "mine.gguf"):
        (adapters / name).write_bytes(b"GGUF")
    assert "Remove alice/style (4 B) from someone/tiny:q8_0?" in run("rm", "someone/tiny", "--adapter", "style").stderr
    unknown = run("rm", "someone/tiny", "--adapter", "mine", "--adapter", "other", "--yes")
    assert unknown.returncode == 1
    assert "someone/tiny:q8_0 has no adapter called 'other'." in unknown.stderr
    assert "Those it has: alice/style, mine" in unknown.stderr
    assert len(list(adapters.iterdir())) == 3
    removed = run("rm", "someone/tiny:q8_0", "--adapter", "Alice/Style", "--yes")
    assert removed.stdout == "Removed alice/style from someone/tiny:q8_0.\n"
    assert [path.name for path in adapters.iterdir()] == ["mine.gguf"]
    assert run("rm", "someone/tiny", "--adapter", "mine", "--yes").returncode == 0
    assert not adapters.exists()
    assert (
        "It has none; llamachat pull someone/tiny:q8_0 --adapter"
        in run("rm", "someone/tiny", "--adapter", "mine", "--yes").stderr
    )
    assert run("rm", "someone/tiny", "mine", "--adapter", "mine", "--yes").returncode == 2
    assert "someone/tiny" in run("list").stdout


def test_rm_removes_nothing_unless_all_can_go(run: RunCommand, home: Path) -> None:
    add_model()
    assert run("rm", "someone/tiny", "no-such-model", "--yes").returncode == 1
    assert run("rm", "someone/tiny", "smollm2-135m-instruct", "--yes").returncode == 1
    assert "Add --yes." in run("rm", "someone/tiny").stderr
    with locked("someone/tiny"):
        busy = run("rm", "someone/tiny", "--yes")
    assert f"(process {os.getpid()}, since" in busy.stderr
    assert len(list((home / "models").iterdir())) == 1


def test_a_model_can_go_while_it_is_open(run: RunCommand) -> None:
    path = add_model() / "tiny-q8_0.gguf"
    with path.open("rb") as file:
        assert run("rm", "someone/tiny", "--yes").returncode == 0
        assert file.read(4) == b"GGUF"
    assert not path.parent.exists()


def test_the_largest_models_come_first() -> None:
    for name, n_bytes in (("small", 10), ("largest", 3000), ("large", 2000), ("medium", 1000)):
        add_model(name, filler_bytes=n_bytes)
    assert [model.name for model in store.largest_stored()] == ["largest", "large", "medium"]


# --- a store that others have had their hands in ------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"file": "../../x"}, '"../../x" as file'),
        ({"file": "/etc/passwd"}, '"/etc/passwd" as file'),
        ({"file": "NUL.gguf"}, '"NUL.gguf" as file'),
        ({"file": "a\\..\\b.gguf"}, "as file"),
        ({"file": ["x"]}, '["x"] as file'),
        ({"name": "../../x"}, '"../../x" as name'),
        ({"name": "someone/other"}, "is that of someone/other:q8_0"),
        ({"quant": "../q8_0"}, '"../q8_0" as quant'),
        ({"size_bytes": "many"}, '"many" as size_bytes'),
        ({"size_bytes": 3}, "bytes instead of 3"),
        ({"n_params": 0}, "0 as n_params"),
        ({"sha256": "DELETE"}, "lacks sha256"),
        ({"sha256": "0"}, '"0" as sha256'),
        ({"repo": "a/b; rm -rf /"}, "as repo"),
        ({"sampling": {"temperature": "hot"}}, "as sampling"),
        ({"sampling": {"temperature": float("nan")}}, "as sampling"),
        ({"template": 7}, "7 as template"),
        ({"versions": None}, "null as versions"),
        ({"odd": 1}, 'an unknown field "odd"'),
        ({"schema": 99}, "has schema 99"),
    ],
    ids=str,
)
def test_a_manifest_edited_by_hand_is_named_and_never_followed(
    changes: dict[str, Any], problem: str, home: Path
) -> None:
    directory = add_model()
    _edit_manifest(directory, **changes)
    models, broken = store.scan()
    assert models == []
    assert problem in f"{broken[0].file} {broken[0].problem}"
    assert broken[0].directory == directory
    assert home in directory.parents


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"x"', "[" * 100_000, "\xff", '{"schema": 1}', '{"schema": []}']
)
def test_a_torn_manifest_is_named(text: str) -> None:
    directory = add_model()
    (directory / "manifest.json").write_bytes(text.encode("latin-1"))
    models, broken = store.scan()
    assert models == []
    assert [(entry.label, entry.file) for entry in broken] == [("someone/tiny:q8_0", "manifest.json")]


def test_commands_do_not_leave_the_store(run: RunCommand, home: Path) -> None:
    """A manifest that points out of its directory: no command lists, opens, hashes or removes what it points at."""
    victim = home.parent / "x"
    victim.write_bytes(b"precious")
    _edit_manifest(add_model(), file="../../../x", size_bytes=8)
    assert [model["name"] for model in json.loads(run("list", "--json").stdout)["models"]] == ["smollm2-135m-instruct"]
    assert run("show", "someone/tiny").returncode == 1
    assert run("rm", "someone/tiny", "--yes").returncode == 1
    result = run("verify")
    assert result.returncode == 1
    assert '"../../../x" as file, which cannot be used' in result.stdout
    assert "Next: llamachat pull someone/tiny --quant q8_0\n" in result.stderr
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize(
    "name",
    ["", "..", "a/../b", "/a", "a//b", "C:a", "a\\b", "a\0b", "a\nb", "a.", "a ", "CON", "nul.txt", "x/aux.json",
     "COM1", "lpt9.bin", "com¹", "CONIN$", "Nul .txt", "x" * 600],
)  # fmt: skip
def test_file_names_that_are_not_safe(name: str) -> None:
    assert not is_safe_file(name)


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "original/params.json", "console.json", "com.py"])
def test_file_names_that_are(name: str) -> None:
    assert is_safe_file(name)


def test_devices_are_no_model_names() -> None:
    assert not any(is_valid_name(name) for name in ("con", "NUL", "aux.1", "org/com1", "prn/x"))
    assert is_valid_name("convoy/auxiliary")


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_replaced_model_is_never_half_there(monkeypatch: pytest.MonkeyPatch, exchanges: bool) -> None:
    add_model(filler_bytes=10)
    if not exchanges:  # an older system, or a file system without it
        monkeypatch.setattr("llamachat.models.store.exchange", lambda *_: False)
    add_model(filler_bytes=20)
    (model,) = store.list_stored()
    assert model.path.stat().st_size == model.size_bytes
    assert [entry.name for entry in model.path.parent.parent.iterdir()] == [model.path.parent.name]


def test_a_kill_while_a_model_is_replaced_leaves_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pair = tmp_path / "a", tmp_path / "b"
    for directory in pair:
        directory.mkdir()
    if not exchange(*pair):
        pytest.skip("this file system cannot exchange two names")
    add_model(filler_bytes=10)
    (older,) = store.list_stored()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        add_model(filler_bytes=20)
    (model,) = store.list_stored()
    assert model.size_bytes == older.size_bytes + 10
