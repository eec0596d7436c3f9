"""`llamachat bench`."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamachat.cli.format import size
from llamachat.cli.output import out

if TYPE_CHECKING:
    from llamachat.bench.speed import SpeedResult, SpeedTest
    from llamachat.engine.base import EngineInfo
    from llamachat.models.store import StoredModel


def bench(
    model: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="Models; default as in chat.")] = None,
    n_prompt: Annotated[
        int, typer.Option("--pp", min=0, max=1_000_000, help="Prompt tokens to evaluate; 0 leaves it out.")
    ] = 512,
    n_gen: Annotated[
        int, typer.Option("--tg", min=0, max=1_000_000, help="Tokens to generate; 0 leaves it out.")
    ] = 128,
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", min=1, help="Samples of each test.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, max=512, help="Threads; default: the physical cores.")] = None,
    gpu_layers: Annotated[str, typer.Option(help="Layers on the GPU: auto or a number.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print samples, mean and deviation as JSON.")] = False,
) -> None:
    r"""Measure tokens per second: prompt processing (pp) and generation (tg).

    \b
    Examples:
      llamachat bench
      llamachat bench llama-2-7b-chat:q4_k_m llama-2-7b-chat:q8_0
      llamachat bench --tg 256 -r 10 --json
    """
    from llamachat.bench.speed import SpeedTest
    from llamachat.cli.options import parse_gpu_layers
    from llamachat.engine.base import EngineOptions
    from llamachat.models.resolve import resolve

    tests = [test for test in (SpeedTest(n_prompt, 0), SpeedTest(0, n_gen)) if test.n_prompt or test.n_gen]
    if not tests:
        raise typer.BadParameter("--pp and --tg are both 0: there is nothing to measure.")
    found = [resolve(name) for name in model] if model else [resolve(None)]
    options = EngineOptions(max(n_prompt, n_gen) + 64, threads, parse_gpu_layers(gpu_layers))
    runs: list[dict[str, Any]] = []
    for stored in found:
        runs += _measure(stored, tests, options, repetitions)
    if as_json:
        out.json({"machine": _machine(), "runs": runs})
    else:
        _show(runs)


def _measure(stored: StoredModel, tests: list[SpeedTest], options: Any, repetitions: int) -> list[dict[str, Any]]:
    from llamachat.bench.speed import measure_speed
    from llamachat.cli.loading import load_engine

    engine = load_engine(stored, options)
    try:
        with out.status(f"Measuring {stored.label}") as status:

            def report(test: str, done: int, total: int) -> None:
                status(f"{stored.label}: {test}, {done} of {total}")

            results = measure_speed(engine, tests, repetitions, report)
    finally:
        engine.close()
    return [_run(stored, engine.info, result) for result in results]


def _run(stored: StoredModel, info: EngineInfo, result: SpeedResult) -> dict[str, Any]:
    return {
        "model": stored.label,
        "file_type": info.file_type,
        "size_bytes": info.size_bytes,
        "n_params": info.n_params,
        "backend": info.backend,
        "threads": info.n_threads,
        "test": result.test.name,
        "n_prompt": result.test.n_prompt,
        "n_gen": result.test.n_gen,
        "depth": 0,
        "samples_tps": [round(sample, 3) for sample in result.samples_tps],
        "mean_tps": round(result.mean_tps, 3),
        "stddev_tps": round(result.stddev_tps, 3),
        "bandwidth_fraction": None,
    }


def _machine() -> dict[str, Any]:
    from llamachat.engine import hardware
    from llamachat.engine.llamacpp import build_description

    return {
        "cpu": hardware.cpu_name(),
        "cores": hardware.default_threads(),
        "memory_bytes": hardware.total_memory_bytes(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "build": build_description(),
    }


def _show(runs: list[dict[str, Any]]) -> None:
    columns = ["MODEL", "FILE TYPE", ">SIZE", "BACKEND", ">THREADS", "TEST", ">TOKENS/S"]
    rows = [
        [
            run["model"],
            run["file_type"],
            size(run["size_bytes"]),
            run["backend"],
            str(run["threads"]),
            run["test"],
            f"{run['mean_tps']:.2f} ± {run['stddev_tps']:.2f}",
        ]
        for run in runs
    ]
    out.table(columns, rows)
