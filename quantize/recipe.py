"""Which tensor gets which type: the mix behind a file type such as Q4_K_M.

The rules are llama.cpp's (`llama_tensor_get_type_impl` and `tensor_type_fallback` in src/llama-quant.cpp), for
the architectures handled here; `tests/test_quantize_exact.py` holds them to it byte for byte.
Pure functions over names and shapes: no weights, no files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from quantize.choices import Choices
from quantize.errors import BadTensorType, UnknownFileType

QType = GGMLQuantizationType

DEFAULT_FILE_TYPE = "q4_k_m"


@dataclass(frozen=True)
class FileType:
    """A mix users can ask for: its name in lower case, llama.cpp's number for it, and its main tensor type."""

    name: str
    ftype: LlamaFileType
    default: QType
    bits_per_weight: float
    """About what a whole 7B file comes to."""
    advice: str

    @property
    def is_quantized(self) -> bool:
        """Whether the main type is a block format (as opposed to plain numbers)."""
        return GGML_QUANT_SIZES[self.default][0] > 1


_FT = LlamaFileType

FILE_TYPES: dict[str, FileType] = {
    file_type.name: file_type
    for file_type in (
        FileType("f32", _FT.ALL_F32, QType.F32, 32.0, "full precision: for checking, not for use"),
        FileType("f16", _FT.MOSTLY_F16, QType.F16, 16.0, "the weights as published, or nearly"),
        FileType(
            "bf16", _FT.MOSTLY_BF16, QType.BF16, 16.0, "the weights of most models as published; slower on some CPUs"
        ),
        FileType("q8_0", _FT.MOSTLY_Q8_0, QType.Q8_0, 8.5, "8 bit: not told apart from f16 in use"),
        FileType("q6_k", _FT.MOSTLY_Q6_K, QType.Q6_K, 6.6, "nearly as good as q8_0, a quarter smaller"),
        FileType("q5_k_m", _FT.MOSTLY_Q5_K_M, QType.Q5_K, 5.7, "a little better than q4_k_m, if it fits"),
        FileType("q5_k_s", _FT.MOSTLY_Q5_K_S, QType.Q5_K, 5.5, "q5_k_m without its extra bits"),
        FileType("q5_1", _FT.MOSTLY_Q5_1, QType.Q5_1, 6.0, "older; prefer q5_k_m"),
        FileType("q5_0", _FT.MOSTLY_Q5_0, QType.Q5_0, 5.5, "older; prefer q5_k_s"),
        FileType("q4_k_m", _FT.MOSTLY_Q4_K_M, QType.Q4_K, 4.9, "4 bit where it does no harm: the default"),
        FileType("q4_k_s", _FT.MOSTLY_Q4_K_S, QType.Q4_K, 4.6, "q4_k_m without most of its extra bits"),
        FileType(
            "iq4_nl", _FT.MOSTLY_IQ4_NL, QType.IQ4_NL, 4.7, "4 bit on a curve: for shapes that iq4_xs does not fit"
        ),
        FileType("iq4_xs", _FT.MOSTLY_IQ4_XS, QType.IQ4_XS, 4.4, "the smallest good 4 bit; slower on some CPUs"),
        FileType("q4_1", _FT.MOSTLY_Q4_1, QType.Q4_1, 5.1, "older; prefer q4_k_m"),
        FileType("q4_0", _FT.MOSTLY_Q4_0, QType.Q4_0, 4.6, "plain 4 bit: fastest on some machines, coarser"),
        FileType("q3_k_l", _FT.MOSTLY_Q3_K_L, QType.Q3_K, 4.3, "3 bit: when 4 does not fit; answers get worse"),
        FileType("q3_k_m", _FT.MOSTLY_Q3_K_M, QType.Q3_K, 3.9, "3 bit, smaller"),
        FileType("q3_k_s", _FT.MOSTLY_Q3_K_S, QType.Q3_K, 3.5, "3 bit, smallest"),
        FileType("q2_k", _FT.MOSTLY_Q2_K, QType.Q2_K, 3.2, "2 bit: the last resort"),
    )
}


def find_file_type(name: str) -> FileType:
    """Look a file type up by name, in any case; raise `UnknownFileType` with the known names otherwise."""
    try:
        return FILE_TYPES[name.lower()]
    except KeyError:
        raise UnknownFileType(name, list(FILE_TYPES)) from None


@dataclass(frozen=True)
class ModelTraits:
    """What the rules need to know of a model besides its tensors."""

    n_layer: int
    n_head: int
    n_head_kv: int
    n_expert: int = 0
    architecture: str = "llama"
    """Its name in GGUF."""

    @property
    def is_70b(self) -> bool:
        """llama.cpp's LLM_TYPE_70B: 80 layers, and in `llama` grouped-query attention, too.

        Source: `load_arch_hparams` in llama.cpp's src/models.
        """
        if self.architecture == "llama":
            return self.n_layer == 80 and self.n_head != self.n_head_kv
        return self.n_layer == 80 and self.architecture in ("qwen2", "deci", "olmo")


def tensor_types(
    shapes: Mapping[str, Sequence[int]],
    file_type: FileType,
    traits: ModelTraits,
    *,
    stored: Mapping[str, QType] | None = None,
    choices: Choices | None = None,
    has_imatrix: bool = False,
) -> dict[str, QType]:
    """Choose the type of every tensor.

    `shapes` maps GGUF tensor names to shapes with the row length last (NumPy order). Tensors that llama.cpp
    never quantizes (vectors, norms, routers) stay F32, or what they are where `stored` says it. `has_imatrix`: with an
    importance matrix some mixes differ, whatever it knows of a tensor.
    """
    tied = "output.weight" not in shapes
    n_attn_v = sum(_kind(name) == "attn_v" for name in shapes)
    types: dict[str, QType] = {}
    choices = choices or Choices()
    n_mixed: Counter[str] = Counter()  # as in llama.cpp, tensors whose type was chosen do not count
    for name in sorted(shapes, key=llama_cpp_order):
        kind, n_columns = _kind(name), shapes[name][-1]
        if not _may_quantize(name, shapes[name]):
            types[name] = stored[name] if stored else QType.F32
        elif (chosen := _chosen_outright(name, n_columns, choices)) is not None:
            types[name] = chosen
        elif not file_type.is_quantized:
            types[name] = file_type.default
        elif (override := choices.override(name)) is not None:
            types[name] = _fit_columns(override, n_columns)
        elif choices.pure:
            types[name] = _fit_columns(file_type.default, n_columns)
        elif name == "output.weight" or (tied and name == "token_embd.weight"):
            types[name] = _fit_columns(choices.output_type or _output_type(file_type.default, n_columns), n_columns)
        else:
            n = n_attn_v if kind == "attn_v" else traits.n_layer
            # With experts llama.cpp reads the layer of these from the name instead of counting.
            i = llama_cpp_order(name)[0] if traits.n_expert > 1 and kind.startswith("ffn_") else n_mixed[kind]
            place = _Place(i, n, traits.n_head // traits.n_head_kv, has_imatrix)
            types[name] = _fit_columns(_mixed_type(file_type, kind, place, traits), n_columns)
            n_mixed[kind] += 1
    return types


def _chosen_outright(name: str, n_columns: int, choices: Choices) -> QType | None:
    """The type chosen for the embeddings or the output, which has to fit as it is."""
    wanted = {"token_embd.weight": choices.embedding_type, "output.weight": choices.output_type}.get(name)
    if wanted is not None and n_columns % GGML_QUANT_SIZES[wanted][0]:
        problem = f"{name} cannot be {wanted.name}: its rows of {n_columns} are not whole blocks."
        raise BadTensorType(problem, "Choose a type with blocks of 32, such as q8_0, or f16.")
    return wanted


def _kind(name: str) -> str:
    """Return what a tensor is, whatever its layer and number of experts, such as attn_v or ffn_down."""
    return name.removesuffix(".weight").rpartition(".")[2].removesuffix("_exps")


def llama_cpp_order(name: str) -> tuple[int, str]:
    """Sort key of llama.cpp's loader: tensors outside the layers first, then layer by layer, by name."""
    match = re.match(r"blk\.(\d+)\.", name)
    return (int(match[1]) if match else -1, name)


_NEVER_QUANTIZED = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid\.weight|altup|laurel|per_layer_model_proj|^position_embd\.weight"
    r"|^token_types\.weight|ssm_conv1d|shortconv\.conv\.weight|indexer\.[kq]_proj\.weight|attn_rel_b\.weight"
    r"|time_mix_(?:first|w[012]|v[012]|a[012]|g[12]|decay_w[12]|lerp_fused)\.weight"
    r"|\.position_embd|sam\.pos_embd|sam\.neck\.|sam\.net_|\.rel_pos|\.patch_embd|\.patch_merger|a\.rvq\.codebook|mm\.a\.code_embd"
)
"""`tensor_allows_quantization` of llama.cpp."""


def _may_quantize(name: str, shape: Sequence[int]) -> bool:
    return len(shape) >= 2 and name.endswith("weight") and not _NEVER_QUANTIZED.search(name)


_COVERED_KINDS = frozenset(
    ("token_embd", "output", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
)


def is_covered(name: str, shape: Sequence[int]) -> bool:
    """Whether the mixes below know what to do with a tensor.

    A model all of whose tensors are covered gets llama.cpp's types. That is sure of `llama`, `qwen2` and `qwen3`
    without experts; merged Q, K and V (phi3, falcon, gpt2) and experts are not covered.
    """
    is_plain = len(shape) == 2 and "_exps" not in name
    return not _may_quantize(name, shape) or (is_plain and _kind(name) in _COVERED_KINDS)


def _output_type(default: QType, n_columns: int) -> QType:
    """The output matrix (or the embeddings, when they serve as such) is worth more bits."""
    if default == QType.Q8_0 or n_columns % GGML_QUANT_SIZES[default][0]:
        return QType.Q8_0
    return QType.Q6_K


@dataclass(frozen=True)
class _Place:
    """Where in the model a tensor stands: the `i`-th of `n` of its kind."""

    i: int
    n: int
    n_gqa: int
    has_imatrix: bool


def _always(_: _Place) -> bool:
    return True


def _wide_groups(place: _Place) -> bool:
    return place.n_gqa >= 4


def _first_eighth(place: _Place) -> bool:
    return place.i < place.n // 8


def _first_eighth_unweighted(place: _Place) -> bool:
    return _first_eighth(place) and not place.has_imatrix


def _first_eighth_weighted(place: _Place) -> bool:
    return _first_eighth(place) and place.has_imatrix


def _more_bits(place: _Place) -> bool:
    """The first and last eighth of the layers, and every third one between."""
    i, n = place.i, place.n
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


_Rule = tuple[str, Callable[[_Place], bool], QType]

_RULES: dict[str, tuple[_Rule, ...]] = {
    "q2_k": (
        ("attn_v", _wide_groups, QType.Q4_K),
        ("attn_v", _always, QType.Q3_K),
        ("ffn_down", _always, QType.Q3_K),
        ("attn_output", _always, QType.Q3_K),
    ),
    "q3_k_m": (
        ("attn_v", lambda place: place.i < 2, QType.Q5_K),
        ("attn_v", _always, QType.Q4_K),
        ("ffn_down", lambda place: place.i < place.n // 16, QType.Q5_K),
        ("ffn_down", _always, QType.Q4_K),
        ("attn_output", _always, QType.Q4_K),
    ),
    "q3_k_l": (
        ("attn_v", _always, QType.Q5_K),
        ("ffn_down", _always, QType.Q5_K),
        ("attn_output", _always, QType.Q5_K),
    ),
    "q4_k_s": (
        ("attn_v", lambda place: place.i < 4, QType.Q5_K),
        ("ffn_down", _first_eighth, QType.Q5_K),
    ),
    "q4_k_m": (("attn_v", _more_bits, QType.Q6_K), ("ffn_down", _more_bits, QType.Q6_K)),
    "q5_k_m": (("attn_v", _more_bits, QType.Q6_K), ("ffn_down", _more_bits, QType.Q6_K)),
    "iq4_nl": (("attn_v", _wide_groups, QType.Q5_K), ("ffn_down", _first_eighth_unweighted, QType.Q5_K)),
    "iq4_xs": (("attn_v", _wide_groups, QType.Q5_K), ("ffn_down", _first_eighth_unweighted, QType.Q5_K)),
    "q4_0": (("ffn_down", _first_eighth_weighted, QType.Q4_1),),
    "q5_0": (("ffn_down", _first_eighth_weighted, QType.Q5_1),),
}
"""For each mix, which tensors get another type than the main one; the first rule that holds counts."""


_EIGHT_EXPERTS_Q5_K = frozenset({"q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m", "iq4_nl", "iq4_xs"})


def _attention_of_eight_experts(file_type: FileType, kind: str) -> QType | None:
    """Next to eight feed-forward nets the attention is small, so more bits cost little; None leaves the type."""
    if kind in ("attn_v", "attn_k"):
        return QType.Q8_0
    if kind == "attn_output":
        return QType.Q5_K if file_type.name in _EIGHT_EXPERTS_Q5_K else file_type.default
    return None


def _mixed_type(file_type: FileType, kind: str, place: _Place, traits: ModelTraits) -> QType:
    if traits.n_expert == 8 and (qtype := _attention_of_eight_experts(file_type, kind)) is not None:
        return qtype
    chosen = file_type.default
    for rule_kind, holds, qtype in _RULES.get(file_type.name, ()):
        if rule_kind == kind and holds(place):
            chosen = qtype
            break
    if kind == "attn_v" and traits.is_70b and chosen in (QType.Q3_K, QType.Q4_K):
        return QType.Q5_K  # eight heads share these weights, so more bits cost little
    return chosen


_NARROWER = {
    QType.Q2_K: QType.Q4_0,
    QType.Q3_K: QType.Q4_0,
    QType.Q4_K: QType.Q5_0,
    QType.Q5_K: QType.Q5_1,
    QType.Q6_K: QType.Q8_0,
    QType.IQ4_XS: QType.IQ4_NL,
}


def _fit_columns(qtype: QType, n_columns: int) -> QType:
    """Fall back to a type whose block divides the row length: 256 → 32 columns, and F16 if even that fails."""
    if n_columns % GGML_QUANT_SIZES[qtype][0] == 0:
        return qtype
    narrower = _NARROWER.get(qtype, qtype)
    return narrower if n_columns % GGML_QUANT_SIZES[narrower][0] == 0 else QType.F16
