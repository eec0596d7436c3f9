"""A program of its own: split a text by pre-tokenizers that nobody has looked at.

A regular expression from a stranger can take for ever, or all memory, or end the process; so it runs in this one,
under limits. Standard input is `{"path": sys.path of the parent, "text": …, "definitions": […]}`, standard output
the pieces of the text for each definition. It ends with another status than 0 if one cannot be read or run.
"""

from __future__ import annotations

import json
import resource
import sys

MAX_SECONDS = 3
"""Of processor time; an honest definition takes a few hundredths."""
MAX_BYTES = 2 << 30
_MAX_GROWTH = 4


def main() -> None:
    """Read the request, answer it."""
    request = json.load(sys.stdin)
    sys.path[:] = request["path"]
    from tokenizers import Tokenizer

    for limit, most in ((resource.RLIMIT_CPU, MAX_SECONDS), (resource.RLIMIT_AS, MAX_BYTES), (resource.RLIMIT_CORE, 0)):
        _limit(limit, most)
    text, answer = request["text"], []
    for definition in request["definitions"]:
        tokenizer = Tokenizer.from_str(
            json.dumps({"pre_tokenizer": definition, "model": {"type": "BPE", "vocab": {}, "merges": []}})
        )
        pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
        if sum(map(len, pieces)) > _MAX_GROWTH * len(text.encode()):
            raise ValueError("the pieces are longer than the text")
        answer.append(pieces)
    json.dump(answer, sys.stdout)


def _limit(limit: int, most: int) -> None:
    _, hard = resource.getrlimit(limit)
    if hard == resource.RLIM_INFINITY or hard > most:
        resource.setrlimit(limit, (most, most))


if __name__ == "__main__":
    main()
