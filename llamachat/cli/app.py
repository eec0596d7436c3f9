"""The Typer app and the one place where errors become words and exit codes."""

from __future__ import annotations

import inspect
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from llamachat import __version__
from llamachat.cli import bench, chat, doctor, models, prompt, prune, pull, quantize, sessions, verify
from llamachat.cli.chat_options import ChatCommand
from llamachat.cli.output import out
from llamachat.cli.show import show
from llamachat.errors import LlamachatError, SystemRefused

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


class _ErrorBoundary(TyperGroup):
    """Runs a command; a `LlamachatError` ends it with a sentence, a next step and exit status 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except LlamachatError as error:
            _refuse(error)
        except (KeyboardInterrupt, typer.Abort):
            out.note("Interrupted.")
            sys.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:
            _leave_quietly()
        except OSError as error:  # that nobody had better words for, such as of a path that is too long
            _refuse(SystemRefused(error))


def _refuse(error: LlamachatError) -> None:
    if os.environ.get("LLAMACHAT_DEBUG") == "1":
        raise  # noqa: PLE0704  # what is being handled
    out.error(str(error), error.next_step)
    sys.exit(error.exit_status)


def _leave_quietly() -> None:
    """The reader of our output has gone; Python must not complain about that while it shuts down."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(EXIT_FAILED)


app = typer.Typer(
    cls=_ErrorBoundary,
    help="Chat with Llama-family models on your own machine.",
    epilog="First steps: llamachat chat · llamachat list --available · llamachat pull qwen2.5-1.5b-instruct",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        out.text(f"llamachat {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", is_eager=True, callback=_print_version, help="Show the version and exit."
    ),
) -> None:
    pass


app.command("pull")(pull.pull)
app.command("quantize")(quantize.quantize)
app.command("chat", cls=ChatCommand)(chat.chat)
app.command("bench")(bench.bench)
app.command("prompt")(prompt.prompt)
app.command("list")(models.list_)
app.command("show")(show)
app.command("rm")(models.rm)
app.command("verify")(verify.verify)
app.command("prune")(prune.prune)
app.add_typer(sessions.app, name="sessions")
app.command("doctor")(doctor.doctor)

for _command in app.registered_commands:
    # In a docstring the mark for lines that stay as they are is spelled out: a control character has no place there.
    _command.help = inspect.cleandoc(getattr(_command.callback, "__doc__", None) or "").replace("\\b", "\b")
