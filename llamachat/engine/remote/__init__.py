"""Servers that speak OpenAI's chat completions, as engines. The only room that talks HTTP to them.

llama-server, vLLM, Ollama, LM Studio, gateways and OpenAI itself agree on `POST /chat/completions` and its stream of
server-sent events, and differ in all else; `dialects` is the table of that. Nothing a server sends is trusted.
"""

from __future__ import annotations

from llamachat.engine.remote.address import parse_address
from llamachat.engine.remote.engine import ServedEngine
from llamachat.engine.remote.server import Server, connect
from llamachat.engine.remote.words import plain

__all__ = ["ServedEngine", "Server", "connect", "parse_address", "plain"]
