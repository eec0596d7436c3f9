"""Tokens per second: prompt processing (pp) and generation (tg), always apart.

The tests are llama-bench's: `pp512` evaluates 512 tokens in an empty context, `tg128` generates 128 tokens from
(almost) nothing. One difference is deliberate: tg goes through the sampler as a chat does, so the figure is what
a user gets, not what the matrices alone could do.
"""

from __future__ import annotations

import random
import statistics
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llamachat.engine.base import End, Engine, GenerationRequest, GenerationStats
from llamachat.engine.sampling import SamplingParams

_GREEDY = SamplingParams(temperature=0.0)
_SEED = 20231218
_LOWEST_ORDINARY_ID = 300  # below are control and byte tokens in the usual vocabularies

Progress = Callable[[str, int, int], None]
"""Called with (test, repetitions done, repetitions in all)."""


@dataclass(frozen=True)
class SpeedTest:
    """Evaluate `n_prompt` tokens, or generate `n_gen`; one of the two is 0."""

    n_prompt: int
    n_gen: int

    @property
    def name(self) -> str:
        """As llama-bench writes it."""
        return f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"


@dataclass(frozen=True)
class SpeedResult:
    """Samples of one test in tokens per second, in the order they were taken."""

    test: SpeedTest
    samples_tps: tuple[float, ...]

    @property
    def mean_tps(self) -> float:
        """Arithmetic mean."""
        return statistics.fmean(self.samples_tps)

    @property
    def stddev_tps(self) -> float:
        """Sample standard deviation; 0 for a single sample."""
        return statistics.stdev(self.samples_tps) if len(self.samples_tps) > 1 else 0.0


def measure_speed(
    engine: Engine, tests: Sequence[SpeedTest], n_repetitions: int, progress: Progress
) -> list[SpeedResult]:
    """Run each test once to warm up and then `n_repetitions` times."""
    results = []
    for test in tests:
        _run(engine, test, seed=0)
        samples = []
        for i in range(n_repetitions):
            samples.append(_run(engine, test, seed=_SEED + i))
            progress(test.name, i + 1, n_repetitions)
        results.append(SpeedResult(test, tuple(samples)))
    return results


def _run(engine: Engine, test: SpeedTest, seed: int) -> float:
    """One sample. Every run has its own random prompt, so that nothing is left of it in the KV cache."""
    if test.n_prompt:
        stats = _generate(engine, _random_ids(engine, test.n_prompt, seed), n_gen=1)
        return stats.prompt_tps or 0.0
    stats = _generate(engine, _random_ids(engine, 1, seed), n_gen=test.n_gen + 1)  # the first comes with the prefill
    return stats.generation_tps or 0.0


def _generate(engine: Engine, prompt_ids: Sequence[int], n_gen: int) -> GenerationStats:
    request = GenerationRequest(prompt_ids, _GREEDY, max_tokens=n_gen, ignore_eog=True)
    for event in engine.generate(request, threading.Event()):
        if isinstance(event, End):
            return event.stats
    raise AssertionError("an engine ends every generation with End")


def _random_ids(engine: Engine, n_ids: int, seed: int) -> list[int]:
    generator = random.Random(seed)
    highest = engine.tokenizer.n_vocab - 1
    return [generator.randint(min(_LOWEST_ORDINARY_ID, highest), highest) for _ in range(n_ids)]
