"""`llamachat prompt`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from llamachat.cli.output import out
from llamachat.errors import BadConversation, CannotRead, describe_os_error


def prompt(
    model: Annotated[str, typer.Argument(help="Whose prompt; see llamachat list.")],
    messages: Annotated[str, typer.Option(metavar="FILE", help="JSON list of messages; - is standard input.")] = "-",
    template: Annotated[str | None, typer.Option(help="Use this template instead of the model's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print ids, text and template as JSON.")] = False,
) -> None:
    r"""Show exactly what a model would see: the prompt as text and as token ids.

    \b
    Examples:
      llamachat prompt llama-2-7b-chat --messages talk.json --json
      echo '[{"role": "user", "content": "Hi"}]' | llamachat prompt llama-2-7b-chat
    """
    from llamachat.chat.message import Conversation, parse_messages
    from llamachat.chat.templates import choose_template
    from llamachat.engine.llamacpp import open_tokenizer
    from llamachat.models.resolve import resolve

    conversation = parse_messages(_read_json(messages))
    if not conversation.awaits_answer:
        raise BadConversation("There is nothing to answer.", "End the conversation with a user message.")
    found = resolve(model)
    if conversation.system is None and found.system is not None:
        conversation = Conversation(found.system, conversation.messages)
    with open_tokenizer(found.path) as (tokenizer, metadata):
        chosen = choose_template(template, found.template, metadata).template
        rendered = chosen.render(conversation, tokenizer)
    for note in rendered.notes:
        out.warning(note)
    if as_json:
        out.json({"ids": list(rendered.ids), "text": rendered.text, "template": chosen.name})
        return
    out.text(rendered.text)
    out.text(" ".join(map(str, rendered.ids)))
    out.note(f"{len(rendered.ids)} tokens, template {chosen.name}")


def _read_json(source: str) -> Any:
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CannotRead(source, describe_os_error(error)) from error
    except UnicodeDecodeError as error:
        raise CannotRead(source, "is not UTF-8 text") from error
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadConversation(
            f"The messages are not valid JSON ({error}).", 'Write [{"role": "user", "content": "…"}, …].'
        ) from error
