"""The model card in the Hugging Face format, filled from what the stages wrote and from nothing else."""

from __future__ import annotations

import io
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from anymal import __version__
from anymal.serving.safety_text import UNMEASURED, model_limits

MAX_STATISTICS = 40
"""Of each modality."""
NOTES = ("prompt", "prompt_protocol", "normaliser", "vqa_variant", "variant", "protocol")
"""How figures were made."""
MISSING = "–"
FAILURES = {"accuracy": "answers to the questions were wrong", "class_accuracy": "held-out captions named a wrong class or none"}
BENCHMARKS = "benchmarks"
"""Branch of the evaluation that is no modality."""
FEW_GROUPS = 10
"""Below this many groups of samples, intervals over samples say little of new groups."""


def model_card(*, name: str, alias: str, checkpoints: Mapping[str, Mapping[str, Any]], assets: Mapping[str, Mapping[str, Any]],
               evaluation: Mapping[str, Any], leakage: Mapping[str, Any], integrity: Mapping[str, Any] | None, statistics: Mapping[str, Any],
               inference: Mapping[str, Any], seed: int, inputs: Mapping[str, str]) -> str:
    """Markdown with a YAML header; the same arguments give the same text.

    Args:
        checkpoints: modality -> content of projector.json.
        assets: name -> `{"entry": asset.json, "sha256": of its manifest}`.
        evaluation: content of results/evaluate.json.
        leakage: content of results/leakage.json.
        integrity: content of results/safety_integrity.json; None if its safety was not measured.
        statistics: modality -> content of its results/curate/MODALITY.json.
        inputs: what it was made from -> SHA-256.
    """
    import jinja2

    environment = jinja2.Environment(trim_blocks=False, undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True)  # noqa: S701
    template = environment.from_string(files("anymal.serving").joinpath("card.md").read_text(encoding="utf-8"))
    branches = [(modality, task, body) for modality, by_task in sorted(evaluation.items()) for task, body in sorted(by_task.items())]
    tasks = [_task(modality, task, body) for modality, task, body in branches if isinstance(body, Mapping) and _figures(body)]
    skipped = [(task, body["skipped"]) for modality, task, body in branches if modality == BENCHMARKS and "skipped" in body]
    facts = {modality: sorted(_scalars(statistics[modality]).items()) for modality in sorted(statistics)}
    roles = _roles(checkpoints)
    trained = {modality: checkpoint["encoder"] for modality, checkpoint in sorted(checkpoints.items()) if checkpoint["encoder"]["asset"] is None}
    described = {key: _describe(key, assets[key]) for key in sorted(assets)}
    return template.render(
        header=_header(name, list(checkpoints), tasks, assets, roles), name=name, alias=alias, modalities=sorted(checkpoints),
        parts=[{**described[key], "role": role} for key, role in roles.items()], trained=trained, checkpoints=dict(sorted(checkpoints.items())),
        inference=dict(inference), statistics={modality: rows[:MAX_STATISTICS] for modality, rows in facts.items()},
        statistics_left_out={modality: max(0, len(rows) - MAX_STATISTICS) for modality, rows in facts.items()},
        assets=list(described.values()), tasks=tasks, skipped=skipped, passed=leakage.get("passed") is True, adapter=_tuned(checkpoints),
        leakage=[row for row in sorted(_scalars(leakage).items()) if row[0] != "passed"][:MAX_STATISTICS],
        limits=_limits(evaluation, checkpoints, integrity), version=__version__, seed=seed, inputs=dict(inputs))


def _tuned(checkpoints: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the projectors were tuned together with an adapter of the LLM."""
    return any(checkpoint.get("adapter") is not None for checkpoint in checkpoints.values())


def _roles(checkpoints: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Asset -> what it is in the model; one asset may be the encoder of several modalities, and one trained here is no asset."""
    roles = {checkpoint["llm"]: "language model" for checkpoint in checkpoints.values()}
    readers: dict[str, list[str]] = {}
    for modality, checkpoint in sorted(checkpoints.items()):
        if checkpoint["encoder"]["asset"] is not None:
            readers.setdefault(checkpoint["encoder"]["asset"], []).append(modality)
    return roles | {asset: f"{' and '.join(modalities)} encoder" for asset, modalities in readers.items()}


def _header(name: str, modalities: list[str], tasks: list[dict[str, Any]], assets: Mapping[str, Mapping[str, Any]], roles: Mapping[str, str]) -> str:
    from ruamel.yaml import YAML

    licences = {assets[key]["entry"]["licence"]["id"] for key in roles}
    header: dict[str, Any] = {"library_name": "anymal", "tags": ["anymal", "multimodal", *sorted(modalities)], "language": ["en"]}
    if len(licences) == 1:
        header["license"] = next(iter(licences)).lower()
    else:
        header |= {"license": "other", "license_name": " AND ".join(sorted(licences))}
    bases = [assets[key]["entry"]["repo"] for key in roles if assets[key]["entry"]["kind"] == "hf"]
    if bases:
        header["base_model"] = bases
    if modalities == ["image"]:
        header["pipeline_tag"] = "image-text-to-text"
    results = [{"task": {"type": "image-text-to-text" if task["modality"] == "image" else "any-to-any", "name": task["name"]},
                "dataset": task["dataset"], "metrics": [
                    {"type": row["name"], "name": row["name"], "value": float(row["value"])} for row in task["rows"] if row["value"] != MISSING]}
               for task in tasks]
    if results:
        header["model-index"] = [{"name": name, "results": results}]
    stream = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 1000
    yaml.dump(header, stream)
    return stream.getvalue()


def _describe(name: str, record: Mapping[str, Any]) -> dict[str, str]:
    entry = record["entry"]
    source = {
        "pip": lambda: f"PyPI {entry['package']} {entry['version']}", "apt": lambda: f"Debian {entry['package']} {entry['version']}",
        "hf": lambda: f"Hugging Face {entry['repo']} at {entry['revision'][:12]}", "s3": lambda: str(entry["url"]),
        "file": lambda: "local file",
    }.get(entry["kind"], lambda: str(entry["kind"]))  # fmt: skip
    return {"name": name, "source": source(), "licence": entry["licence"]["id"], "sha256": record["sha256"]}


def _figures(body: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {key: value for key, value in body.items() if isinstance(value, Mapping) and "value" in value}


def _task(modality: str, task: str, body: Mapping[str, Any]) -> dict[str, Any]:
    controls = dict(sorted(body.get("controls", {}).items()))
    rows = [{"name": key, **{part: _number(figure.get(part)) for part in ("value", "low", "high", "n")},
             "controls": [_number(figures.get(key, {}).get("value")) for figures in controls.values()]}
            for key, figure in sorted(_figures(body).items())]
    notes = [(key, f"`{' '.join(str(body[key]).split())}`") for key in NOTES if key in body]
    if right := body.get("rates", {}).get("right"):
        notes.append(("answers", _rates(right)))
    name, kind, dataset = _called(modality, task), modality, {"name": "held-out split", "type": "anymal-curated"}
    if modality == BENCHMARKS:
        kind, dataset = str(body.get("modality")), {"name": task, "type": task}
        if body.get("data", {}).get("real") is not True:
            # Other samples in a benchmark's layout are not that benchmark, and must not pass for it in an index of results.
            name, dataset = f"{name} (sample data in its layout)", {"name": f"sample data in the layout of {task}", "type": "anymal-curated"}
    return {"name": name, "modality": kind, "rows": rows, "controls": list(controls), "notes": notes, "dataset": dataset}


def _called(modality: str, task: str) -> str:
    return f"benchmark {task}" if modality == BENCHMARKS else f"{modality} {task}"


def _rates(rates: Mapping[str, Any]) -> str:
    """How answers with the right input ended and began."""
    said = [f"{rates[key]:.1%} {words}" for key, words in (("eos", "ended by themselves"), ("max_length", "were cut at the longest length"),
                                                           ("empty", "were empty")) if key in rates]  # fmt: skip
    if rates.get("prefix_words"):
        said.append(f"{rates['prefix']:.1%} began with `{rates['prefix_words']}`, the most frequent beginning")
    return ", ".join(said)


def _number(value: object) -> str:
    return MISSING if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _scalars(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _scalars(value, f"{prefix}{key}.")
        elif isinstance(value, bool | int | float | str) and len(str(value)) <= 100:
            flat[f"{prefix}{key}"] = _number(value).replace("|", "\\|")
    return flat


def _limits(evaluation: Mapping[str, Any], checkpoints: Mapping[str, Mapping[str, Any]], integrity: Mapping[str, Any] | None) -> list[str]:
    own = "" if BENCHMARKS in evaluation else ", on held-out data of the same sources as its training data"
    limits = [f"It was measured only on the tasks above{own}; other inputs, languages and tasks may go worse."]
    for modality, tasks in sorted(evaluation.items()):
        for task, body in sorted(tasks.items()):
            name = _called(modality, task)
            for figure, what in FAILURES.items():
                found = body.get(figure) if isinstance(body, Mapping) else None
                if found is not None and found.get("value") is not None:
                    limits.append(f"{name}: {100 * (1 - found['value']):.0f}% of its {what}.")
            groups = body.get("groups", {}) if isinstance(body, Mapping) else {}
            limits += [f"{name}: measured on {count} groups of {kind} only (a kit, a subject, a video); new ones may go otherwise."
                       for kind, count in sorted(groups.items()) if count < FEW_GROUPS]
    unmeasured = sorted(set(checkpoints) - set(evaluation))
    if unmeasured:
        limits.append(f"Not measured at all: {', '.join(unmeasured)}.")
    limits += [UNMEASURED] if integrity is None else model_limits(integrity)
    limits.append("Descriptions can name things that are not there; do not rely on them where an error can hurt.")
    return limits
