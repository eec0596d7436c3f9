"""What drafts gain or cost: tokens per second without, with lookup, and with auto, on two kinds of work.

`repeats`: most of the answer stands in the question (a text to copy, code to edit). `free`: it does not. All sides take
turns in one run, on the same prompts, seeds and sampling, each with its own engine that lives through the run, as in a
chat; an answer must be the same on all sides.

    python benchmarks/draft.py [MODEL.gguf] [--draft SMALLER.gguf] [--tokens 160] [--repetitions 3] [--threads 2]
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import llama_cpp

from llamachat.chat.message import Conversation
from llamachat.chat.templates import choose_template
from llamachat.engine.base import End, EngineOptions, GenerationRequest, GenerationStats, Token
from llamachat.engine.llamacpp import LlamaEngine
from llamachat.engine.sampling import SamplingParams
from llamachat.models.resolve import resolve

_TEXT = """The lighthouse on the cape was built in 1862, when forty ships a year were lost between the cape and the
islands. Its keeper lived there with his family for thirty-one years and wrote down the weather every evening. In the
winter of 1875 the sea took the lower stairs, and for nine days nobody could come or go. The book of that winter is
kept in the town."""
_CODE = """def total(prices, discount):
    result = 0
    for price in prices:
        if price > 100:
            result = result + price * (1 - discount)
        else:
            result = result + price
    return result

def average(prices, discount):
    if not prices:
        return 0
    return total(prices, discount) / len(prices)"""
_WORK = {
    "repeats": (
        f"{_TEXT}\n\nRepeat the text above, word for word.",
        f"```python\n{_CODE}\n```\n\nAdd a docstring to each of these functions.",
        f"Here is some code:\n```python\n{_CODE}\n```\nPrint the code again.",
    ),
    "free": (
        "Write a long story about a fisherman and the sea.",
        "Explain how bread is made, and why it rises.",
    ),
}
_SAMPLINGS = {"greedy": SamplingParams(temperature=0.0), "seeded": SamplingParams(temperature=0.7, seed=11)}


@dataclass(frozen=True)
class _Run:
    ids: tuple[int, ...]
    stats: GenerationStats


@llama_cpp.llama_log_callback
def _silence(_level: int, _text: bytes, _data: object) -> None:
    pass


def _generate(engine: LlamaEngine, prompt_ids: list[int], sampling: SamplingParams, n_tokens: int) -> _Run:
    request = GenerationRequest(prompt_ids, sampling, max_tokens=n_tokens)
    ids: list[int] = []
    for event in engine.generate(request, threading.Event()):
        if isinstance(event, Token):
            ids.append(event.token_id)
        elif isinstance(event, End):
            return _Run(tuple(ids), event.stats)
    raise AssertionError("an engine ends every generation with End")


def _prompts(engine: LlamaEngine, template: str | None, questions: tuple[str, ...]) -> list[list[int]]:
    chosen = choose_template(template, None, engine.info.metadata).template
    asked = (Conversation(None).with_message("user", question) for question in questions)
    return [list(chosen.render(conversation, engine.tokenizer).ids) for conversation in asked]


def _compare(
    engines: dict[str, LlamaEngine], prompts: list[list[int]], sampling: SamplingParams, n: int, times: int
) -> None:
    runs: dict[str, list[_Run]] = {side: [] for side in engines}
    for _ in range(times):
        for prompt in prompts:
            for side, engine in engines.items():
                runs[side].append(_generate(engine, prompt, sampling, n))
    plain = statistics.median(run.stats.generation_tps for run in runs["off"])
    for side, taken in runs.items():
        speed = statistics.median(run.stats.generation_tps for run in taken)
        drafted, accepted = (sum(getattr(run.stats, name) for run in taken) for name in ("n_drafted", "n_accepted"))
        n_equal = sum(run.ids == other.ids for run, other in zip(taken, runs["off"], strict=True))
        share = f"{accepted / drafted:6.1%} of {drafted:,}" if drafted else "-"
        print(
            f"    {side:<7}{speed:8.1f} tok/s  {speed / plain:5.2f}  accepted {share:<18} equal {n_equal}/{len(taken)}"
        )


def main() -> None:
    """Print for each kind of work and sampling: median speed, relation to `off`, acceptance, and how many are equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="default: the embedded demo model")
    parser.add_argument("--draft", help="a smaller model of the same family, to be compared, too")
    parser.add_argument("--template", help="default: the model's")
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    path = resolve(arguments.model).path
    llama_cpp.llama_log_set(_silence, None)
    sides: dict[str, Literal["off", "lookup", "auto"] | Path] = {"off": "off", "lookup": "lookup", "auto": "auto"}
    if arguments.draft:
        sides["model"] = resolve(arguments.draft).path
    options = {
        side: EngineOptions(n_ctx=2048, n_threads=arguments.threads, draft=draft) for side, draft in sides.items()
    }
    engines = {side: LlamaEngine(path, wanted) for side, wanted in options.items()}
    load = os.getloadavg()[0]
    print(f"{path.name}, {arguments.tokens} tokens, {arguments.threads} threads, load {load:.1f}, medians", flush=True)
    for work, questions in _WORK.items():
        prompts = _prompts(engines["off"], arguments.template, questions)
        for name, sampling in _SAMPLINGS.items():
            print(f"  {work}, {name}", flush=True)
            _compare(engines, prompts, sampling, arguments.tokens, arguments.repetitions)
    for engine in engines.values():
        engine.close()


if __name__ == "__main__":
    main()
