"""Run every benchmark on sample data: small files in each official layout, made from curated shards, asked of a trained model and scored.

The figures say how a model does on this data and that the whole way works; they are not the benchmarks' figures, and are never shown as such.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anymal.config import read_document, validate
from anymal.errors import report
from anymal.evaluation.benchmarks.declaration import declarations
from anymal.evaluation.benchmarks.scoring import needs_meteor, score_benchmarks
from anymal.evaluation.captions import open_meteor
from anymal.stage import load_stage, run_stage
from scripts.benchmark_layouts import SHARED, SPLITS, make_layouts

HEADLINE = {"captions": "cider_d", "vqa": "accuracy", "choice": "accuracy", "roc": "auroc", "pope": "accuracy"}
MAX_NEW_TOKENS = 32
"""Where the profile does not say."""


def section_for(knobs: Mapping[str, Any], made: list[str], *, only: Sequence[str], protocol: str, samples: int | None) -> dict[str, Any]:
    """The section `benchmark` for the layouts that were made: the profile's knobs with the sample data as assets.

    Args:
        knobs: the profile's section.
        only: benchmarks to run; none names all.
        protocol: for those that have it; the others are asked as the paper does.
    """
    entries = {}
    for name, declared in declarations().items():
        if only and name not in only:
            continue
        limit = knobs["benchmarks"].get(name, {}).get("max_new_tokens", MAX_NEW_TOKENS)
        found = SHARED.get(name, name)
        asked = protocol if protocol in declared.protocols else "paper"
        entries[name] = {"asset": f"sample-{found}" if found in made else None, "split": SPLITS[name], "protocol": asked,
                         "samples": samples, "max_new_tokens": limit, "media": None}
    return {**knobs, "benchmarks": entries}


def run_benchmarks(model: Path, assets: Path, shards: Path, target: Path, knobs: Mapping[str, Any], *, only: Sequence[str], protocol: str,
                   media: int, samples: int | None, parts: int, resamples: int) -> dict[str, dict[str, Any]]:
    """Make the layouts, ask the model in `parts` runs, score them together and write `target/results.json`.

    Args:
        assets: folder of the model's assets (LLM, encoders).
        shards: folder of curated shards by modality.
        media: greatest number of media of a benchmark.
    """
    layouts = target / "layouts"
    made = make_layouts({path.name: path for path in sorted(shards.iterdir()) if path.is_dir()}, layouts, limit=media)
    section = section_for(knobs, made, only=only, protocol=protocol, samples=samples)
    stage, folders = load_stage("benchmark"), []
    with tempfile.TemporaryDirectory() as scratch:
        together = Path(scratch)
        for path in (*sorted(assets.iterdir()), *sorted(layouts.iterdir())):
            name = f"sample-{path.name}" if path.parent == layouts else path.name
            if path.is_dir():
                (together / name).symlink_to(path.resolve(), target_is_directory=True)
        for index in range(parts):
            config = validate(stage.config, {**section, "part": {"index": index, "of": parts}}, "benchmark")
            folders.append(target / f"predictions-{index}")
            run_stage(stage, config, {"checkpoints": (model,), "assets": together, "predictions": folders[-1]})
    if needs_meteor(folders):
        with open_meteor() as meteor:
            results, rows = score_benchmarks(folders, resamples=resamples, seed=section["seed"], meteor=meteor)
    else:
        results, rows = score_benchmarks(folders, resamples=resamples, seed=section["seed"], meteor=None)
    (target / "results.json").write_text(json.dumps(results, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    (target / "samples.jsonl").write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows), encoding="utf-8")
    return results


def table(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line a benchmark: its first figure with its interval, the same with each control's media, and how many answers could not be told."""
    head = ("benchmark", "asked as", "samples", "figure", "right [95%]", "shuffled", "similar", "blank", "unparsable")
    lines = [head]
    for name, found in sorted(results.items()):
        if "skipped" in found:
            lines.append((name, "–", "0", "–", f"skipped: {found['skipped']}", "", "", "", ""))
            continue
        metric = HEADLINE[declarations()[name].metric]
        figure = found[metric]
        controls = (found["controls"].get(condition, {}).get(metric) for condition in ("shuffled", "similar", "blank"))
        lines.append((name, found["prompt_protocol"], str(figure["n"]), metric, f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]",
                      *("–" if control is None else f"{control['value']:.3f}" for control in controls), str(found.get("unparsable", "–"))))
    widths = [max(len(line[column]) for line in lines if not line[4].startswith("skipped")) for column in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def command() -> None:
    """Read the options, run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/tuned"), help="what finetune wrote")
    parser.add_argument("--assets", type=Path, default=Path("data/assets"), help="LLM and encoders")
    parser.add_argument("--shards", type=Path, default=Path("data/shards"), help="curated shards, a folder a modality")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    parser.add_argument("--config", type=Path, default=Path("params.yaml"), help="profile whose section benchmark gives the knobs")
    parser.add_argument("--only", action="append", default=[], choices=list(declarations()), help="a benchmark to run; repeatable")
    parser.add_argument("--protocol", choices=["model", "paper", "lmms-eval"], default="model", help="the model's own prompt, or another")
    parser.add_argument("--media", type=int, default=40, help="greatest number of media of a benchmark")
    parser.add_argument("--samples", type=int, help="greatest number of samples of a benchmark")
    parser.add_argument("--parts", type=int, default=1, help="runs that the work is shared out to")
    parser.add_argument("--resamples", type=int, default=1000)
    given = parser.parse_args()
    started = time.monotonic()
    given.out.mkdir(parents=True, exist_ok=True)
    results = run_benchmarks(
        given.model, given.assets, given.shards, given.out, read_document(given.config)["benchmark"], only=given.only, protocol=given.protocol,
        media=given.media, samples=given.samples, parts=given.parts, resamples=given.resamples)
    print("\nSAMPLE DATA in the benchmarks' file layouts, made from the test split of the curated shards. These are not the benchmarks' figures.\n")
    print("\n".join(table(results)))
    print(f"\n{given.out / 'results.json'}; {(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    report("benchmarks", command)
