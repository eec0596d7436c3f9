"""Prompts, token for token as the models' authors build them, and no text that can pass for a control token."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamachat.chat.message import Conversation
from llamachat.chat.templates import (
    CHAT_TEMPLATE_KEY,
    TEMPLATES,
    ChatML,
    Jinja,
    Llama2,
    Llama3,
    NoTemplate,
    PromptTemplate,
    choose_template,
)
from llamachat.engine.base import Tokenizer
from llamachat.engine.llamacpp import open_tokenizer
from llamachat.errors import BadConversation, TemplateFailed, UnknownTemplate
from quantize import convert, find_file_type
from support.checkpoints import BPE_FAMILIES, LlamaShape, write_bpe_tokenizer, write_random_checkpoint
from support.fake_engine import FakeTokenizer
from support.prompts import Vocabulary, conversation_of, open_vocabulary, some_conversations

PROPERTY = settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))

CHATML_SOURCE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Letters of several scripts, blanks, and what borders are made of; all known to every Unicode table.
ANY_TEXT = st.text(
    st.one_of(
        st.sampled_from(" \n\t\r<|>[]/_'s1.▁我é🙂\u00a0\u3000\u200d"),
        st.characters(max_codepoint=0x2FFF, exclude_categories=["Cs", "Cn", "Co"]),
    ),
    max_size=16,
)
ANY_CONVERSATION = st.builds(
    lambda system, contents: conversation_of(contents if len(contents) % 2 else contents[1:], system),
    st.none() | ANY_TEXT,
    st.lists(ANY_TEXT, min_size=2, max_size=6),
)


# --- vocabularies -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["real", "trained"])
def spm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vocabulary]:
    fixture = {"real": "llama2_tokenizer", "trained": "small_tokenizer"}[request.param]
    path: Path = request.getfixturevalue(fixture)
    n_vocab = sentencepiece.SentencePieceProcessor(model_file=str(path)).vocab_size()
    with open_vocabulary(tmp_path_factory.mktemp("spm"), n_vocab, path) as vocabulary:
        yield vocabulary


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vocabulary]:
    directory = tmp_path_factory.mktemp("llama-3")
    with open_vocabulary(directory, write_bpe_tokenizer(directory, "llama-3", n_merges=300)) as vocabulary:
        yield vocabulary


@pytest.fixture(scope="module")
def demo(demo_model: Path, demo_checkpoint: Path) -> Iterator[Vocabulary]:
    with open_tokenizer(demo_model) as (tokenizer, _):
        yield Vocabulary(tokenizer, demo_checkpoint)


# --- llama-2 ------------------------------------------------------------------------------------------------


class MetaLlama2:
    """`Llama.chat_completion` and `Tokenizer.encode` of meta-llama/llama, over sentencepiece itself."""

    def __init__(self, directory: Path) -> None:
        self.sp_model = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))

    def encode(self, s: str, *, bos: bool, eos: bool) -> list[int]:
        return [*[self.sp_model.bos_id()] * bos, *self.sp_model.encode(s), *[self.sp_model.eos_id()] * eos]

    def prompt_tokens(self, dialog: list[dict[str, str]]) -> list[int]:
        b_inst, e_inst = "[INST]", "[/INST]"
        b_sys, e_sys = "<<SYS>>\n", "\n<</SYS>>\n\n"
        if dialog[0]["role"] == "system":
            content = b_sys + dialog[0]["content"] + e_sys + dialog[1]["content"]
            dialog = [{"role": dialog[1]["role"], "content": content}, *dialog[2:]]
        tokens: list[int] = []
        for prompt, answer in zip(dialog[::2], dialog[1::2], strict=False):
            text = f"{b_inst} {prompt['content'].strip()} {e_inst} {answer['content'].strip()} "
            tokens += self.encode(text, bos=True, eos=True)
        return tokens + self.encode(f"{b_inst} {dialog[-1]['content'].strip()} {e_inst}", bos=True, eos=False)


def test_llama_2_is_metas(spm: Vocabulary) -> None:
    meta = MetaLlama2(spm.directory)
    for conversation in some_conversations():
        prompt = Llama2().render(conversation, spm.tokenizer)
        assert list(prompt.ids) == meta.prompt_tokens(conversation.all_messages()), conversation


@PROPERTY
@given(conversation=ANY_CONVERSATION)
def test_llama_2_is_metas_for_any_text(spm: Vocabulary, conversation: Conversation) -> None:
    expected = MetaLlama2(spm.directory).prompt_tokens(conversation.all_messages())
    assert list(Llama2().render(conversation, spm.tokenizer).ids) == expected


def test_llama_2_for_people(spm: Vocabulary) -> None:
    conversation = conversation_of([" Hi ", "Ho", "Go"], system="Be brief.")
    assert Llama2().render(conversation, spm.tokenizer).text == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hi [/INST] Ho </s><s>[INST] Go [/INST]"
    )


def test_llama_2_as_published_with_the_real_vocabulary(llama2_tokenizer: Path, tmp_path: Path) -> None:
    """The ids that Meta's code gives for the plainest prompt, written down: no code in between."""
    with open_vocabulary(tmp_path, 32000, llama2_tokenizer) as vocabulary:
        ids = Llama2().render(conversation_of(["Hello"]), vocabulary.tokenizer).ids
    assert ids == (1, 518, 25580, 29962, 15043, 518, 29914, 25580, 29962)


# --- llama-3 ------------------------------------------------------------------------------------------------


class MetaLlama3:
    """`ChatFormat` of meta-llama/llama3, over `tokenizers`. Like tiktoken's `encode`, it sees no special tokens."""

    def __init__(self, directory: Path) -> None:
        definition = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
        self.special_tokens = {token["content"]: token["id"] for token in definition["added_tokens"]}
        plain = definition | {"added_tokens": [], "post_processor": None}
        self.tokenizer = tokenizers.Tokenizer.from_str(json.dumps(plain))

    def encode(self, s: str) -> list[int]:
        return list(self.tokenizer.encode(s, add_special_tokens=False).ids)

    def encode_header(self, message: dict[str, str]) -> list[int]:
        tokens = [self.special_tokens["<|start_header_id|>"]]
        tokens.extend(self.encode(message["role"]))
        tokens.append(self.special_tokens["<|end_header_id|>"])
        tokens.extend(self.encode("\n\n"))
        return tokens

    def encode_message(self, message: dict[str, str]) -> list[int]:
        tokens = self.encode_header(message)
        tokens.extend(self.encode(message["content"].strip()))
        tokens.append(self.special_tokens["<|eot_id|>"])
        return tokens

    def encode_dialog_prompt(self, dialog: list[dict[str, str]]) -> list[int]:
        tokens = [self.special_tokens["<|begin_of_text|>"]]
        for message in dialog:
            tokens.extend(self.encode_message(message))
        tokens.extend(self.encode_header({"role": "assistant", "content": ""}))
        return tokens


def test_llama_3_is_metas(llama3: Vocabulary) -> None:
    meta = MetaLlama3(llama3.directory)
    for conversation in some_conversations():
        prompt = Llama3().render(conversation, llama3.tokenizer)
        assert list(prompt.ids) == meta.encode_dialog_prompt(conversation.all_messages()), conversation


@PROPERTY
@given(conversation=ANY_CONVERSATION)
def test_llama_3_is_metas_for_any_text(llama3: Vocabulary, conversation: Conversation) -> None:
    expected = MetaLlama3(llama3.directory).encode_dialog_prompt(conversation.all_messages())
    assert list(Llama3().render(conversation, llama3.tokenizer).ids) == expected


# --- chatml -------------------------------------------------------------------------------------------------


def chatml_text(conversation: Conversation) -> str:
    turns = (f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in conversation.all_messages())
    return "".join(turns) + "<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def encode_demo(demo: Vocabulary) -> Callable[[str], list[int]]:
    """The demo model's own tokenizer, which finds control tokens in the text, as transformers does."""
    tokenizer = tokenizers.Tokenizer.from_file(str(demo.directory / "tokenizer.json"))
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def test_chatml_is_the_published_template(demo: Vocabulary, encode_demo: Callable[[str], list[int]]) -> None:
    for conversation in some_conversations():
        prompt = ChatML().render(conversation, demo.tokenizer)
        assert prompt.text == chatml_text(conversation)
        assert list(prompt.ids) == encode_demo(prompt.text), conversation


@PROPERTY
@given(conversation=ANY_CONVERSATION)
def test_chatml_is_the_published_template_for_any_text(
    demo: Vocabulary, encode_demo: Callable[[str], list[int]], conversation: Conversation
) -> None:
    contents = "".join(message["content"] for message in conversation.all_messages())
    if not any(token in contents for token in demo.tokenizer.control_tokens):
        assert list(ChatML().render(conversation, demo.tokenizer).ids) == encode_demo(chatml_text(conversation))


def test_a_chatml_source_gives_what_chatml_gives(demo: Vocabulary) -> None:
    template = Jinja(CHATML_SOURCE)
    for conversation in list(some_conversations())[::5]:
        assert template.render(conversation, demo.tokenizer) == ChatML().render(conversation, demo.tokenizer)


def test_the_family_s_jinja_gives_what_llama_3_gives(llama3: Vocabulary) -> None:
    source = BPE_FAMILIES["llama-3"].chat_template
    assert source
    template = Jinja(source)
    for conversation in list(some_conversations())[::8]:
        assert template.render(conversation, llama3.tokenizer) == Llama3().render(conversation, llama3.tokenizer)


# --- BOS ----------------------------------------------------------------------------------------------------

_WITH_BOS = [
    "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}",
    "\n{{ bos_token }}{{ messages[0].content }}",
    "{% if true %}\n{{ bos_token }}{% endif %}{{ messages[0].content }}",
]
_WITHOUT_BOS = ["{{ messages[0].content }}", "", "\n\n{{ messages[0].content }}{{ eos_token }}"]
_BARE = [template for name, template in TEMPLATES.items() if name != Jinja.name]


def _bos_of(ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    return [place for place, token_id in enumerate(ids) if token_id == tokenizer.bos_id]


@pytest.mark.parametrize("source", _WITH_BOS + _WITHOUT_BOS)
def test_jinja_has_one_bos_where_one_is_expected(source: str, llama3: Vocabulary) -> None:
    ids = Jinja(source).render(conversation_of(["Hi"]), llama3.tokenizer).ids
    assert len(_bos_of(ids, llama3.tokenizer)) == 1


@pytest.mark.parametrize("source", _WITHOUT_BOS)
def test_jinja_has_no_bos_where_none_is_expected(source: str) -> None:
    tokenizer = FakeTokenizer(adds_bos=False)
    assert not _bos_of(Jinja(source).render(conversation_of(["Hi"]), tokenizer).ids, tokenizer)


@pytest.mark.parametrize("template", [ChatML, NoTemplate])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_bos_as_the_vocabulary_expects(template: type[PromptTemplate], adds_bos: bool) -> None:
    tokenizer = FakeTokenizer(adds_bos=adds_bos)
    ids = template().render(conversation_of(["Hi", "Ho", "Go"], system="S"), tokenizer).ids
    assert _bos_of(ids, tokenizer) == [0] * adds_bos


def test_bos_of_families_that_state_it(spm: Vocabulary, llama3: Vocabulary) -> None:
    conversation = conversation_of(["Hi", "Ho", "Go"], system="S")
    assert _bos_of(Llama3().render(conversation, llama3.tokenizer).ids, llama3.tokenizer) == [0]
    assert _bos_of(NoTemplate().render(conversation, spm.tokenizer).ids, spm.tokenizer) == [0]
    ids = Llama2().render(conversation, spm.tokenizer).ids
    assert len(_bos_of(ids, spm.tokenizer)) == 2, "one a turn"
    assert ids[0] == spm.tokenizer.bos_id


def test_a_base_model_sees_the_text_and_nothing_else(spm: Vocabulary) -> None:
    prompt = NoTemplate().render(conversation_of(["Once", " upon", " a time"]), spm.tokenizer)
    assert list(prompt.ids) == MetaLlama2(spm.directory).encode("Once upon a time", bos=True, eos=False)


# --- what cannot be rendered --------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [*_BARE, lambda: Jinja(CHATML_SOURCE)])
def test_nothing_to_answer(template: Callable[[], PromptTemplate]) -> None:
    with pytest.raises(BadConversation):
        template().render(conversation_of([], system="S"), FakeTokenizer())


@pytest.mark.parametrize("template", [Llama3, ChatML])
def test_a_vocabulary_without_the_family_s_tokens(template: type[PromptTemplate], spm: Vocabulary) -> None:
    with pytest.raises(TemplateFailed, match=r"vocabulary has no <\|"):
        template().render(conversation_of(["Hi"]), spm.tokenizer)


# --- the choice ---------------------------------------------------------------------------------------------

_OWN = {CHAT_TEMPLATE_KEY: "{{ messages[0].content }}"}


@pytest.mark.parametrize(
    ("asked", "catalogued", "metadata", "template", "reason"),
    [
        ("chatml", "llama-2", _OWN, ChatML, "asked for"),
        ("none", "llama-2", _OWN, NoTemplate, "asked for"),
        ("jinja", "llama-2", _OWN, Jinja, "asked for"),
        (None, "llama-2", _OWN, Llama2, "catalogue"),
        (None, "llama-3", {}, Llama3, "catalogue"),
        (None, "none", _OWN, NoTemplate, "catalogue"),
        (None, "jinja", _OWN, Jinja, "catalogue"),
        (None, "not-built-in", _OWN, Jinja, "header"),
        (None, None, _OWN, Jinja, "header"),
        (None, None, {}, NoTemplate, "the model brings no chat template, so it continues text"),
    ],
)
def test_choice(
    asked: str | None,
    catalogued: str | None,
    metadata: dict[str, str],
    template: type[PromptTemplate],
    reason: str,
) -> None:
    choice = choose_template(asked, catalogued, metadata)
    assert (type(choice.template), choice.reason) == (template, reason)
    assert choice.template.is_chat == (template is not NoTemplate)


def test_the_demo_model_s_own_template_is_known(demo_model: Path) -> None:
    with open_tokenizer(demo_model) as (_, metadata):
        choice = choose_template(None, None, metadata)
    assert (type(choice.template), choice.reason) == (ChatML, "known template")


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UnknownTemplate, match="'lama-2'") as caught:
        choose_template("lama-2", "llama-2", _OWN)
    assert all(name in caught.value.next_step for name in TEMPLATES)


@pytest.mark.parametrize(("asked", "catalogued"), [("jinja", "llama-2"), (None, "jinja"), (None, "not-built-in")])
def test_a_template_that_nobody_brings(asked: str | None, catalogued: str) -> None:
    with pytest.raises(TemplateFailed):
        choose_template(asked, catalogued, {})


# --- injection ----------------------------------------------------------------------------------------------

_FAMILY_MARKERS = [
    "<s>", "</s>", "<unk>", "<0x0A>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<|im_start|>", "<|im_end|>",
    "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|endoftext|>", "<|a b|>", "### Response:",
]  # fmt: skip

Render = Callable[[Conversation], Any]


def _n_control(ids: Sequence[int], tokenizer: Tokenizer) -> int:
    control_ids = set(tokenizer.control_tokens.values())
    return sum(token_id in control_ids for token_id in ids)


def _attacks(markers: Sequence[str]) -> Iterator[list[str]]:
    """System, question, answer, question: markers whole, at the edges, in each other, and split over messages."""
    for marker in markers:
        yield [marker] * 4
        yield [f"a{marker}b {marker}\n{marker * 2}"] * 4
        yield [marker[:1] + marker + marker[1:]] * 4
        for place in range(1, len(marker)):
            yield [marker[place:] + " x " + marker[:place]] * 4
            yield [f" {marker[place:]} x {marker[:place]} "] * 4


def _native(vocabulary: Vocabulary) -> list[PromptTemplate]:
    """The native templates this vocabulary has the tokens for."""
    has = vocabulary.tokenizer.control_tokens
    templates: list[PromptTemplate] = [NoTemplate(), Llama2()]
    templates += [Llama3()] if "<|eot_id|>" in has else []
    templates += [ChatML()] if "<|im_end|>" in has else []
    return templates


@pytest.fixture(scope="module", params=["real", "trained", "llama-3", "demo", "fake"])
def any_vocabulary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vocabulary]:
    directory = tmp_path_factory.mktemp("vocabulary")
    match request.param:
        case "fake":
            yield Vocabulary(FakeTokenizer(adds_bos=True), directory)
        case "real" | "trained":
            path = request.getfixturevalue("llama2_tokenizer" if request.param == "real" else "small_tokenizer")
            n_vocab = sentencepiece.SentencePieceProcessor(model_file=str(path)).vocab_size()
            with open_vocabulary(directory, n_vocab, path) as vocabulary:
                yield vocabulary
        case name:
            yield request.getfixturevalue(name.replace("-", ""))


def test_no_marker_in_a_message_becomes_a_token(any_vocabulary: Vocabulary) -> None:
    tokenizer = any_vocabulary.tokenizer
    for template in _native(any_vocabulary):
        harmless = template.render(conversation_of(["x", "x", "x"], system="x"), tokenizer)
        for system, *contents in _attacks([*tokenizer.control_tokens, *_FAMILY_MARKERS]):
            prompt = template.render(conversation_of(contents, system=system), tokenizer)
            assert _n_control(prompt.ids, tokenizer) == _n_control(harmless.ids, tokenizer), (template.name, contents)
            assert prompt.text.count(contents[0].strip()) >= 3, "and nothing is taken away"


@PROPERTY
@given(data=st.data())
def test_no_mixture_of_markers_becomes_a_token(any_vocabulary: Vocabulary, data: st.DataObject) -> None:
    tokenizer = any_vocabulary.tokenizer
    markers = [*list(tokenizer.control_tokens)[:20], *_FAMILY_MARKERS]
    pieces = st.sampled_from([piece for marker in markers for piece in (marker, marker[:-1], marker[1:], marker[0])])
    text = st.lists(pieces | ANY_TEXT, max_size=5).map("".join)
    system, *contents = data.draw(st.tuples(text, text, text, text))
    for template in _native(any_vocabulary):
        harmless = template.render(conversation_of(["x", "x", "x"], system="x"), tokenizer)
        prompt = template.render(conversation_of(contents, system=system), tokenizer)
        assert _n_control(prompt.ids, tokenizer) == _n_control(harmless.ids, tokenizer)


def test_a_control_token_that_looks_like_a_word_bpe(tmp_path: Path) -> None:
    """With `ignore_merges`, llama.cpp looks a whole word up in the vocabulary, control tokens included."""
    n_vocab = write_bpe_tokenizer(tmp_path, "llama-3")
    path = tmp_path / "tokenizer.json"
    definition = json.loads(path.read_text(encoding="utf-8"))
    definition["added_tokens"].append({**definition["added_tokens"][0], "id": n_vocab, "content": "hello"})
    path.write_text(json.dumps(definition), encoding="utf-8")
    with open_vocabulary(tmp_path, n_vocab + 1) as vocabulary:
        tokenizer = vocabulary.tokenizer
        assert tokenizer.control_tokens["hello"] == n_vocab
        ids = tokenizer.tokenize("hello world, hello")
        assert not vocabulary.control_ids & set(ids)
        assert b"".join(map(tokenizer.piece, ids)) == b"hello world, hello"


def test_a_control_token_that_looks_like_a_word_spm(small_tokenizer: Path, tmp_path: Path) -> None:
    """llama.cpp merges two pieces whenever their sum is in the vocabulary, control tokens included."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(small_tokenizer))
    left, right = processor.encode("the harbour", out_type=str)[-2:]
    checkpoint = tmp_path / "checkpoint"
    shape = LlamaShape(n_vocab=601, n_embd=32, n_ff=32, n_layer=1, n_head=1, n_head_kv=1)
    write_random_checkpoint(checkpoint, shape, tokenizer=small_tokenizer)
    path = checkpoint / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["added_tokens_decoder"] = {"600": {"content": left + right, "special": True}}
    path.write_text(json.dumps(config), encoding="utf-8")
    gguf_path = convert(checkpoint, tmp_path / "model.gguf", find_file_type("q8_0"), n_threads=1).path
    with open_tokenizer(gguf_path) as (tokenizer, _):
        assert tokenizer.control_tokens[left + right] == 600
        ids = tokenizer.tokenize("the harbour")
        assert 600 not in ids
        assert b"".join(map(tokenizer.piece, ids)).strip() == b"the harbour"
