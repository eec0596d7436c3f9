"""JSON Schema → grammar: what is written parses and validates, whoever writes it, and what is not held is said."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from llamachat.chat.json_schema import schema_to_grammar
from llamachat.chat.json_schema.pattern import PatternError, pattern_to_gbnf
from llamachat.chat.json_schema.text import integers_between, numbers_between
from llamachat.chat.message import Conversation
from llamachat.chat.templates import ChatML
from llamachat.engine.base import End, EngineOptions, GenerationRequest, Token
from llamachat.engine.llamacpp import LlamaEngine
from llamachat.engine.sampling import SamplingParams
from llamachat.errors import BadSchema

PROPERTY = settings(max_examples=200, deadline=None, database=None)
FLAG = {"type": "boolean"}
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
WORD = {"type": "string", "maxLength": 6}


def object_of(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required or []}


PERSON = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Person",
    "$defs": {
        "Address": {
            **object_of(["zip"], street=WORD, zip={"type": "string", "pattern": r"^\d{5}(-\d{4})?$"}),
            "additionalProperties": False,
        }
    },
    **object_of(
        ["name", "tags"],
        name={"type": "string", "minLength": 1, "maxLength": 8, "description": "as it is called"},
        age={"type": "integer", "minimum": 0, "maximum": 130},
        score={"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        home={"$ref": "#/$defs/Address", "description": "where"},
        tags={"type": "array", "items": {"enum": ["a", 'ç"\\', "上海\n"]}, "minItems": 1, "maxItems": 3},
    ),
}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": object_of(["v"], v=DIGIT, kids={"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1})
    },
}
SHAPES = {
    "either": {
        "oneOf": [
            object_of(["kind", "radius"], kind={"const": "circle"}, radius=DIGIT),
            object_of(["kind"], kind={"enum": ["dot", "line"]}, bold=FLAG),
        ]
    },
    "all": {
        "allOf": [
            object_of(["a"], a=FLAG),
            {"properties": {"b": {"type": "null"}, "a": {"const": True}}, "required": ["b"]},
        ]
    },
    "one or the other": {**object_of(a=FLAG, b=FLAG), "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
    "reference and more": {"$defs": {"n": {"type": "integer", "minimum": -20}}, "$ref": "#/$defs/n", "maximum": 3},
    "types": {"type": ["string", "null", "integer"], "maxLength": 5, "minimum": 7, "maximum": 12},
    "tuple": {"type": "array", "prefixItems": [DIGIT, FLAG], "items": {"type": "null"}, "minItems": 1, "maxItems": 5},
    "list": {"type": "array", "items": FLAG, "minItems": 3, "maxItems": 5},
    "empty list": {"type": "array", "items": False},
    "others": {
        **object_of(ab={"type": "null"}, abc=FLAG, x=WORD),
        "additionalProperties": {"type": "integer", "minimum": 10, "maximum": 19},
    },
    "constants": {"enum": [1, 1.5, "a", None, True, {"x": [1, 2]}, "\u0007\n", "é"]},
    "impossible, but optional": object_of(["b"], a=False, b=FLAG),
    "chinese": object_of(
        ["城市", "名"], 城市={"enum": ["北京", "上海"]}, 名={"type": "string", "pattern": "^[一-龥]{2,6}$"}
    ),
}  # fmt: skip
FORMATS = {
    name: {"type": "string", "format": name}
    for name in ("date", "time", "date-time", "duration", "uuid", "ipv4", "ipv6", "hostname", "email", "uri")
}


def write(engine: LlamaEngine, grammar: str, ids: Any, sampling: SamplingParams, max_tokens: int) -> str | None:
    """The whole answer, or None for one that was cut off."""
    written = b""
    for event in engine.generate(GenerationRequest(ids, sampling, max_tokens, grammar=grammar), threading.Event()):
        if isinstance(event, Token):
            written += event.piece
        elif isinstance(event, End) and event.finish_reason == "stop":
            return written.decode()
    return None


@pytest.mark.parametrize("name", ["person", "tree", *SHAPES, *FORMATS])
def test_whatever_a_random_model_writes_is_valid(random_engine: LlamaEngine, name: str) -> None:
    schema = {"person": PERSON, "tree": TREE, **SHAPES, **FORMATS}[name]
    grammar = schema_to_grammar(schema, name)
    assert grammar.notes == ()
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    found = set()
    for seed in range(12):
        sampling = SamplingParams(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=seed)
        text = write(random_engine, grammar.text, [1], sampling, 500)
        if text is not None:
            validator.validate(json.loads(text))
            found.add(text)
    assert len(found) >= (1 if name == "empty list" else 3)


def test_a_real_model_fills_in_what_is_asked(demo_model: Path) -> None:
    schema = object_of(
        ["country", "capital"], country={"enum": ["France", "Italy"]}, capital={"type": "string", "maxLength": 20}
    )
    grammar = schema_to_grammar(schema, "capitals").text
    engine = LlamaEngine(demo_model, EngineOptions(n_ctx=512, n_threads=1))
    question = Conversation().with_message("user", "What is the capital of France? Answer as JSON.")
    ids = ChatML().render(question, engine.tokenizer).ids
    greedy = write(engine, grammar, ids, SamplingParams(temperature=0.0), 100)
    assert greedy is not None
    assert json.loads(greedy) == {"country": "France", "capital": "Paris"}
    wild = write(engine, schema_to_grammar(PERSON, "p").text, ids, SamplingParams(temperature=1.5, seed=3), 300)
    engine.close()
    assert wild is not None
    Draft202012Validator(PERSON).validate(json.loads(wild))


# --- numbers ------------------------------------------------------------------------------------------------


def as_regex(expression: str | None) -> re.Pattern[str]:
    """GBNF without rules and characters that mean something else in Python."""
    return re.compile(
        "(?!)" if expression is None else expression.replace('"."', r"\.").replace('"-"', "-").replace(" ", "")
    )


bounds = st.none() | st.integers(-3000, 3000)


@PROPERTY
@given(bounds, bounds, st.lists(st.integers(-4000, 4000), max_size=30))
def test_whole_numbers_between_bounds(low: int | None, high: int | None, values: list[int]) -> None:
    written = as_regex(integers_between(low, high))
    near = [bound + d for bound in (low, high) if bound is not None for d in (-1, 0, 1)]
    for value in [*values, *near]:
        is_within = (low is None or low <= value) and (high is None or value <= high)
        assert bool(written.fullmatch(str(value))) == is_within, value
    assert not written.fullmatch("007")
    assert not written.fullmatch("-0")


decimals = st.decimals(-50, 50, places=0) | st.decimals(-50, 50, places=1) | st.decimals(-2, 2, places=3)


@PROPERTY
@given(
    st.none() | decimals,
    st.none() | decimals,
    st.booleans(),
    st.booleans(),
    st.lists(st.decimals(-60, 60, places=4), max_size=20),
)
def test_numbers_between_bounds(
    low: Decimal | None, high: Decimal | None, low_open: bool, high_open: bool, values: list[Decimal]
) -> None:
    written = as_regex(numbers_between(low, high, low_open=low_open, high_open=high_open))
    near = [bound + d * Decimal("0.0001") for bound in (low, high) if bound is not None for d in (-1, 0, 1)]
    for value in [*values, *near]:
        is_above = low is None or (low < value if low_open else low <= value)
        is_below = high is None or (value < high if high_open else value <= high)
        text = f"{value + 0:f}"
        if value:
            assert bool(written.fullmatch(text)) <= (is_above and is_below), text
            short = f"{value.normalize():f}"  # as short as it can be: always there if the value is
            assert bool(written.fullmatch(short)) == (is_above and is_below), short


# --- patterns -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern",
    [r"^[A-Z]{2,3}-\d+$", r"^(foo|ba[rz])?x\.$", r'^[^a-z"]{2,4}\\$', r"^\w+@\w+\.(com|org)$", "b+$", "^a|b$",
     r"^\u4f60[好们]$", r"^[\]a]?[-+]?$", r"^\S\s\S$", "^(?:ab)*?c$", r"^\x41\t$", "^.{3}$", "", "^$"],
)  # fmt: skip
def test_patterns(random_engine: LlamaEngine, pattern: str) -> None:
    grammar = schema_to_grammar({"type": "string", "pattern": pattern}, "pattern").text
    for seed in range(6):
        sampling = SamplingParams(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=seed)
        text = write(random_engine, grammar, [1], sampling, 60)
        if text is not None:
            assert re.search(pattern, json.loads(text), re.ASCII), text


@pytest.mark.parametrize(
    "pattern",
    ["^(?=a)b$", "^(?<!a)b$", r"^(a)\1$", r"^\p{L}$", r"\bword\b", "^(a", "a)", "[a", "[z-a]", "*", "a**",
     "(^a)", "(a$)", "\\", "a{", "(" * 5000, "[]"],
)  # fmt: skip
def test_patterns_that_no_grammar_can_express(pattern: str) -> None:
    with pytest.raises(PatternError):
        pattern_to_gbnf(pattern)


# --- what is not held, and what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "notes"),
    [
        ({"type": "array", "items": FLAG, "uniqueItems": True}, ["/ uniqueItems"]),
        ({"type": "array", "items": FLAG, "uniqueItems": False, "maxItems": 10**9}, ["/ maxItems (more than 2000)"]),
        (object_of(n={"type": "integer", "multipleOf": 5}), ["/properties/n multipleOf"]),
        (object_of(n={"type": "string", "format": "iri"}), ["/properties/n format iri"]),
        (object_of(n={"type": "string", "minLenght": 5}), ["/properties/n minLenght"]),
        ({"type": "string", "not": {"const": "a"}}, ["/ not"]),
        (
            {"type": "string", "pattern": "^a+$", "maxLength": 5},
            ["/ minLength, maxLength (beside a pattern or format)"],
        ),
        ({"type": "object", "patternProperties": {"^a": FLAG}}, ["/ patternProperties"]),
        ({"oneOf": [WORD, {"type": "string"}]}, ["/ oneOf (taken as anyOf)"]),
        ({"type": "integer", "maxLength": 5, "maximum": 10**300}, []),  # says nothing about integers as long as these
    ],
)
def test_what_is_not_held_is_said(schema: Any, notes: list[str]) -> None:
    assert list(schema_to_grammar(schema, "s").notes) == notes


def nested(n: int, keyword: str = "items") -> Any:
    schema: Any = {"type": "null"}
    for _ in range(n):
        schema = {"anyOf": [schema]} if keyword == "anyOf" else {"type": "array", keyword: schema}
    return schema


REFUSED = {
    "of another type": (3, "", "no schema"),
    "nothing is valid": (False, "", "no value at all"),
    "empty enum": ({"enum": []}, "", "no value at all"),
    "bounds that cross": (object_of(["a"], a={**DIGIT, "maximum": -1}), "/properties/a", "no value"),
    "a type that is none": ({"type": "strin"}, "", "'strin' is no type"),
    "a count that is none": ({"type": "string", "minLength": -1}, "", "minLength is not a count"),
    "a bound that is none": ({"type": "number", "minimum": "1"}, "", "minimum is not a number"),
    "names that are none": ({"type": "object", "required": [3]}, "", "required is not a list of names"),
    "remote": ({"items": {"$ref": "https://example.com/x.json"}}, "/items", "nothing is fetched"),
    "another file": ({"$ref": "other.json#/a"}, "", "nothing is fetched"),
    "nothing there": ({"$ref": "#/$defs/a"}, "", "nothing at #/$defs/a"),
    "itself": ({"$ref": "#"}, "", "contain itself"),
    "each other": (
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "", "contain itself",
    ),
    "itself and more": (
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a", "minLength": 3}}}, "/$defs/a", "more than 60 deep",
    ),
    "without end": (object_of(["a"], a={"$ref": "#"}), "", "contain itself"),
    "deep": (nested(300), "/items" * 60, "more than 60 deep"),
    "deep choice": (nested(300, "anyOf"), "/anyOf/0" * 60, "more than 60 deep"),
    "too many": ({"type": "array", "minItems": 10**9}, "", "more than a grammar can count"),
    "too many ways": ({"allOf": [{"anyOf": [{"minLength": i}, DIGIT]} for i in range(60)]}, "", "too many ways"),
    "too large": ({"enum": list(range(100_000))}, "", "larger than 256 KiB"),
    "too precise": ({"type": "number", "minimum": 1e-300}, "", "too many digits"),
    "too large a number": ({"type": "integer", "minimum": 10**400}, "", "too many digits"),
    "two constants": ({"allOf": [{"const": 1}, {"const": 2}]}, "", "const is asked for twice"),
    "a pattern that looks ahead": ({"type": "string", "pattern": "^(?=a)b"}, "", "looks around"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_held_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any) -> None:
        raise AssertionError("a schema made it look something up")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    schema, place, problem = REFUSED[name]
    started = time.monotonic()
    with pytest.raises(BadSchema) as caught:
        schema_to_grammar(schema, "my.json")
    assert time.monotonic() - started < 3
    assert caught.value.place == place
    assert problem in caught.value.problem
    assert str(caught.value).startswith("my.json: ")
    assert len(str(caught.value)) < 300
