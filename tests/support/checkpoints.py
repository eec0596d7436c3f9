"""Hugging Face checkpoint directories for tests: small random ones, and one rebuilt from a real GGUF.

Everything is written by hand (numpy and the standard library), so that the code under test is never checked
against itself or against the library it uses. Only Llama-architecture models are known; nothing is fetched.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import sentencepiece
from gguf.quants import dequantize
from numpy.typing import NDArray

Dtype = Literal["F32", "F16", "BF16"]
BpeStyle = Literal["llama-3", "qwen2", "smollm", "gpt-2"]
Array = NDArray[Any]
F32Array = NDArray[np.float32]
Json = dict[str, Any]

# numpy has no bfloat16: its bits travel as uint16.
STORAGE: dict[Dtype, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
TORCH_DTYPE: dict[Dtype, str] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


# --- safetensors --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tensor:
    """One tensor as safetensors stores it. `data` has the storage dtype: for BF16 the raw bits as uint16."""

    dtype: Dtype
    data: Array

    def __post_init__(self) -> None:
        if self.data.dtype != STORAGE[self.dtype]:
            raise TypeError(f"{self.dtype} tensor is stored as {STORAGE[self.dtype]}, not {self.data.dtype}")

    @classmethod
    def rounded(cls, values: F32Array, dtype: Dtype) -> Tensor:
        """F32 values rounded (to nearest, ties to even) to `dtype`."""
        if dtype != "BF16":
            return cls(dtype, values.astype(STORAGE[dtype]))
        bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
        return cls(dtype, ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2"))

    def to_f32(self) -> F32Array:
        """The stored values, exactly, as F32."""
        if self.dtype != "BF16":
            return self.data.astype(np.float32)
        return (self.data.astype("<u4") << 16).view(np.float32)


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file laid out as the real library does it.

    Tensors go widest dtype first, then by name; the header is padded so that the data starts 8-aligned.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].data.itemsize, item[0]))
    header: Json = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in ordered:
        end = offset + tensor.data.nbytes
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.data.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for _, tensor in ordered:
            file.write(np.ascontiguousarray(tensor.data).data)


def write_shards(directory: Path, n_bytes: dict[str, int], n_shards: int, load: Callable[[str], Tensor]) -> None:
    """Write the tensors of `n_bytes` (name → stored size), in that order, over `n_shards` files and an index.

    `load` is asked for one shard's tensors at a time, so that a big model never sits in memory whole.
    """
    if n_shards == 1:
        write_safetensors(directory / "model.safetensors", {name: load(name) for name in n_bytes})
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(_split_evenly(n_bytes, n_shards), start=1):
        shard_name = f"model-{number:05}-of-{n_shards:05}.safetensors"
        write_safetensors(directory / shard_name, {name: load(name) for name in names})
        weight_map |= dict.fromkeys(names, shard_name)
    index = {
        "metadata": {"total_size": sum(n_bytes.values())},
        "weight_map": dict(sorted(weight_map.items())),
    }
    _write_json(directory / "model.safetensors.index.json", index)


def _split_evenly(n_bytes: dict[str, int], n_shards: int) -> list[list[str]]:
    """Contiguous runs of names of about equal size, none of them empty."""
    names = list(n_bytes)
    if not 1 <= n_shards <= len(names):
        raise ValueError(f"cannot spread {len(names)} tensors over {n_shards} shards")
    total, written, shards = sum(n_bytes.values()), 0, [[names[0]]]
    for position, name in enumerate(names[1:], start=1):
        written += n_bytes[names[position - 1]]
        n_missing = n_shards - len(shards)
        is_full = written * n_shards >= total * len(shards)
        if n_missing and (is_full or len(names) - position == n_missing):
            shards.append([])
        shards[-1].append(name)
    return shards


def _write_json(path: Path, value: Json) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# --- the model ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LlamaShape:
    """The hyperparameters of a Llama-architecture model; `rope_scaling` goes into config.json as it is."""

    n_vocab: int
    n_embd: int
    n_ff: int
    n_layer: int
    n_head: int
    n_head_kv: int
    n_ctx: int = 256
    rope_theta: float = 10000.0
    rms_eps: float = 1e-5
    tied: bool = False
    rope_scaling: Json | None = None
    head_dim: int | None = None
    n_expert: int | None = None
    n_expert_used: int = 2

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's Hugging Face name and shape, in the order of the model."""
        d_head = self.head_dim or self.n_embd // self.n_head
        d_q, d_kv = self.n_head * d_head, self.n_head_kv * d_head
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.n_vocab, self.n_embd)}
        for layer in range(self.n_layer):
            prefix = f"model.layers.{layer}."
            shapes |= {
                prefix + "input_layernorm.weight": (self.n_embd,),
                prefix + "self_attn.q_proj.weight": (d_q, self.n_embd),
                prefix + "self_attn.k_proj.weight": (d_kv, self.n_embd),
                prefix + "self_attn.v_proj.weight": (d_kv, self.n_embd),
                prefix + "self_attn.o_proj.weight": (self.n_embd, d_q),
                prefix + "post_attention_layernorm.weight": (self.n_embd,),
            }
            shapes |= self._feed_forward_shapes(prefix)
        shapes["model.norm.weight"] = (self.n_embd,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.n_vocab, self.n_embd)
        return shapes

    def _feed_forward_shapes(self, prefix: str) -> dict[str, tuple[int, ...]]:
        inner, outer = (self.n_ff, self.n_embd), (self.n_embd, self.n_ff)
        if self.n_expert is None:
            names = {"gate_proj": inner, "up_proj": inner, "down_proj": outer}
            return {f"{prefix}mlp.{name}.weight": shape for name, shape in names.items()}
        experts = product(range(self.n_expert), {"w1": inner, "w2": outer, "w3": inner}.items())
        return {f"{prefix}block_sparse_moe.gate.weight": (self.n_expert, self.n_embd)} | {
            f"{prefix}block_sparse_moe.experts.{i}.{name}.weight": shape for i, (name, shape) in experts
        }

    def config(self, dtype: Dtype, *, bos_id: int | None = 1, eos_id: int | None = 2) -> Json:
        """The config.json of this model."""
        config: Json = {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": bos_id,
            "eos_token_id": eos_id,
            "hidden_act": "silu",
            "hidden_size": self.n_embd,
            "initializer_range": 0.02,
            "intermediate_size": self.n_ff,
            "max_position_embeddings": self.n_ctx,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": self.n_head,
            "num_hidden_layers": self.n_layer,
            "num_key_value_heads": self.n_head_kv,
            "pretraining_tp": 1,
            "rms_norm_eps": self.rms_eps,
            "rope_scaling": self.rope_scaling,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tied,
            "torch_dtype": TORCH_DTYPE[dtype],
            "transformers_version": "4.42.3",
            "use_cache": True,
            "vocab_size": self.n_vocab,
        }
        if self.n_expert is not None:
            config |= {
                "architectures": ["MixtralForCausalLM"],
                "model_type": "mixtral",
                "num_local_experts": self.n_expert,
                "num_experts_per_tok": self.n_expert_used,
            }
        return config | ({} if self.head_dim is None else {"head_dim": self.head_dim})


def write_random_checkpoint(
    directory: Path,
    shape: LlamaShape,
    *,
    dtype: Dtype = "BF16",
    n_shards: int = 1,
    seed: int = 0,
    tokenizer: Path | None,
) -> dict[str, F32Array]:
    """Write a checkpoint of random weights; return what it holds, rounded to `dtype`, as F32 by HF name.

    `tokenizer` is a sentencepiece model to copy in; None leaves the tokenizer files to `write_bpe_tokenizer`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    tensors = {
        name: Tensor.rounded(_random_weight(rng, tensor_shape), dtype)
        for name, tensor_shape in shape.tensor_shapes().items()
    }
    n_bytes = {name: tensor.data.nbytes for name, tensor in tensors.items()}
    _write_json(directory / "config.json", shape.config(dtype))
    write_shards(directory, n_bytes, n_shards, tensors.__getitem__)
    if tokenizer is not None:
        shutil.copyfile(tokenizer, directory / "tokenizer.model")
        _write_json(directory / "tokenizer_config.json", SENTENCEPIECE_CONFIG)
    return {name: tensor.to_f32() for name, tensor in tensors.items()}


def _random_weight(rng: np.random.Generator, shape: tuple[int, ...]) -> F32Array:
    weight: F32Array = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
    if len(shape) == 1:  # a norm, which scales by about one
        weight += 1
    return weight


# --- sentencepiece ------------------------------------------------------------------------------------------

SENTENCEPIECE_CONFIG: Json = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "</s>",
    "legacy": False,
    "model_max_length": 1000000000000000019884624838656,
    "pad_token": None,
    "sp_model_kwargs": {},
    "tokenizer_class": "LlamaTokenizer",
    "unk_token": "<unk>",
}

CORPUS = """\
The lighthouse keeper climbed one hundred and twelve steps every evening to light the lamp.
Rain had fallen since Tuesday, and the river was already over the lower meadow.
"Why do you count the stars?" she asked; he answered that nobody else was doing it.
A model reads tokens, not words, and it has never seen the letters that make them.
They're certain that we've met before, but I'm not sure I'd remember it.
In 1969 a computer with 4096 words of memory helped two people to walk on the moon.
Bread needs flour, water, salt and time; most people forget the time.
def mean(values): return sum(values) / len(values)
The quick brown fox jumps over the lazy dog while the cat watches from the window.
If the weather stays clear, the boats will leave the harbour at six in the morning.
My grandmother kept letters, buttons, and every key she had ever been given.
The train to the north stops at eleven stations and the journey takes three hours.
for (int i = 0; i < n; i++) { total += weights[i] * inputs[i]; }
Nothing in the old house was straight: not the floors, not the doors, not the stories.
Elle a mangé un gâteau à la crème près du café, où il fait déjà très chaud.
Das Mädchen läuft über die Straße und hört schöne Musik.
Mountains are slow waves, said the teacher, and glaciers are slower rivers.
Please write a short answer, then explain your reasoning step by step.
The recipe asks for 250 grams of sugar, 3 eggs, 120 ml of milk and a pinch of salt.
Every question has a shape, and a good answer has the same shape.
He opened the window because the kitchen was full of smoke and singing.
Honest numbers are better than pleasant ones, and a measured thing can be improved.
Where the road turns to the left there is a well, and behind the well a small orchard.
The children built a bridge of chairs, blankets, string and great confidence.
Sunlight takes about 8 minutes and 20 seconds to travel from the sun to the earth.
An engine that runs quietly is either very well made or already switched off.
    print("hello, world")  # four spaces stand before this line
Winter came early; by November the ponds were frozen and the geese were gone.
You can borrow the blue bicycle, provided that you bring it back before supper.
The library closes at nine, yet the reading room has always stayed open until ten.
"""


def train_sentencepiece(path: Path, n_vocab: int = 600, more: str = "", **changes: Any) -> None:
    """Train a small BPE sentencepiece model with the settings of Llama 2, or `changes`, and write it to `path`.

    `more` is text to learn from besides the corpus.
    """
    model = BytesIO()
    options: Json = {
        "model_type": "bpe",
        "vocab_size": n_vocab,
        # Some letters stay out of the vocabulary, so that byte fallback has work to do.
        "character_coverage": 0.998,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": True,
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
        "byte_fallback": True,
        "unk_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "pad_id": -1,
        "unk_surface": " \u2047 ",
        "num_threads": 1,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((CORPUS + more).splitlines()), model_writer=model, **(options | changes)
    )
    path.write_bytes(model.getvalue())


METASPACE: Json = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
PREPEND_AND_REPLACE: Json = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}


def write_byte_fallback_tokenizer(directory: Path, model_path: Path, pre_tokenizer: Json | None = None) -> int:
    """Export a sentencepiece model as transformers does, to a tokenizer.json alone; return how many ids.

    Without `pre_tokenizer` blanks are made ▁ by a normalizer, which is the older form.
    """
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model_path))
    pieces = [processor.IdToPiece(i) for i in range(processor.GetPieceSize())]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges: list[list[str]] = []
    for piece in sorted(pieces, key=lambda piece: -processor.GetScore(vocab[piece])):
        halves = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        known = [(left, right) for left, right in halves if left in vocab and right in vocab]
        merges += [[left, right] for left, right in sorted(known, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))]
    specials = [i for i in range(len(pieces)) if processor.IsControl(i) or processor.IsUnknown(i)]
    model = {
        "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": vocab, "merges": merges,
    }  # fmt: skip
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [_added_token(i, pieces[i], special=True) for i in specials],
        "normalizer": None if pre_tokenizer else PREPEND_AND_REPLACE,
        "pre_tokenizer": pre_tokenizer, "post_processor": None, "decoder": None, "model": model,
    }  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / "tokenizer.json", tokenizer)
    _write_json(directory / "tokenizer_config.json", SENTENCEPIECE_CONFIG)
    return len(pieces)


# --- byte-level BPE -----------------------------------------------------------------------------------------


def _byte_level(*, add_prefix_space: bool, trim_offsets: bool, use_regex: bool) -> Json:
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": trim_offsets,
        "use_regex": use_regex,
    }


def _split_then_byte_level(regex: str, *, trim_offsets: bool) -> Json:
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    byte_level = _byte_level(add_prefix_space=False, trim_offsets=trim_offsets, use_regex=False)
    return {"type": "Sequence", "pretokenizers": [split, byte_level]}


def _split_regex(digits: str) -> str:
    """The pattern that Llama 3 and Qwen 2 share; they differ in how many digits make a piece."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def _chatml(default_system: str) -> str:
    """The ChatML template with a default system prompt, as Qwen 2 and SmolLM 2 ship it."""
    return (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\n" + default_system + "<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


@dataclass(frozen=True)
class BpeFamily:
    """What tells one family's tokenizer.json and tokenizer_config.json from another's."""

    pre_tokenizer: Json
    special_tokens: tuple[str, ...]
    bos: str | None
    eos: str
    pad: str | None
    unk: str | None
    tokenizer_class: str
    chat_template: str | None
    normalizer: Json | None = None
    post_processor: Json | None = None
    decoder: Json = field(default_factory=lambda: _byte_level(add_prefix_space=True, trim_offsets=True, use_regex=True))
    specials_first: bool = False
    specials_in_vocab: bool = True
    adds_bos: bool = False
    ignore_merges: bool = False
    affix: str | None = None


_GPT2_POST_PROCESSOR = _byte_level(add_prefix_space=True, trim_offsets=False, use_regex=True)
_QWEN2_BYTE_LEVEL = _byte_level(add_prefix_space=False, trim_offsets=False, use_regex=False)

BPE_FAMILIES: dict[BpeStyle, BpeFamily] = {
    "llama-3": BpeFamily(
        pre_tokenizer=_split_then_byte_level(_split_regex(r"\p{N}{1,3}"), trim_offsets=True),
        special_tokens=(
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|reserved_special_token_0|>",
            "<|reserved_special_token_1|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        pad=None,
        unk=None,
        tokenizer_class="PreTrainedTokenizerFast",
        chat_template=(
            "{% set loop_messages = messages %}{% for message in loop_messages %}"
            "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
            "+ message['content'] | trim + '<|eot_id|>' %}"
            "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
            "{{ content }}{% endfor %}{% if add_generation_prompt %}"
            "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
        ),
        post_processor=_GPT2_POST_PROCESSOR,
        specials_in_vocab=False,
        adds_bos=True,
        ignore_merges=True,
    ),
    "qwen2": BpeFamily(
        pre_tokenizer=_split_then_byte_level(_split_regex(r"\p{N}"), trim_offsets=False),
        special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        bos=None,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        unk=None,
        tokenizer_class="Qwen2Tokenizer",
        chat_template=_chatml("You are a helpful assistant."),
        normalizer={"type": "NFC"},
        post_processor=_QWEN2_BYTE_LEVEL,
        decoder=_QWEN2_BYTE_LEVEL,
        specials_in_vocab=False,
        affix="",
    ),
    "smollm": BpeFamily(
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                _byte_level(add_prefix_space=False, trim_offsets=True, use_regex=True),
            ],
        },
        special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        bos="<|im_start|>",
        eos="<|im_end|>",
        pad="<|im_end|>",
        unk="<|endoftext|>",
        tokenizer_class="GPT2Tokenizer",
        chat_template=_chatml("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
        specials_first=True,
    ),
    "gpt-2": BpeFamily(
        pre_tokenizer=_byte_level(add_prefix_space=False, trim_offsets=True, use_regex=True),
        special_tokens=("<|endoftext|>",),
        bos="<|endoftext|>",
        eos="<|endoftext|>",
        pad=None,
        unk="<|endoftext|>",
        tokenizer_class="GPT2Tokenizer",
        chat_template=None,
        post_processor=_GPT2_POST_PROCESSOR,
        affix="",
    ),
}


def write_bpe_tokenizer(directory: Path, style: BpeStyle, *, n_merges: int = 64, merge_pairs: bool = False) -> int:
    """Write a small valid tokenizer.json and tokenizer_config.json of a real family; return how many ids.

    `merge_pairs` writes merges as `["a", "b"]`, as tokenizers ≥ 0.20 does, in place of `"a b"`.
    """
    family = BPE_FAMILIES[style]
    merges = _learn_merges(n_merges)
    pieces = [*sorted(_byte_alphabet().values()), *(left + right for left, right in merges)]
    specials = list(family.special_tokens)
    ordered = specials + pieces if family.specials_first else pieces + specials
    ids = {piece: token_id for token_id, piece in enumerate(ordered)}
    added = [_added_token(ids[content], content, special=True) for content in specials]
    vocab = ids if family.specials_in_vocab else {piece: ids[piece] for piece in pieces}
    written_merges = [list(pair) if merge_pairs else " ".join(pair) for pair in merges]
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / "tokenizer.json", _tokenizer_json(family, vocab, written_merges, added))
    names = {
        "bos_token": family.bos,
        "eos_token": family.eos,
        "pad_token": family.pad,
        "unk_token": family.unk,
    }
    config = _tokenizer_config(family, names, family.chat_template, added)
    _write_json(directory / "tokenizer_config.json", config)
    return len(ids)


def add_stress_merges(directory: Path, *, n_merges: int = 15000, seed: int = 1) -> int:
    """Replace the merges in `directory`'s tokenizer.json by ones that ignore all borders; return how many ids.

    Bytes of every kind (blanks, digits, quotes, parts of characters) merge in random order, so nearly every
    border that a pre-tokenizer sets or misses shows in the ids.
    """
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    rng, alphabet = random.Random(seed), _byte_alphabet()
    ascii_pieces = [alphabet[byte] for byte in b" \t\n\r'asStTlLeErRvVmMdD0123.!<|\x0b\x0c\x1c"]
    pieces = ascii_pieces + [alphabet[byte] for byte in range(0x80, 0xF5)]
    pairs = rng.sample(list(product(pieces, pieces)), n_merges)
    ascii_pairs = [a + b for a, b in pairs if a in ascii_pieces and b in ascii_pieces]
    longer = rng.sample(list(product(ascii_pairs, ascii_pieces)), n_merges // 3)
    longest = rng.sample(list(product(ascii_pairs, ascii_pairs)), n_merges // 3)
    merges = [*pairs, *longer, *longest]
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    next_id = 1 + max(*vocab.values(), *(token["id"] for token in tokenizer["added_tokens"]))
    for text in dict.fromkeys(left + right for left, right in merges):
        if text not in vocab:
            vocab[text] = next_id
            next_id += 1
    tokenizer["model"]["merges"] = [f"{left} {right}" for left, right in merges]
    _write_json(path, tokenizer)
    return next_id


def _tokenizer_json(family: BpeFamily, vocab: dict[str, int], merges: list[Any], added: list[Json]) -> Json:
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": family.affix,
        "end_of_word_suffix": family.affix,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": family.ignore_merges,
        "vocab": vocab,
        "merges": merges,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": family.normalizer,
        "pre_tokenizer": family.pre_tokenizer,
        "post_processor": _post_processor(family, added),
        "decoder": family.decoder,
        "model": model,
    }


def _post_processor(family: BpeFamily, added: list[Json]) -> Json | None:
    if not family.adds_bos:
        return family.post_processor
    bos_id = next(token["id"] for token in added if token["content"] == family.bos)

    def bos_then(sequence: str, type_id: int) -> list[Json]:
        bos = {"SpecialToken": {"id": family.bos, "type_id": type_id}}
        return [bos, {"Sequence": {"id": sequence, "type_id": type_id}}]

    template = {
        "type": "TemplateProcessing",
        "single": bos_then("A", 0),
        "pair": bos_then("A", 0) + bos_then("B", 1),
        "special_tokens": {family.bos: {"id": family.bos, "ids": [bos_id], "tokens": [family.bos]}},
    }
    return {"type": "Sequence", "processors": [family.post_processor, template]}


def _added_token(token_id: int, content: str, *, special: bool) -> Json:
    return {
        "id": token_id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def _tokenizer_config(
    family: BpeFamily, names: dict[str, str | None], chat_template: str | None, added: list[Json]
) -> Json:
    """The tokenizer_config.json: `names` are the bos/eos/pad/unk tokens."""
    decoder = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in added}
    config: Json = {
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 8192,
        "tokenizer_class": family.tokenizer_class,
    }
    template = {} if chat_template is None else {"chat_template": chat_template}
    return config | names | template


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for every byte: itself where it prints, else a letter from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = (byte for byte in range(256) if byte not in printable)
    stand_ins = {byte: chr(256 + n) for n, byte in enumerate(moved)}
    return stand_ins | {byte: chr(byte) for byte in printable}


@cache
def _learn_merges(n_merges: int) -> list[tuple[str, str]]:
    """The `n_merges` most useful BPE merges of the corpus; ties go to the pair that sorts first."""
    alphabet = _byte_alphabet()
    # Letters with the blank before them: runs that every family's pre-tokenizer keeps whole.
    counts = Counter(re.findall(r" ?[^\W\d_]+", CORPUS))
    words = [([alphabet[byte] for byte in word.encode()], n) for word, n in counts.items()]
    merges: list[tuple[str, str]] = []
    for _ in range(n_merges):
        pairs: Counter[tuple[str, str]] = Counter()
        for pieces, n in words:
            for pair in pairwise(pieces):
                pairs[pair] += n
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = [(_merge(pieces, best), n) for pieces, n in words]
    return merges


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


# --- back from a GGUF ---------------------------------------------------------------------------------------

HF_TENSOR_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
BPE_STYLE_OF_PRE: dict[str, BpeStyle] = {
    "llama-bpe": "llama-3",
    "qwen2": "qwen2",
    "smollm": "smollm",
    "gpt-2": "gpt-2",
    "default": "gpt-2",
}


def checkpoint_from_gguf(gguf_path: Path, directory: Path, *, n_shards: int = 2, dtype: Dtype = "F16") -> None:
    """Rebuild the Hugging Face checkpoint behind a Llama-architecture GGUF with a BPE vocabulary.

    The weights are the GGUF's dequantized values, rounded to `dtype`; one shard is in memory at a time.
    """
    source = _Gguf(gguf_path)
    directory.mkdir(parents=True, exist_ok=True)
    shape = source.shape()
    config = shape.config(dtype, bos_id=source.token_id("bos"), eos_id=source.token_id("eos"))
    _write_json(directory / "config.json", config | {"pad_token_id": source.token_id("padding")})
    _write_gguf_tokenizer(source, directory)
    n_bytes = {name: STORAGE[dtype].itemsize * tensor.n_elements for name, tensor in source.tensors.items()}
    expected = shape.tensor_shapes()
    if n_bytes.keys() != expected.keys():
        raise ValueError(f"not a plain Llama model: {sorted(n_bytes.keys() ^ expected.keys())}")
    ordered = {name: int(n_bytes[name]) for name in expected}
    write_shards(directory, ordered, n_shards, lambda name: Tensor.rounded(source.load(name, shape), dtype))


class _Gguf:
    """A GGUF read with gguf-py: metadata by key, and tensors by Hugging Face name."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self.metadata: dict[str, Any] = {key: field.contents() for key, field in reader.fields.items()}
        self.tensors = {_hf_name(tensor.name): tensor for tensor in reader.tensors}

    def token_id(self, role: str) -> int | None:
        return self.metadata.get(f"tokenizer.ggml.{role}_token_id")

    def shape(self) -> LlamaShape:
        model = {key.removeprefix("llama."): value for key, value in self.metadata.items()}
        n_head, n_embd = model["attention.head_count"], model["embedding_length"]
        d_head = model.get("attention.key_length", n_embd // n_head)
        return LlamaShape(
            n_vocab=model["vocab_size"],
            n_embd=n_embd,
            n_ff=model["feed_forward_length"],
            n_layer=model["block_count"],
            n_head=n_head,
            n_head_kv=model.get("attention.head_count_kv", n_head),
            n_ctx=model["context_length"],
            rope_theta=model.get("rope.freq_base", 10000.0),
            # It is stored as F32: its shortest decimal is the number that config.json had.
            rms_eps=float(str(np.float32(model["attention.layer_norm_rms_epsilon"]))),
            tied="lm_head.weight" not in self.tensors,
            head_dim=None if d_head * n_head == n_embd else d_head,
        )

    def load(self, name: str, shape: LlamaShape) -> F32Array:
        """The dequantized tensor, with the rows of Q and K back in Hugging Face's order."""
        values = dequantize(self.tensors[name].data, self.tensors[name].tensor_type)
        n_head = {"q_proj": shape.n_head, "k_proj": shape.n_head_kv}.get(name.split(".")[-2])
        return values if n_head is None else unpermute(values, n_head)


def unpermute(values: F32Array, n_head: int) -> F32Array:
    """Undo llama.cpp's permute: rows go from interleaved pairs back to two halves a head (K has KV heads)."""
    n_rows, *rest = values.shape
    paired = values.reshape(n_head, n_rows // n_head // 2, 2, *rest)
    unpermuted: F32Array = paired.swapaxes(1, 2).reshape(values.shape)
    return unpermuted


def _hf_name(gguf_name: str) -> str:
    *block, stem, suffix = gguf_name.split(".")
    prefix = f"model.layers.{block[1]}." if block else ""
    return f"{prefix}{HF_TENSOR_NAMES[stem]}.{suffix}"


def _write_gguf_tokenizer(source: _Gguf, directory: Path) -> None:
    """tokenizer.json and tokenizer_config.json from the vocabulary in the header."""
    if source.metadata.get("tokenizer.ggml.model") != "gpt2":
        raise ValueError(f"not a BPE vocabulary: {source.metadata.get('tokenizer.ggml.model')}")
    family = BPE_FAMILIES[BPE_STYLE_OF_PRE[source.metadata.get("tokenizer.ggml.pre", "default")]]
    tokens: list[str] = source.metadata["tokenizer.ggml.tokens"]
    added = list(_gguf_added_tokens(tokens, source.metadata["tokenizer.ggml.token_type"]))
    outside = set() if family.specials_in_vocab else {token["content"] for token in added}
    vocab = {token: token_id for token_id, token in enumerate(tokens) if token not in outside}
    merges = source.metadata["tokenizer.ggml.merges"]
    _write_json(directory / "tokenizer.json", _tokenizer_json(family, vocab, merges, added))

    def name_of(role: str) -> str | None:
        token_id = source.token_id(role)
        return None if token_id is None else tokens[token_id]

    roles = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    names = {name: name_of(role) for name, role in roles.items()}
    config = _tokenizer_config(family, names, source.metadata.get("tokenizer.chat_template"), added)
    _write_json(directory / "tokenizer_config.json", config)


def _gguf_added_tokens(tokens: list[str], types: list[int]) -> Iterator[Json]:
    for token_id, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind in (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED):
            yield _added_token(token_id, token, special=kind == gguf.TokenType.CONTROL)
