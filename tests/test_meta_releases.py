"""Releases in Meta's own form give the same tensors as the Hugging Face form of the same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from conftest import RunCommand
from hypothesis import given
from hypothesis import strategies as st

from quantize import FILE_TYPES, Provenance, QuantizeError, check, convert, predict
from quantize.architectures import find_architecture
from quantize.checkpoint.merged import ConcatenatedColumns, ConcatenatedRows
from quantize.checkpoint.tensor import ComputedTensor
from support.checkpoints import Dtype, F32Array, LlamaShape, Tensor, write_random_checkpoint
from support.llama_cpp_oracle import read_tensors
from support.meta_releases import Cut, Shard, tiktoken_ids, write_meta_release, write_tiktoken

# The vocabulary takes three blocks, whose borders are not those of four shards.
SHAPE = LlamaShape(n_vocab=3000, n_embd=256, n_ff=768, n_layer=2, n_head=8, n_head_kv=4, n_ctx=4096)
SMALL = LlamaShape(n_vocab=600, n_embd=64, n_ff=256, n_layer=2, n_head=4, n_head_kv=4, n_ctx=4096)
W1, WO = "layers.1.feed_forward.w1.weight", "layers.1.attention.wo.weight"


def make(directory: Path, out_path: Path, quant: str) -> Path:
    return convert(directory, out_path, FILE_TYPES[quant], provenance=Provenance("test")).path


def header(path: Path) -> dict[str, Any]:
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


# --- the same as the Hugging Face form ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def hugging_face(small_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, F32Array], Path]:
    """The weights of `SHAPE`, and a directory with the GGUF files made from their Hugging Face form."""
    directory = tmp_path_factory.mktemp("hugging-face")
    weights = write_random_checkpoint(directory / "checkpoint", SHAPE, tokenizer=small_tokenizer)
    for quant in ("f32", "q8_0", "q4_k_m"):
        make(directory / "checkpoint", directory / f"{quant}.gguf", quant)
    return weights, directory


@pytest.mark.parametrize(
    ("n_shards", "embeddings", "one_storage"),
    [(1, "columns", False), (2, "columns", True), (4, "columns", False), (2, "rows", False), (4, "rows", True)],
)
def test_equal_to_the_hugging_face_form(
    n_shards: int, embeddings: Cut, one_storage: bool,
    hugging_face: tuple[dict[str, F32Array], Path], small_tokenizer: Path, tmp_path: Path,
) -> None:  # fmt: skip
    weights, references = hugging_face
    write_meta_release(
        tmp_path / "release", SHAPE, weights, small_tokenizer,
        n_shards=n_shards, embeddings=embeddings, one_storage=one_storage,
    )  # fmt: skip
    for quant in ("f32", "q8_0", "q4_k_m"):
        path = make(tmp_path / "release", tmp_path / f"{quant}.gguf", quant)
        assert read_tensors(path) == read_tensors(references / f"{quant}.gguf")
        assert header(path) == header(references / f"{quant}.gguf")
        prediction = predict(tmp_path / "release", FILE_TYPES[quant], provenance=Provenance("test"))
        assert prediction.size_bytes == path.stat().st_size


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_number_formats(dtype: Dtype, small_tokenizer: Path, tmp_path: Path) -> None:
    weights = write_random_checkpoint(tmp_path / "hf", SMALL, dtype=dtype, tokenizer=small_tokenizer)
    write_meta_release(tmp_path / "release", SMALL, weights, small_tokenizer, dtype=dtype, params={"vocab_size": -1})
    ours = make(tmp_path / "release", tmp_path / "ours.gguf", "q8_0")
    assert read_tensors(ours) == read_tensors(make(tmp_path / "hf", tmp_path / "theirs.gguf", "q8_0"))


def test_tied_embeddings_and_scaled_rope(small_tokenizer: Path, tmp_path: Path) -> None:
    """Llama 3.2 1B and 3B: Meta's release has the output matrix, the Hugging Face form does not."""
    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}  # fmt: skip
    shape = replace(SMALL, tied=True, rope_theta=500000.0, rope_scaling=scaling, n_ctx=131072)
    weights = write_random_checkpoint(tmp_path / "hf", shape, tokenizer=small_tokenizer)
    release = {**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}
    params = {"rope_theta": 500000.0, "use_scaled_rope": True}
    write_meta_release(tmp_path / "release", shape, release, small_tokenizer, embeddings="rows", params=params)
    ours = make(tmp_path / "release", tmp_path / "ours.gguf", "q4_k_m")
    theirs = make(tmp_path / "hf", tmp_path / "theirs.gguf", "q4_k_m")
    assert {"rope_freqs.weight", "token_embd.weight"} <= read_tensors(ours).keys()
    assert "output.weight" not in read_tensors(ours)
    assert read_tensors(ours) == read_tensors(theirs)
    assert header(ours) == header(theirs)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.data())
def test_any_rows_of_merged_tensors(n_parts: int, n_rows: int, n_columns: int, data: st.DataObject) -> None:
    values = np.arange(n_parts * n_rows * n_columns, dtype=np.float32).reshape(n_parts, n_rows, n_columns)
    parts = tuple(ComputedTensor(f"part {i}", Path("shard"), part) for i, part in enumerate(values))
    for merged, whole in (
        (ConcatenatedRows("", Path(), parts), np.concatenate(values, axis=0)),
        (ConcatenatedColumns("", Path(), parts), np.concatenate(values, axis=1)),
    ):
        assert merged.shape == whole.shape
        first = data.draw(st.integers(0, len(whole) - 1))
        n = data.draw(st.integers(1, len(whole) - first))
        out = np.full(n * whole.shape[1] * 4 + 8, 255, np.uint8)
        merged.read_rows(first, n, out)
        assert out[:-8].tobytes() == whole[first : first + n].tobytes()
        assert (out[-8:] == 255).all()


# --- what params.json leaves out ----------------------------------------------------------------------------

LLAMA_1 = {"multiple_of": 256, "norm_eps": 1e-06, "vocab_size": -1}
LLAMA_2 = {"multiple_of": 256, "norm_eps": 1e-05, "vocab_size": -1}
LLAMA_3 = {"n_kv_heads": 8, "vocab_size": 128256, "norm_eps": 1e-05, "rope_theta": 500000.0}
CODE = {"multiple_of": 256, "ffn_dim_multiplier": 1.0, "norm_eps": 1e-5, "rope_theta": 1000000}
PUBLISHED: dict[str, tuple[dict[str, Any], tuple[int, int, float | None]]] = {
    "Llama 1 7B": (LLAMA_1 | {"dim": 4096, "n_heads": 32, "n_layers": 32}, (11008, 2048, None)),
    "Llama 1 30B": (LLAMA_1 | {"dim": 6656, "n_heads": 52, "n_layers": 60}, (17920, 2048, None)),
    "Llama 1 65B": (LLAMA_2 | {"dim": 8192, "n_heads": 64, "n_layers": 80}, (22016, 2048, None)),
    "Llama 2 13B": (LLAMA_2 | {"dim": 5120, "n_heads": 40, "n_layers": 40}, (13824, 4096, None)),
    "Llama 2 70B": (
        LLAMA_2 | {"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_heads": 64, "n_kv_heads": 8,
                   "n_layers": 80},
        (28672, 4096, None),
    ),
    "Code Llama 7B": (CODE | {"dim": 4096, "n_heads": 32, "n_layers": 32}, (11008, 16384, None)),
    "Code Llama 34B": (CODE | {"dim": 8192, "n_heads": 64, "n_kv_heads": 8, "n_layers": 48}, (22016, 16384, None)),
    "Llama 3 8B": (
        LLAMA_3 | {"dim": 4096, "n_heads": 32, "n_layers": 32, "multiple_of": 1024, "ffn_dim_multiplier": 1.3},
        (14336, 8192, None),
    ),
    "Llama 3.1 8B": (
        LLAMA_3 | {"dim": 4096, "n_heads": 32, "n_layers": 32, "multiple_of": 1024, "ffn_dim_multiplier": 1.3,
                   "use_scaled_rope": True},
        (14336, 131072, 8.0),
    ),
    "Llama 3.2 1B": (
        LLAMA_3 | {"dim": 2048, "n_heads": 32, "n_layers": 16, "multiple_of": 256, "ffn_dim_multiplier": 1.5,
                   "use_scaled_rope": True},
        (8192, 131072, 32.0),
    ),
    "Llama 3.2 3B": (
        LLAMA_3 | {"dim": 3072, "n_heads": 24, "n_layers": 28, "multiple_of": 256, "ffn_dim_multiplier": 1.0,
                   "use_scaled_rope": True},
        (8192, 131072, 32.0),
    ),
}  # fmt: skip
"""Published params.json, and what the config.json of the same model in Hugging Face's form says."""


@pytest.mark.parametrize("model", PUBLISHED)
def test_numbers_of_published_models(model: str, small_tokenizer: Path, tmp_path: Path) -> None:
    params, (n_ff, n_ctx, factor) = PUBLISHED[model]
    (tmp_path / "params.json").touch()
    shutil.copyfile(small_tokenizer, tmp_path / "tokenizer.model")
    architecture = find_architecture(params, tmp_path / "params.json")
    written = {entry.key: entry.value for entry in architecture.header()}
    assert (written["llama.feed_forward_length"], written["llama.context_length"]) == (n_ff, n_ctx)
    assert written["llama.rope.freq_base"] == params.get("rope_theta", 10000)
    assert written["llama.attention.head_count_kv"] == params.get("n_kv_heads", params["n_heads"])
    stated = params.get("vocab_size", -1)
    assert written["llama.vocab_size"] == (600 if stated == -1 else stated)
    divisors = architecture.computed_tensors()
    assert (float(divisors["rope_freqs.weight"].values.max()) if divisors else None) == factor


# --- tiktoken -----------------------------------------------------------------------------------------------

_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = [bytes([byte]) for byte in _VISIBLE + [byte for byte in range(256) if byte not in _VISIBLE]]
"""In the order of Llama 3's ranks."""
LONGER = "..|....|in|.t|th|he|.th|the|.the|é|12|123|cd|bc|abc|ab|abcd|zz"
TOKENS = [*BYTES, *LONGER.replace(".", " ").encode().split(b"|")]
MERGES = [
    "Ġ Ġ", "ĠĠ ĠĠ", "i n", "Ġ t", "t h", "h e", "Ġ th", "Ġt h", "t he", "th e", "Ġ the", "Ġt he", "Ġth e", "Ã ©",
    "1 2", "12 3", "c d", "b c", "a bc", "ab c", "a b", "abc d", "ab cd", "z z",
]  # fmt: skip
"""As Llama 3's own stand in its tokenizer.json: for each token all the pairs, that with the lowest first rank first."""
N_TIKTOKEN = len(TOKENS) + 256


def _tiktoken_release(directory: Path, tokens: list[bytes] | None = None, **params: Any) -> Path:
    shape = replace(SMALL, n_vocab=N_TIKTOKEN)
    weights = write_random_checkpoint(directory / "hf", shape, tokenizer=None)
    write_tiktoken(directory / "tokenizer.model", tokens or TOKENS)
    params = {"rope_theta": 500000.0} | params
    write_meta_release(directory / "release", shape, weights, directory / "tokenizer.model", params=params)
    return directory / "release"


@pytest.mark.parametrize("is_3_1", [False, True])
def test_tiktoken_vocabulary(is_3_1: bool, tmp_path: Path) -> None:
    release = _tiktoken_release(tmp_path, vocab_size=-1, **({"use_scaled_rope": True} if is_3_1 else {}))
    written = header(make(release, tmp_path / "out.gguf", "q8_0"))
    vocabulary = {key.removeprefix("tokenizer.ggml."): value for key, value in written.items()}
    n = len(TOKENS)
    assert (vocabulary["model"], vocabulary["pre"]) == ("gpt2", "llama-bpe")
    assert vocabulary["tokens"][:4] == ["!", '"', "#", "$"]
    assert vocabulary["tokens"][220] == "Ġ"
    assert vocabulary["tokens"][256:n] == [
        "ĠĠ", "ĠĠĠĠ", "in", "Ġt", "th", "he", "Ġth", "the", "Ġthe", "Ã©", "12", "123",
        "cd", "bc", "abc", "ab", "abcd", "zz",
    ]  # fmt: skip
    assert vocabulary["merges"] == MERGES
    assert vocabulary["token_type"] == [gguf.TokenType.NORMAL] * n + [gguf.TokenType.CONTROL] * 256
    named = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"}
    named |= {4: "finetune_right_pad_id", 8: "eom_id", 10: "python_tag"} if is_3_1 else {}
    numbers = iter(range(256))
    assert vocabulary["tokens"][n:] == [
        f"<|{named[i] if i in named else f'reserved_special_token_{next(numbers)}'}|>" for i in range(256)
    ]
    assert (vocabulary["bos_token_id"], vocabulary["eos_token_id"]) == (n, n + 1)
    assert (vocabulary["add_bos_token"], vocabulary["add_eos_token"]) == (True, False)


def test_tiktoken_ids(run: RunCommand, tmp_path: Path) -> None:
    """llama.cpp, run by the program, tokenizes with the merges as tiktoken does with the ranks."""
    path = make(_tiktoken_release(tmp_path), tmp_path / "out.gguf", "q8_0")
    pieces = ["the", " then", " thinthe", " théâtre", " abcdab", "123", "\n"]
    messages = json.dumps([{"role": "user", "content": "".join(pieces)}])
    result = run("prompt", path, "--messages", "-", "--template", "none", "--json", text=messages)
    assert result.returncode == 0, result.stderr
    expected = [i for piece in pieces for i in tiktoken_ids(TOKENS, piece.encode())]
    assert json.loads(result.stdout)["ids"] == [len(TOKENS), *expected]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"IQ== 0\nIQ== 1\n", "line 2 has a token twice"),
        (b"IQ== 0\nIg== 2\n", "line 2 has a token twice, or a rank out of order"),
        (b"IQ== 0\nIg=  1\n", "line 2 is not a token"),
        (b"IQ== 0\nI 1\n", "line 2 is not a token"),
        (b"IQ== 0\n" + b"IQ" * 300 + b" 1\n", "line 2 is not a token"),
        (b"IQ== 0\n", "has no token for each byte"),
        (b"", "tokenizer.model: is empty"),
        (b"\x80\x04 no tokenizer", "is not a sentencepiece model"),
    ],
)
def test_damaged_tiktoken(content: bytes, problem: str, tmp_path: Path) -> None:
    release = _tiktoken_release(tmp_path)
    (release / "tokenizer.model").write_bytes(content)
    with pytest.raises(QuantizeError, match=problem):
        check(release)


def test_tiktoken_with_more_tokens_than_embeddings(tmp_path: Path) -> None:
    release = _tiktoken_release(tmp_path, [*TOKENS, b"more"])
    with pytest.raises(QuantizeError, match=rf"makes {N_TIKTOKEN + 1} tokens.* embeddings for {N_TIKTOKEN}"):
        check(release)


# --- damage -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(small_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, F32Array]:
    return write_random_checkpoint(tmp_path_factory.mktemp("small"), SMALL, tokenizer=small_tokenizer)


def _refuse(directory: Path, *words: str) -> None:
    with pytest.raises(QuantizeError) as caught:
        convert(directory, directory / "out.gguf", FILE_TYPES["q8_0"])
    sentence = str(caught.value)
    assert sentence.isprintable()
    assert len(sentence) < 300
    assert caught.value.next_step
    for word in words:
        assert word in sentence
    assert not (directory / "out.gguf").exists()


def _zeros(*shape: int) -> Tensor:
    return Tensor.rounded(np.zeros(shape, np.float32), "BF16")


def _put(shards: list[Shard], i_shard: int, name: str, tensor: Tensor) -> None:
    shards[i_shard][name] = tensor


def _poison(shard: Shard, name: str) -> None:
    shard[name].data[-1, -1] = 0x7FC0


DAMAGE: dict[str, tuple[Callable[[list[Shard]], object], tuple[str, ...]]] = {
    "missing in one": (lambda s: s[2].pop(W1), ("consolidated.02.pth", W1, "is missing, but is in consolidated.00")),
    "missing in the first": (lambda s: s[0].pop(W1), ("consolidated.00.pth", W1, "is missing")),
    "missing in all": (lambda s: [shard.pop(W1) for shard in s], (W1, "is missing")),
    "surplus in one": (lambda s: _put(s, 3, "extra.weight", _zeros(2, 2)), ("consolidated.00.pth", "extra.weight")),
    "surplus in all": (
        lambda s: [shard.update({"extra.weight": _zeros(2, 2)}) for shard in s],
        ("consolidated.00.pth", "extra.weight is not part"),
    ),
    "wider": (lambda s: _put(s, 1, W1, _zeros(64, 65)), ("consolidated.01.pth", W1, "[64, 65]", "[64, 64]")),
    "longer": (lambda s: _put(s, 1, WO, _zeros(65, 16)), ("consolidated.01.pth", WO, "[65, 16]", "[64, 16]")),
    "other format": (
        lambda s: _put(s, 1, WO, Tensor.rounded(np.zeros((64, 16), np.float32), "F16")),
        ("consolidated.01.pth", WO, "F16", "BF16"),
    ),
    "all longer": (
        lambda s: [shard.update({W1: _zeros(65, 64)}) for shard in s],
        ("consolidated.*.pth", W1, "[260, 64]", "params.json promises [256, 64]"),
    ),
    "flat": (lambda s: [shard.update({WO: _zeros(1024)}) for shard in s], (WO,)),
    "a number": (lambda s: [shard.update({"tok_embeddings.weight": _zeros()}) for shard in s], ("tok_embeddings",)),
    "norms differ": (
        lambda s: _put(s, 3, "norm.weight", _zeros(64)),
        ("consolidated.03.pth", "norm.weight", "differs"),
    ),
    "NaN in rows": (lambda s: _poison(s[2], W1), ("consolidated.02.pth", W1, "NaN")),
    "NaN in columns": (lambda s: _poison(s[1], WO), ("consolidated.01.pth", WO, "NaN")),
    "NaN in embeddings": (lambda s: _poison(s[3], "tok_embeddings.weight"), ("consolidated.03.pth", "NaN")),
    "too large": (lambda s: s[2][W1].data.fill(0x7F00), ("consolidated.*.pth", W1, "values too large for Q8_0")),
    "no tensors": (lambda s: [shard.clear() for shard in s], ("is missing",)),
    "no tensors in one": (lambda s: s[1].clear(), ("is missing, but is in consolidated.00.pth",)),
    "the last shard is missing": (lambda s: s.pop(), ("params.json promises",)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_shards_that_do_not_fit(
    damage: str, weights: dict[str, F32Array], small_tokenizer: Path, tmp_path: Path
) -> None:
    change, words = DAMAGE[damage]
    write_meta_release(tmp_path, SMALL, weights, small_tokenizer, n_shards=4, damage=change)
    _refuse(tmp_path, *words)


def test_shards_of_another_number(weights: dict[str, F32Array], small_tokenizer: Path, tmp_path: Path) -> None:
    write_meta_release(tmp_path, SMALL, weights, small_tokenizer, n_shards=4)
    (tmp_path / "consolidated.01.pth").rename(tmp_path / "consolidated.07.pth")
    _refuse(tmp_path, "consolidated.01.pth: is missing")
    for path in tmp_path.glob("*.pth"):
        path.unlink()
    _refuse(tmp_path, "consolidated.00.pth: is missing")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dim": 128}, ("promises",)),
        ({"dim": 0}, ("params.json: dim is 0",)),
        ({"dim": "64"}, ("params.json: dim",)),
        ({"dim": 10**400}, ("params.json: dim",)),
        ({"n_layers": 3}, ("layers.2.", "is missing")),
        ({"n_layers": 1}, ("layers.1.", "is not part")),
        ({"n_layers": 10**9}, ("not believable",)),
        ({"n_heads": 7}, ("7 attention heads",)),
        ({"n_kv_heads": 2}, ("attention.wk.weight has shape [64, 64]", "params.json promises [32, 64]")),
        ({"n_kv_heads": 8}, ("cannot share 8",)),
        ({"multiple_of": 100}, ("w1.weight", "params.json promises [200, 64]")),
        ({"ffn_dim_multiplier": 1e29}, ("params.json",)),
        ({"ffn_dim_multiplier": "2"}, ("params.json: ffn_dim_multiplier",)),
        ({"norm_eps": -1}, ("params.json: norm_eps",)),
        ({"rope_theta": []}, ("params.json: rope_theta",)),
        ({"vocab_size": 599}, ("tok_embeddings.weight has shape [600, 64]", "promises [599, 64]")),
        ({"vocab_size": -2}, ("params.json: vocab_size",)),
        ({"quantization_args": {"scheme": "int4"}}, ("params.json: has quantization_args",)),
        ({"hidden_dim": 256}, ("params.json: has hidden_dim",)),
    ],
    ids=str,
)
def test_params_that_lie(
    change: dict[str, Any], words: tuple[str, ...], weights: dict[str, F32Array], small_tokenizer: Path, tmp_path: Path
) -> None:
    write_meta_release(tmp_path, SMALL, weights, small_tokenizer, params=change)
    _refuse(tmp_path, *words)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"dim":', b"[" * 100_000], ids=["empty", "list", "cut", "deep"])
def test_params_that_are_none(
    content: bytes, weights: dict[str, F32Array], small_tokenizer: Path, tmp_path: Path
) -> None:
    write_meta_release(tmp_path, SMALL, weights, small_tokenizer)
    (tmp_path / "params.json").write_bytes(content)
    _refuse(tmp_path, "params.json")


@pytest.mark.parametrize("name", ["params.json", "tokenizer.model"])
def test_missing_files(name: str, weights: dict[str, F32Array], small_tokenizer: Path, tmp_path: Path) -> None:
    write_meta_release(tmp_path, SMALL, weights, small_tokenizer)
    (tmp_path / name).unlink()
    _refuse(tmp_path, f"{name}: is missing")


def test_a_release_can_be_checked_without_its_weights(small_tokenizer: Path, tmp_path: Path) -> None:
    shutil.copyfile(small_tokenizer, tmp_path / "tokenizer.model")
    (tmp_path / "params.json").write_text(json.dumps({"dim": 64, "n_heads": 4, "n_layers": 2, "vocab_size": -1}))
    check(tmp_path)
    (tmp_path / "params.json").write_text(json.dumps({"dim": 64, "n_heads": 4, "n_layers": 2, "vocab_size": 500}))
    with pytest.raises(QuantizeError, match=r"600 tokens.* embeddings for 500"):
        check(tmp_path)


# --- through the program ------------------------------------------------------------------------------------


def test_the_hugging_face_form_at_the_top_wins(small_tokenizer: Path, tmp_path: Path) -> None:
    weights = write_random_checkpoint(tmp_path, SMALL, tokenizer=small_tokenizer)
    expected = read_tensors(make(tmp_path, tmp_path / "a.gguf", "q8_0"))
    other = {name: values + 1 for name, values in weights.items()}
    write_meta_release(tmp_path, SMALL, other, small_tokenizer)
    assert read_tensors(make(tmp_path, tmp_path / "b.gguf", "q8_0")) == expected


def test_commands(run: RunCommand, weights: dict[str, F32Array], small_tokenizer: Path, tmp_path: Path) -> None:
    write_meta_release(tmp_path / "release", SMALL, weights, small_tokenizer)
    made = run("quantize", tmp_path / "release", "--quant", "q8_0", "-o", tmp_path / "out.gguf", "--json")
    assert made.returncode == 0, made.stderr
    pulled = run("pull", tmp_path / "release", "--quant", "q8_0", "--name", "metas", "--json")
    assert pulled.returncode == 0, pulled.stderr
    path = Path(json.loads(pulled.stdout)["path"])
    assert read_tensors(path) == read_tensors(tmp_path / "out.gguf")
