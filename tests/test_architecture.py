"""The rooms keep to the import directions of docs/design.md, and each big dependency has one door."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]

_MAY_IMPORT = {
    "llamachat.errors": set(),
    "llamachat.paths": set(),
    "llamachat.engine": {"llamachat.errors"},
    "llamachat.chat": {"llamachat.engine", "llamachat.errors"},
    "llamachat.toolbox": {"llamachat.chat", "llamachat.errors"},
    "llamachat.bench": {"llamachat.engine", "llamachat.errors"},
    "llamachat.models": {"llamachat.errors", "llamachat.paths", "quantize"},
    "llamachat.cli": {
        "llamachat.bench", "llamachat.chat", "llamachat.engine",
        "llamachat.errors", "llamachat.models", "llamachat.paths", "llamachat.toolbox",
    },
    "quantize": set(),
}  # fmt: skip

_DOORS = {
    "llama_cpp": "llamachat/engine/llamacpp/",
    "huggingface_hub": "llamachat/models/hub/",
    "httpx2": ("llamachat/models/hub/", "llamachat/engine/remote/"),  # one for each kind of server
    "typer": "llamachat/cli/",
    "rich": "llamachat/cli/",
    "markdown_it": "llamachat/cli/",
    "pygments": "llamachat/cli/",
    "prompt_toolkit": "llamachat/cli/",
    "sentencepiece": "quantize/vocab/",
    "tokenizers": "quantize/vocab/",
    "jinja2": "llamachat/chat/",
    "sqlite3": "llamachat/chat/history/",
}


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            if node.module == "llamachat":
                yield from (f"llamachat.{alias.name}" for alias in node.names)


def _room(module: str) -> str:
    parts = module.split(".")
    return parts[0] if parts[0] == "quantize" else ".".join(parts[:2])


def _sources() -> Iterator[tuple[Path, str]]:
    for package in ("llamachat", "quantize"):
        for path in sorted((_ROOT / package).rglob("*.py")):
            yield path, ".".join(path.relative_to(_ROOT).with_suffix("").parts)


def test_rooms_import_only_downhill() -> None:
    seen = 0
    for path, module in _sources():
        allowed = _MAY_IMPORT.get(_room(module))
        if allowed is None:
            continue  # llamachat/__init__.py and __main__.py
        for imported in _imports(path):
            room = _room(imported)
            if room in _MAY_IMPORT and room != _room(module):
                seen += 1
                assert room in allowed, f"{module} may not import {imported}"
    assert seen > 50


@pytest.mark.parametrize(("dependency", "door"), _DOORS.items())
def test_each_dependency_has_one_door(dependency: str, door: str | tuple[str, ...]) -> None:
    users = {
        path.relative_to(_ROOT).as_posix()
        for path, _ in _sources()
        if any(name.split(".")[0] == dependency for name in _imports(path))
    }
    assert users
    assert all(user.startswith(door) for user in users), users


def test_quantize_works_without_the_program() -> None:
    """It is a library of its own: importing it loads nothing of llamachat, and neither llama.cpp nor Typer."""
    script = "import sys, quantize; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"llamachat", "llama_cpp", "typer", "rich", "huggingface_hub", "tokenizers"} & set(loaded)
