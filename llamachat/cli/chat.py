"""`llamachat chat`: the conversation on the screen, or one answer for scripts."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from llamachat.cli.chat_options import ChatArguments, chat_options
from llamachat.cli.options import taking
from llamachat.cli.output import out
from llamachat.cli.question import Question, read_question

if TYPE_CHECKING:
    from llamachat.cli.chat_wishes import ChatOptions


@taking(ChatArguments)
def chat(arguments: ChatArguments) -> None:
    r"""Chat with a model. With -p or piped input: one answer, then exit.

    \b
    Examples:
      llamachat chat
      llamachat chat llama-2-7b-chat -s "Answer in Chinese."
      llamachat chat -p "Why is the sky blue?" --temperature 0
      git diff | llamachat chat -p "Write a commit message"
      llamachat chat --resume                                        (the last conversation; or --resume 12)
      llamachat chat --overflow compact                              (sums up older turns when the window is full)
      llamachat chat -f report.txt -p "Who is named here?" --json-schema people.json
      llamachat chat llama-2-7b-chat --adapter my-lora.gguf:0.8
      llamachat chat codellama-7b --infill before.py after.py
      llamachat chat qwen2.5-1.5b-instruct --tools my_functions.py
      llamachat chat llama-2-7b-chat --adapter ORG/REPO              (pulled before)
      llamachat chat --server http://localhost:8080                  (llama-server, vLLM, Ollama, OpenAI, …)
    """
    if arguments.infill and (arguments.prompt or arguments.files or arguments.resume is not None):
        raise typer.BadParameter("--infill takes all its text from its two files: leave out -p, -f and --resume.")
    if arguments.yes_tools and not arguments.tools:
        raise typer.BadParameter("--yes-tools is about the functions of --tools FILE.py: give that, too.")
    if arguments.tools and arguments.infill:
        raise typer.BadParameter("--infill has no conversation in which tools could be called: leave out --tools.")
    if arguments.resume is not None and (arguments.system is not None or arguments.examples):
        raise typer.BadParameter("--resume goes on with what was said: leave out --system and --examples.")
    if arguments.resume is not None and not arguments.resume.strip():
        raise typer.BadParameter("--resume takes the ID of a conversation, or nothing at all: the last one.")
    question = Question("") if arguments.infill else read_question(arguments.prompt, arguments.files or [])
    if arguments.as_json and question is None:
        raise typer.BadParameter("--json needs a question: give -p, or pipe one in.")
    options = chat_options(arguments)
    if arguments.server is not None:
        from llamachat.cli.served_model import refuse_local

        refuse_local(options, has_tools=bool(arguments.tools))
    if arguments.plain:
        os.environ["TERM"] = "dumb"  # understood by all that draws here: no colour, nothing that moves
    save = not (arguments.no_save or arguments.infill)  # there is no conversation in filling a gap
    from llamachat.cli.tools import open_toolbox

    with open_toolbox(arguments.tools or [], is_asked=question is None, yes=arguments.yes_tools) as toolbox:
        _talk(arguments, replace(options, toolbox=toolbox), question, save=save)


def _talk(arguments: ChatArguments, options: ChatOptions, question: Question | None, *, save: bool) -> None:
    if question is None:
        from llamachat.cli.terminal.screen import open_screen

        open_screen(
            arguments.model,
            options,
            server=arguments.server,
            resume=arguments.resume,
            save=save,
            show_stats=arguments.stats,
        )
        return

    from llamachat.cli.context import keeping_context, restore_context
    from llamachat.cli.one_answer import answer_once
    from llamachat.cli.opening import open_chat

    with open_chat(arguments.model, options, server=arguments.server, resume=arguments.resume, save=save) as opened:
        if restored := restore_context(opened):
            out.note(restored)
        with keeping_context(opened) if opened.resumed else nullcontext():
            answer_once(opened, question, stats=arguments.stats, as_json=arguments.as_json)
