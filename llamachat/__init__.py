"""Local chat with Llama-family models: pull, convert, quantize, talk, measure."""

__version__ = "0.1.0"
