"""Every family's prompt against its reference, id by id: whole ones, those that end inside an answer, and the next.

The references are Meta's own code, the demo programs of those who trained the model, or the published chat template;
each is written down here once more, over sentencepiece or `tokenizers`, apart from the program's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from jinja2 import Environment

from llamachat.chat.message import Conversation
from llamachat.chat.templates import (
    CHAT_TEMPLATE_KEY,
    TEMPLATES,
    Jinja,
    NoTemplate,
    PromptTemplate,
    choose_template,
)
from support.checkpoints import train_sentencepiece, write_bpe_tokenizer
from support.prompts import Vocabulary, conversation_of, open_vocabulary, some_conversations

GOLDEN = Path(__file__).parent / "golden"
CONTROL = ["[INST]", "[/INST]", "<step>"]
"""Tokens of the small sentencepiece vocabulary besides Llama's; of some families they are, of others not."""

Messages = list[dict[str, str]]
Reference = Callable[[Messages, Vocabulary], list[int]]


def published(name: str) -> str:
    return (GOLDEN / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def render_published(name: str, messages: Messages, **variables: Any) -> str:
    """As `apply_chat_template` of transformers renders it."""
    environment = Environment(trim_blocks=True, lstrip_blocks=True)
    environment.globals |= variables
    return environment.from_string(published(name)).render(messages=messages, add_generation_prompt=True)


# --- references over sentencepiece --------------------------------------------------------------------------


def _processor(vocabulary: Vocabulary) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(vocabulary.directory / "tokenizer.model"))


def spm_ids(text: str, vocabulary: Vocabulary) -> list[int]:
    """Ids of a prompt as a string, <s> and </s> written out: every text between them is encoded by itself."""
    processor = _processor(vocabulary)
    special = {"<s>": [processor.bos_id()], "</s>": [processor.eos_id()]}
    return [i for piece in re.split("(</?s>)", text) for i in special.get(piece) or processor.encode(piece)]


def _pairs(messages: Messages) -> tuple[str | None, list[str], list[str]]:
    """The system prompt, the questions and the answers."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    rest = [message["content"] for message in messages[system is not None :]]
    return system, rest[::2], rest[1::2]


def meta_llama_2(messages: Messages, vocabulary: Vocabulary) -> list[int]:
    """`chat_completion` of meta-llama/llama and, for 7 to 34b, of meta-llama/codellama."""
    system, questions, answers = _pairs(messages)
    if system is not None:
        questions[0] = f"<<SYS>>\n{system}\n<</SYS>>\n\n{questions[0]}"
    turns = [f"<s>[INST] {q.strip()} [/INST] {a.strip()} </s>" for q, a in zip(questions, answers, strict=False)]
    return spm_ids("".join(turns) + f"<s>[INST] {questions[-1].strip()} [/INST]", vocabulary)


def meta_code_llama_70b(messages: Messages, vocabulary: Vocabulary) -> list[int]:
    """`dialog_prompt_tokens` of meta-llama/codellama, with the destination that its answers have."""
    processor = _processor(vocabulary)
    dialog = messages if messages[0]["role"] == "system" else [{"role": "system", "content": ""}, *messages]
    ids = [processor.bos_id()]
    for message in dialog:
        destination = "\nDestination: user" if message["role"] == "assistant" else ""
        ids += processor.encode(f" Source: {message['role']}{destination}")
        if message["content"]:
            ids += processor.encode("\n\n " + message["content"].strip())
        ids += [processor.piece_to_id("<step>")]
    return [*ids, *processor.encode(" Source: assistant\nDestination: user"), *processor.encode("\n\n ")]


def chinese_alpaca_2(messages: Messages, vocabulary: Vocabulary) -> list[int]:
    """`predict` of gradio_demo.py in ymcui/Chinese-LLaMA-Alpaca-2; the tokenizer puts the first BOS."""
    system, questions, answers = _pairs(messages)
    system = "You are a helpful assistant. 你是一个乐于助人的助手。" if system is None else system
    prompt = ""
    for i, question in enumerate(questions):
        asked = f"<<SYS>>\n{system}\n<</SYS>>\n\n{question}" if i == 0 and system else question
        answer = answers[i] if i < len(answers) else None
        prompt += f"<s>[INST] {asked} [/INST]" + (f" {answer}" if answer else "") + "</s>" * (answer is not None)
    return spm_ids(prompt, vocabulary)


def fastchat_vicuna(messages: Messages, vocabulary: Vocabulary) -> list[int]:
    """`get_prompt` with `ADD_COLON_TWO` in lm-sys/FastChat."""
    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    if messages[0]["role"] == "system":
        system, messages = messages[0]["content"], messages[1:]
    seps = [" ", "</s>"]
    ret = "<s>" + system + seps[0]
    for i, message in enumerate([*messages, {"role": "assistant", "content": ""}]):
        role = {"user": "USER", "assistant": "ASSISTANT"}[message["role"]]
        ret += role + ": " + message["content"] + seps[i % 2] if message["content"] else role + ":"
    return spm_ids(ret, vocabulary)


def stanford_alpaca(messages: Messages, vocabulary: Vocabulary) -> list[int]:
    """`prompt_no_input` of tatsu-lab/stanford_alpaca; its training data end with EOS."""
    system, questions, answers = _pairs(messages)
    if system is None:
        system = (
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        )
    turns = [f"### Instruction:\n{question}\n\n### Response:" for question in questions]
    ended = [f"{turn}{answer}</s>" for turn, answer in zip(turns, answers, strict=False)]
    return spm_ids(f"<s>{system}\n\n" + "".join(ended) + turns[-1], vocabulary)


def llama2_chinese(messages: Messages, vocabulary: Vocabulary) -> list[int]:
    """The README of LlamaFamily/Llama-Chinese."""
    names = {"system": "System", "user": "Human", "assistant": "Assistant"}
    turns = [f"<s>{names[message['role']]}: {message['content']}\n</s>" for message in messages]
    return spm_ids("".join(turns) + "<s>Assistant: ", vocabulary)


def mistral_common_v1(messages: Messages, vocabulary: Vocabulary) -> list[int]:
    """`InstructTokenizerV1` of mistral-common."""
    processor = _processor(vocabulary)
    system, questions, answers = _pairs(messages)
    ids = [processor.bos_id()]
    for i, question in enumerate(questions):
        content = f"{system}\n\n{question}" if i == 0 and system else question
        ids += processor.encode(f"[INST] {content} [/INST]")
        ids += [*processor.encode(answers[i]), processor.eos_id()] if i < len(answers) else []
    return ids


def mistral_common_v3(messages: Messages, vocabulary: Vocabulary) -> list[int]:
    """`InstructTokenizerV3` of mistral-common."""
    processor = _processor(vocabulary)
    system, questions, answers = _pairs(messages)
    ids = [processor.bos_id()]
    for i, question in enumerate(questions):
        content = f"{system}\n\n{question}" if i == len(questions) - 1 and system else question
        ids += [processor.piece_to_id("[INST]"), *processor.encode(content), processor.piece_to_id("[/INST]")]
        ids += [*processor.encode(answers[i].rstrip(" ")), processor.eos_id()] if i < len(answers) else []
    return ids


def zephyr(messages: Messages, vocabulary: Vocabulary) -> list[int]:
    """The published chat template, with the BOS that the model card's pipeline adds."""
    return spm_ids("<s>" + render_published("zephyr", messages, eos_token="</s>"), vocabulary)


# --- references over tokenizers -----------------------------------------------------------------------------


def by_published_template(name: str, **variables: Any) -> Reference:
    def reference(messages: Messages, vocabulary: Vocabulary) -> list[int]:
        tokenizer = tokenizers.Tokenizer.from_file(str(vocabulary.directory / "tokenizer.json"))
        text = render_published(name, messages, bos_token="<|begin_of_text|>", **variables)
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    return reference


TODAY = datetime(2026, 2, 3, tzinfo=timezone.utc)
FAMILIES: dict[str, tuple[str, Reference]] = {
    "llama-2": ("spm", meta_llama_2),
    "code-llama-instruct": ("spm", meta_llama_2),
    "code-llama-70b-instruct": ("spm with control tokens", meta_code_llama_70b),
    "chinese-alpaca-2": ("spm", chinese_alpaca_2),
    "llama2-chinese": ("spm", llama2_chinese),
    "vicuna": ("spm", fastchat_vicuna),
    "wizardlm": ("spm", fastchat_vicuna),
    "alpaca": ("spm", stanford_alpaca),
    "mistral-instruct-v0.1": ("spm", mistral_common_v1),
    "mistral-instruct-v0.2": ("spm", mistral_common_v1),
    "mistral-instruct-v0.3": ("spm with control tokens", mistral_common_v3),
    "zephyr": ("spm", zephyr),
    "llama-3": ("llama-3", by_published_template("llama-3")),
    "llama-3.1": ("llama-3", by_published_template("llama-3.1", date_string="03 Feb 2026")),
    "llama-3.2": ("llama-3", by_published_template("llama-3.2", strftime_now=TODAY.strftime)),
    "llama-3.3": ("llama-3", by_published_template("llama-3.1", date_string="03 Feb 2026")),
    "chatml": ("qwen2", by_published_template("chatml")),
    "qwen2.5": ("qwen2", by_published_template("qwen2.5")),
}


def make(name: str) -> PromptTemplate:
    template = TEMPLATES[name]()
    template.begin(TODAY)
    return template


@pytest.fixture(scope="module")
def vocabularies(
    small_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Vocabulary]]:
    """One vocabulary of each kind, made when it is first asked for."""
    opened: dict[str, tuple[Any, Vocabulary]] = {}

    def get(kind: str) -> Vocabulary:
        if kind not in opened:
            directory = tmp_path_factory.mktemp(kind.replace(" ", "-"))
            tokenizer = None
            if kind.startswith("spm"):
                tokenizer = small_tokenizer
                if kind != "spm":
                    tokenizer = directory / "own.model"
                    train_sentencepiece(tokenizer, n_vocab=600, control_symbols=CONTROL)
                n_vocab = 600
            else:
                n_vocab = write_bpe_tokenizer(directory, kind, n_merges=300)  # type: ignore[arg-type]
            context = open_vocabulary(directory, n_vocab, tokenizer)
            opened[kind] = context, context.__enter__()
        return opened[kind][1]

    yield get
    for context, _ in opened.values():
        context.__exit__(None, None, None)


Vocabularies = Callable[[str], Vocabulary]


def test_every_family_has_a_reference() -> None:
    assert {*FAMILIES, "jinja", "none"} == set(TEMPLATES)


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_are_the_reference_s(name: str, vocabularies: Vocabularies) -> None:
    kind, reference = FAMILIES[name]
    vocabulary = vocabularies(kind)
    template = make(name)
    for conversation in some_conversations():
        prompt = template.render(conversation, vocabulary.tokenizer)
        assert list(prompt.ids) == reference(conversation.all_messages(), vocabulary), conversation
        assert not prompt.notes


@pytest.mark.parametrize("name", [name for name, (kind, _) in FAMILIES.items() if kind == "spm"])
def test_ids_are_the_reference_s_with_llama_2_s_vocabulary(name: str, llama2_tokenizer: Path, tmp_path: Path) -> None:
    template = make(name)
    with open_vocabulary(tmp_path, 32000, llama2_tokenizer) as vocabulary:
        for conversation in some_conversations():
            expected = FAMILIES[name][1](conversation.all_messages(), vocabulary)
            assert list(template.render(conversation, vocabulary.tokenizer).ids) == expected, conversation


@pytest.mark.parametrize("name", ["llama-2", "zephyr", "llama-3", "llama-3.2", "chatml", "qwen2.5"])
def test_the_published_template_gives_the_same_ids(name: str, vocabularies: Vocabularies) -> None:
    """Through the sandbox, which a checkpoint's own template goes through: also where an answer is to be continued."""
    tokenizer = vocabularies(FAMILIES[name][0]).tokenizer
    own, built_in = Jinja(published(name)), TEMPLATES[name]()
    for conversation in list(some_conversations())[::16]:
        assert own.render(conversation, tokenizer).ids == built_in.render(conversation, tokenizer).ids, conversation
        half = conversation.with_message("assistant", "It begins\n with")
        assert own.render(half, tokenizer).ids == built_in.render(half, tokenizer).ids, half


@pytest.mark.parametrize("name", ["llama-2", "llama-3", "llama-3.1", "llama-3.2", "chatml", "qwen2.5", "zephyr"])
@pytest.mark.parametrize("end", ["", "\n"])
def test_published_templates_are_known(name: str, end: str) -> None:
    """All but one are rendered by the family's own class; 3.1's, which has a date of its own, as it is."""
    source = published(name).removesuffix("\n") + end
    choice = choose_template(None, None, {CHAT_TEMPLATE_KEY: source})
    expected = ("jinja", "header") if name == "llama-3.1" else (name, "known template")
    assert (choice.template.name, choice.reason) == expected


# --- the rest of an answer, and the turn after it -----------------------------------------------------------

TALK = conversation_of(["Hello there", "Hi, what now?", "Tell me of the harbour"])
ANSWER = "The harbour is old. It"
EVERY = [*FAMILIES, "none", "jinja"]


def kind_of(name: str) -> str:
    return FAMILIES[name][0] if name in FAMILIES else "spm"


def make_any(name: str) -> PromptTemplate:
    return Jinja(published("llama-2")) if name == "jinja" else NoTemplate() if name == "none" else make(name)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_an_answer_to_be_continued(name: str, system: str | None, vocabularies: Vocabularies) -> None:
    vocabulary = vocabularies(kind_of(name))
    template, tokenizer = make_any(name), vocabulary.tokenizer
    asked = Conversation(system, TALK.messages)
    prompt = template.render(asked, tokenizer)
    begun = template.render(asked.with_message("assistant", ANSWER), tokenizer)
    assert begun.text.startswith(prompt.text)
    assert begun.text[len(prompt.text) :].strip() == ANSWER, "no marker after it"
    assert begun.ids[-1] not in vocabulary.control_ids
    n_rest = len(begun.ids) - len(prompt.ids)
    assert n_common(begun.ids, prompt.ids) >= len(prompt.ids) - 1
    assert n_rest < len(ANSWER) + 2
    for end in ("\n", "  \n\n", " 你", "🙂"):
        kept = template.render(asked.with_message("assistant", ANSWER + end), tokenizer).text
        assert kept == begun.text + end, "what was generated stays as it was"


def n_common(left: Sequence[int], right: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


EVALUATED_AGAIN: dict[str, str] = {
    "code-llama-70b-instruct": "the prompt ends with a blank, which in the history belongs to the answer's first word",
    "llama2-chinese": "the same",
}
SYSTEM_MOVES = {"mistral-instruct-v0.3"}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_how_many_tokens_a_turn_evaluates(name: str, system: str | None, vocabularies: Vocabularies) -> None:
    """What the KV cache holds after a turn is the prompt and the answer; the next prompt begins with it."""
    tokenizer = vocabularies(kind_of(name)).tokenizer
    template = make_any(name)
    asked = Conversation(system, TALK.messages)
    prompt = template.render(asked, tokenizer).ids
    answer = _generated(template, asked, tokenizer)
    following = asked.with_message("assistant", ANSWER).with_message("user", "And then?")
    after = template.render(following, tokenizer).ids
    n_reused = n_common((*prompt, *answer), after)
    if name in SYSTEM_MOVES and system is not None:
        assert n_reused < len(prompt), "the system prompt stands in the last question"
    elif name in EVALUATED_AGAIN:
        assert n_reused == len(prompt) - 1, EVALUATED_AGAIN[name]
    else:
        assert n_reused == len(prompt) + len(answer), "only what is new"
        assert len(after) - n_reused < 60


def _generated(template: PromptTemplate, asked: Conversation, tokenizer: Any) -> tuple[int, ...]:
    """The ids a model gives that answers as it was trained to: those of the answer in its place."""
    prompt = template.render(asked, tokenizer).ids
    begun = template.render(asked.with_message("assistant", ANSWER), tokenizer).ids
    return begun[n_common(prompt, begun) :]


# --- dates, defaults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama-3.1", "llama-3.2", "llama-3.3"])
def test_the_date_is_that_of_the_day_the_template_was_made(name: str, vocabularies: Vocabularies) -> None:
    tokenizer = vocabularies("llama-3").tokenizer
    template = TEMPLATES[name]()
    text = template.render(TALK, tokenizer).text
    assert f"Today Date: {date.today():%d %b %Y}\n\n" in text
    assert "Cutting Knowledge Date: December 2023\n" in text
    assert text == template.render(TALK, tokenizer).text
    template.begin(datetime(2026, 2, 3, 4, 5, tzinfo=timezone.utc))
    assert "Today Date: 03 Feb 2026\n\n" in template.render(TALK, tokenizer).text


@pytest.mark.parametrize("name", FAMILIES)
def test_no_system_prompt_at_all(name: str, vocabularies: Vocabularies) -> None:
    """`-s ''` leaves nothing of the family's own."""
    template = make(name)
    tokenizer = vocabularies(kind_of(name)).tokenizer
    text = template.render(Conversation(template.no_system, TALK.messages), tokenizer).text
    assert not template.system or template.system not in text


@pytest.mark.parametrize("template", TEMPLATES.values())
def test_sampling_is_known_to_the_sampler(template: type[PromptTemplate]) -> None:
    from llamachat.engine.sampling import SamplingParams

    params = SamplingParams().override(template.sampling)
    assert params.temperature > 0
