"""llama.cpp as an engine, through its low-level C calls. The only room that imports llama_cpp.

The library's own `Llama` class is not used: its prompts, its sampling and its bookkeeping cost time and decide
things that are decided here. The ids in the KV cache are kept as a list beside it, so that a new prompt only
evaluates what differs from the last one.
"""

from __future__ import annotations

from llamachat.engine.llamacpp.engine import LlamaEngine
from llamachat.engine.llamacpp.library import build_description, supports_gpu
from llamachat.engine.llamacpp.tokenizer import LlamaTokenizer, open_tokenizer

__all__ = ["LlamaEngine", "LlamaTokenizer", "build_description", "open_tokenizer", "supports_gpu"]
