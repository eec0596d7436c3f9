"""llama.cpp's pre-tokenizers, by the names a GGUF header has for them.

A pre-tokenizer cuts text into the pieces inside of which BPE merges. llama.cpp has its own built in, as regular
expressions applied one after the other; `PRE_TOKENIZERS` defines those that models of our families use, in the way
tokenizer.json does. `tests/test_pre_tokenizers.py` holds each to llama.cpp's ids.
Source: `llm_tokenizer_bpe` and `llama_vocab::impl::load` in src/llama-vocab.cpp, `unicode_regex_split` in
src/unicode.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quantize.errors import BadPreTokenizer, shown

Json = dict[str, Any]

_GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# llama.cpp knows upper from lower case in ASCII only, and takes no marks for letters, which the models' own do.
_ASCII_CASED_WORD = (
    r"[^\r\n\p{{L}}\p{{N}}]?((?=[\p{{L}}])([^a-z]))*((?=[\p{{L}}])([^A-Z]))+{0}"
    r"|[^\r\n\p{{L}}\p{{N}}]?((?=[\p{{L}}])([^a-z]))+((?=[\p{{L}}])([^A-Z]))*{0}"
)
_CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_DEEPSEEK_LETTERS = (
    "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-"
    "\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-"
    "\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-"
    "\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-"
    "\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-"
    "\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943]+"
)
# Blanks beyond ASCII are taken out, because llama.cpp reads each of them as a vertical tab here.
_DEEPSEEK_SIGNS = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002&&[^\\s]]+"
_DEEPSEEK_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff&&[^\\s]]+"
_DEEPSEEK_3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LONG_BLANKS = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"|\s{1,2}(?!\S)|\s{1}"


@dataclass(frozen=True)
class PreTokenizer:
    """One of llama.cpp's: its regular expressions in order, and whether words that are tokens skip the merges."""

    name: str
    regexes: tuple[str, ...]
    ignores_merges: bool = False

    @property
    def definition(self) -> Json:
        """The same as the `pre_tokenizer` section of a tokenizer.json."""
        return {"type": "Sequence", "pretokenizers": [*map(_split, self.regexes), _BYTE_LEVEL]}


_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def _split(regex: str) -> Json:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def read_regexes(definition: Any) -> tuple[str, ...] | None:
    """Return the `pre_tokenizer` section of a tokenizer.json as regular expressions, if it is nothing else."""
    steps = definition.get("pretokenizers", [definition]) if isinstance(definition, dict) else None
    if not isinstance(steps, list) or [_is_byte_level(step) for step in steps] != [False] * (len(steps) - 1) + [True]:
        return None
    regexes = tuple(map(_read_regex, steps))
    return None if None in regexes else tuple(filter(None, regexes))


def _is_byte_level(step: Any) -> bool:
    return isinstance(step, dict) and step.get("type") == "ByteLevel"


def _read_regex(step: Any) -> str | None:
    """What a step splits by; "" for one that does not split, None for one that does something else."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return _GPT_2 if step.get("use_regex", True) else ""
        case {"type": "Digits", "individual_digits": True}:
            return r"\p{N}"
        case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated"} if not step.get("invert"):
            return regex
    return None


PRE_TOKENIZERS = (
    PreTokenizer("llama-bpe", (rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_REST}",), ignores_merges=True),
    PreTokenizer("smaug-bpe", (rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_REST}",)),
    PreTokenizer("qwen2", (rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_REST}",)),
    PreTokenizer("smollm", (r"\p{N}", _GPT_2)),
    PreTokenizer("gpt-2", (_GPT_2,)),
    PreTokenizer(
        "deepseek-llm",
        ("[\r\n]", _DEEPSEEK_LETTERS, _DEEPSEEK_SIGNS, r"\s+$", _DEEPSEEK_CJK, r"\p{N}+"),
    ),
    PreTokenizer("deepseek-coder", ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}")),
    PreTokenizer("deepseek-v3", (r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u30ff]+", _DEEPSEEK_3)),
    PreTokenizer(
        "tekken", (rf"{_ASCII_CASED_WORD.format('')}|\p{{N}}|{_CASED_REST}",), ignores_merges=True
    ),
    PreTokenizer("gpt-4o", (rf"{_ASCII_CASED_WORD.format(_CONTRACTION + '?')}|\p{{N}}{{1,3}}|{_CASED_REST}",)),
    PreTokenizer(
        "qwen35",
        (
            rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    ),
    PreTokenizer(
        "seed-coder", (rf"{_CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",)
    ),
    PreTokenizer("minicpm5", (r"\p{N}{1,3}", rf"{_CONTRACTION}|{_WORD}|\p{{N}}+|{_REST}"), ignores_merges=True),
    PreTokenizer("ufakzeka", (rf"{_WORD}|\p{{N}}|{_REST}",)),
    PreTokenizer(
        "jais-2",
        (rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|{_LONG_BLANKS}",),
    ),
    PreTokenizer("falcon", (r"[\p{P}\$\+<=>\^~\|`]+", _GPT_2, "[0-9][0-9][0-9]")),
    PreTokenizer("poro-chat", (_BLOOM,)),
    PreTokenizer("viking", (_BLOOM, r"\p{N}")),
)  # fmt: skip
"""Those that can be recognized; where several would do, the first is taken."""

NAMES = (
    *(known.name for known in PRE_TOKENIZERS),
    "a.x-4.0", "afmoe", "bailingmoe", "bailingmoe2", "bloom", "chameleon", "chatglm-bpe", "codeshell",
    "cohere2moe", "command-r", "dbrx", "deepseek-r1-qwen", "default", "exaone", "exaone4", "exaone-moe",
    "f2llmv2", "falcon3", "falcon-h1", "gigachat", "glm4", "glm5", "gpt3-finnish", "granite-docling",
    "granite-embed-multi-97m", "grok-2", "hunyuan", "hunyuan-dense", "hy_v4", "jais", "jina-de", "jina-es",
    "jina-v1-en", "jina-v2-code", "jina-v2-de", "jina-v2-es", "jina-v5-nano", "joyai-llm", "kanana2", "kimi-k2",
    "kormo", "laguna", "lfm2", "llada-moe", "llama3", "llama4", "llama-v3", "megrez", "mellum", "mellum2",
    "midm-2.0", "minerva-7b", "minimax-m2", "modern-bert", "mpt", "olmo", "phi-2", "pixtral", "refact",
    "roberta-bpe", "solar-open", "spark2_5", "stablelm2", "starcoder", "superbpe", "talkie", "tiny_aya",
    "trillion", "youtu",
)  # fmt: skip
"""Every pre-tokenizer for byte-level BPE that llama.cpp has; it refuses files with another name."""


def check_name(name: str) -> str:
    """Return `name` if llama.cpp has a pre-tokenizer of that name; raise `BadPreTokenizer` otherwise."""
    if name not in NAMES:
        problem = f"llama.cpp has no pre-tokenizer named {shown(name)}."
        raise BadPreTokenizer(problem, f"Choose one of: {', '.join(sorted(NAMES))}.")
    return name
