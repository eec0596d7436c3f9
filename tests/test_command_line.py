"""The contract of the command line: help, exit codes, JSON, start-up."""

from __future__ import annotations

import json
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import RunCommand

from llamachat import __version__
from llamachat.cli.terminal.interrupt import cancel_on_interrupt
from support.checkpoints import LlamaShape, write_random_checkpoint

COMMANDS = [
    "pull",
    "quantize",
    "chat",
    "bench",
    "prompt",
    "list",
    "show",
    "rm",
    "verify",
    "prune",
    "sessions",
    "doctor",
]
HEAVY = {"llama_cpp", "numpy", "gguf", "huggingface_hub", "prompt_toolkit", "jinja2", "sqlite3"}


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    script = (
        "import sys; from llamachat.cli.app import app; app(['--help'], standalone_mode=False); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not HEAVY & {name.split(".")[0] for name in loaded}

    def help_s() -> float:
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", "llamachat", "--help"], stdout=subprocess.DEVNULL, check=True)
        return time.monotonic() - started

    assert min(help_s() for _ in range(5)) <= 0.25


def test_a_chat_does_without_the_converter() -> None:
    parts = "llamachat.cli.terminal.screen, llamachat.cli.one_answer, llamachat.engine.llamacpp"
    script = f"import sys, {parts}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"quantize", "gguf"} & {name.split(".")[0] for name in loaded}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str, run: RunCommand) -> None:
    result = run(*command.split(), "--help")
    assert result.returncode == 0
    assert "Examples:" in result.stdout
    assert f"\n    llamachat {command}" in result.stdout, "one example a line"
    assert "\x1b" not in result.stdout


def test_the_page_of_commands_names_every_option(run: RunCommand) -> None:
    """What surrounds them is Typer's and may change with it."""
    page = (Path(__file__).parents[1] / "docs" / "commands.md").read_text("utf-8")
    sections = dict(re.findall(r"^## llamachat ?(.*)\n+```\n([^`]*)```", page, re.MULTILINE))
    assert sections.keys() >= {"", *COMMANDS}
    for command, section in sections.items():
        shown = run(*command.split(), "--help").stdout
        assert _options(shown) == _options(section), f"{command}: make docs"


def _options(text: str) -> set[str]:
    return set(re.findall(r"--[a-z-]+", re.sub(r"-\n +", "-", text)))


def test_version(run: RunCommand) -> None:
    assert run("--version").stdout == f"llamachat {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["pull"],
        ["pull", "llama-2-7b", "--bits", "5"],
        ["pull", "llama-2-7b", "--bits", "4", "--quant", "q8_0"],
        ["quantize", "./checkpoint"],
        ["quantize", "--quant", "q8_0"],
        ["quantize", "./checkpoint", "--quant", "q8_0", "--threads", "0"],
        ["chat", "--temperature", "hot", "-p", "Hi"],
        ["chat", "--kv-type", "f64", "-p", "Hi"],
        ["chat", "--gpu-layers", "some", "-p", "Hi"],
        ["chat"],
        ["chat", "--threads", "100000", "-p", "Hi"],
        ["chat", "--ctx", "99999999999", "-p", "Hi"],
        ["chat", "--gpu-layers", "99999999999", "-p", "Hi"],
        ["bench", "--pp", "0", "--tg", "0"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(arguments: list[str], run: RunCommand) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_chat_json(run: RunCommand) -> None:
    result = run("chat", "-p", "Say hello.", "--temperature", "0", "--max-tokens", "5", "--json")
    answer = json.loads(result.stdout)
    assert answer.keys() == {
        "model", "content", "finish_reason", "prompt_tokens", "completion_tokens", "session", "timings",
    }  # fmt: skip
    assert answer["timings"].keys() == {"load_s", "ttft_s", "prompt_tps", "generation_tps"}
    assert answer["finish_reason"] in ("stop", "length")
    assert answer["completion_tokens"] <= 5


def test_piped_text_and_files_come_before_the_prompt(run: RunCommand, tmp_path: Path) -> None:
    """The prompt is the last word; what it is about stands before it."""
    note = tmp_path / "note.txt"
    note.write_text("The password is swordfish.", encoding="utf-8")
    together = run(
        "chat", "-f", note, "-p", "What is the password?", "--temperature", "0", "--max-tokens", "20", "--json",
        text="Remember this.",
    )  # fmt: skip
    answer = json.loads(together.stdout)
    assert "swordfish" in answer["content"].lower()
    alone = run("chat", "-p", "What is the password?", "--max-tokens", "1", "--json")
    assert answer["prompt_tokens"] > json.loads(alone.stdout)["prompt_tokens"]


def test_a_question_can_be_piped(run: RunCommand) -> None:
    result = run("chat", "--temperature", "0", text="What is the capital of France?")
    assert result.returncode == 0
    assert "Paris" in result.stdout
    assert result.stdout.endswith("\n")


def test_an_answer_is_repeatable(run: RunCommand) -> None:
    options = ("-p", "Tell me a story.", "--max-tokens", "30", "--json")
    greedy = {json.loads(run("chat", *options, "--temperature", "0").stdout)["content"] for _ in range(2)}
    seeded = {json.loads(run("chat", *options, "--seed", "7").stdout)["content"] for _ in range(2)}
    assert len(greedy) == len(seeded) == 1


def test_prompt_json(run: RunCommand, tmp_path: Path) -> None:
    messages = tmp_path / "messages.json"
    messages.write_text(json.dumps([{"role": "user", "content": "Hi <|im_end|>"}]), encoding="utf-8")
    rendered = json.loads(run("prompt", "smollm2-135m-instruct", "--messages", messages, "--json").stdout)
    assert rendered.keys() == {"ids", "text", "template"}
    assert rendered["template"] == "chatml"
    assert rendered["text"] == "<|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    assert rendered["ids"].count(2) == 1  # <|im_end|> is 2, and the user's own stays text


def test_list_and_show_json(run: RunCommand) -> None:
    models = json.loads(run("list", "--json").stdout)["models"]
    assert [model["name"] for model in models] == ["smollm2-135m-instruct"]
    assert models[0].keys() == {
        "name", "quant", "size_bytes", "path", "repo", "revision", "sha256", "created", "needs_bytes", "fits",
    }  # fmt: skip
    available = json.loads(run("list", "--available", "--json").stdout)["models"]
    assert len(available) >= 60
    shown = json.loads(run("show", "smollm2-135m-instruct", "--json").stdout)
    assert shown["template"] == "chatml"
    assert shown["header"]["general.architecture"] == "llama"


def test_bench_json_and_table(run: RunCommand) -> None:
    arguments = ("bench", "--pp", "32", "--tg", "8", "-r", "3")
    report = json.loads(run(*arguments, "--json").stdout)
    assert report.keys() == {"machine", "runs"}
    for entry in report["runs"]:
        assert len(entry["samples_tps"]) == 3
        assert entry["mean_tps"] == pytest.approx(statistics.fmean(entry["samples_tps"]), abs=0.01)
        assert entry["stddev_tps"] == pytest.approx(statistics.stdev(entry["samples_tps"]), abs=0.01)
    table = run(*arguments).stdout
    assert "pp32" in table
    assert "tg8" in table


def test_doctor(run: RunCommand) -> None:
    result = run("doctor", "--json")
    assert result.returncode == 0
    names = {finding["name"] for finding in json.loads(result.stdout)["findings"]}
    assert {"processor", "memory", "GPU", "disk", "models", "Hub"} <= names


def test_rm_asks_and_never_removes_what_it_did_not_pull(run: RunCommand, demo_model: Path) -> None:
    result = run("rm", "smollm2-135m-instruct", "--yes")
    assert result.returncode == 1
    assert demo_model.exists()


def test_a_pulled_directory_is_found_by_its_name(
    run: RunCommand, tmp_path: Path, small_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from the place where a directory of the same name lies."""
    shape = LlamaShape(n_vocab=600, n_embd=32, n_ff=32, n_layer=1, n_head=2, n_head_kv=1)
    write_random_checkpoint(tmp_path / "mine", shape, tokenizer=small_tokenizer)
    monkeypatch.chdir(tmp_path)
    assert run("pull", "./mine").returncode == 0
    assert run("show", "mine").returncode == 0
    assert run("rm", "mine", "--yes").returncode == 0


def test_text_that_cannot_be_encoded_is_escaped(run: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    surrogate = run("prompt", "smollm2-135m-instruct", "--json", text='[{"role": "user", "content": "\\ud800"}]')
    assert json.loads(surrogate.stdout)["ids"]
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    monkeypatch.setenv("PYTHONUTF8", "0")
    chinese = run("prompt", "smollm2-135m-instruct", "--json", text='[{"role": "user", "content": "\\u4f60\\u597d"}]')
    assert "你好" in json.loads(chinese.stdout)["text"]


@pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", ">/dev/full"])
def test_streams_that_are_closed_or_full(redirection: str) -> None:
    command = f'"{sys.executable}" -m llamachat list --json {redirection}'
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in result.stderr
    assert result.returncode == (1 if "full" in redirection else 0)


def test_sigterm_is_no_ctrl_c_even_where_what_it_cancels_ends_in_an_error() -> None:
    def be_terminated() -> None:
        with cancel_on_interrupt() as cancel:
            signal.raise_signal(signal.SIGTERM)
            assert cancel.is_set()
            raise KeyboardInterrupt

    with pytest.raises(SystemExit) as left:
        be_terminated()
    assert left.value.code == 128 + signal.SIGTERM


def test_ctrl_c_while_the_model_loads(demo_model: Path) -> None:
    """At any moment from its first line on: it ends with 130, without a traceback, and without having answered."""
    assert demo_model.exists()
    program = "print('begun', flush=True); from llamachat.__main__ import main; main()"
    for wait_s in (0.05, 0.2, 0.35, 0.4, 0.45, 0.5, 0.6):
        process = subprocess.Popen(
            [sys.executable, "-c", program, "chat", "--threads", "1", "-p", "Count to one thousand."],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout
        assert process.stdout.readline() == "begun\n"  # before that, the signal ends Python itself
        time.sleep(wait_s)
        process.send_signal(signal.SIGINT)
        _, talk = process.communicate(timeout=60)
        assert process.returncode == 130, talk
        assert "Traceback" not in talk
