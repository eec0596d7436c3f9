"""Functions that a model may call: what it is told of them, how it calls them, and what became of the calls."""
