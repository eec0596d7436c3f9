"""Jinja templates from strangers, compiled and rendered in a process of their own.

Jinja's sandbox keeps a template from reaching Python, but not from asking for 9**9**9, for a string of a terabyte
or for a loop without end, often while it is compiled. No check of single operations is complete, so the process
gets a limit of time and of memory; when it passes one it dies, and nothing of it stays behind.

The environment is that of `transformers.utils.chat_template_utils`: whitespace control, loop controls, `tojson`,
`raise_exception`, `strftime_now`, and the `generation` tag, which changes nothing here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, NoReturn

from llamachat.errors import TemplateFailed

_TIME_LIMIT_S = 5
_MEMORY_LIMIT_BYTES = 1 << 29
_OUTPUT_LIMIT = 1 << 22
"""Characters of all renderings together."""
_TOO_MUCH = "it asks for more memory or time than it may have"

_START = "import sys; sys.path[:] = {path!r}; from llamachat.chat.sandbox import serve; serve()"


def render(source: str, contexts: Sequence[dict[str, Any]], now: datetime) -> list[str]:
    """Render `source` with each of `contexts`, which are JSON; none of them only compiles it.

    `now` is what `strftime_now` tells. Raises `TemplateFailed`, after `_TIME_LIMIT_S` at the latest.
    """
    request = json.dumps({"source": source, "contexts": contexts, "now": now.isoformat()})
    command = [sys.executable, "-I", "-S", "-c", _START.format(path=sys.path)]
    try:
        done = subprocess.run(
            command,
            input=request.encode(),
            capture_output=True,
            timeout=_TIME_LIMIT_S,
            check=False,
            start_new_session=True,  # Ctrl-C in the terminal is for the program, not for this process
        )
    except subprocess.TimeoutExpired as error:
        raise TemplateFailed(f"it did not finish in {_TIME_LIMIT_S} s") from error
    except OSError as error:
        raise TemplateFailed(f"no process could be started for it ({error})") from error
    if done.returncode != 0:
        raise TemplateFailed(_TOO_MUCH)
    reply = json.loads(done.stdout)
    if "problem" in reply:
        raise TemplateFailed(reply["problem"].rstrip("."))
    return list(reply["rendered"])


def serve() -> None:
    """Answer one request from standard input. Runs in the process apart, where nothing is caught but templates."""
    _limit_resources()
    request = json.loads(sys.stdin.buffer.read())
    try:
        rendered = _render(request["source"], request["contexts"], datetime.fromisoformat(request["now"]))
        reply: dict[str, object] = {"rendered": rendered}
    except MemoryError:
        reply = {"problem": _TOO_MUCH}
    except Exception as error:  # a template can raise anything Python can
        reply = {"problem": (str(error) or type(error).__name__)[:500]}
    sys.stdout.write(json.dumps(reply))


def _limit_resources() -> None:
    """Where the system has such limits (macOS knows none on memory): the time limit holds everywhere."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (_TIME_LIMIT_S, _TIME_LIMIT_S))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT_BYTES, _MEMORY_LIMIT_BYTES))


def _render(source: str, contexts: Sequence[dict[str, Any]], now: datetime) -> list[str]:
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}…{% endgeneration %}` marks what is trained on; to a reader it is just its content."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["strftime_now"] = now.strftime
    environment.globals["raise_exception"] = raise_exception
    template = environment.from_string(source)
    rendered: list[str] = []
    for context in contexts:
        rendered.append(template.render(context))
        if sum(map(len, rendered)) > _OUTPUT_LIMIT:
            raise ValueError(f"it writes more than {_OUTPUT_LIMIT:,} characters")
    return rendered


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As in transformers: no HTML escaping."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
