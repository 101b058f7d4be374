"""Time of an LLM's linear layers for few rows, their weights stored by rows and by columns, by turns in one run.

    python -m benchmarks.layout data/assets/smollm2-135m-instruct [--threads 2] [--rows 1 2 4 8 16 36 64 128]
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from anymal.model.layout import lay_out_for_few_rows
from anymal.model.llm import load_llm

REPEATS = 9


@torch.inference_mode()
def seconds(layers: list[nn.Linear], rows: int) -> float:
    """Of all layers, one after another."""
    given = {size: torch.randn(1, rows, size) for size in {layer.in_features for layer in layers}}
    started = time.perf_counter()
    for layer in layers:
        layer(given[layer.in_features])
    return time.perf_counter() - started


def layers_of(folder: Path, *, by_columns: bool) -> list[nn.Linear]:
    """The linear layers of an LLM in float32, without the output layer."""
    llm, _ = load_llm(folder, dtype="float32", quantization="none", attention="eager")
    if by_columns:
        lay_out_for_few_rows(llm)
    return [module for module in llm.modules() if isinstance(module, nn.Linear) and module is not llm.get_output_embeddings()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llm", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 36, 64, 128])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ways = {"by rows": layers_of(arguments.llm, by_columns=False), "by columns": layers_of(arguments.llm, by_columns=True)}
    print(f"{'rows':>6} {'by rows':>10} {'by columns':>12} {'ratio':>7}")
    for rows in arguments.rows:
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(REPEATS + 1):
            for name, layers in ways.items():
                found[name].append(seconds(layers, rows))
        one, other = (1000 * statistics.median(times[1:]) for times in found.values())  # the first time of a shape is slower
        print(f"{rows:6} {one:7.1f} ms {other:9.1f} ms {one / other:6.2f}x", flush=True)


if __name__ == "__main__":
    main()
