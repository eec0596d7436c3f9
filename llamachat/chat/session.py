"""A live conversation over an engine.

Messages are the truth; the engine's KV cache only saves time. A turn that fails before its first word leaves the
conversation as it was; one that is interrupted, or fails later, keeps what was answered, so there are never two user
messages in a row. When the context window is full, the oldest turns are left out of the prompt, or a summary takes
their place in it; they stay in the conversation.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any, Literal

from llamachat.chat.compaction import n_to_sum_up
from llamachat.chat.events import Answer, AnswerEvents, LeftOut, Notice, SessionEvent, ToolCalled, ToolReturned
from llamachat.chat.generation import generate, is_shifted
from llamachat.chat.message import Conversation, Message
from llamachat.chat.prompt import Prompt
from llamachat.chat.reading import AnswerReader
from llamachat.chat.record import NoRecord, Record
from llamachat.chat.summing_up import make_room, n_to_make_room, sum_up
from llamachat.chat.templates import PromptTemplate
from llamachat.chat.tools.use import MAX_STEPS, Toolbox, use_tool
from llamachat.chat.tools.values import Tool, WrittenCall
from llamachat.chat.unfinished import UnfinishedAnswer
from llamachat.chat.window import Fit, Window, fit, make_window, shown
from llamachat.engine.base import Engine, GenerationRequest
from llamachat.engine.sampling import SamplingParams
from llamachat.errors import BadConversation, ForbiddenTags, LlamachatError, NoToolCalls, WindowFull

Overflow = Literal["drop", "stop", "compact"]

_RESULT_SHARE = 4
"""The results of one step take a quarter of the window at most."""


class Session:
    """A conversation being held with an engine."""

    def __init__(
        self,
        engine: Engine,
        template: PromptTemplate,
        sampling: SamplingParams,
        *,
        system: str | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        overflow: Overflow = "drop",
        record: Record | None = None,
        grammar: str | None = None,
        schema: Any = None,
        strict_tags: bool = False,
        examples: Sequence[Message] = (),
        thinking: bool | None = None,
        toolbox: Toolbox | None = None,
    ) -> None:
        """`max_tokens` limits each answer; `stop` adds to the template's own stop strings.

        `strict_tags` refuses messages with tags of the prompt format, as Meta's reference does; `examples` are turns
        that stand before all others.
        The model may call what is in the `toolbox`; raises `NoToolCalls` if its template knows no calls.
        With a `grammar` (GBNF) answers obey it from their first byte to their last, and stop strings mean nothing;
        nothing is thought before them; `schema` is the JSON Schema it was made of, for engines that take that.
        Otherwise `thinking` switches that on or off where the template can; None leaves it to the template.
        """
        self.engine = engine
        self.template = template
        self.sampling = sampling
        self._examples = tuple(examples)
        self.conversation = Conversation(system, self._examples)
        self.left_out: frozenset[int] = frozenset()
        """The places of the turns that the context window has no room for."""
        self.max_tokens = max_tokens
        self.overflow = overflow
        self.record: Record = record or NoRecord()
        self._pending: Conversation | None = None
        self.grammar, self.schema = grammar, schema
        self.own_stop = tuple(stop)
        self.since = datetime.now()
        """When it began."""
        self.strict_tags = strict_tags
        self._told: set[str] = set()
        self.think(thinking)
        self.toolbox = toolbox
        self.offer_tools(is_offered=toolbox is not None)

    @property
    def tools(self) -> tuple[Tool, ...]:
        """What the model may call now."""
        return self.conversation.tools

    def offer_tools(self, *, is_offered: bool) -> None:
        """Let the model call the tools from now on, or no longer. Raises `NoToolCalls` if its template knows none."""
        tools = self.toolbox.tools if self.toolbox and is_offered else ()
        if tools and self.template.calls is None:
            raise NoToolCalls(self.template.name)
        self.conversation = replace(self.conversation, tools=tools)
        self._pending = replace(self._pending, tools=tools) if self._pending else None

    def think(self, wanted: bool | None) -> None:
        """Switch thinking before answers on or off, or (None) leave it to the template."""
        self._thinking = wanted
        self.template.thinking = False if self.is_held else wanted
        self.template.answers_at_once = self.is_held or wanted is False

    @property
    def can_answer_at_once(self) -> bool:
        """Whether thinking can be switched off: by the template, or by ending the thoughts that it begins."""
        template = self.template
        if template.reasoning is None or template.can_switch_thinking:
            return True
        prompt = self.render(Conversation(None, (Message("user", "?"),)))
        return prompt.text.rstrip().endswith((template.reasoning.start, template.reasoning.end))

    @property
    def window(self) -> Window:
        """The context window, with the room that answers get in it."""
        thinks = self.template.reasoning is not None and self._thinking is not False and not self.is_held
        return make_window(self.engine.info.n_ctx, self.max_tokens, thinks=thinks)

    @property
    def is_held(self) -> bool:
        """Whether answers are held to a grammar or a schema."""
        return self.grammar is not None or self.schema is not None

    @property
    def unanswered(self) -> Message | None:
        """What the user said last, if it was never answered. It is not in the conversation; `retry` asks it again."""
        return self._pending.messages[-1] if self._pending else None

    def began(self, when: datetime) -> None:
        """It is not a new session, but began then."""
        self.since = when
        self.template.begin(when)

    def change(self, engine: Engine, template: PromptTemplate, sampling: SamplingParams) -> None:
        """Go on with another model."""
        self.engine, self.template, self.sampling = engine, template, sampling
        template.begin(self.since)
        self.think(self._thinking)
        self.left_out = frozenset()

    def start_over(self, system: str | None) -> None:
        """Forget all turns but the examples, and set the system prompt."""
        self.go_on_from(Conversation(system, self._examples))

    def go_on_from(self, conversation: Conversation) -> None:
        """Take another conversation's place, or an earlier state of this one."""
        self.resume(conversation)
        self.record.move(conversation)

    def resume(self, conversation: Conversation, unanswered: Message | None = None) -> None:
        """Go on with a conversation that stands in the record as it is."""
        conversation = self.conversation = replace(conversation, tools=self.tools)
        self.left_out = frozenset()
        asked = replace(conversation, messages=(*conversation.messages, unanswered)) if unanswered else None
        self._pending = asked

    def undo(self, n_turns: int = 1) -> list[tuple[Message, ...]]:
        """Take the last turns back, as far as there are any; return them. A question without an answer is one."""
        gone = [self._pending.turns[-1]] if self._pending else []
        turns = self.conversation.turns
        kept = max(0, len(turns) - n_turns + len(gone))
        self.go_on_from(self.conversation.with_turns(turns[:kept]))
        return turns[kept:] + gone

    def pin(self, i_turn: int, *, is_pinned: bool) -> None:
        """Keep a turn in the window however full that gets, or no longer."""
        turns = self.conversation.turns
        question, *answer = turns[i_turn]
        turns[i_turn] = (replace(question, is_pinned=is_pinned), *answer)
        self.record.pin(turns[i_turn][0])
        self.conversation = self.conversation.with_turns(turns)
        self.left_out -= {i_turn}

    def prompt_for(self, text: str) -> Prompt:
        """What the model would see if the user said `text` now."""
        return self._fit(self.conversation.with_message("user", text)).prompt

    def without_room(self) -> frozenset[int]:
        """The places of the turns that the next prompt has no room for."""
        return self._fit(self.conversation.with_message("user", "")).left_out

    def seen(self) -> Prompt | None:
        """What is in the context window: the prompt of the last answer, and that answer. None before the first one."""
        conversation = self.conversation
        if not conversation.messages:
            return None
        return self.render(shown(conversation, self.left_out))

    def send(self, text: str, cancel: threading.Event) -> AnswerEvents:
        """Say `text` and stream the answer; setting `cancel` ends it early.

        Raises `PromptTooLong`, `WindowFull` or `ForbiddenTags` before anything is evaluated. The conversation grows
        only when there is an answer.
        """
        return self._answer(self.conversation.with_message("user", text), cancel, self.sampling)

    def retry(self, cancel: threading.Event, sampling: SamplingParams | None = None) -> AnswerEvents:
        """Ask the last question again, perhaps with other sampling; the new answer takes the old one's place."""
        question = self.require_question()
        before = self._before_question()
        asked = replace(before, messages=(*before.messages, question))
        return self._answer(asked, cancel, sampling or self.sampling)

    def edit(self, text: str, cancel: threading.Event) -> AnswerEvents:
        """Ask something else in place of the last question."""
        question = replace(self.require_question(), content=text, key=None)
        before = self._before_question()
        return self._answer(replace(before, messages=(*before.messages, question)), cancel, self.sampling)

    def go_on(self, cancel: threading.Event) -> AnswerEvents:
        """Continue the last answer where it ended; the `Answer` holds all of it. One that never began begins now."""
        if self._pending:
            return self.retry(cancel)
        if not self.conversation.messages:
            raise BadConversation("There is no answer to go on with.", "Ask something first.")
        if self.is_held:
            raise BadConversation("A grammar holds whole answers only.", "Have it answered anew with /retry.")
        if not self.engine.can_continue:
            raise BadConversation("This server cannot go on with an answer.", "Have it answered anew with /retry.")
        if self.conversation.messages[-2].n_summarized:
            raise BadConversation("A summary is not gone on with.", "Have it written anew with /retry.")
        return self._answer(self.conversation, cancel, self.sampling)

    def compact(self, cancel: threading.Event, focus: str = "") -> AnswerEvents:
        """Have the model sum up older turns, and go on with the summary in their place; `focus` is what matters in it.

        The pieces of the summary come as those of an answer, then `Compacted` or `NotCompacted`, but no `Answer`.
        Raises `BadConversation` if there is nothing to sum up, and what `send` raises.
        """
        if self._pending:
            raise BadConversation("Your last message is not answered yet.", "Ask again with /retry, or take it back.")
        n_turns = n_to_sum_up(self.conversation, self.engine.info.n_ctx, self.render)
        if not n_turns:
            raise BadConversation(
                "There is nothing to sum up yet.", "The last turns and those that are pinned stay as they are."
            )
        return sum_up(self, n_turns, cancel, focus)

    def require_question(self) -> Message:
        """What the user said last, answered or not. Raises `BadConversation` before anything was said."""
        if self.unanswered:
            return self.unanswered
        if not self.conversation.messages:
            raise BadConversation("Nothing has been said yet.", "Ask something first.")
        return self.conversation.turns[-1][0]

    @property
    def said(self) -> Conversation:
        """The conversation, and a question that was never answered at its end."""
        return self._pending or self.conversation

    def _before_question(self) -> Conversation:
        return self.said.with_turns(self.said.turns[:-1])

    def render(self, conversation: Conversation) -> Prompt:
        """The prompt for a conversation, however long it is."""
        return self.template.render(conversation, self.engine.tokenizer)

    @contextmanager
    def aside(self, max_tokens: int) -> Iterator[Session]:
        """The conversation as it stands, to ask something in that is not kept; it shares the KV cache."""
        aside = Session(
            self.engine,
            self.template,
            self.sampling.with_seed(),
            max_tokens=max_tokens,
            strict_tags=self.strict_tags,
            thinking=False,
        )
        aside.conversation, aside.left_out, aside._told = self.conversation, self.left_out, self._told
        try:
            yield aside
        finally:
            self.think(self._thinking)  # the template is shared

    def keep(self, asked: Conversation, answer: Answer, sampling: SamplingParams, left_out: frozenset[int]) -> None:
        """Go on with a question and an answer that were found aside."""
        unfinished = UnfinishedAnswer(self.record.begin(asked, sampling), answer.content, answer.reasoning)
        self._finish(unfinished, answer)
        self.left_out = left_out

    def _fit(self, asked: Conversation) -> Fit:
        return fit(
            asked,
            self.window,
            self.render,
            self.left_out & frozenset(range(len(asked.turns) - 1)),
            can_shift=self.engine.can_shift,
        )

    def _answer(self, asked: Conversation, cancel: threading.Event, sampling: SamplingParams) -> AnswerEvents:
        self._check_tags(asked)
        fitted = self._fit(asked)
        if n_turns := n_to_make_room(self, asked, fitted):
            asked = yield from make_room(self, asked, n_turns, cancel)
            fitted = self._fit(asked)
        self._require_room(fitted)
        is_repeatable = sampling.seed is not None
        sampling = sampling.with_seed()
        yield from self._tell(fitted, cancel)
        unfinished = UnfinishedAnswer(self.record.begin(asked, sampling), is_repeatable=is_repeatable)
        finished = False
        try:
            fitted = yield from self._write(unfinished, fitted, sampling, cancel)
            answer = unfinished.answer()
            finished = self._finish(unfinished, answer)
            self.left_out = fitted.left_out if finished else self.left_out
            yield answer
        except LlamachatError:
            self._break_off(unfinished, is_kept=self._goes_on(asked))
            finished = True
            raise
        finally:
            if not finished:
                self._break_off(unfinished)

    def _write(
        self, unfinished: UnfinishedAnswer, fitted: Fit, sampling: SamplingParams, cancel: threading.Event
    ) -> Generator[SessionEvent, None, Fit]:
        """Stream an answer, with as many calls of tools as the model makes; return what was in the window last."""
        while calls := (yield from self._generate(unfinished, fitted, sampling, cancel)):
            yield from self._call(unfinished, calls, cancel)
            self.left_out = fitted.left_out
            if cancel.is_set():
                unfinished.finish_reason = "interrupted"
                break
            if len(unfinished.steps) - unfinished.n_before >= MAX_STEPS:
                unfinished.finish_reason = "length"
                yield Notice(f"The model has called tools {MAX_STEPS} times in a row.")
                break
            fitted = self._fit(unfinished.conversation())
            self._require_room(fitted)
            yield from self._tell(fitted, cancel)
        return fitted

    def _require_room(self, fitted: Fit) -> None:
        """Raise `WindowFull` if turns would be left out, and are not to be."""
        if fitted.n_turns and self.overflow == "stop":
            n_prompt = len(fitted.prompt.ids) + fitted.n_tokens
            raise WindowFull(n_prompt, self.window.n_ctx, self.window.n_reserved)

    def _tell(self, fitted: Fit, cancel: threading.Event) -> Iterator[SessionEvent]:
        """What there is to say about the prompt."""
        yield from self._notices(fitted.prompt)
        if fitted.n_turns and not cancel.is_set():
            n_prompt, n_ctx = len(fitted.prompt.ids), self.engine.info.n_ctx
            yield LeftOut(fitted.n_turns, fitted.n_tokens, n_prompt, n_ctx, fitted.cut is not None)

    def _check_tags(self, conversation: Conversation) -> None:
        if self.strict_tags and (tags := self.template.tags_in(conversation, self.engine.tokenizer)):
            raise ForbiddenTags(tags)

    def _notices(self, prompt: Prompt) -> Iterator[Notice]:
        for note in prompt.notes:
            if note not in self._told:
                self._told.add(note)
                yield Notice(note)

    def _generate(
        self, unfinished: UnfinishedAnswer, fitted: Fit, sampling: SamplingParams, cancel: threading.Event
    ) -> Generator[SessionEvent, None, list[WrittenCall]]:
        """Stream what the model writes next; return the calls of tools that it ends in: names and arguments."""
        said = unfinished.conversation() if unfinished.is_begun else unfinished.asked
        request = GenerationRequest(
            fitted.prompt.ids,
            sampling,
            self.max_tokens,
            cut=fitted.cut,
            grammar=self.grammar,
            is_repeatable=unfinished.is_repeatable,
            messages=shown(said, fitted.left_out).spoken(),
            stop=self._stop,
            schema=self.schema,
        )
        reader = self._reader(unfinished, fitted.prompt)

        def keep() -> None:
            self.record.write(unfinished.content, unfinished.reasoning)

        calls = yield from generate(self.engine, request, reader, unfinished, cancel, keep)
        unfinished.is_rest_read_again |= fitted.n_turns > 0 and not is_shifted(request, unfinished.all_stats[-1])
        return calls

    def _reader(self, unfinished: UnfinishedAnswer, prompt: Prompt) -> AnswerReader:
        last = unfinished.conversation().messages[-1] if unfinished.is_begun else unfinished.asked.messages[-1]
        continues_text = unfinished.content or unfinished.reasoning or self.template.continues_text or self.is_held
        return AnswerReader(
            None if self.is_held else self.template.reasoning,
            self.template.place_of(prompt, last),
            self._stop,
            self.engine.tokenizer.control_tokens,
            strip_space=self.engine.tokenizer.adds_space_prefix and not continues_text,
            begun=Message("assistant", unfinished.content, reasoning=unfinished.reasoning),
            calls=self.template.calls if self.tools and self.toolbox else None,
        )

    def _call(
        self, unfinished: UnfinishedAnswer, calls: list[WrittenCall], cancel: threading.Event
    ) -> Iterator[SessionEvent]:
        """Run the tools that the model calls, one after the other."""
        step = unfinished.begin_step(calls)
        self.record.write_steps(unfinished.steps)
        n_tokens = self.engine.info.n_ctx // _RESULT_SHARE // len(step.calls)
        for call in step.calls:
            yield ToolCalled(call)
            result = use_tool(self.toolbox, call, cancel, self.engine.tokenizer, n_tokens)
            unfinished.add_result(result)
            self.record.write_steps(unfinished.steps)
            yield ToolReturned(call, result)

    @property
    def _stop(self) -> tuple[str, ...]:
        return () if self.is_held else (*self.template.stop, *self.own_stop)

    def _break_off(self, unfinished: UnfinishedAnswer, *, is_kept: bool = False) -> None:
        """There is no whole answer; what there is of it can stay in the conversation, as one that was interrupted.

        What tools have done cannot be undone, so then it does.
        """
        if len(unfinished.steps) > unfinished.n_before and unfinished.all_stats:
            unfinished.finish_reason = "interrupted"
            self._finish(unfinished, unfinished.answer())
            return
        key = self.record.give_up(unfinished.content, unfinished.reasoning)
        self._pending = unfinished.asked if unfinished.asked.awaits_answer else None
        if (unfinished.content or unfinished.reasoning) and is_kept:
            self._grow(unfinished, key)

    def _goes_on(self, asked: Conversation) -> bool:
        """Whether the conversation as it stands is what was asked before this, rather than something it replaces."""
        return not asked.awaits_answer or asked.turns[:-1] == self.conversation.turns

    def _finish(self, unfinished: UnfinishedAnswer, answer: Answer) -> bool:
        """Let the conversation grow; False if there was no answer to let it grow by."""
        if not (answer.content or answer.reasoning or answer.steps) and answer.finish_reason == "interrupted":
            return False
        self._grow(unfinished, self.record.finish(answer))
        return True

    def _grow(self, unfinished: UnfinishedAnswer, key: int | None) -> None:
        self._pending = None
        self.conversation = unfinished.conversation(key)
