"""PEFT adapters become GGUF adapters that mean the same, or are refused in one sentence before anything is written."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from conftest import RunCommand
from gguf.quants import quantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llamachat.errors import LlamachatError
from llamachat.models.conversion import QuantizeRequest
from llamachat.models.conversion import run as run_conversion
from quantize import FILE_TYPES, QuantizeError, check_adapter, convert, convert_adapter, is_adapter, predict_adapter
from support.adapters import EMBED, HEAD, PREFIX, delta, lora_names, modules, random_lora, write_adapter
from support.checkpoints import Dtype, LlamaShape, Tensor, write_random_checkpoint, write_safetensors
from support.llama_cpp_logits import compute_logits

SHAPE = LlamaShape(n_vocab=600, n_embd=64, n_ff=96, n_layer=2, n_head=4, n_head_kv=2)
TIED = LlamaShape(n_vocab=600, n_embd=64, n_ff=96, n_layer=1, n_head=4, n_head_kv=2, tied=True)
MIXTRAL = LlamaShape(n_vocab=600, n_embd=64, n_ff=96, n_layer=1, n_head=4, n_head_kv=2, n_expert=4)
Q, K, V = (f"model.layers.0.self_attn.{letter}_proj" for letter in "qkv")
LAYER = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
TOKENS = [1, 17, 5, 300, 299, 42, 7, 599, 3, 64, 12, 500]
WEIGHTS = "adapter_model.safetensors"
F32 = FILE_TYPES["f32"]
OLD_CONTENT = b"an older adapter"

F32Array = NDArray[np.float32]


# --- bases --------------------------------------------------------------------------------------------------


class Base:
    """A random checkpoint, what it holds, and its F32 GGUF."""

    def __init__(self, directory: Path, shape: LlamaShape, tokenizer: Path, *, qwen: bool = False) -> None:
        self.directory, self.shapes = directory, shape.tensor_shapes()
        self.weights = write_random_checkpoint(directory, shape, dtype="F32", tokenizer=tokenizer)
        if qwen:
            self._turn_into_qwen2(shape)
        self.gguf = convert(directory, directory / "f32.gguf", F32).path

    def _turn_into_qwen2(self, shape: LlamaShape) -> None:
        rng = np.random.default_rng(1)
        for name in list(self.weights):
            if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
                bias = rng.standard_normal(self.weights[name].shape[0], dtype=np.float32)
                self.weights[name.replace(".weight", ".bias")] = bias
        (self.directory / "config.json").write_text(
            json.dumps(shape.config("F32") | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"})
        )
        self.write(self.directory, self.weights)

    def write(self, directory: Path, weights: dict[str, F32Array]) -> None:
        write_safetensors(
            directory / "model.safetensors", {name: Tensor.rounded(w, "F32") for name, w in weights.items()}
        )

    def merged(self, directory: Path, deltas: dict[str, NDArray[np.float64]]) -> Path:
        """The F32 GGUF of the checkpoint with `deltas` (by module) added to its weights."""
        shutil.copytree(self.directory, directory, ignore=shutil.ignore_patterns("*.gguf"))
        weights = dict(self.weights)
        for module, added in deltas.items():
            name = f"{module}.weight"
            weights[name] = (weights[name].astype(np.float64) + added).astype(np.float32)
        self.write(directory, weights)
        return convert(directory, directory / "f32.gguf", F32).path


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path) -> dict[str, Base]:
    directory = tmp_path_factory.mktemp("bases")
    return {
        "llama": Base(directory / "llama", SHAPE, small_tokenizer),
        "qwen2": Base(directory / "qwen2", SHAPE, small_tokenizer, qwen=True),
        "mixtral": Base(directory / "mixtral", MIXTRAL, small_tokenizer),
        "tied": Base(directory / "tied", TIED, small_tokenizer),
    }


@pytest.fixture(scope="module")
def llama(bases: dict[str, Base]) -> Base:
    return bases["llama"]


def lora(base: Base, *names: str, rank: int = 4, dtype: Dtype = "F32") -> dict[str, Tensor]:
    return random_lora(base.shapes, dict.fromkeys(names, rank), dtype=dtype)


def read(path: Path) -> tuple[dict[str, Any], dict[str, gguf.ReaderTensor]]:
    reader = gguf.GGUFReader(path)
    keys = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    return keys, {tensor.name: tensor for tensor in reader.tensors}


# --- the same tensors as llama.cpp's script makes -----------------------------------------------------------


def permuted(b: F32Array, n_head: int) -> F32Array:
    """`LlamaModel.permute` of llama.cpp's converter, row by row."""
    n = b.shape[0] // n_head
    order = [head * n + half * (n // 2) + i for head in range(n_head) for i in range(n // 2) for half in (0, 1)]
    return b[order]


def expected_tensors(base: str, tensors: dict[str, Tensor], layers: int) -> dict[str, F32Array]:
    expected: dict[str, F32Array] = {}
    names = {f"model.layers.{i}.{hf}": f"blk.{i}.{ours}" for i in range(layers) for hf, ours in LAYER.items()}
    for module, ours in (names | {EMBED: "token_embd", HEAD: "output"}).items():
        a, b = (tensors[name].to_f32() for name in lora_names(module))
        if base == "llama" and "q_proj" in module:
            b = permuted(b, SHAPE.n_head)
        if base == "llama" and "k_proj" in module:
            b = permuted(b, SHAPE.n_head_kv)
        expected[f"{ours}.weight.lora_a"] = a.T if module == EMBED else a
        expected[f"{ours}.weight.lora_b"] = b
    return expected


@pytest.mark.parametrize("base", ["llama", "qwen2"])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_names_shapes_and_bytes(base: str, dtype: Dtype, bases: dict[str, Base], tmp_path: Path) -> None:
    tensors = random_lora(bases[base].shapes, modules(SHAPE), dtype=dtype)
    directory = write_adapter(tmp_path / "my-adapter", tensors, as_torch=dtype == "F16", lora_alpha=24)
    report = convert_adapter(directory, bases[base].directory, tmp_path / "out.gguf", F32)
    keys, made = read(tmp_path / "out.gguf")
    assert keys == {
        "general.architecture": base,
        "general.type": "adapter",
        "adapter.type": "lora",
        "general.name": "my-adapter",
        "adapter.lora.alpha": 24.0,
        "general.quantization_version": 2,
    }
    expected = expected_tensors(base, tensors, SHAPE.n_layer)
    assert made.keys() == expected.keys()
    for name, values in expected.items():
        assert made[name].tensor_type.name == "F32"
        assert made[name].shape.tolist() == list(values.shape[::-1])
        assert made[name].data.tobytes() == values.tobytes(), name
    assert report.n_params == sum(values.size for values in expected.values())
    assert report.notes == ()


@pytest.mark.parametrize("quant", ["f32", "f16", "bf16", "q8_0"])
def test_types(quant: str, llama: Base, tmp_path: Path) -> None:
    """As the reference has it: where B's rows are no whole blocks, F16 takes the place of Q8_0."""
    tensors = random_lora(llama.shapes, {Q: 32, V: 8})
    directory = write_adapter(tmp_path / "adapter", tensors, r=32, rank_pattern={"v_proj": 8})
    predicted = predict_adapter(directory, llama.directory, FILE_TYPES[quant])
    report = convert_adapter(directory, llama.directory, tmp_path / "out.gguf", FILE_TYPES[quant])
    assert predicted.size_bytes == report.size_bytes == (tmp_path / "out.gguf").stat().st_size
    _, made = read(tmp_path / "out.gguf")
    for name, module in (("blk.0.attn_q.weight", Q), ("blk.0.attn_v.weight", V)):
        a, b = (tensors[lora_name].to_f32() for lora_name in lora_names(module))
        for letter, values in (("a", a), ("b", permuted(b, SHAPE.n_head) if module == Q else b)):
            tensor = made[f"{name}.lora_{letter}"]
            wanted = gguf.GGMLQuantizationType[quant.upper()]
            if quant == "q8_0" and values.shape[-1] == 8:
                wanted = gguf.GGMLQuantizationType.F16
            assert tensor.tensor_type == wanted
            assert tensor.data.tobytes() == quantize(values, wanted).tobytes()


def test_a_gguf_base_gives_the_same_as_its_checkpoint(bases: dict[str, Base], tmp_path: Path) -> None:
    for name in ("llama", "qwen2", "mixtral"):
        base = bases[name]
        targets = [module for module in modules(MIXTRAL if name == "mixtral" else SHAPE) if "layers.0." in module]
        directory = write_adapter(tmp_path / name, lora(base, *targets))
        convert_adapter(directory, base.directory, tmp_path / "a.gguf", F32)
        quantized = convert(base.directory, tmp_path / "base.gguf", FILE_TYPES["q4_0"]).path
        for of_base in (base.gguf, quantized):
            convert_adapter(directory, of_base, tmp_path / "b.gguf", F32)
            assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


# --- what it means ------------------------------------------------------------------------------------------


def check_meaning(
    base: Base, directory: Path, deltas: dict[str, NDArray[np.float64]], tmp_path: Path, tolerance: float = 3e-5
) -> None:
    """llama.cpp with the base and our adapter computes what it does with the merged weights."""
    adapter = convert_adapter(directory, base.directory, tmp_path / "adapter.gguf", F32).path
    assert check_adapter(adapter, base.gguf) == ()
    ours = compute_logits(base.gguf, TOKENS, adapter)
    merged = compute_logits(base.merged(tmp_path / "merged", deltas), TOKENS)
    assert np.abs(ours - merged).max() < tolerance
    assert np.abs(ours - compute_logits(base.gguf, TOKENS)).max() > 100 * tolerance


@pytest.mark.parametrize("base", ["llama", "qwen2"])
@pytest.mark.parametrize("target", [*LAYER, EMBED, HEAD])
def test_every_target_means_the_same(base: str, target: str, bases: dict[str, Base], tmp_path: Path) -> None:
    module = target if target in (EMBED, HEAD) else f"model.layers.1.{target}"
    tensors = {name: scaled(tensor, 5) for name, tensor in lora(bases[base], module).items()}
    directory = write_adapter(tmp_path / "adapter", tensors)
    check_meaning(bases[base], directory, {module: delta(tensors, module, 16 / 4)}, tmp_path)


def scaled(tensor: Tensor, factor: float) -> Tensor:
    return Tensor.rounded(tensor.to_f32() * np.float32(factor), tensor.dtype)


@pytest.mark.parametrize(
    ("config", "scales"),
    [
        ({}, {4: 16 / 4, 16: 16 / 16}),
        ({"use_rslora": True}, {4: 16 / 2, 16: 16 / 4}),
        ({"alpha_pattern": {"k_proj": 64, Q: 4}}, {4: 16 / 4, 16: 4 / 16}),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 4, "q_proj": 1000}}, {4: 16 / 4, 16: 4 / 16}),
        ({"alpha_pattern": {"proj": 3, "_proj": 5, "(.*)": 16}, "lora_alpha": 16}, None),
        ({"fan_in_fan_out": True, "bias": "all", "layers_to_transform": [0]}, {4: 16 / 4, 16: 16 / 16}),
    ],
    ids=["ranks", "rslora", "alphas", "first pattern", "no pattern", "nothing"],
)
def test_scales(config: dict[str, Any], scales: dict[int, float] | None, llama: Base, tmp_path: Path) -> None:
    """PEFT: alpha / rank, or alpha / √rank; differing scales are folded into B as long as that is exact."""
    ranks = {Q: 16, V: 4}
    tensors = random_lora(llama.shapes, ranks)
    directory = write_adapter(tmp_path / "adapter", tensors, rank_pattern={"q_proj": 16}, **config)
    if scales is None:
        refuse(directory, llama.directory, tmp_path, "(.*)")
        return
    deltas = {module: delta(tensors, module, scales[rank]) for module, rank in ranks.items()}
    check_meaning(llama, directory, deltas, tmp_path)


def test_folding_changes_no_digit(llama: Base, tmp_path: Path) -> None:
    tensors = lora(llama, Q, K, V, dtype="BF16")
    directory = write_adapter(tmp_path / "adapter", tensors, alpha_pattern={"v_proj": 2})
    convert_adapter(directory, llama.directory, tmp_path / "out.gguf", F32)
    keys, made = read(tmp_path / "out.gguf")
    assert keys["adapter.lora.alpha"] == 16
    assert (made["blk.0.attn_v.weight.lora_b"].data == tensors[lora_names(V)[1]].to_f32() / 8).all()
    assert (made["blk.0.attn_k.weight.lora_b"].data == permuted(tensors[lora_names(K)[1]].to_f32(), 2)).all()


def test_rank_stabilized_alpha(llama: Base, tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "adapter", lora(llama, Q, rank=8), r=8, use_rslora=True)
    convert_adapter(directory, llama.directory, tmp_path / "out.gguf", F32)
    assert read(tmp_path / "out.gguf")[0]["adapter.lora.alpha"] == np.float32(16 * math.sqrt(8))


def test_experts(bases: dict[str, Base], tmp_path: Path) -> None:
    base = bases["mixtral"]
    targets = [name for name in modules(MIXTRAL) if "block_sparse_moe" in name]
    tensors = {name: scaled(tensor, 3) for name, tensor in lora(base, *targets).items()}
    directory = write_adapter(tmp_path / "adapter", tensors)
    check_meaning(base, directory, {module: delta(tensors, module, 4) for module in targets}, tmp_path)
    assert read(tmp_path / "adapter.gguf")[1]["blk.0.ffn_down_exps.weight.lora_b"].shape.tolist() == [4, 64, 4]


def test_one_rank(llama: Base, tmp_path: Path) -> None:
    tensors = {name: scaled(tensor, 5) for name, tensor in lora(llama, Q, EMBED, rank=1).items()}
    directory = write_adapter(tmp_path / "adapter", tensors, r=1)
    check_meaning(llama, directory, {module: delta(tensors, module, 16) for module in (Q, EMBED)}, tmp_path)


def test_other_spellings_of_names(llama: Base, tmp_path: Path) -> None:
    """A raw state dict has the adapter's name, nested models the prefix twice, mergekit none."""
    tensors = lora(llama, Q, K, V)
    plain = write_adapter(tmp_path / "adapter", tensors)
    convert_adapter(plain, llama.directory, tmp_path / "a.gguf", F32)
    for number, change in enumerate(
        (
            lambda name: name.replace(".weight", ".default.weight"),
            lambda name: PREFIX + name,
            lambda name: name.removeprefix(PREFIX),
        )
    ):
        other = write_adapter(
            tmp_path / str(number) / "adapter", {change(name): tensor for name, tensor in tensors.items()}
        )
        convert_adapter(other, llama.directory, tmp_path / "b.gguf", F32)
        assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_copy_of_the_embeddings_is_left_out(llama: Base, tmp_path: Path) -> None:
    """PEFT saves the base's embeddings along where they are adapted."""
    tensors = lora(llama, EMBED)
    plain = write_adapter(tmp_path / "a" / "adapter", tensors)
    copy = {f"{PREFIX}{EMBED}.base_layer.weight": Tensor.rounded(llama.weights[f"{EMBED}.weight"], "F32")}
    with_copy = write_adapter(tmp_path / "b" / "adapter", tensors | copy)
    for directory in (plain, with_copy):
        convert_adapter(directory, llama.directory, directory / "out.gguf", F32)
    assert (plain / "out.gguf").read_bytes() == (with_copy / "out.gguf").read_bytes()


def test_another_name_of_the_base_is_a_note(llama: Base, tmp_path: Path) -> None:
    for name, is_noted in (("meta-llama/Llama", False), ("C:\\models\\LLAMA\\", False), ("mistralai/Mistral-7B", True)):
        directory = write_adapter(tmp_path / "adapter", lora(llama, Q), base_model_name_or_path=name)
        notes = predict_adapter(directory, llama.directory, F32).notes
        assert [name in note for note in notes] == [True] * is_noted


# --- the command --------------------------------------------------------------------------------------------


def test_the_command(llama: Base, tmp_path: Path, run: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    directory = write_adapter(tmp_path / "mine", lora(llama, Q), base_model_name_or_path="someone/other-model")
    predicted = predict_adapter(directory, llama.gguf, F32)
    result = run("quantize", "mine", "--base", llama.gguf, "--json")
    assert result.returncode == 0
    made = json.loads(result.stdout)
    assert made["path"] == "mine-f32.gguf"
    assert made["size_bytes"] == predicted.size_bytes == Path("mine-f32.gguf").stat().st_size
    assert made["tensor_types"] == {"F32": 2}
    assert made["n_params"] == 4 * (64 + 64)
    assert made["notes"] == list(predicted.notes)
    assert "someone/other-model" in made["notes"][0]
    assert "someone/other-model" in result.stderr
    convert_adapter(directory, llama.directory, tmp_path / "f16.gguf", FILE_TYPES["f16"])
    quantize_to_f16 = ("quantize", "mine", "--base", llama.directory, "--quant", "f16", "-o", "own.gguf")
    assert f"{Path('f16.gguf').stat().st_size:,} bytes" in run(*quantize_to_f16, "--dry-run").stdout
    assert not Path("own.gguf").exists()
    assert "llamachat chat MODEL --adapter ./own.gguf" in run(*quantize_to_f16).stderr
    assert Path("own.gguf").read_bytes() == Path("f16.gguf").read_bytes()


def test_what_the_command_refuses(llama: Base, tmp_path: Path, run: RunCommand) -> None:
    directory, out = write_adapter(tmp_path / "mine", lora(llama, Q)), tmp_path / "out.gguf"
    result = run("quantize", directory, "-o", out)
    assert result.returncode == 1
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["Error", "Next"]
    assert "without the model it was trained on" in result.stderr
    assert run("quantize", llama.directory, "-o", out).returncode == 2
    base = str(llama.directory)
    for request, says in (
        (QuantizeRequest(directory, "f32", out, base=base, pure=True), "all get one type"),
        (QuantizeRequest(directory, "f32", out, base="no-such-model"), "no-such-model"),
        (QuantizeRequest(llama.directory, "f16", out, base=base), "is not an adapter"),
    ):
        with pytest.raises(LlamachatError, match=says):
            run_conversion(request, lambda _done, _total: None)
    assert not out.exists()


# --- what is refused ----------------------------------------------------------------------------------------


def refuse(directory: Path, base: Path, tmp_path: Path, *words: str, quant: str = "f32") -> QuantizeError:
    """Convert, which must fail in one sentence with all `words`, and leave no trace."""
    out_path = tmp_path / "out" / "adapter.gguf"
    out_path.parent.mkdir(exist_ok=True)
    out_path.write_bytes(OLD_CONTENT)
    with pytest.raises(QuantizeError) as caught:
        convert_adapter(directory, base, out_path, FILE_TYPES[quant], n_threads=1)
    assert list(out_path.parent.iterdir()) == [out_path]
    assert out_path.read_bytes() == OLD_CONTENT
    check_sentence(caught.value, *words)
    return caught.value


def check_sentence(error: QuantizeError, *words: str) -> None:
    assert str(error).isprintable()
    assert len(str(error)) < 500
    assert error.next_step
    for word in words:
        assert word in str(error)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_dora": True}, ["DoRA", "use_dora"]),
        ({"use_qalora": True}, ["use_qalora"]),
        ({"use_bdlora": {"nblocks": 2}}, ["use_bdlora"]),
        ({"use_something_new": True}, ["use_something_new"]),
        ({"lora_bias": True}, ["lora_bias"]),
        ({"alora_invocation_tokens": [1, 2]}, ["aLoRA"]),
        ({"layer_replication": [[0, 2], [1, 2]]}, ["layer_replication"]),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, ["target_parameters"]),
        ({"trainable_token_indices": [1]}, ["trainable_token_indices"]),
        ({"peft_type": "IA3"}, ["IA3"]),
        ({"peft_type": None}, ["None"]),
        ({"init_lora_weights": "pissa_niter_4"}, ["pissa_niter_4"]),
        ({"init_lora_weights": "loftq"}, ["loftq"]),
        ({"init_lora_weights": {}}, ["init_lora_weights"]),
        ({"alpha_pattern": {"v_proj": 24}}, ["16", "24"]),
        ({"alpha_pattern": {"v_proj": 1e-20}}, ["1e-20"]),
        ({"alpha_pattern": {"v_proj|q_proj": 32}}, ["v_proj|q_proj"]),
        ({"alpha_pattern": {"v_proj": "32"}}, ["alpha_pattern"]),
        ({"alpha_pattern": [1]}, ["alpha_pattern"]),
        ({"rank_pattern": {"v_proj": -1}}, ["rank"]),
        ({"rank_pattern": "v_proj"}, ["rank_pattern"]),
        ({"r": 8}, ["rank 4"]),
        ({"r": None}, ["rank"]),
        ({"r": 4, "rank_pattern": {"v_proj": 2**31}}, ["rank"]),
        ({"lora_alpha": 0}, ["lora_alpha"]),
        ({"lora_alpha": float("nan")}, ["lora_alpha"]),
        ({"lora_alpha": 10**400}, ["lora_alpha"]),
        ({"lora_alpha": None}, ["lora_alpha"]),
    ],
    ids=str,
)
def test_configs_that_cannot_be_expressed(
    config: dict[str, Any], words: list[str], llama: Base, tmp_path: Path
) -> None:
    refuse(write_adapter(tmp_path / "adapter", lora(llama, Q, V, K), **config), llama.directory, tmp_path, *words)


def test_rank_stabilized_scales_that_differ_by_a_root(llama: Base, tmp_path: Path) -> None:
    tensors = random_lora(llama.shapes, {Q: 4, V: 8})
    directory = write_adapter(tmp_path / "adapter", tensors, use_rslora=True, rank_pattern={"v_proj": 8})
    refuse(directory, llama.directory, tmp_path, "scales its modules differently")


def zeros(*shape: int) -> Tensor:
    return Tensor("F32", np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({f"{PREFIX}{Q}.lora_magnitude_vector": zeros(64)}, ["DoRA"]),
        ({f"{PREFIX}{Q}.bias": zeros(64)}, ["is a trained bias"]),
        ({f"{PREFIX}{Q}.lora_B.bias": zeros(64)}, ["is a trained bias"]),
        ({f"{PREFIX}model.norm.weight": zeros(64)}, ["model.norm.weight", "is a trained norm"]),
        ({f"{PREFIX}{HEAD}.weight": zeros(600, 64)}, ["lm_head.weight", "was saved whole"]),
        ({f"{PREFIX}{HEAD}.modules_to_save.default.weight": zeros(600, 64)}, ["was saved whole"]),
        ({f"{PREFIX}{HEAD}.weight": zeros(605, 64)}, ["605", "600", "vocabulary"]),
        ({f"{PREFIX}{EMBED}.weight": zeros(605, 64)}, ["605", "600", "vocabulary"]),
        ({f"{PREFIX}{EMBED}.modules_to_save.weight": zeros(605, 64)}, ["605", "600", "vocabulary"]),
        ({f"{PREFIX}{EMBED}.base_layer.weight": zeros(605, 64)}, ["605", "600", "vocabulary"]),
        (dict(zip(lora_names(EMBED), (zeros(4, 605), zeros(64, 4)), strict=True)), ["605", "600", "vocabulary"]),
        (dict(zip(lora_names(HEAD), (zeros(4, 64), zeros(605, 4)), strict=True)), ["605", "600", "vocabulary"]),
        ({f"{PREFIX}score.weight": zeros(2, 64)}, ["score.weight"]),
        ({lora_names(K)[0]: zeros(4, 64)}, ["has no lora_B"]),
        ({lora_names(K)[1]: zeros(32, 4)}, ["has no lora_A"]),
        ({f"{PREFIX}{EMBED}.lora_embedding_A": zeros(4, 600)}, ["has no lora_B"]),
        ({f"{PREFIX}{Q}.lora_A.default.weight": zeros(4, 64)}, ["stands twice"]),
        (dict(zip(lora_names(K), (zeros(4, 64), zeros(64, 4)), strict=True)), ["[64, 4]", "[32, 64]"]),
        (dict(zip(lora_names(K), (zeros(4, 60), zeros(32, 4)), strict=True)), ["[4, 60]", "[32, 64]"]),
        (dict(zip(lora_names(K), (zeros(4, 64), zeros(32, 5)), strict=True)), ["no rank in common"]),
        (dict(zip(lora_names(K), (zeros(64), zeros(32, 4)), strict=True)), ["no rank in common"]),
        (dict(zip(lora_names(K), (zeros(64, 4, 64), zeros(32, 4)), strict=True)), ["no rank in common"]),
        (dict(zip(lora_names(Q.replace("0", "2")), (zeros(4, 64), zeros(64, 4)), strict=True)), ["does not"]),
        (dict(zip(lora_names("model.norm"), (zeros(4, 64), zeros(64, 4)), strict=True)), ["model.norm", "does not"]),
        (
            {f"{PREFIX}{EMBED}.lora_A.weight": zeros(4, 64), f"{PREFIX}{EMBED}.lora_B.weight": zeros(600, 4)},
            ["form for embeddings"],
        ),
        ({f"{PREFIX}{V}.lora_embedding_{letter}": zeros(4, 4) for letter in "AB"}, ["form for embeddings"]),
        ({"base_model.model." * 100_000 + "x": zeros(1)}, ["neither"]),
        ({"a.lora_A" * 100_000: zeros(1)}, ["neither"]),
    ],
)  # fmt: skip
def test_tensors_that_have_no_place(extra: dict[str, Tensor], words: list[str], llama: Base, tmp_path: Path) -> None:
    refuse(write_adapter(tmp_path / "adapter", lora(llama, Q) | extra), llama.directory, tmp_path, *words)


@pytest.mark.parametrize("module", [EMBED, HEAD])
@pytest.mark.parametrize("of_gguf", [False, True])
def test_embeddings_that_are_the_output_as_well(
    module: str, of_gguf: bool, bases: dict[str, Base], tmp_path: Path
) -> None:
    """PEFT adapts one of them, llama.cpp has one matrix for both, and aborts."""
    tensors = random_lora({"lm_head.weight": (600, 64), f"{EMBED}.weight": (600, 64)}, {module: 4})
    base = bases["tied"].gguf if of_gguf else bases["tied"].directory
    refuse(write_adapter(tmp_path / "adapter", tensors), base, tmp_path, "one matrix", module)
    whole = {f"{PREFIX}lm_head.weight": zeros(600, 64)}
    refuse(write_adapter(tmp_path / "whole", lora(bases["tied"], Q) | whole), base, tmp_path, "lm_head")


def test_some_experts(bases: dict[str, Base], tmp_path: Path) -> None:
    names = [f"model.layers.0.block_sparse_moe.experts.{i}.w1" for i in range(4)]
    shapes = bases["mixtral"].shapes
    base = bases["mixtral"].directory
    refuse(write_adapter(tmp_path / "a", random_lora(shapes, dict.fromkeys(names[:3], 4))), base, tmp_path, "3 of 4")
    different = random_lora(shapes, dict.fromkeys(names[:3], 4) | {names[3]: 8})
    refuse(write_adapter(tmp_path / "b", different, rank_pattern={names[3]: 8}), base, tmp_path, "differs from")
    for number in ("4", "00", "99999999999", "-1"):
        other = {
            name.replace("experts.0", f"experts.{number}"): t for name, t in lora(bases["mixtral"], names[0]).items()
        }
        refuse(write_adapter(tmp_path / number, other), base, tmp_path, "does not have")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("letter", [0, 1])
@pytest.mark.parametrize("module", [Q, V, EMBED])
def test_weights_that_are_no_numbers(value: float, letter: int, module: str, llama: Base, tmp_path: Path) -> None:
    tensors = lora(llama, Q, V, EMBED)
    name = lora_names(module)[letter]
    tensors[name].data[-1, -1] = value
    for changes in ({}, {"alpha_pattern": {"v_proj": 32}}):
        directory = write_adapter(tmp_path / "adapter", tensors, **changes)
        refuse(directory, llama.directory, tmp_path, name, "NaN or infinite")


def test_values_too_large_for_the_type(llama: Base, tmp_path: Path) -> None:
    tensors = lora(llama, Q)
    tensors[lora_names(Q)[1]].data[0, 0] = 1e6
    directory = write_adapter(tmp_path / "adapter", tensors)
    refuse(directory, llama.directory, tmp_path, "lora_B", "too large for F16", quant="f16")


@pytest.mark.parametrize("quant", ["q4_k_m", "q6_k", "q4_0"])
def test_quants_for_models_only(quant: str, llama: Base, tmp_path: Path) -> None:
    error = refuse(write_adapter(tmp_path / "adapter", lora(llama, Q)), llama.directory, tmp_path, quant, quant=quant)
    assert "f32, f16, bf16, q8_0" in error.next_step


def test_bases_that_are_none(bases: dict[str, Base], tmp_path: Path) -> None:
    llama = bases["llama"]
    directory = write_adapter(tmp_path / "adapter", lora(llama, Q))
    own = convert_adapter(directory, llama.directory, tmp_path / "own.gguf", F32).path
    refuse(directory, tmp_path / "missing", tmp_path, "missing")
    refuse(directory, directory, tmp_path, "config.json", "is missing")
    refuse(directory, own, tmp_path, "is not a model")
    (tmp_path / "text.gguf").write_text("hello")
    refuse(directory, tmp_path / "text.gguf", tmp_path, "is not a GGUF file")
    other = Path(shutil.copytree(llama.directory, tmp_path / "other"))
    (other / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    refuse(directory, other, tmp_path, "GPT2LMHeadModel")
    refuse(directory, bases["mixtral"].gguf.with_suffix(".txt"), tmp_path, "missing")
    whole = bases["qwen2"].gguf.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    refuse(directory, tmp_path / "cut.gguf", tmp_path, "past the end of the file")


def test_files_that_are_damaged(llama: Base, tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "adapter", lora(llama, Q))
    assert is_adapter(directory)
    assert not is_adapter(llama.directory)
    weights, config = directory / WEIGHTS, directory / "adapter_config.json"
    good, good_config = weights.read_bytes(), config.read_text()
    for content in (b"", good[:100], good[:-1], good + b"x"):
        weights.write_bytes(content)
        refuse(directory, llama.directory, tmp_path, WEIGHTS)
    write_safetensors(weights, {})
    refuse(directory, llama.directory, tmp_path, "holds no LoRA tensors")
    weights.unlink()
    refuse(directory, llama.directory, tmp_path, "neither adapter_model.safetensors nor adapter_model.bin")
    weights.write_bytes(good)
    for text in ("", "[]", "{", "[" * 100_000, good_config.replace("LORA", "L\\u0000")):
        config.write_text(text)
        refuse(directory, llama.directory, tmp_path)
    shutil.rmtree(directory)
    refuse(directory, llama.directory, tmp_path, "adapter_config.json", "is missing")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files(data: st.DataObject, llama: Base, tmp_path: Path) -> None:
    """Bytes changed anywhere in config or header end in a file that llama.cpp would take, or in one clear sentence."""
    directory = write_adapter(tmp_path / "adapter", lora(llama, Q, EMBED))
    path = directory / data.draw(st.sampled_from([WEIGHTS, "adapter_config.json"]))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, min(len(content), 1200) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        convert_adapter(directory, llama.directory, tmp_path / "out.gguf", F32, n_threads=1)
        check_adapter(tmp_path / "out.gguf", llama.gguf)
    except QuantizeError as error:
        check_sentence(error)
