"""Find the pre-tokenizer of llama.cpp that does what a tokenizer.json says, by trying both on a text.

The pieces that a pre-tokenizer makes of a text decide its token ids, whatever the merges are. Only one thing can make
up for a difference: where no token of the vocabulary reaches across a border, it is the same whether it is there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise, product
from pathlib import Path
from typing import Any

from quantize.errors import UnsupportedTokenizer, shown
from quantize.vocab.alphabet import BYTES, LETTERS
from quantize.vocab.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer, read_regexes

_SAMPLES = """\
Hello, world! They're sure it's fine; we'll see, I'd say we've won, I'm told. THEY'RE SURE IT'S FINE, WE'LL SEE.
It’s what they’ve said: don’t. 'tis ''ll 'S'T can't've o'clock rock'n'roll
def main(argv):\n    if argv[0] == "--help":\n\t\treturn x**2  # squared\n\n\n\treturn {'a': [1, 2.5e-10]}\r\n\r\n
for (int i = 0; i < n_max; ++i) { total += weights[i] * snake_case_name->member; } // camelCaseName HTTPServer2Go
<div class="a">&nbsp;</div> <|im_start|> https://example.org/a/b?c=d&e=f#g someone@example.org C:\\path\\file.txt
1 12 123 1234 12345 123456 1234567 3.14159 1,000,000 1_000 2024-01-31 x86_64 v1.2.3-rc4 0xBEEF 5% $5 №5 ²³ Ⅷ ½ ٣٤٥ १२३
我喜欢吃苹果。今天是2024年1月31日，天气很好！「你好」、《书》……漢字かなカタカナー、日本語です。全角ＡＢＣ１２３！
한국어 문장입니다. مرحبا بالعالم، كيف حالك؟ שָׁלוֹם Привет, мир! Ёлка नमस्ते दुनिया। ภาษาไทย Ελληνικά Việt Nam
naïve café ÉCOLE École Straße ßA Æsop ŒUVRE o\u0301 e\u0301\u0323X ǅ ʰa aʰ \u1e69 İstanbul'da
🙂 👨\u200d👩\u200d👧 👍🏽 🇩🇪🇯🇵 ❤\ufe0f\u200d🔥 a🙂b 1🙂2 .🙂. ™ ©2024 €5 ≤ ∑ → ± ` ^ ~ | + = < >
!? !!! ... ?! --- ___ _a a_ *** #tag @name (a) [b] {c} "d" «e» /f/ \\g :) ;-) a/b a-b a.b a,b .\n ,\n !\n\n /\n ./\n!/
it'store my'llama's you'dare x'more we're've a'tears A'VENUS B'LLAMA b'ſ's's 'store 'llama 'VENUS
x                   y\t\t\t\t\t\t\t\t\tz\n\n\n\n\n\n                    \t\t\t\t\t\t\t\t\t\t\t\tw
a  b   c    d\u00a0e\u2003f\u3000g\u2028h\u0085i\tj \tk\t l \nm\n n \r\no\r\r\np \n \n\n  \n q   \r\n  r\u200bs\ufefft
"""
_KINDS = "aZéÉʰ中\u03011 \u3000\n\r\t'./🙂"
"""A character of each kind that pre-tokenizers tell apart."""
_MORE_KINDS = _KINDS + "あ한م٣²’_$\u200d"
_PAIRS = (*product("0123456789", repeat=2), *product(_MORE_KINDS, repeat=2))

PROBE = "".join([_SAMPLES, *(f"{a}{b} " for a, b in _PAIRS), *map("".join, product(_KINDS, repeat=3))])
"""Texts as people write them, all pairs of digits and of kinds of characters, and all sequences of three kinds."""

_WORKER = Path(__file__).with_name("split_worker.py")
_MAX_DEFINITION = 50_000
_MAX_SECONDS = 60
"""On the clock; the worker also limits its processor time."""
_OVERRIDE = "If you know which of llama.cpp's pre-tokenizers is meant, or near enough, name it: --pre-tokenizer NAME."


def find_pre_tokenizer(definition: Any, ignores_merges: bool, tokens: Iterable[str]) -> str:
    """Return llama.cpp's name for the pre-tokenizer with this `definition` in tokenizer.json.

    `ignores_merges` says whether a word that is a token becomes it without merging; `tokens` are those of the
    vocabulary. Raises `UnsupportedTokenizer` if llama.cpp has none that gives the same ids.
    """
    if not isinstance(definition, dict):
        raise UnsupportedTokenizer("it has no pre-tokenizer", _OVERRIDE)
    regexes = read_regexes(definition)
    same = [known for known in PRE_TOKENIZERS if known.regexes == regexes]
    candidates = [known for known in PRE_TOKENIZERS if known.ignores_merges == ignores_merges]
    for known in same:
        if known in candidates:
            return known.name  # by definition the same, so there is nothing to try
    if same:
        problem = f"ignore_merges is {ignores_merges}, other than in llama.cpp's pre-tokenizer {same[0].name}"
        raise UnsupportedTokenizer(problem, _OVERRIDE)
    ours, *theirs = _split(PROBE, [definition, *(known.definition for known in candidates)])
    fixed = set() if ignores_merges else _uncrossed(PROBE, tokens)
    differences = [(_borders(ours) ^ _borders(pieces)) - fixed for pieces in theirs]
    n, nearest = min((len(positions), i) for i, positions in enumerate(differences))
    if n:
        raise _unlike(candidates[nearest], ours, theirs[nearest], min(differences[nearest]))
    return candidates[nearest].name


def _split(text: str, definitions: Sequence[Any]) -> list[list[bytes]]:
    """The pieces that each definition makes of `text`, by the `tokenizers` library under limits."""
    try:
        request = json.dumps({"path": [*map(str, sys.path)], "text": text, "definitions": definitions})
        if len(json.dumps(definitions[0])) > _MAX_DEFINITION:
            raise ValueError("too long")
        done = subprocess.run(
            [sys.executable, _WORKER], input=request.encode(), capture_output=True, check=True, timeout=_MAX_SECONDS
        )
        answer = json.loads(done.stdout)
        pieces = [[bytes(BYTES[c] for c in piece) for piece in pieces] for pieces in answer]
    except KeyError:
        raise UnsupportedTokenizer("it is not byte-level BPE", _OVERRIDE) from None
    except (subprocess.SubprocessError, OSError, ValueError, RecursionError):
        problem = "its pre-tokenizer cannot be read, or takes too long for a short text"
        raise UnsupportedTokenizer(problem, _OVERRIDE) from None
    if b"".join(pieces[0]) != text.encode():
        raise UnsupportedTokenizer("its pre-tokenizer changes the text", _OVERRIDE)
    return pieces


def _borders(pieces: list[bytes]) -> set[int]:
    """Where pieces end, in bytes from the start."""
    return set(accumulate(map(len, pieces)))


def _uncrossed(text: str, tokens: Iterable[str]) -> set[int]:
    """Positions in `text`, in bytes, that no token can reach across, because none has these two bytes side by side."""
    joined = {pair for token in tokens for pair in pairwise(token)}
    spelled = [LETTERS[byte] for byte in text.encode()]
    return {i for i, pair in enumerate(pairwise(spelled), start=1) if pair not in joined}


def _unlike(nearest: PreTokenizer, ours: list[bytes], theirs: list[bytes], position: int) -> UnsupportedTokenizer:
    """Name the pieces that start together and end apart, of which the shorter ends at `position`."""
    start = max(border for border in _borders(ours) & _borders(theirs) | {0} if border < position)
    pieces = [PROBE.encode()[start:end].decode(errors="replace") for end in (_end(ours, start), _end(theirs, start))]
    problem = (
        f"no pre-tokenizer of llama.cpp splits text as its own does; {nearest.name}, the nearest, "
        f"makes {_quoted(pieces[1])} a piece of the probe text where its own makes {_quoted(pieces[0])}"
    )
    return UnsupportedTokenizer(problem, _OVERRIDE)


def _end(pieces: list[bytes], start: int) -> int:
    return min(border for border in _borders(pieces) if border > start)


def _quoted(text: str) -> str:
    return shown(f'"{text}"')
