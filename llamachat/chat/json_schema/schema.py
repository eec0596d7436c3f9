"""JSON Schema → GBNF: whatever the grammar lets through is JSON, and valid except for what is said.

Dialects from draft 4 to 2020-12 (https://json-schema.org/specification), as far as a grammar can express them. What
it cannot is either refused or named in `notes`; nothing is ignored silently and nothing is fetched. The grammar may
be narrower than the schema: objects have the properties that are listed, in that order, unless
`additionalProperties` asks for others, and formats have their usual form.

llama-cpp-python's own `json_schema_to_gbnf` is not used: it lets line breaks into strings, which is no JSON, and
drops bounds of numbers, `uniqueItems`, unknown formats and whatever stands beside `$ref`, `anyOf` or a list of types.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamachat.chat.json_schema.bounds import Impossible
from llamachat.chat.json_schema.compiler import Compiler
from llamachat.engine.gbnf import check_grammar
from llamachat.errors import BadGrammar, BadSchema


@dataclass(frozen=True)
class SchemaGrammar:
    """A grammar in GBNF, and what of the schema it does not hold: the keyword and where, as JSON pointers."""

    text: str
    notes: Sequence[str]


def schema_to_grammar(schema: Any, source: Path | str) -> SchemaGrammar:
    """A grammar for a parsed schema; `source` is what errors call it. Raise `BadSchema` where none can be made."""
    compiler = Compiler(schema, source)
    try:
        text = compiler.grammar()
        check_grammar(text, source)
    except Impossible as error:
        raise BadSchema(source, error.place, "no value at all can be valid") from error
    except RecursionError as error:
        raise BadSchema(source, "", "it is nested too deeply") from error
    except BadGrammar as error:
        raise BadSchema(source, "", f"no grammar can be made of it ({_in_schema_words(error.problem)})") from error
    return SchemaGrammar(text, tuple(dict.fromkeys(compiler.notes)))


def _in_schema_words(problem: str) -> str:
    what = re.sub(r"^line \d+, column \d+: ", "", problem)
    return "a value would have to contain itself" if what.endswith(("never ends", "begin with itself")) else what
