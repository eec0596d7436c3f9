"""`llamachat quantize`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamachat.cli.format import parameters, size
from llamachat.cli.output import out

if TYPE_CHECKING:
    from llamachat.models.conversion import ConversionReport, Prediction


def _print_types(wanted: bool) -> None:
    if not wanted:
        return
    from llamachat.models.conversion import file_types

    rows = [(kind.name, f"{kind.bits_per_weight:.1f}", kind.advice) for kind in file_types()]
    out.table(("quant", ">bits per weight", "advice"), rows)
    out.note("When in doubt: q4_k_m; q8_0 if it fits in memory. Larger models lose less by the same quant.")
    raise typer.Exit


def quantize(
    source: Annotated[
        Path,
        typer.Argument(
            help="A checkpoint directory (Hugging Face's or Meta's), a PEFT adapter's, or a GGUF at F32, F16, BF16."
        ),
    ],
    quant: Annotated[
        str | None, typer.Option(help="q4_k_m, q8_0, f16, …; all of them: --types. Adapters: f32 by default.")
    ] = None,
    out_path: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file to make; default: SOURCE-QUANT.gguf, here.")
    ] = None,
    base: Annotated[str | None, typer.Option(metavar="MODEL", help="The model that an adapter was trained on.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: the cores this process may use.")] = None,
    requantize: Annotated[bool, typer.Option("--requantize", help="Take a quantized GGUF; loses twice.")] = False,
    tensor_type: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN=TYPE", help="Tensors with PATTERN in the name; repeatable.")
    ] = None,
    output_type: Annotated[str | None, typer.Option(help="The type of the output matrix.")] = None,
    embedding_type: Annotated[str | None, typer.Option(help="The type of the embeddings.")] = None,
    pure: Annotated[bool, typer.Option("--pure", help="One type for all tensors instead of a mix.")] = False,
    pre_tokenizer: Annotated[str | None, typer.Option(help="llama.cpp's name for one that is not recognized.")] = None,
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An importance matrix of this model, .gguf or .dat.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would come to, to the byte.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    _types: Annotated[
        bool, typer.Option("--types", is_eager=True, callback=_print_types, help="List the quants and exit.")
    ] = False,
) -> None:
    r"""Convert and quantize weights that are on this machine to a GGUF file, outside the store.

    \b
    Examples:
      llamachat quantize ./my-fine-tune --quant q4_k_m
      llamachat quantize ./my-fine-tune --quant q8_0 -o my.gguf --threads 4
      llamachat quantize ./my-fine-tune --quant q4_k_m --dry-run
      llamachat quantize ./Meta-Llama-3-8B --quant q4_k_m      (consolidated.00.pth, params.json, tokenizer.model)
      llamachat quantize ./model-f16.gguf --quant q5_k_m
      llamachat quantize ./model-f16.gguf --quant q4_k_m --tensor-type 'attn_[kv]=q8_0' --output-type q8_0
      llamachat quantize ./my-lora --base ./my-model -o my-lora.gguf
      llamachat quantize ./my-fine-tune --quant iq4_xs --imatrix imatrix.gguf
      llamachat quantize --types
    """
    from llamachat.cli.progress import pull_progress
    from llamachat.models.conversion import QuantizeRequest, default_quant, predict, run

    if (quant := quant or default_quant(source)) is None:
        raise typer.BadParameter("--quant says which file to make, for example q4_k_m; all of them: --types.")
    mix = (requantize, tensor_type or (), output_type, embedding_type, pure, pre_tokenizer, imatrix)
    request = QuantizeRequest(source, quant, out_path, threads, force, base, *mix)
    if dry_run:
        _say_prediction(predict(request), as_json)
        return
    with pull_progress() as progress:
        report = run(request, lambda done, total: progress("quantize", done, total))
    _say_report(report, as_json, is_adapter=base is not None)


def _say_prediction(prediction: Prediction, as_json: bool) -> None:
    for note in prediction.notes:
        out.warning(note)
    if as_json:
        out.json(_as_json(prediction) | {"dry_run": True})
        return
    out.text(f"{prediction.file_type.name}: {_in_words(prediction)}.")
    out.table(("type", ">tensors"), [(name, str(n)) for name, n in prediction.tensor_types.items()])


def _say_report(report: ConversionReport, as_json: bool, *, is_adapter: bool) -> None:
    for note in report.notes:
        out.warning(note)
    if as_json:
        made = {"sha256": report.sha256, "elapsed_s": round(report.elapsed_s, 3)}
        out.json({"path": str(report.path)} | _as_json(report) | made)
        return
    out.text(f"{report.path}: {_in_words(report)}, in {report.elapsed_s:.1f} s.")
    path = shlex.quote(_as_argument(report.path))
    out.note(f"Talk to it: llamachat chat {f'MODEL --adapter {path}' if is_adapter else path}")


def _in_words(result: Prediction) -> str:
    exact = f"{size(result.size_bytes)} ({result.size_bytes:,} bytes)"
    weighted = f", {result.n_weighted} tensors weighted by importance" if result.n_weighted else ""
    bits = f"{result.bits_per_weight:.2f} bits per weight"
    return f"{exact}, {parameters(result.n_params)} parameters, {bits}{weighted}"


def _as_json(result: Prediction) -> dict[str, object]:
    return {
        "quant": result.file_type.name,
        "architecture": result.architecture,
        "size_bytes": result.size_bytes,
        "n_params": result.n_params,
        "bits_per_weight": round(result.bits_per_weight, 4),
        "tensor_types": dict(result.tensor_types),
        "notes": list(result.notes),
        "n_weighted": result.n_weighted,
    }


def _as_argument(path: Path) -> str:
    """A path that cannot be taken for a model's name."""
    return str(path) if path.is_absolute() or len(path.parts) > 1 else f"./{path}"
