"""One pass against two steps: this converter and llama.cpp's, on the same checkpoint in one run.

The peer is `convert_hf_to_gguf.py` followed by `llama_model_quantize` (what the llama-quantize tool calls); it runs
only with --llama-cpp, the unpacked source package of llama-cpp-python, and needs torch and transformers. Each side
runs in a process of its own, so that peak resident memory is its own too. The sides take turns; the ratio is that of
the fastest run of each, the one that other work and a cold page cache disturbed least, and all times are shown.

    python benchmarks/quantize.py CHECKPOINT [--quants q4_k_m q8_0 q4_0 f16] [--rounds 3] [--llama-cpp DIR]
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.pop(0)  # the directory of this file, which would shadow the library of the same name

_DIRECT = {"f16": "f16", "q8_0": "q8_0"}
"""Types the peer's converter writes by itself, in one step."""


def ours(checkpoint: Path, quant: str, out: Path) -> None:
    """Run in a child: convert, and print the peak resident memory in MB."""
    from quantize import convert, find_file_type

    convert(checkpoint, out, find_file_type(quant))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def their_quantize(source: Path, quant: str, out: Path) -> None:
    """Run in a child: llama_model_quantize."""
    import llama_cpp

    from quantize import find_file_type

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = find_file_type(quant).ftype, os.cpu_count() or 1
    llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def _timed(command: list[str]) -> tuple[float, str]:
    started = time.monotonic()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.monotonic() - started, done.stdout.strip()


def _child(function: str, *arguments: object) -> tuple[float, int]:
    elapsed, printed = _timed([sys.executable, __file__, f"--child={function}", *map(str, arguments)])
    return elapsed, int(printed.splitlines()[-1])


def _peer(checkpoint: Path, quant: str, out: Path, llama_cpp_dir: Path) -> float:
    script = next(llama_cpp_dir.rglob("convert_hf_to_gguf.py"))
    first = out if quant in _DIRECT else out.with_suffix(".bf16.gguf")
    kind = _DIRECT.get(quant, "bf16")
    elapsed, _ = _timed([sys.executable, str(script), str(checkpoint), "--outtype", kind, "--outfile", str(first)])
    if quant not in _DIRECT:
        elapsed += _child("their_quantize", first, quant, out)[0]
        first.unlink()
    return elapsed


def main() -> None:
    """Print one row per quant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--quants", nargs="+", default=["q4_k_m", "q8_0", "q4_0", "f16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llama-cpp", type=Path, help="unpacked source package of llama-cpp-python")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.checkpoint.parent) as directory:
        for quant in arguments.quants:
            print(_row(arguments.checkpoint, quant, Path(directory), arguments.llama_cpp, arguments.rounds), flush=True)


def _row(checkpoint: Path, quant: str, directory: Path, llama_cpp_dir: Path | None, n_rounds: int) -> str:
    out = directory / "out.gguf"
    times: list[float] = []
    peer_times: list[float] = []
    for _ in range(n_rounds):
        elapsed, peak_mb = _child("ours", checkpoint, quant, out)
        files = ", ".join(path.name for path in directory.iterdir())
        times.append(elapsed)
        out.unlink()
        if llama_cpp_dir:
            peer_times.append(_peer(checkpoint, quant, out, llama_cpp_dir))
            out.unlink()
    row = f"{quant:<8} one pass {_seconds(times)}  peak {peak_mb:4d} MB  files written: {files}"
    if peer_times:
        row += f"   two steps {_seconds(peer_times)}   ratio {min(times) / min(peer_times):.2f}"
    return row


def _seconds(times: list[float]) -> str:
    return f"{min(times):5.1f} s ({' '.join(f'{elapsed:.1f}' for elapsed in times)})"


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].startswith("--child="):
        source, quant, out = sys.argv[2:]
        globals()[sys.argv[1].removeprefix("--child=")](Path(source), quant, Path(out))
    else:
        main()
