"""Chat templates from strangers: rendered as transformers does, kept apart, and deaf to what messages say."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llamachat.chat import sandbox
from llamachat.chat.message import Conversation, Message
from llamachat.chat.templates import Jinja
from llamachat.errors import TemplateFailed
from support.fake_engine import CONTROL_TOKENS, FakeTokenizer

Messages = list[dict[str, str]]


def conversation_of(*contents: str, system: str | None = None) -> Conversation:
    return Conversation(
        system, tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(contents))
    )


def render(source: str, *contents: str, system: str | None = None) -> str:
    """The prompt's text."""
    return Jinja(source).render(conversation_of(*(contents or ("Hi",)), system=system), FakeTokenizer()).text


def render_as_transformers(source: str, messages: Messages) -> str:
    """`render_jinja_template` of transformers' chat_template_utils, as far as a chat without tools goes."""

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(
        x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format_: datetime.now().strftime(format_)
    return environment.from_string(source).render(
        messages=messages, tools=None, documents=None, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    )


# --- as transformers ----------------------------------------------------------------------------------------

PUBLISHED = {
    "llama-2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
        "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if loop.index0 == 0 and system_message != false %}"
        "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "zephyr": (
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
        "{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
        "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
        "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
    ),
    "vicuna": (
        "{%- if messages[0]['role'] == 'system' -%}\n    {{- messages[0]['content'] + '\\n\\n' -}}\n"
        "    {%- set messages = messages[1:] -%}\n{%- endif -%}\n"
        "{%- for message in messages -%}\n    {%- if message.role == 'user' -%}\n"
        "        {{- 'USER: ' + message.content + '\\n' -}}\n    {%- else -%}\n"
        "        {{- 'ASSISTANT: ' + message.content + eos_token + '\\n' -}}\n    {%- endif -%}\n"
        "{%- endfor -%}\n{%- if add_generation_prompt -%}\n    {{- 'ASSISTANT:' -}}\n{%- endif -%}\n"
    ),
    "qwen2.5, without the tools' text": (
        "{%- if tools %}\n    {{- '# Tools' }}\n{%- else %}\n    {%- if messages[0]['role'] == 'system' %}\n"
        "        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n    {%- else %}\n"
        "        {{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}\n    {%- endif %}\n{%- endif %}\n"
        '{%- for message in messages %}\n    {%- if (message.role == "user") or (message.role == "system" and not '
        'loop.first) or (message.role == "assistant" and not message.tool_calls) %}\n'
        "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n"
        "    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n"
        "    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
    ),
    "qwen3, its thinking": (
        "{%- set ns = namespace(last=messages|length - 1) %}\n{%- for message in messages[::-1] %}\n"
        "    {%- set index = (messages|length - 1) - loop.index0 %}\n    {%- if message.role == 'user' %}\n"
        "        {%- set ns.last = index %}\n        {%- break %}\n    {%- endif %}\n{%- endfor %}\n"
        "{%- for message in messages %}\n    {%- set content = message.content %}\n"
        "    {%- if message.role == 'assistant' and '</think>' in content %}\n"
        "        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n    {%- endif %}\n"
        "    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}\n{%- endfor %}\n"
        "{{- '<|im_start|>assistant\\n' }}{{ ns.last }}"
    ),
}

FEATURES = {
    "whitespace control": "a\n  {% if true %}\n  b\n  {% endif %}\n{{ 1 }}\n\n  {%- if true -%}  c  {%- endif %}\n",
    "trailing newline": "a\n\n",
    "tojson": "{{ {'b': '<é>', 'a': [1, none]} | tojson }}|{{ messages | tojson(indent=2) }}",
    "tojson with options": (
        "{{ {'b': 1, 'a': 'é'} | tojson(sort_keys=true, separators=(',', ':'), ensure_ascii=true) }}"
    ),
    "loop controls": (
        "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% elif i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    ),
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "macro": "{%- macro f(x, y='d') %}{{ x ~ y }}{% endmacro %}{{ f('a') }}{{ f('b', y='c') }}",
    "call block": "{%- macro f() %}[{{ caller() }}]{% endmacro %}{% call f() %}x{% endcall %}",
    "filters": (
        "{{ messages | map(attribute='role') | join(',') | upper }}{{ messages[-1].content | trim }}"
        "{{ messages | selectattr('role', 'eq', 'user') | list | length }}"
    ),
    "tests": "{{ tools is none }}{{ documents is defined }}{{ nothing is defined }}{{ 'a' is string }}",
    "methods": "{{ messages[0].content.strip().startswith('H') }}{{ {'a': 1}.items() | list }}{{ 'a-b'.split('-') }}",
    "block set": "{% set x %}a{{ 1 + 1 }}\n{% endset %}[{{ x }}]",
    "slices": "{{ messages[::-1][0].content[:2] }}{{ messages[1:] | length }}",
    "ternaries": "{{ 'y' if messages | length > 1 else 'n' }}{{ none or 'd' }}{{ 'x' if false }}",
    "undefined is empty": "[{{ nothing }}][{{ messages[0].nothing }}]{% for x in nothing %}{% endfor %}",
    "the tokens": "{{ bos_token }}|{{ eos_token }}|{{ add_generation_prompt }}",
    "the date": "{{ strftime_now('%d %b %Y') }}",
}

CHATS = [
    conversation_of("Hi"),
    conversation_of("Hi", "<think>\nlong\n</think>\n\nHo", " 你好 \n", system="Be brief."),
    conversation_of("<b>a</b> & 'q'", "", "{{ 1 }} {% x %}", system=""),
]


@pytest.mark.parametrize("source", PUBLISHED.values(), ids=PUBLISHED)
def test_published_templates_as_in_transformers(source: str) -> None:
    template = Jinja(source)
    for conversation in CHATS:
        expected = render_as_transformers(source, conversation.all_messages())
        assert template.render(conversation, FakeTokenizer()).text == expected


@pytest.mark.parametrize("source", FEATURES.values(), ids=FEATURES)
def test_features_as_in_transformers(source: str) -> None:
    expected = render_as_transformers(source, CHATS[1].all_messages())
    assert Jinja(source).render(CHATS[1], FakeTokenizer()).text == expected


def test_the_generation_tag_changes_nothing() -> None:
    """transformers marks with it what an assistant wrote, to train on it."""
    source = "{% for m in messages %}\n  {% generation %}\n{{ m.content }}{% endgeneration %}\n{% endfor %}!"
    assert render(source, "a", "b", "c") == "abc!"


def test_control_tokens_of_the_template_become_ids() -> None:
    prompt = Jinja("{{ bos_token }}<|im_start|>a<|a b|>é{{ eos_token }}").render(conversation_of("x"), FakeTokenizer())
    assert prompt.ids == (256, 258, ord("a"), 261, *"é".encode(), 257)


def test_the_date_is_frozen() -> None:
    """Otherwise every prompt would begin differently, and nothing of the KV cache could be used again."""
    template = Jinja("{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}")
    first = template.render(conversation_of("x"), FakeTokenizer()).text
    assert abs(datetime.now() - datetime.fromisoformat(first)).total_seconds() < 60
    assert template.render(conversation_of("x"), FakeTokenizer()).text == first


# --- what a template may not do -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expression",
    [
        "''.__class__.__mro__[1].__subclasses__()",
        "messages[0].__class__.__init__.__globals__",
        "(messages | attr('__class__')).__mro__",
        "raise_exception.__globals__['sys']",
        "strftime_now.__self__.__class__.__base__",
        "self.__init__.__globals__",
        "cycler.__init__.__globals__.os.popen('id').read()",
        "lipsum.__globals__['os'].system('id')",
        "namespace.__init__.__globals__",
        "'{0.__class__.__mro__}'.format(1)",
        "('%s' | format(messages.append))('x')",
        "messages.append({'role': 'user', 'content': 'x'})",
        "messages[0].update({'role': 'x'})",
        "messages.pop()",
        "nothing.at.all",
        "1 / 0",
        "raise_exception('refused')",
    ],
)
def test_refused(expression: str) -> None:
    with pytest.raises(TemplateFailed):
        render("{{ " + expression + " }}", "Hi", "Ho", "Hi")


@pytest.mark.parametrize("expression", ["messages.__class__", "'{0.__class__}'.format(messages)", "lipsum.__globals__"])
def test_unseen(expression: str) -> None:
    """Named but not used further, it is as if it did not exist."""
    assert render("[{{ " + expression + " }}]") == "[]"


@pytest.mark.parametrize("statement", ["include 'x'", "import 'x' as x", "extends 'x'", "from 'x' import y"])
def test_no_other_template_is_loaded(statement: str) -> None:
    with pytest.raises(TemplateFailed):
        render("{% " + statement + " %}")


def test_the_template_s_own_words_are_told() -> None:
    with pytest.raises(TemplateFailed, match=r"cannot be used: System role not supported\.$"):
        render("{{ raise_exception('System role not supported.') }}")


@pytest.mark.parametrize("source", ["{% if %}", "{{ ", "{% endfor %}", "{{ x | nosuchfilter }}", "{% nosuchtag %}"])
def test_what_does_not_compile_is_refused_at_once(source: str) -> None:
    with pytest.raises(TemplateFailed):
        Jinja(source)


# Each line would take a machine's memory or its time for ever; several of them while they are compiled.
_BOMBS = [
    "{{ 'x' * 10**11 }}",
    "{{ [0] * 10**11 }}",
    "{{ 'x' | center(10**11) }}",
    "{{ 'x'.ljust(10**11) }}",
    "{{ '%100000000000d' | format(1) }}",
    "{{ '{:100000000000}'.format(1) }}",
    "{{ range(10**9) | list }}",
    "{{ 'x' * 5000000 }}",
    "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ " + "(" * 50000 + "1" + ")" * 50000 + " }}",
    "{% if true %}" * 3000 + "{% endif %}" * 3000,
]
_ENDLESS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 9 ** (9 ** 9) }}",
    "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s == 1 }}"
    "{{ ns.s }}",
]


@pytest.mark.parametrize("source", _BOMBS, ids=lambda source: source[:40])
def test_bombs(source: str) -> None:
    started = time.monotonic()
    with pytest.raises(TemplateFailed):
        render(source)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("source", _ENDLESS, ids=lambda source: source[:40])
def test_endless_templates(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_TIME_LIMIT_S", 1)
    started = time.monotonic()
    with pytest.raises(TemplateFailed, match="did not finish in 1 s"):
        render(source)
    assert time.monotonic() - started < 3


_MEASURE = """
from datetime import datetime
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from llamachat.chat.sandbox import render
from llamachat.errors import TemplateFailed

source = "{% set ns = namespace(s='x' * 1000) %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"
before = getrusage(RUSAGE_SELF).ru_maxrss  # Linux counts in it what the process had that started this one
try:
    render(source, [{}], datetime.now())
except TemplateFailed:
    print(getrusage(RUSAGE_SELF).ru_maxrss - before, getrusage(RUSAGE_CHILDREN).ru_maxrss - before)
"""


def test_memory_stays_small() -> None:
    """Measured in a process of its own, whose only child is the one that renders."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the system has no limit of memory")
    done = subprocess.run([sys.executable, "-c", _MEASURE], capture_output=True, text=True, check=True)
    own_kib, apart_kib = map(int, done.stdout.split())
    assert own_kib < 64 * 1024
    assert apart_kib < 512 * 1024


def test_a_long_conversation_is_no_bomb() -> None:
    contents = ["word " * 20000, "ok"] * 3
    source = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    assert len(render(source, *contents, "so?")) > 300000


# --- injection ----------------------------------------------------------------------------------------------

_LOOP = "{% for m in messages %}{% set c = m.content %}"
TEMPLATES = {
    "chatml": _LOOP + "<|im_start|>{{ m.role }}\n{{ c }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n",
    "trims": _LOOP + "<|im_start|>{{ c | trim }}<|im_end|>{% endfor %}",
    "concatenates": "{{ bos_token }}" + _LOOP + "{{ c }}{% endfor %}",
    "trims and concatenates": "{{ bos_token }}" + _LOOP + "{{ c.strip() }}{% endfor %}{{ eos_token }}",
    "joins": "{{ bos_token }}{{ messages | map(attribute='content') | map('trim') | join('') }}",
    "slices": "{{ bos_token }}" + _LOOP + "{{ c[2:] }}{{ c[:-2] }}{% endfor %}",
    "splits": "{{ bos_token }}" + _LOOP + "{{ c.split('</think>')[-1].lstrip() }}{% endfor %}",
    "takes away": "{{ bos_token }}" + _LOOP + "{{ c | replace('x', '') | replace('\n', '') }}{% endfor %}",
    "changes case": "{{ bos_token }}" + _LOOP + "{{ c | lower }}<|im_end|>{{ c | upper }}{% endfor %}",
    "one letter at a time": "{{ bos_token }}" + _LOOP + "{% for x in c if x != ' ' %}{{ x }}{% endfor %}{% endfor %}",
    "begins a token itself": "{{ bos_token }}" + _LOOP + "<{{ c }}[{{ c | trim }}{% endfor %}",
    "the first message apart": (
        "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}{% set messages = messages[1:] %}"
        "{% endif %}{% for m in messages %}[INST] {{ s ~ m.content }}{{ eos_token }}{% endfor %}"
    ),
}


def _count(template: Jinja, contents: Sequence[str]) -> int:
    system, *rest = contents
    ids = template.render(conversation_of(*rest, system=system), FakeTokenizer()).ids
    return sum(token_id >= 256 for token_id in ids)


def _attacks() -> dict[str, list[str]]:
    """System, question, answer, question. Each holds every control token, so that a few renderings try them all."""
    markers = list(CONTROL_TOKENS)
    attacks = {
        "whole": [" ".join(markers), "".join(markers), "\n".join(markers), "</s>"],
        "in themselves": ["".join(marker[:1] + marker + marker[1:] for marker in markers)] * 4,
        "in capitals": ["".join(markers).swapcase()] * 4,
        "with holes": ["".join(marker[:2] + hole + marker[2:] for marker in markers for hole in "x\n ")] * 4,
        "after a split": [f"a</think>{marker}</think> {marker}" for marker in markers[:4]],
    }
    for blank in ("", " ", "\n"):
        for marker in ("<s>", "<|im_end|>", "[INST]", "<|a b|>"):
            half = len(marker) // 2
            for place in {1, half, len(marker) - 1}:
                pieces = [marker[:place] + blank, blank + marker[place:] + "a" + marker[:place] + blank]
                attacks[f"{marker} at {place} over {blank!r}"] = [*pieces, pieces[1], blank + marker[place:]]
    attacks["one letter a message"] = ["<", "s", ">", "x"]
    return attacks


ATTACKS = _attacks()
_HARMLESS = ["harmless", "harmless", "harmless", "harmless"]


@pytest.mark.usefixtures("render_here")
@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
def test_messages_are_never_control_tokens(source: str) -> None:
    template = Jinja(source)
    expected = _count(template, _HARMLESS)
    assert expected > 0 or "begins" in source
    for name, contents in ATTACKS.items():
        assert _count(template, contents) == expected, name


@pytest.mark.usefixtures("render_here")
@settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_mixture_is_ever_a_control_token(data: st.DataObject) -> None:
    template = Jinja(data.draw(st.sampled_from(list(TEMPLATES.values()))))
    markers = list(CONTROL_TOKENS)
    places = st.integers(0, 10)
    part = st.builds(lambda m, a, b: m[min(a, b) : max(a, b)], st.sampled_from(markers), places, places)
    text = st.lists(part | st.sampled_from([*markers, " ", "\n", "x", "</think>", "é"]), max_size=6).map("".join)
    contents = data.draw(st.tuples(text, text, text, text))
    assert _count(template, contents) == _count(template, _HARMLESS)


@pytest.mark.usefixtures("render_here")
@pytest.mark.parametrize("name", ["chatml", "trims", "concatenates", "the first message apart"])
@settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    contents=st.lists(
        st.text(max_size=12).filter(lambda text: "<" not in text and "[" not in text), min_size=3, max_size=3
    )
)
def test_clean_text_is_rendered_as_it_is(name: str, contents: list[str]) -> None:
    conversation = conversation_of(*contents, system="S")
    prompt = Jinja(TEMPLATES[name]).render(conversation, FakeTokenizer())
    assert prompt.text == render_as_transformers(TEMPLATES[name], conversation.all_messages())


@pytest.mark.usefixtures("render_here")
@pytest.mark.parametrize("contents", ATTACKS.values(), ids=list(ATTACKS))
def test_nothing_of_an_attack_is_lost(contents: list[str]) -> None:
    """It is text, so the model sees it as it was written."""
    system, *rest = contents
    conversation = conversation_of(*rest, system=system)
    prompt = Jinja(TEMPLATES["chatml"]).render(conversation, FakeTokenizer())
    assert prompt.text == render_as_transformers(TEMPLATES["chatml"], conversation.all_messages())


@pytest.mark.usefixtures("render_here")
def test_control_tokens_that_begin_with_a_letter() -> None:
    """In either case; the capital of one of them is two letters."""
    tokenizer = FakeTokenizer({"<s>": 256, "</s>": 257, "ßx": 258, "end": 259})
    for change in ("upper", "lower", "trim"):
        template = Jinja("{{ bos_token }}{% for m in messages %}{{ m.content | " + change + " }}{% endfor %}")
        ids = template.render(conversation_of("END ßx end SSX ssx", "<S>", "en", system="d"), tokenizer).ids
        assert [token_id for token_id in ids if token_id >= 256] == [256], change


def test_brackets_that_a_template_looks_for_are_there() -> None:
    """Only what is a control token is hidden from the template's tests."""
    source = "{% for m in messages %}<|im_start|>{{ m.content.split('</think>')[-1] | trim }}<|im_end|>{% endfor %}"
    assert render(source, "a < b", "<think>no</think> yes", "> quoted [x]") == (
        "<|im_start|>a < b<|im_end|><|im_start|>yes<|im_end|><|im_start|>> quoted [x]<|im_end|>"
    )


@pytest.fixture
def render_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Render in this process: hundreds of processes would take a minute. The tests above show that they agree."""
    render_apart: Callable[[str, Sequence[dict[str, Any]], datetime], list[str]] = sandbox._render
    monkeypatch.setattr(sandbox, "render", render_apart)
