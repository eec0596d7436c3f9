"""What a model thinks before it answers: told apart, shown, kept, and left out of what it is sent later."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCommand
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llamachat.chat import sandbox
from llamachat.chat.events import Answer, ReasoningPiece, SessionEvent, TextPiece, Thought
from llamachat.chat.export import FORMATS, read_export, write_export
from llamachat.chat.history import History, SessionFacts
from llamachat.chat.history_record import HistoryRecord
from llamachat.chat.message import Conversation, Message, parse_messages
from llamachat.chat.prompt import Text
from llamachat.chat.reading import AnswerReader
from llamachat.chat.reasoning import Place, ReasoningSplitter, ReasoningTags
from llamachat.chat.session import Session
from llamachat.chat.templates import ChatML, Jinja, PromptTemplate
from llamachat.cli.describing import describe_unmet
from llamachat.engine.base import Prefill
from llamachat.engine.sampling import SamplingParams
from support.fake_engine import FakeEngine, FakeTokenizer, Step
from support.gguf_files import rewrite

TAGS = ReasoningTags("<think>", "</think>")
GOLDEN = Path(__file__).parent / "golden" / "chat_templates"
QWEN3 = (GOLDEN / "qwen3.jinja").read_text(encoding="utf-8")
R1 = (GOLDEN / "deepseek-r1-distill-llama.jinja").read_text(encoding="utf-8")
R1_OF_OLD = R1.replace("<think>\\n'}}", "'}}")
"""It left it to the model to begin its thoughts."""

# --- telling thoughts from the answer ------------------------------------------------------------------------


def split(pieces: Sequence[str], place: Place, tags: ReasoningTags = TAGS) -> tuple[str, str]:
    splitter = ReasoningSplitter(tags, place)
    found = [*map(splitter.feed, pieces), splitter.finish()]
    return "".join(piece.reasoning for piece in found), "".join(piece.content for piece in found)


def expected(text: str, place: Place, tags: ReasoningTags = TAGS) -> tuple[str, str]:
    """The same, of the whole text at once."""
    if place == "answer" or (place == "start" and not text.lstrip().startswith(tags.start)):
        return "", text
    rest = text.lstrip()[len(tags.start) :] if place == "start" else text
    thoughts, end, content = rest.partition(tags.end)
    thoughts = thoughts if place == "within" else thoughts.lstrip()
    return (thoughts.rstrip(), content.lstrip()) if end else (thoughts, "")


_FRAGMENTS = st.sampled_from(
    ["<think>", "</think>", "<", "</", "think", ">", "<thi", "nk>", "\n", "\n\n", " ", "a", "é🙂"]
)
ANY_TEXT = st.lists(_FRAGMENTS, max_size=12).map("".join)
PLACES: list[Place] = ["start", "thoughts", "within", "answer"]
AWKWARD_TAGS = ReasoningTags("<<a", "aab aaab")


@settings(max_examples=400, deadline=None, database=None)
@given(text=ANY_TEXT, cuts=st.lists(st.integers(0, 60), max_size=8), place=st.sampled_from(PLACES))
def test_any_text_cut_anywhere_is_split_the_same(text: str, cuts: list[int], place: Place) -> None:
    borders = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    assert split([text[a:b] for a, b in pairwise(borders)], place) == expected(text, place)
    assert split(list(text), place) == expected(text, place)


@settings(max_examples=200, deadline=None, database=None)
@given(text=st.text("<ab \n", max_size=30), place=st.sampled_from(PLACES))
def test_tags_whose_beginning_stands_in_themselves(text: str, place: Place) -> None:
    assert split(list(text), place, AWKWARD_TAGS) == expected(text, place, AWKWARD_TAGS)


@pytest.mark.parametrize(
    ("text", "thoughts", "answer"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", "Hm.", "Yes."),
        ("\n<think></think>Yes.", "", "Yes."),
        ("<think>\n\n</think>\n\n", "", ""),
        ("<think>Hm. Is it <think> or </th", "Hm. Is it <think> or </th", ""),
        ("Write <think>a</think>.", "", "Write <think>a</think>."),
        ("<think>Hm.</think>Write </think> or <think>x</think>.", "Hm.", "Write </think> or <think>x</think>."),
        ("<thin ice>", "", "<thin ice>"),
    ],
)
def test_only_a_tag_at_the_very_start_opens_thoughts(text: str, thoughts: str, answer: str) -> None:
    assert split(list(text), "start") == (thoughts, answer)


def read(tokens: Sequence[tuple[int, bytes]], *stop: str, place: Place = "start", **control: int) -> tuple[str, str]:
    tokens_by_text = {f"<{name.replace('end_', '/')}>": token_id for name, token_id in control.items()}
    reader = AnswerReader(TAGS, place, stop, tokens_by_text, strip_space=False, begun=Message("assistant", ""))
    found = [*(reader.feed(*token) for token in tokens), reader.finish("stop")[0]]
    return "".join(piece.reasoning for piece in found), "".join(piece.content for piece in found)


def test_tags_that_are_control_tokens_are_known_by_their_ids() -> None:
    tokens = [(7, b""), (1, b"Hm"), (8, b""), (2, b"Yes"), (8, b"")]
    assert read(tokens, think=7, end_think=8) == ("Hm", "Yes")


def test_characters_over_several_tokens_and_stop_strings_within_thoughts() -> None:
    """A stop string ends the answer, not the thoughts."""
    tokens = [(0, b"<think>a\n\xf0\x9f"), (0, b"\x99\x82\n</thi"), (0, b"nk>b"), (0, b"\nc")]
    assert read(tokens, "\n") == ("a\n🙂", "b")


# --- prompts as the families' own templates have them ---------------------------------------------------------


@pytest.fixture
def _render_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "render", sandbox._render)


def published(source: str, messages: Any, **variables: bool) -> str:
    """As transformers renders it."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(
        messages=messages, tools=None, add_generation_prompt=True, bos_token="<s>", eos_token="</s>", **variables
    )


ASKED = Conversation("Be kind.", (Message("user", "1+1?"),))
TALK = Conversation(
    "Be kind.",
    (
        Message("user", "1+1?"),
        Message("assistant", "2", reasoning="One and one.\n\nTwo."),
        Message("user", "And <think>?"),
        Message("assistant", "That is a tag."),
        Message("user", "So?"),
    ),
)


@pytest.mark.usefixtures("_render_here")
@pytest.mark.parametrize("conversation", [ASKED, TALK, replace(TALK, system=None)], ids=["first", "later", "no system"])
@pytest.mark.parametrize("thinking", [None, True, False])
@pytest.mark.parametrize("source", [QWEN3, R1], ids=["qwen3", "r1"])
def test_prompts_are_those_of_the_published_template(
    source: str, thinking: bool | None, conversation: Conversation
) -> None:
    template = Jinja(source)
    template.thinking = thinking
    variables = {} if thinking is None else {"enable_thinking": thinking}
    prompt = template.render(conversation, FakeTokenizer())
    assert prompt.text == published(source, conversation.all_messages(), **variables)
    assert "One and one." not in prompt.text


@pytest.mark.usefixtures("_render_here")
def test_thoughts_told_apart_are_the_same_to_qwen3_as_those_in_the_text() -> None:
    """Its published template takes them out of a raw answer itself."""
    raw = [
        {"role": m["role"], "content": f"<think>\n{m['reasoning_content']}\n</think>\n\n{m['content']}"}
        if "reasoning_content" in m else m
        for m in TALK.all_messages()
    ]  # fmt: skip
    assert Jinja(QWEN3).render(TALK, FakeTokenizer()).text == published(QWEN3, raw)


@pytest.mark.usefixtures("_render_here")
@pytest.mark.parametrize(("source", "begins"), [(QWEN3, "<|im_start|>assistant\n"), (R1, "<｜Assistant｜>")])
def test_an_answer_goes_on_with_its_thoughts(source: str, begins: str) -> None:
    template = Jinja(source)
    template.thinking = False  # since; they were thought all the same
    for content, end in (("", ""), ("Tw", "\n</think>\n\nTw")):
        begun = Message("assistant", content, reasoning="One and")
        prompt = template.render(replace(ASKED, messages=(*ASKED.messages, begun)), FakeTokenizer()).text
        assert prompt.endswith(f"1+1?{'<|im_end|>' + chr(10) if source == QWEN3 else ''}{begins}<think>\nOne and{end}")
        assert prompt.count("<think>") == 1


@pytest.mark.usefixtures("_render_here")
@pytest.mark.parametrize("source", [QWEN3, R1])
def test_control_tokens_in_thoughts_stay_text(source: str) -> None:
    kept = source.replace("content.split('</think>')[-1]", "content + (message.reasoning_content or '')")
    conversation = replace(
        TALK, messages=(TALK.messages[0], replace(TALK.messages[1], reasoning="<|im_end|><s>"), TALK.messages[2])
    )
    harmless = replace(TALK, messages=(TALK.messages[0], replace(TALK.messages[1], reasoning="x"), TALK.messages[2]))
    counts = [
        sum(token_id >= 256 for token_id in Jinja(text).render(each, FakeTokenizer()).ids)
        for text in (source, kept)
        for each in (conversation, harmless)
    ]
    assert counts[0] == counts[1]
    assert counts[2] == counts[3]


@pytest.mark.parametrize(
    ("source", "tags", "can_switch"),
    [
        (QWEN3, TAGS, True),
        (R1, TAGS, False),
        ("{% if not enable_thinking %}[/THINK]{% endif %}{{ messages }}", ReasoningTags("[THINK]", "[/THINK]"), True),
        ((GOLDEN / "qwen2.5.jinja").read_text(encoding="utf-8"), None, False),
        ((GOLDEN / "llama-3.2.jinja").read_text(encoding="utf-8"), None, False),
    ],
)
def test_what_a_template_says_about_thinking(source: str, tags: ReasoningTags | None, can_switch: bool) -> None:
    template = Jinja(source)
    assert (template.reasoning, template.can_switch_thinking) == (tags, can_switch)


def test_messages_from_a_file_may_hold_thoughts() -> None:
    assert parse_messages(TALK.all_messages()) == TALK


# --- a conversation -------------------------------------------------------------------------------------------


class Thinking(ChatML):
    """A family that thinks, and has no switch for it."""

    reasoning = TAGS


class Opening(Thinking):
    """One whose prompt begins the thoughts, as R1's does."""

    def parts(self, conversation: Conversation, tokenizer: Any) -> Iterator[Any]:
        yield from super().parts(conversation, tokenizer)
        if conversation.awaits_answer:
            yield Text("<think>\n")


def open_session(*answers: Sequence[Step], template: PromptTemplate | None = None, **options: Any) -> Session:
    n_ctx = options.pop("n_ctx", 4096)
    return Session(FakeEngine(*answers, n_ctx=n_ctx), template or Thinking(), SamplingParams(seed=1), **options)


def prompts(session: Session) -> list[str]:
    engine = session.engine
    assert isinstance(engine, FakeEngine)
    return engine.prompts


def take(events: Iterator[SessionEvent]) -> tuple[list[SessionEvent], Answer]:
    *before, answer = events
    assert isinstance(answer, Answer)
    assert answer.content.endswith("".join(event.text for event in before if isinstance(event, TextPiece)))
    return before, answer


def test_thoughts_and_their_end_are_events_before_the_answer() -> None:
    session = open_session([b"<th", b"ink>\n", b"Hm", b".", b"\n</think>", b"\n\n", b"Yes", b"."], [b"ok"])
    events, answer = take(session.send("Hi?", threading.Event()))
    kinds = [type(event) for event in events]
    assert kinds == [Prefill, ReasoningPiece, ReasoningPiece, Thought, TextPiece, TextPiece]
    assert [event.n_tokens for event in events if isinstance(event, (ReasoningPiece, Thought))] == [3, 4, 4]
    assert (answer.reasoning, answer.content, answer.finish_reason) == ("Hm.", "Yes.", "stop")
    assert session.conversation.messages[-1] == Message("assistant", "Yes.", reasoning="Hm.")
    take(session.send("Sure?", threading.Event()))
    assert "Hm" not in prompts(session)[-1]
    assert "Yes.<|im_end|>" in prompts(session)[-1]


def test_a_prompt_that_begins_the_thoughts() -> None:
    session = open_session([b"Hm.\n", b"</think>\n\nYes."], [b"</think>No."], template=Opening())
    assert take(session.send("Hi?", threading.Event()))[1].reasoning == "Hm."
    events, answer = take(session.send("Again?", threading.Event()))
    assert (answer.reasoning, answer.content) == ("", "No.")
    assert not any(isinstance(event, (ReasoningPiece, Thought)) for event in events), "nothing was thought"


def test_a_model_that_does_not_think_may_speak_of_it() -> None:
    session = open_session([b"<think>", b"x", b"</think>"], template=ChatML())
    assert take(session.send("Write a tag.", threading.Event()))[1].content == "<think>x</think>"


@pytest.mark.parametrize("template", [Thinking, Opening])
def test_an_answer_interrupted_in_its_thoughts_goes_on_within_them(template: type[PromptTemplate]) -> None:
    cancel = threading.Event()
    begin = [] if template is Opening else [b"<think>\n"]
    session = open_session(
        [*begin, b"One ", cancel.set, b"late"], [b"and", b" one.\n</think>\n\nTw"], [b"o."], template=template()
    )
    events, answer = take(session.send("1+1?", cancel))
    assert isinstance(events[-1], Thought)
    assert (answer.reasoning, answer.content, answer.finish_reason) == ("One ", "", "interrupted")
    answer = take(session.go_on(threading.Event()))[1]
    assert prompts(session)[-1].endswith("<|im_start|>assistant\n<think>\nOne ")
    assert (answer.reasoning, answer.content) == ("One and one.", "Tw")
    answer = list(session.go_on(threading.Event()))[-1]  # type: ignore[assignment]
    assert prompts(session)[-1].endswith("assistant\n<think>\nOne and one.\n</think>\n\nTw")
    assert (answer.reasoning, answer.content) == ("One and one.", "Two.")
    assert len(session.conversation.messages) == 2


def test_thoughts_that_reach_the_limit_are_kept() -> None:
    session = open_session([b"<think>", b"a", b"b", b"c"], max_tokens=3)
    events, answer = take(session.send("1+1?", threading.Event()))
    assert (answer.reasoning, answer.content, answer.finish_reason) == ("ab", "", "length")
    assert sum(isinstance(event, Thought) for event in events) == 1


def test_interrupted_before_the_first_thought_is_no_answer() -> None:
    cancel = threading.Event()
    session = open_session([b"<think>\n", cancel.set, b"late"])
    take(session.send("1+1?", cancel))
    assert not session.conversation.messages
    assert session.unanswered == Message("user", "1+1?")


def test_the_window_has_room_for_what_earlier_thoughts_took() -> None:
    session = open_session([b"<think>" + b"x" * 400 + b"</think>Yes."], [b"ok"], n_ctx=500, max_tokens=16)
    take(session.send("One?", threading.Event()))
    take(session.send("Two? " * 40, threading.Event()))
    assert not session.left_out


@pytest.mark.usefixtures("_render_here")
def test_a_grammar_holds_an_answer_without_thoughts() -> None:
    """Where the prompt has begun them they are ended in it; where the template has a switch that is used."""
    for source, end in ((QWEN3, "assistant\n<think>\n\n</think>\n\n"), (R1, "<｜Assistant｜><think>\n\n</think>\n\n")):
        session = open_session([b"<think>yes"], template=Jinja(source), grammar='root ::= "<think>yes"')
        answer = take(session.send("1+1?", threading.Event()))[1]
        assert prompts(session)[0].endswith(end)
        assert (answer.reasoning, answer.content) == ("", "<think>yes")


@pytest.mark.usefixtures("_render_here")
def test_thinking_is_switched_for_the_next_answer_and_the_next_model() -> None:
    session = open_session([b"a"], [b"b"], [b"c"], template=Jinja(QWEN3), thinking=False)
    off = "assistant\n<think>\n\n</think>\n\n"
    take(session.send("1?", threading.Event()))
    assert prompts(session)[-1].endswith(off)
    session.think(None)
    take(session.send("2?", threading.Event()))
    assert prompts(session)[-1].endswith("2?<|im_end|>\n<|im_start|>assistant\n")
    session.think(False)
    session.change(session.engine, Jinja(QWEN3), session.sampling)
    take(session.send("3?", threading.Event()))
    assert prompts(session)[-1].endswith(off)


@pytest.mark.usefixtures("_render_here")
def test_more_room_is_kept_where_thoughts_come_before_the_answer() -> None:
    session = open_session(template=Jinja(QWEN3))
    n_ctx = session.engine.info.n_ctx
    assert session.window.n_reserved == n_ctx // 4
    session.think(False)
    assert session.window.n_reserved == n_ctx // 8


@pytest.mark.usefixtures("_render_here")
def test_thoughts_that_a_prompt_begins_are_ended_there_if_they_are_not_wanted() -> None:
    """As llama.cpp and Ollama do it for DeepSeek-R1; a summary is asked for without thoughts, too."""
    off = "<｜Assistant｜><think>\n\n</think>\n\n"
    session = open_session([b"a"], template=Jinja(R1), thinking=False)
    answer = take(session.send("1?", threading.Event()))[1]
    assert prompts(session)[-1].endswith(off)
    assert (answer.reasoning, answer.content) == ("", "a")
    session.think(None)
    with session.aside(9) as aside:
        assert aside.prompt_for("Sum up.").text.endswith(off)
    assert session.prompt_for("2?").text.endswith("<｜Assistant｜><think>\n")


# --- what is kept ---------------------------------------------------------------------------------------------

FACTS = SessionFacts("tiny:q8_0", None, "jinja", {}, 4096)


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with History(tmp_path / "history.db") as opened:
        yield opened


def recorded(history: History, *answers: Sequence[Step]) -> Session:
    session = open_session(*answers)
    session.record = HistoryRecord(history, lambda _sampling: FACTS, pytest.fail)
    return session


def test_thoughts_are_kept_beside_the_answer_and_are_not_searched(history: History) -> None:
    session = recorded(history, [b"<think>A walrus.</think>Yes."])
    take(session.send("An animal?", threading.Event()))
    stored = history.load(1)
    assert stored.conversation == session.conversation
    assert stored.conversation.messages[-1].reasoning == "A walrus."
    assert not history.search("walrus")
    assert history.search("yes")


def test_thoughts_are_on_the_disk_while_they_come(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a kill would leave them; the next start goes on with them."""
    monkeypatch.setattr("llamachat.chat.history_record._WRITE_EVERY_S", 0.0)
    session = recorded(history, [b"<think>", b"One ", b"and ", b"one."])
    events = session.send("1+1?", threading.Event())
    while not (isinstance(event := next(events), ReasoningPiece) and "and" in event.text):
        pass
    found = history.load(1)
    assert found.finish_reason == "interrupted"
    assert found.conversation.messages[-1] == Message("assistant", "", reasoning="One and")
    events.close()  # type: ignore[attr-defined]
    again = recorded(history, [b" one.</think>Two."])
    again.record.adopt(found)  # type: ignore[attr-defined]
    again.resume(found.conversation)
    answer = take(again.go_on(threading.Event()))[1]
    assert (answer.reasoning, answer.content) == ("One and one.", "Two.")


def test_exports_have_thoughts_apart_and_json_comes_back(history: History, tmp_path: Path) -> None:
    session = recorded(history, [b"<think>\nIt <b>is</b>:\n```\ncode\n</think>\n\nTwo."], [b"Sure."])
    take(session.send("1+1?", threading.Event()))
    take(session.send("Really?", threading.Event()))
    tree = history.tree(1)
    texts: Mapping[str, str] = {form: export(tree) for form, export in FORMATS.items()}
    assert "*Thoughts:*\n\n> It <b>is</b>:\n> ```\n> code\n\nTwo.\n" in texts["md"]
    assert "<summary>Thoughts</summary>" in texts["html"]
    assert "It &lt;b&gt;is&lt;/b&gt;:" in texts["html"]
    with_thoughts, without = (json.loads(texts["json"])["messages"][i] for i in (1, 3))
    assert with_thoughts["reasoning"] == "It <b>is</b>:\n```\ncode"
    assert "reasoning" not in without
    write_export(tmp_path / "talk.json", texts["json"])
    copy = history.add_tree(read_export(tmp_path / "talk.json"))
    assert history.load(copy).conversation == session.conversation


# --- the real model -------------------------------------------------------------------------------------------

TEACHING = """<|im_start|>user
What is 2+2?<|im_end|>
<|im_start|>assistant
<think>
The user asks about 2+2. It is 4.
</think>

4<|im_end|>
<|im_start|>user
Name a color.<|im_end|>
<|im_start|>assistant
<think>
The user asks for a color. Red is one.
</think>

Red<|im_end|>
{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content.split('</think>')[-1] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>
{% if enable_thinking is defined and not enable_thinking %}

</think>

{% endif %}{% endif %}"""
"""The demo model does not think: two turns before all others show it how, and the prompt begins the thoughts."""


@pytest.fixture(scope="module")
def thinking_model(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("thinking") / "thinking.gguf"
    rewrite(demo_model, path, {"tokenizer.chat_template": TEACHING})
    return path


def test_the_real_model_thinks_in_a_script(run: RunCommand, thinking_model: Path) -> None:
    chat = ("chat", thinking_model, "--threads", "1", "--temperature", "0", "--max-tokens", "40")
    shown = run(*chat, "-p", "What is the capital of France?")
    assert shown.returncode == 0, shown.stderr
    answer = json.loads(run(*chat, "-p", "What is the capital of France?", "--json").stdout)
    assert answer["reasoning"]
    assert "</think>" not in answer["reasoning"]
    assert shown.stdout == answer["content"] + "\n"
    assert shown.stderr.startswith(f"{answer['reasoning']}\n(thought for ")
    assert "\x1b" not in shown.stderr
    off = run(*chat, "-p", "What is the capital of France?", "--reasoning", "off", "--json")
    assert "reasoning" not in json.loads(off.stdout)
    assert off.stderr == ""
    sessions = run("sessions", "show", str(answer["session"]))
    assert f"  Thoughts:\n  {answer['reasoning']}\n{answer['content']}" in sessions.stdout


def test_the_real_model_under_a_grammar(run: RunCommand, thinking_model: Path, tmp_path: Path) -> None:
    (tmp_path / "yes.gbnf").write_text('root ::= "yes" | "no"', encoding="utf-8")
    chat = ("chat", thinking_model, "--threads", "1", "--temperature", "0", "--grammar", tmp_path / "yes.gbnf")
    done = run(*chat, "-p", "Is Paris in France?", "--reasoning", "on")
    assert done.stdout in ("yes\n", "no\n")
    assert done.stderr == "A grammar holds the answer from its first word: the model answers without thinking first.\n"


@pytest.mark.usefixtures("_render_here")
@pytest.mark.parametrize(
    ("source", "reasoning", "grammar", "said"),
    [
        (None, "off", None, ""),
        (None, "on", None, "does not know of it"),
        (R1, "on", None, "thinks when it does so by itself"),
        (R1, "off", None, ""),
        (R1_OF_OLD, "off", None, "cannot be switched off"),
        (R1, "hide", "g", "without thinking"),
        (QWEN3, "on", None, ""),
        (QWEN3, "off", None, ""),
        (QWEN3, "auto", "g", ""),
        (QWEN3, "on", "g", "without thinking"),
    ],
)
def test_a_wish_that_cannot_be_met_is_answered(
    source: str | None, reasoning: str, grammar: str | None, said: str
) -> None:
    session = open_session(template=Jinja(source) if source else ChatML(), grammar=grammar)
    assert said in (describe_unmet(session, reasoning) or "")
    assert bool(describe_unmet(session, reasoning)) == bool(said)
