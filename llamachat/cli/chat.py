"""`llamachat chat`: the conversation on the screen, or one answer for scripts."""

from __future__ import annotations

import os
import stat
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from llamachat.cli.options import parse_adapter, parse_gpu_layers
from llamachat.cli.output import out
from llamachat.errors import CannotRead, describe_os_error

if TYPE_CHECKING:
    from llamachat.chat.session import Answer, Session
    from llamachat.cli.opening import OpenChat
    from llamachat.engine.base import EngineOptions

KvType = Literal["f16", "q8_0", "q4_0"]


def chat(
    model: Annotated[str | None, typer.Argument(help="Default: the model pulled last, else the demo model.")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Answer this once and exit.")] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="System prompt; '' for none.")] = None,
    files: Annotated[list[Path] | None, typer.Option("--file", "-f", help="Text put before the prompt.")] = None,
    n_ctx: Annotated[
        int | None, typer.Option("--ctx", min=256, max=10_000_000, help="Context window in tokens.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0 is greedy and repeatable.")] = None,
    top_k: Annotated[
        int | None, typer.Option(min=0, max=2**31 - 1, help="Choose among the k likeliest tokens; 0: all.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Choose within this probability mass.")] = None,
    min_p: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Leave out what is this much rarer.")] = None,
    repeat_penalty: Annotated[float | None, typer.Option(min=0.1, help="Above 1: avoid repetition.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Makes a run repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End the answer at this text; repeatable.")] = None,
    template: Annotated[str | None, typer.Option(help="Prompt template, instead of the model's.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=512, help="Threads; default: the physical cores.")] = None,
    gpu_layers: Annotated[str, typer.Option(help="Layers on the GPU: auto or a number.")] = "auto",
    kv_type: Annotated[str, typer.Option(help="KV cache: f16, q8_0 or q4_0.")] = "f16",
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|PATH[:SCALE]", help="Adapter (LoRA) pulled with the model, or a file; repeatable."),
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Tell speed and tokens after each answer.")] = False,
    no_save: Annotated[bool, typer.Option("--no-save", help="Do not remember what is typed.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="No colour, no line editing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One answer as JSON.")] = False,
) -> None:
    r"""Chat with a model. With -p or piped input: one answer, then exit.

    \b
    Examples:
      llamachat chat
      llamachat chat llama-2-7b-chat -s "Answer in Chinese."
      llamachat chat -p "Why is the sky blue?" --temperature 0
      git diff | llamachat chat -p "Write a commit message"
      llamachat chat llama-2-7b-chat --adapter my-lora.gguf:0.8
      llamachat chat llama-2-7b-chat --adapter ORG/REPO              (pulled before)
    """
    from llamachat.cli.opening import ChatOptions, open_chat

    question = _question(prompt, files or [])
    if as_json and question is None:
        raise typer.BadParameter("--json needs a question: give -p, or pipe one in.")
    keys = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed")
    sampling = dict(zip(keys, (temperature, top_k, top_p, min_p, repeat_penalty, seed), strict=True))
    engine = _engine_options(n_ctx, threads, gpu_layers, kv_type, adapter or [])
    options = ChatOptions(engine, sampling, system, template, max_tokens, tuple(stop or ()))
    if plain:
        os.environ["TERM"] = "dumb"  # understood by all that draws here: no colour, nothing that moves
    with open_chat(model, options) as opened:
        if question is None:
            from llamachat.cli.terminal.screen import run_screen

            run_screen(opened, show_stats=stats, remember=not no_save)
        else:
            _answer_once(opened, question, stats=stats, as_json=as_json)


def _engine_options(
    n_ctx: int | None, threads: int | None, gpu_layers: str, kv_type: str, adapters: list[str]
) -> EngineOptions:
    from llamachat.engine.base import EngineOptions, LoraAdapter

    if (kv_type := kv_type.lower()) not in get_args(KvType):
        raise typer.BadParameter("--kv-type is f16, q8_0 or q4_0.")
    parsed = [LoraAdapter(*parse_adapter(text)) for text in adapters]
    return EngineOptions(n_ctx, threads, parse_gpu_layers(gpu_layers), kv_type, parsed)  # type: ignore[arg-type]


def _question(prompt: str | None, files: list[Path]) -> str | None:
    """Files, then piped input, then -p; None if a person is to type."""
    is_typed = sys.stdin is not None and sys.stdin.isatty()
    if is_typed and prompt is None:
        if files:
            raise typer.BadParameter("--file needs a question: give -p, or pipe one in.")
        return None
    texts = [_read_text(path) for path in files]
    if not is_typed and _is_readable_pipe():
        texts.append(_decode("standard input", sys.stdin.buffer.read()))
    if prompt is not None:
        texts.append(prompt)
    question = "\n\n".join(text for text in texts if text.strip())
    if not question:
        raise typer.BadParameter("There is nothing to answer: standard input is empty. Give -p TEXT.")
    return question


def _answer_once(opened: OpenChat, question: str, *, stats: bool, as_json: bool) -> None:
    from llamachat.cli.terminal.interrupt import cancel_on_interrupt

    with cancel_on_interrupt() as cancel:
        answer = _stream(opened.session, question, cancel, silent=as_json)
    if as_json:
        out.json(_as_json(opened, answer))
    if stats:
        out.note(opened.describe_stats(answer))
    if answer.finish_reason == "interrupted":
        raise KeyboardInterrupt


def _stream(session: Session, question: str, cancel: threading.Event, *, silent: bool) -> Answer:
    from llamachat.chat.session import Answer, TextPiece

    for event in session.send(question, cancel):
        match event:
            case TextPiece(text) if not silent:
                out.text(text, end="")
            case Answer():
                if not silent:
                    out.text("")
                return event
    raise AssertionError("a session ends every turn with an Answer")


def _as_json(opened: OpenChat, answer: Answer) -> dict[str, object]:
    stats = answer.stats
    return {
        "model": opened.model.label,
        "content": answer.content,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": stats.n_prompt,
        "completion_tokens": stats.n_generated,
        "session": None,
        "timings": {
            "load_s": round(opened.session.engine.info.load_s, 4),
            "ttft_s": round(stats.ttft_s, 4),
            "prompt_tps": round(stats.prompt_tps, 3),
            "generation_tps": round(stats.generation_tps, 3),
        },
    }


def _read_text(path: Path) -> str:
    try:
        return _decode(path, path.read_bytes())
    except OSError as error:
        raise CannotRead(path, describe_os_error(error)) from error


def _decode(source: Path | str, data: bytes) -> str:
    if b"\0" in data:
        raise CannotRead(source, "is a binary file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CannotRead(source, "is not UTF-8 text") from error


def _is_readable_pipe() -> bool:
    """Whether standard input is a pipe or a file, rather than closed or an idle handle that would block for ever."""
    if sys.stdin is None:
        return False
    mode = os.fstat(sys.stdin.fileno()).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)
