"""The predictions folder of stage `benchmark`: one part of all benchmarks of a run, enough to score them again.

`protocol.json` (the run, and each benchmark's part in it), and per benchmark `NAME.jsonl` (records, see `running.py`) and submission files in the
official format, `NAME.CONDITION.json`. `media.jsonl` has a line for each file that was shown (`MediumRow`), `examples.jsonl` and `previews/` are for
the report (`examples.py`), `manifest.json` has the hashes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from anymal.data.manifest import verify_manifest, write_manifest
from anymal.errors import DataError
from anymal.evaluation.benchmarks.declaration import declaration_of
from anymal.evaluation.benchmarks.media import MediumRow
from anymal.evaluation.benchmarks.prompts import extract
from anymal.evaluation.formats import coco, llava, vqa

PROTOCOL, MEDIA = "protocol.json", "media.jsonl"

Record = dict[str, Any]


@dataclass
class Run:
    """One benchmark of a run, its parts merged."""

    described: dict[str, Any]
    """As in `protocol.json`; or `{"skipped": reason}`."""
    records: list[Record] = field(default_factory=list)
    unusable: list[tuple[str, str]] = field(default_factory=list)


def write_benchmark(folder: Path, name: str, records: Sequence[Record], *, how: str) -> None:
    """Write one benchmark's part.

    Args:
        how: what of a reply is the answer (see `extract`), for the submission files.
    """
    _lines(folder / f"{name}.jsonl", records)
    declaration = declaration_of(name)
    for condition in records[0]["prediction"] if records else ():
        said = {str(record["id"]): extract(how, record["prediction"][condition]) or "" for record in records}
        path = folder / f"{name}.{condition}.json"
        if name == "vizwiz":
            vqa.write_vizwiz_answers(path, said)
        elif declaration.metric == "captions":
            coco.write_captions(path, said)
        elif declaration.metric == "vqa":
            vqa.write_answers(path, said)
        else:
            triples = [(str(record["id"]), record["prompt"][-1]["content"], record["prediction"][condition]) for record in records]
            llava.write_answers(path.with_suffix(".jsonl"), triples, model="anymal")


def write_protocol(folder: Path, run: Mapping[str, Any], benchmarks: Mapping[str, Any], media: Iterable[MediumRow]) -> None:
    """Write `protocol.json`, `media.jsonl` and the manifest, last of all.

    Args:
        run: what holds for all benchmarks, and `part` (`{index, of}`).
        benchmarks: name -> what was asked and how, with `unusable`; or `{"skipped": reason}`.
    """
    _lines(folder / MEDIA, media)
    document = {**run, "benchmarks": dict(benchmarks)}
    (folder / PROTOCOL).write_text(json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    write_manifest(folder)


def read_media(folder: Path) -> list[MediumRow]:
    """The files that were shown, by benchmark and id.

    Raises:
        DataError: if a file of the folder is missing, extra or changed.
    """
    verify_manifest(folder)
    path = folder / MEDIA
    return cast("list[MediumRow]", _read_lines(path)) if path.is_file() else []


def read_runs(folders: Sequence[Path]) -> dict[str, Run]:
    """All benchmarks of some predictions folders, the parts of one run merged.

    Raises:
        DataError: if a folder is damaged or none of this stage's, a part of a run is missing or comes twice, parts were made otherwise than each
            other, or two runs hold the same benchmark.
    """
    parts: dict[str, dict[int, tuple[Path, dict[str, Any]]]] = {}
    for folder in folders:
        document = _protocol(folder)
        part = document.pop("part")
        asked = {name: {key: value for key, value in entry.items() if key != "unusable"} for name, entry in document["benchmarks"].items()}
        known = parts.setdefault(json.dumps({**document, "of": part["of"], "benchmarks": asked}, sort_keys=True), {})
        if part["index"] in known:
            raise DataError(f"{folder}: is part {part['index']} of {part['of']} of a run, as {known[part['index']][0]} is; give each part once")
        known[part["index"]] = (folder, {**document, "of": part["of"]})
    found: dict[str, Run] = {}
    for known in parts.values():
        folder, document = min(known.values(), key=lambda entry: entry[0])
        if missing := sorted(set(range(document["of"])) - known.keys()):
            raise DataError(f"{folder}: is one of {document['of']} parts of a run, of which number {', '.join(map(str, missing))} (from 0) is "
                            "missing, or was made with other knobs or files; give all parts of one run")
        for name in document["benchmarks"]:
            if name in found:
                raise DataError(f"{folder}: holds {name}, as another run does; give one run of each benchmark")
            found[name] = _merge(name, [known[index] for index in sorted(known)])
    return dict(sorted(found.items()))


def _merge(name: str, parts: Sequence[tuple[Path, Mapping[str, Any]]]) -> Run:
    described = {key: value for key, value in parts[0][1]["benchmarks"][name].items() if key != "unusable"}
    run = Run(described)
    if "skipped" in described:
        return run
    described["run"] = {key: value for key, value in parts[0][1].items() if key not in ("benchmarks", "of")}
    for folder, document in parts:
        run.records += _read_lines(folder / f"{name}.jsonl")
        run.unusable += [(entry["id"], entry["reason"]) for entry in document["benchmarks"][name]["unusable"]]
    run.records.sort(key=lambda record: str(record["id"]))
    twice = [name for name, count in Counter(str(record["id"]) for record in run.records).items() if count > 1]
    if twice:
        raise DataError(f"{parts[0][0]}: {name} holds sample {twice[0]} twice, in parts that overlap; give the parts of one run")
    return run


def _protocol(folder: Path) -> dict[str, Any]:
    verify_manifest(folder)
    path = folder / PROTOCOL
    document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    if not isinstance(document, dict) or "benchmarks" not in document or "part" not in document:
        raise DataError(f"{folder}: holds no predictions of benchmarks; give a folder that the stage benchmark wrote")
    return document


def _lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def _read_lines(path: Path) -> list[Any]:
    with path.open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]
