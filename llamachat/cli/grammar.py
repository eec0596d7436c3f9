"""What answers are held to: a grammar, or a JSON Schema that becomes one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from llamachat.cli.output import out
from llamachat.cli.question import read_text
from llamachat.errors import BadSchema


def read_grammar(path: Path) -> str:
    """The grammar in a file, checked."""
    from llamachat.engine.gbnf import check_grammar

    text = read_text(path)
    check_grammar(text, path)
    return text


def read_schema(path: Path) -> str:
    """A grammar for the JSON Schema in a file; what it cannot hold is said."""
    from llamachat.chat.json_schema import schema_to_grammar

    grammar = schema_to_grammar(read_json(path), path)
    if grammar.notes:
        out.warning(f"{path}: this is not held, so check it in the answer: {', '.join(grammar.notes)}.")
    return grammar.text


def read_json(path: Path) -> Any:
    """The JSON Schema in a file, as it stands there. Raises `BadSchema` for what cannot be one."""
    try:
        schema = json.loads(read_text(path), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise BadSchema(path, "", f"it is not valid JSON ({error})") from error
    if not isinstance(schema, (dict, bool)):
        raise BadSchema(path, "", "there is no schema: an object, true or false is expected")
    return schema


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
