"""JSON Schema → GBNF, the grammars that llama.cpp's sampler holds an answer to."""

from __future__ import annotations

from llamachat.chat.json_schema.schema import schema_to_grammar

__all__ = ["schema_to_grammar"]
