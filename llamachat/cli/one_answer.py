"""One answer for scripts: as text while it comes, or as one JSON document."""

from __future__ import annotations

import json

from llamachat.chat.events import Answer
from llamachat.cli.describing import describe_length, describe_read_again
from llamachat.cli.live_chat import OpenChat
from llamachat.cli.output import out
from llamachat.cli.question import Question
from llamachat.cli.terminal.interrupt import cancel_on_interrupt
from llamachat.cli.terminal.showing import Showing
from llamachat.engine.base import Tokenizer
from llamachat.errors import AnswerNotHeld, NoAnswer, PromptTooLong


def answer_once(opened: OpenChat, question: Question, *, stats: bool, as_json: bool) -> None:
    """Ask `question` and print the answer.

    Raises, after what there is of it, `KeyboardInterrupt` for one that was cut off, `NoAnswer` and `AnswerNotHeld`.
    """
    if question.sources:
        out.note(_describe_sources(question, opened.session.engine.tokenizer))
    if opened.record and question.prompt.strip():
        opened.record.title = question.prompt
    answer = _ask(opened, question.text, shows_text=not as_json)
    if as_json:
        out.json(_as_json(opened, answer))
    if again := describe_read_again(answer):
        out.note(again)
    if stats:
        out.note(opened.describe_stats(answer))
    _check(answer)
    if opened.session.is_held:
        _check_held(answer, is_json=opened.options.schema is not None)


def _ask(opened: OpenChat, text: str, *, shows_text: bool) -> Answer:
    try:
        showing = Showing(shows_thoughts=opened.shows_thoughts, shows_text=shows_text)
        with cancel_on_interrupt() as cancel, showing:
            answer = showing.show_all(opened.session.send(text, cancel))
    except PromptTooLong as error:
        error.next_step = opened.window_advice(error)
        raise
    assert answer is not None  # only /compact ends without one
    return answer


def _check(answer: Answer) -> None:
    """Raise `KeyboardInterrupt` or `NoAnswer` if there is not what a script has asked for."""
    if answer.finish_reason == "interrupted":
        raise KeyboardInterrupt
    if answer.content:
        return
    if answer.reasoning and answer.finish_reason == "length":
        step = "Raise --max-tokens or --ctx, or leave thinking out with --reasoning off."
        raise NoAnswer("There was no room for an answer after what was thought.", step)
    if answer.steps and answer.finish_reason == "length":
        step = "Ask for less at once, or go on with it: llamachat chat --resume, and there /continue."
        raise NoAnswer("The model has called tools without coming to an answer.", step)
    out.warning("The answer is empty.")


def _check_held(answer: Answer, *, is_json: bool) -> None:
    """Raise `AnswerNotHeld` where the grammar had no room, or a server did not keep to it."""
    if answer.finish_reason == "length":
        raise AnswerNotHeld(
            "The answer is incomplete: it reached its limit before its end.",
            "Raise --max-tokens or --ctx, or bound what may be long: maxLength and maxItems in a schema.",
        )
    if is_json:
        try:
            json.loads(answer.content)
        except (ValueError, RecursionError) as error:
            step = (
                "Use a server that holds answers to a schema, such as llama-server or vLLM, or a model on this machine."
            )
            raise AnswerNotHeld("The answer is not JSON: the server did not hold it to the schema.", step) from error


def _describe_sources(question: Question, tokenizer: Tokenizer) -> str:
    return " · ".join(f"{name}: {describe_length(text, tokenizer)}" for name, text in question.sources)


def _as_json(opened: OpenChat, answer: Answer) -> dict[str, object]:
    stats = answer.stats
    is_asked = opened.options.engine.draft != "auto"
    return {
        "model": opened.model.label,
        "content": answer.content,
        **({"reasoning": answer.reasoning} if answer.reasoning else {}),
        "finish_reason": answer.finish_reason,
        **({"tool_calls": _tool_calls(answer)} if opened.session.tools or answer.steps else {}),
        "prompt_tokens": stats.n_prompt,
        "completion_tokens": stats.n_generated,
        "session": opened.record.session_id if opened.record else None,
        "timings": {
            "load_s": round(opened.session.engine.info.load_s, 4),
            "ttft_s": round(stats.ttft_s, 4),
            "prompt_tps": _rounded(stats.prompt_tps),
            "generation_tps": _rounded(stats.generation_tps),
        },
        **({"draft": {"drafted": stats.n_drafted, "accepted": stats.n_accepted}} if is_asked else {}),
    }


def _tool_calls(answer: Answer) -> list[dict[str, object]]:
    return [
        {"name": call.name, "arguments": call.parsed(), "result": result.text, "is_error": result.is_error}
        for step in answer.steps
        for call, result in step.outcomes
    ]


def _rounded(speed: float | None) -> float | None:
    """None stays what a server does not tell."""
    return None if speed is None else round(speed, 3)
