"""Sampling parameters, and the order in which they act.

The chain is llama.cpp's: penalties → top-k → typical → top-p → min-p → temperature → dist. Temperature 0 is greedy.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

_PENALTY_WINDOW = 64
_N_SEEDS = 2**32 - 1
_MIN_KEEP = 1


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. A step with its neutral value is left out of the chain."""

    temperature: float = 0.8
    top_k: int = 40
    """0: all tokens."""
    typical_p: float = 1.0
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    """Over the last 64 tokens; 1 is none."""
    seed: int | None = None
    """None: a new one for every generation."""
    left_open: frozenset[str] = frozenset()
    """Names that nobody chose a value for. A server takes its own for these; an engine here, what they are."""

    def override(self, values: Mapping[str, float | int | None]) -> SamplingParams:
        """A copy with every value that is not None."""
        changed = {name: value for name, value in values.items() if value is not None}
        still_open = self.left_open - changed.keys()
        return replace(self, **changed, left_open=still_open) if changed else self  # type: ignore[arg-type]

    def with_seed(self) -> SamplingParams:
        """With a seed of its own, by which the answer can be had again; unless a server is to choose one."""
        if self.seed is not None or "seed" in self.left_open:
            return self
        return replace(self, seed=secrets.randbelow(_N_SEEDS))

    def chosen(self) -> dict[str, float | int | None]:
        """The values that were chosen, by name."""
        values = asdict(self)
        return {name: values[name] for name in SAMPLING_NAMES if name not in self.left_open}


SAMPLING_NAMES = tuple(field.name for field in fields(SamplingParams) if field.name != "left_open")
NOTHING_CHOSEN = SamplingParams(left_open=frozenset(SAMPLING_NAMES))


@dataclass(frozen=True)
class SamplerStep:
    """One link of the chain: the name of llama.cpp's sampler and its arguments."""

    name: str
    arguments: tuple[float | int, ...] = ()


def sampler_chain(params: SamplingParams, seed: int) -> list[SamplerStep]:
    """The steps that `params` ask for, in order."""
    steps = []
    if params.repeat_penalty != 1.0:
        steps.append(SamplerStep("penalties", (_PENALTY_WINDOW, params.repeat_penalty, 0.0, 0.0)))
    if params.temperature <= 0:
        return [*steps, SamplerStep("greedy")]
    if params.top_k > 0:
        steps.append(SamplerStep("top_k", (params.top_k,)))
    if params.typical_p < 1.0:
        steps.append(SamplerStep("typical", (params.typical_p, _MIN_KEEP)))
    if params.top_p < 1.0:
        steps.append(SamplerStep("top_p", (params.top_p, _MIN_KEEP)))
    if params.min_p > 0.0:
        steps.append(SamplerStep("min_p", (params.min_p, _MIN_KEEP)))
    return [*steps, SamplerStep("temp", (params.temperature,)), SamplerStep("dist", (seed,))]


def recommended(metadata: Mapping[str, str]) -> dict[str, float | int]:
    """The sampling parameters a GGUF header recommends (`general.sampling.*`), as far as they make sense."""
    values: dict[str, float | int] = {}
    for key, (name, kind, lowest, highest) in _METADATA_KEYS.items():
        try:
            value = kind(float(metadata[key]))
        except (KeyError, ValueError, OverflowError):
            continue  # advice that cannot be read is no advice
        if lowest <= value <= highest:  # not so for NaN
            values[name] = value
    return values


_METADATA_KEYS: dict[str, tuple[str, type[float] | type[int], float, float]] = {
    "general.sampling.temp": ("temperature", float, 0.0, 100.0),
    "general.sampling.top_k": ("top_k", int, 0, 2**31 - 1),
    "general.sampling.top_p": ("top_p", float, 0.0, 1.0),
    "general.sampling.min_p": ("min_p", float, 0.0, 1.0),
    "general.sampling.penalty_repeat": ("repeat_penalty", float, 0.1, 100.0),
}
"""Key → parameter, its type, and the lowest and highest value that makes sense."""
