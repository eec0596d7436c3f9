"""One answer for scripts: as text while it comes, or as one JSON document."""

from __future__ import annotations

import threading

from llamachat.chat.compaction import Compacted, Compacting, NotCompacted
from llamachat.chat.session import Answer, LeftOut, Notice, ReasoningPiece, TextPiece, Thought
from llamachat.cli.describing import describe_compaction, describe_left_out, describe_read_again
from llamachat.cli.opening import OpenChat
from llamachat.cli.output import out
from llamachat.cli.question import Question
from llamachat.cli.terminal.interrupt import cancel_on_interrupt
from llamachat.cli.terminal.thoughts import ThoughtsView
from llamachat.cli.terminal.view import open_view
from llamachat.engine.base import Tokenizer
from llamachat.errors import PromptTooLong


def answer_once(opened: OpenChat, question: Question, *, stats: bool, as_json: bool) -> None:
    """Ask `question` and print the answer; raise `KeyboardInterrupt` after what there is of one that was cut off."""
    if question.sources:
        out.note(_describe_sources(question, opened.session.engine.tokenizer))
    try:
        with cancel_on_interrupt() as cancel:
            answer = _stream(opened, question.text, cancel, silent=as_json)
    except PromptTooLong as error:
        error.next_step = opened.window_advice(error)
        raise
    if as_json:
        out.json(_as_json(opened, answer))
    if opened.session.grammar and answer.finish_reason == "length":
        out.warning(
            "The answer is incomplete: there was no room for all that the grammar asks for. Raise --max-tokens."
        )
    if answer.reasoning and not answer.content and answer.finish_reason == "length":
        out.warning("There was no room for an answer after what was thought. Raise --max-tokens or --ctx.")
    if again := describe_read_again(answer):
        out.note(again)
    if stats:
        out.note(opened.describe_stats(answer))
    if answer.finish_reason == "interrupted":
        raise KeyboardInterrupt


def _describe_sources(question: Question, tokenizer: Tokenizer) -> str:
    return " · ".join(f"{name}: {len(tokenizer.tokenize(text)):,} tokens" for name, text in question.sources)


def _stream(opened: OpenChat, question: str, cancel: threading.Event, *, silent: bool) -> Answer:
    with open_view() as view, ThoughtsView(shown=opened.shows_thoughts) as thoughts:
        for event in opened.session.send(question, cancel):
            match event:
                case Notice(note):
                    out.warning(note)
                case LeftOut():
                    out.warning(describe_left_out(event))
                case ReasoningPiece() | Thought() if not silent:
                    thoughts.feed(event)
                case Compacting() | Compacted() | NotCompacted():
                    out.note(describe_compaction(event))
                case TextPiece(text) if not silent:
                    view.feed(text)
                case Answer():
                    return event  # the view ends the line
    raise AssertionError("a session ends every turn with an Answer")


def _as_json(opened: OpenChat, answer: Answer) -> dict[str, object]:
    stats = answer.stats
    return {
        "model": opened.model.label,
        "content": answer.content,
        **({"reasoning": answer.reasoning} if answer.reasoning else {}),
        "finish_reason": answer.finish_reason,
        "prompt_tokens": stats.n_prompt,
        "completion_tokens": stats.n_generated,
        "session": opened.record.session_id if opened.record else None,
        "timings": {
            "load_s": round(opened.session.engine.info.load_s, 4),
            "ttft_s": round(stats.ttft_s, 4),
            "prompt_tps": round(stats.prompt_tps, 3),
            "generation_tps": round(stats.generation_tps, 3),
        },
    }
