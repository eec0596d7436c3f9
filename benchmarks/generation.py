"""How much of llama.cpp's bare decoding speed is left in a chat.

Both sides in one run, in turn, on the same file: `bare` calls llama_decode in a loop and samples nothing, which is
what llama-bench's tg does; `chat` is a whole turn of a Session, with template, sampling, detokenizing and the event
stream, as its statistics report it.

    python benchmarks/generation.py [MODEL.gguf] [--tokens 128] [--repetitions 7] [--threads 2]
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from pathlib import Path

import llama_cpp

from llamachat.chat.events import Answer
from llamachat.chat.session import Session
from llamachat.chat.templates import ChatML
from llamachat.engine.base import EngineOptions
from llamachat.engine.llamacpp import LlamaEngine
from llamachat.engine.sampling import SamplingParams
from llamachat.models.resolve import resolve

_QUESTION = "Write a long story about a fisherman and the sea."
_SAMPLINGS = {
    "defaults": SamplingParams(),
    "SmolLM2's": SamplingParams(temperature=0.2, top_p=0.9),
    "Llama-2-Chat's": SamplingParams(temperature=0.6, top_p=0.9, top_k=0, min_p=0.0),
    "greedy": SamplingParams(temperature=0.0),
}


@llama_cpp.llama_log_callback
def _silence(_level: int, _text: bytes, _data: object) -> None:
    pass


def bare_tps(path: Path, n_tokens: int, n_threads: int) -> float:
    """Tokens per second of llama_decode alone, from an empty context of the chat's size."""
    model = llama_cpp.llama_model_load_from_file(bytes(path), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch, params.no_perf = 8192, n_threads, n_threads, True
    context = llama_cpp.llama_init_from_model(model, params)
    token = (llama_cpp.llama_token * 1)(1000)
    for _ in range(16):
        llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(token, 1))
    started = time.perf_counter()
    for i in range(n_tokens):
        token[0] = 1000 + i
        llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(token, 1))
    elapsed = time.perf_counter() - started
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return n_tokens / elapsed


def chat_tps(path: Path, n_tokens: int, n_threads: int, sampling: SamplingParams) -> float:
    """Generated tokens per second of one chat turn that is `n_tokens` long."""
    engine = LlamaEngine(path, EngineOptions(n_ctx=8192, n_threads=n_threads))
    session = Session(engine, ChatML(), sampling, max_tokens=n_tokens)
    try:
        while True:
            for event in session.send(_QUESTION, threading.Event()):
                if isinstance(event, Answer) and event.stats.n_generated == n_tokens:
                    return event.stats.generation_tps
            session.start_over(None)  # the model stopped early: draw again
    finally:
        engine.close()


def main() -> None:
    """Print one row per sampling: median speeds and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="default: the embedded demo model")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    path = resolve(arguments.model).path
    llama_cpp.llama_log_set(_silence, None)
    print(f"{path.name}, {arguments.tokens} tokens, {arguments.threads} threads, {arguments.repetitions} repetitions")
    for name, sampling in _SAMPLINGS.items():
        pairs = [
            (
                bare_tps(path, arguments.tokens, arguments.threads),
                chat_tps(path, arguments.tokens, arguments.threads, sampling),
            )
            for _ in range(arguments.repetitions)
        ]
        bare, chat = (statistics.median(side) for side in zip(*pairs, strict=True))
        print(f"{name:<15} bare {bare:7.1f} tok/s   chat {chat:7.1f} tok/s   ratio {chat / bare:.3f}")


if __name__ == "__main__":
    main()
