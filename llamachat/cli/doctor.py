"""`llamachat doctor`."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from llamachat import __version__
from llamachat.cli.format import size
from llamachat.cli.output import out
from llamachat.paths import home_dir


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `advice` says what stands in the way, if anything."""

    name: str
    value: str
    advice: str | None = None


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    r"""Tell what this machine can do, and what stands in the way.

    \b
    Examples:
      llamachat doctor
      llamachat doctor --json
    """
    findings = [_program(), *_hardware(), *_engine(), _disk(), *_models(), _hub()]
    if as_json:
        out.json({"findings": [asdict(finding) for finding in findings]})
        return
    for finding in findings:
        out.text(f"{finding.name + ':':<11} {finding.value}")
        if finding.advice:
            out.text(f"{'':<11} → {finding.advice}")


def _program() -> Finding:
    return Finding("llamachat", f"{__version__}, Python {platform.python_version()} on {platform.platform()}")


def _hardware() -> list[Finding]:
    from llamachat.engine import hardware

    total, available = hardware.total_memory_bytes(), hardware.available_memory_bytes()
    memory = size(total) if total else "unknown"
    if available:
        memory += f", {size(available)} available"
    return [
        Finding("processor", f"{hardware.cpu_name() or platform.machine()}, {hardware.default_threads()} threads used"),
        Finding("memory", memory),
    ]


def _engine() -> list[Finding]:
    from llamachat.engine.llamacpp import build_description, supports_gpu

    advice = None
    if not supports_gpu() and _has_nvidia():
        rebuild = "pip install --force-reinstall --no-cache-dir llama-cpp-python"
        advice = f"Rebuild for the GPU: CMAKE_ARGS=-DGGML_CUDA=on {rebuild}"
    gpu = "llama.cpp can use it" if supports_gpu() else "this build of llama.cpp runs on the CPU only"
    return [Finding("llama.cpp", build_description()), Finding("GPU", gpu, advice)]


def _disk() -> Finding:
    directory = home_dir()
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return Finding(
            "disk", f"{directory}", f"{existing} cannot be written to: choose another place, LLAMACHAT_HOME."
        )
    free = shutil.disk_usage(existing).free
    advice = "A 7B model in 4 bit needs about 18 GB while it is pulled." if free < 18e9 else None
    return Finding("disk", f"{size(free)} free for {directory}", advice)


def _models() -> list[Finding]:
    from llamachat.models.catalog import load_catalog
    from llamachat.models.embedded import find_embedded
    from llamachat.models.store import list_stored

    stored = list_stored()
    embedded = find_embedded(load_catalog())
    advice = None if stored or embedded else "Get one: llamachat pull qwen2.5-1.5b-instruct"
    return [
        Finding("models", f"{len(stored)} pulled, {size(sum(model.size_bytes for model in stored))}", advice),
        Finding("demo model", embedded.label if embedded else "not installed"),
    ]


def _hub() -> Finding:
    from llamachat.models.hub import hub_access

    access = hub_access()
    token = "logged in" if access.has_token else "no token (needed for gated models: hf auth login)"
    return Finding("Hub", f"{access.endpoint}{', offline (HF_HUB_OFFLINE)' if access.offline else ''}, {token}")


def _has_nvidia() -> bool:
    return sys.platform == "linux" and Path("/proc/driver/nvidia/version").exists()
