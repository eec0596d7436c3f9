"""What `llamachat chat` can be given: one field an option, and what becomes of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from typer.core import TyperCommand

from llamachat.cli.options import parse_adapter, parse_gpu_layers
from llamachat.cli.question import read_text

if TYPE_CHECKING:
    from llamachat.chat.message import Message
    from llamachat.cli.chat_wishes import ChatOptions
    from llamachat.engine.base import DraftMode, EngineOptions


class Overflow(str, Enum):
    """`--overflow`."""

    DROP = "drop"
    STOP = "stop"
    COMPACT = "compact"


class Reasoning(str, Enum):
    """`--reasoning`."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"
    HIDE = "hide"


class RopeScaling(str, Enum):
    """`--rope-scaling`."""

    LINEAR = "linear"
    YARN = "yarn"


_NO_ADAPTERS = "off"
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed")


@dataclass(frozen=True, kw_only=True)
class ChatArguments:
    """The command line of `llamachat chat` as it was typed, in the order of its help."""

    model: Annotated[str | None, typer.Argument(help="Default: the model pulled last, else the demo model.")] = None
    server: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Use a model of an OpenAI-compatible server; its key: LLAMACHAT_API_KEY."),
    ] = None
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Answer this once and exit.")] = None
    system: Annotated[str | None, typer.Option("--system", "-s", help="System prompt; '' for none.")] = None
    files: Annotated[list[Path] | None, typer.Option("--file", "-f", help="Text put before the prompt.")] = None
    resume: Annotated[
        str | None,
        typer.Option(metavar="[ID]", help="Go on with a saved conversation; default: the last."),
    ] = None
    n_ctx: Annotated[int | None, typer.Option("--ctx", min=256, max=10_000_000, help="Context window in tokens.")] = (
        None
    )
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")] = None
    temperature: Annotated[float | None, typer.Option(min=0.0, max=100.0, help="0 is greedy and repeatable.")] = None
    top_k: Annotated[
        int | None, typer.Option(min=0, max=2**31 - 1, help="Choose among the k likeliest tokens; 0: all.")
    ] = None
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Choose within this probability mass.")] = None
    min_p: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Leave out what is this much rarer.")] = None
    repeat_penalty: Annotated[float | None, typer.Option(min=0.1, max=100.0, help="Above 1: avoid repetition.")] = None
    seed: Annotated[int | None, typer.Option(min=0, help="Makes a run repeatable.")] = None
    stop: Annotated[list[str] | None, typer.Option(help="End the answer at this text; repeatable.")] = None
    json_schema: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Answers are JSON that is valid by this JSON Schema.")
    ] = None
    grammar: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Answers obey this grammar (GBNF, as llama.cpp has it).")
    ] = None
    template: Annotated[str | None, typer.Option(help="Prompt template, instead of the model's.")] = None
    strict_tags: Annotated[bool, typer.Option("--strict-tags", help="Refuse text with tags of the prompt format.")] = (
        False
    )
    examples: Annotated[
        Path | None, typer.Option(help='Turns to begin with, a JSON line each: {"user": …, "assistant": …}.')
    ] = None
    infill: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="PREFIX SUFFIX", help="Write what stands between two files (Code Llama 7b, 13b)."),
    ] = None
    threads: Annotated[int | None, typer.Option(min=1, max=512, help="Threads; default: the physical cores.")] = None
    gpu_layers: Annotated[str, typer.Option(help="Layers on the GPU: auto or a number.")] = "auto"
    kv_type: Annotated[str | None, typer.Option(help="KV cache: f16 (default), q8_0 or q4_0.")] = None
    draft: Annotated[
        str,
        typer.Option(
            metavar="auto|lookup|off|MODEL",
            help="Guess tokens ahead, for speed: from the text so far, if that pays or always; or by a smaller model.",
        ),
    ] = "auto"
    overflow: Annotated[
        Overflow | None,
        typer.Option(
            help="When the window is full: drop the oldest turns (default), stop, or sum them up.", case_sensitive=False
        ),
    ] = None
    reasoning: Annotated[
        Reasoning | None,
        typer.Option(
            help="Thinking before answers: as the model does it by itself (auto, the default), on, off, or not shown.",
            case_sensitive=False,
        ),
    ] = None
    rope_scaling: Annotated[
        RopeScaling | None, typer.Option(help="Go beyond the window the model was trained for.", case_sensitive=False)
    ] = None
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|PATH[:SCALE]", help="Adapter (LoRA) pulled with the model, or a file; repeatable. off: none."
        ),
    ] = None
    tools: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE.py", help="Let the model call the file's functions; each call is asked about."),
    ] = None
    yes_tools: Annotated[bool, typer.Option("--yes-tools", help="Run the calls without asking; needed with -p.")] = (
        False
    )
    stats: Annotated[bool, typer.Option("--stats", help="Tell speed and tokens after each answer.")] = False
    no_save: Annotated[bool, typer.Option("--no-save", help="Keep nothing of this conversation.")] = False
    plain: Annotated[bool, typer.Option("--plain", help="No colour, no line editing.")] = False
    as_json: Annotated[bool, typer.Option("--json", help="One answer as JSON.")] = False


class ChatCommand(TyperCommand):
    """`chat`, of which `--resume` may stand without an ID: Typer's options always take their value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See Typer."""
        return super().parse_args(ctx, list(_resuming_the_last(args)))


def _resuming_the_last(words: Sequence[str]) -> Iterator[str]:
    for word, following in zip(words, [*words[1:], "-"], strict=False):
        yield f"{word}=last" if word == "--resume" and following.startswith("-") else word


def chat_options(arguments: ChatArguments) -> ChatOptions:
    """What a session is opened with; raise `typer.BadParameter` for values that no option has."""
    from llamachat.cli.chat_wishes import ChatOptions

    grammar, schema = _grammar(arguments)
    return ChatOptions(
        engine=_engine_options(arguments),
        sampling={name: getattr(arguments, name) for name in _SAMPLING},
        system=arguments.system,
        template=arguments.template,
        without_adapters=arguments.adapter == [_NO_ADAPTERS],
        max_tokens=arguments.max_tokens,
        stop=tuple(arguments.stop or ()),
        overflow=arguments.overflow.value if arguments.overflow else None,
        reasoning=arguments.reasoning.value if arguments.reasoning else None,
        strict_tags=arguments.strict_tags,
        examples=_turns(arguments.examples),
        infill=(read_text(arguments.infill[0]), read_text(arguments.infill[1])) if arguments.infill else None,
        grammar=grammar,
        schema=schema,
    )


def _grammar(arguments: ChatArguments) -> tuple[str | None, Any]:
    """What answers are held to: as a grammar, and as the schema that a server holds them to by itself."""
    from llamachat.cli.grammar import read_grammar, read_json, read_schema

    schema, grammar = arguments.json_schema, arguments.grammar
    if schema and grammar:
        raise typer.BadParameter("--json-schema and --grammar say two things about one answer: give one of them.")
    if arguments.tools and (schema or grammar):
        raise typer.BadParameter("--tools needs answers that no grammar holds: leave out one of them.")
    if arguments.stop and (schema or grammar):
        raise typer.BadParameter("--stop could cut an answer that a grammar is to complete: leave it out.")
    if schema:
        return (None if arguments.server else read_schema(schema)), read_json(schema)
    return read_grammar(grammar) if grammar else None, None


def _turns(examples: Path | None) -> tuple[Message, ...]:
    from llamachat.chat.message import parse_examples

    return parse_examples(read_text(examples)) if examples else ()


def _engine_options(arguments: ChatArguments) -> EngineOptions:
    from llamachat.engine.base import EngineOptions, KvType, LoraAdapter

    kv_type = arguments.kv_type.lower() if arguments.kv_type is not None else None
    if kv_type not in (None, *get_args(KvType)):
        raise typer.BadParameter("--kv-type is f16, q8_0 or q4_0.")
    adapters = arguments.adapter if arguments.adapter != [_NO_ADAPTERS] else None
    return EngineOptions(
        n_ctx=arguments.n_ctx,
        n_threads=arguments.threads,
        n_gpu_layers=parse_gpu_layers(arguments.gpu_layers),
        kv_type=kv_type,  # type: ignore[arg-type]
        draft=_draft(arguments.draft),
        rope_scaling=arguments.rope_scaling.value if arguments.rope_scaling else None,
        adapters=[LoraAdapter(*parse_adapter(text)) for text in adapters or []],
    )


def _draft(text: str) -> DraftMode | Path:
    from llamachat.engine.base import DraftMode
    from llamachat.models.resolve import resolve

    if (word := text.lower()) in get_args(DraftMode):
        return word  # type: ignore[return-value]
    return resolve(text).path
