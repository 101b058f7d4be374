"""A study on disk: projects for Label Studio, which show no annotator who said what, and the key, which says it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anymal.data.label_studio import local_address
from anymal.data.manifest import fingerprint
from anymal.errors import ConfigError, DataError
from anymal.evaluation.human.form import SIDES, labelling_config, shown
from anymal.evaluation.human.media import data_uri, extract_media
from anymal.evaluation.human.samples import REFERENCE, Item, Medium, Name, Sample, draw, pair, read_system

TASKS, CONFIG, MEDIA = "tasks.json", "labelling.xml", "media"
KIND = "key of a human evaluation"
MAX_KEY_BYTES = 256 * 2**20
FIELDS = ("left", "branch", "id", "kind", "project", "shown")
"""Of a sample in the key."""


@dataclass(frozen=True)
class Key:
    """Which system said what in a study."""

    name: str
    """SHA-256 of the key file, its first 16 digits: tasks carry it, so that a key cannot be changed or mistaken for another unnoticed."""
    systems: tuple[str, str]
    samples: Mapping[str, Mapping[str, str]]
    """Sample -> `left` (the system on that side), `branch`, `id`, `kind`, `project` and `shown` (SHA-256 of what annotators see)."""


def write_study(
    systems: Mapping[str, Sequence[Path]], shards: Mapping[str, Sequence[Path]], assets: Mapping[str, Path], out: Path, key: Path, *, count: int,
    seed: int, split: str, embed: bool, branches: Sequence[str] = (),
) -> dict[str, Any]:
    """Draw samples that two systems answered and write them as projects for Label Studio, and the key apart from them.

    `out` gets a folder per combination of modalities with `tasks.json` (to import) and `labelling.xml` (the project's labelling configuration), and
    without `embed` a folder `media`. The same inputs and seed give the same bytes.

    Args:
        systems: name -> predictions folders; of a single one the answers are compared with the references.
        shards: modality -> folders of the shards that hold the media.
        assets: benchmark -> folder of the asset that holds the media.
        embed: whether media are in the tasks, or beside them in files that Label Studio serves.
        branches: the only ones to draw from, such as `image.vqa` or `benchmarks.mm_it`; none: all.

    Returns:
        `samples` by project, and `dropped` by reason.

    Raises:
        ConfigError: if the count is odd, a branch is unknown, `out` or `key` is there already, or the key would lie among the tasks.
        DataError: if predictions or shards are damaged, do not fit together, or have too few samples.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: is there already; a study that may have begun is not overwritten, name a new folder or delete this one")
    if key.exists():
        raise ConfigError(f"--key {key}: is there already, and without it its study cannot be scored; name a new file or delete this one")
    if key.resolve().is_relative_to(out.resolve()):
        raise ConfigError(f"--key {key}: lies in --out {out}, where annotators could read it; keep it somewhere else")
    answered = [_of_branches(read_system(folders), branches) for folders in systems.values()]
    samples, dropped = pair(answered[0], answered[1] if len(answered) == 2 else None, seed=seed)
    names = (*systems, REFERENCE) if len(systems) == 1 else tuple(systems)
    drawn = {f"{number:05d}": sample for number, sample in enumerate(draw(samples, count=count, seed=seed), start=1)}
    secret = {
        "kind": KIND, "systems": list(names), "seed": seed, "dropped": dropped,
        "predictions": {name: sorted(map(fingerprint, folders)) for name, folders in systems.items()},
        "samples": {number: _secret(sample, names) for number, sample in drawn.items()},
    }  # fmt: skip
    content = (json.dumps(secret, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        files = extract_media({medium for sample in drawn.values() for medium in sample.item.media}, shards, assets, partial / MEDIA, split=split)
        addresses = {medium: local_address(f"{out.name}/{MEDIA}/{file.name}") for medium, file in files.items()}
        _write_projects(drawn, _name(content), files, None if embed else addresses, partial)
        # The key comes first: a study without its key would be worth nothing.
        _write_secret(key, content)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {"samples": {project: len(members) for project, members in _projects(drawn).items()}, "dropped": dropped}


def _of_branches(items: dict[Name, Item], branches: Sequence[str]) -> dict[Name, Item]:
    known = {branch for branch, _ in items}
    if unknown := [branch for branch in branches if branch not in known]:
        raise ConfigError(f"--branch {unknown[0]}: a system has no predictions of it, it has {', '.join(sorted(known))}; correct the name")
    return {name: item for name, item in items.items() if not branches or name[0] in branches}


def _name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _secret(sample: Sample, names: Sequence[str]) -> dict[str, str]:
    item = sample.item
    return {"left": names[0 if sample.first_is_left else 1], "branch": item.branch, "id": item.id, "kind": item.kind, "project": item.project,
            "shown": digest(_texts(sample))}


def _texts(sample: Sample) -> dict[str, str]:
    """What annotators read."""
    sides = sample.answers if sample.first_is_left else sample.answers[::-1]
    return {"question": sample.item.question, **{side: shown(answer) for side, answer in zip(SIDES, sides, strict=True)}}


def digest(data: Mapping[str, Any]) -> str:
    """SHA-256 of a task's texts, by which a task that was changed after the export is found."""
    return hashlib.sha256(json.dumps([data.get("question"), *(data.get(side) for side in SIDES)], ensure_ascii=False).encode()).hexdigest()


def _projects(drawn: Mapping[str, Sample]) -> dict[str, dict[str, Sample]]:
    """Project -> its samples by number, in order."""
    projects: dict[str, dict[str, Sample]] = {}
    for number, sample in drawn.items():
        projects.setdefault(sample.item.project, {})[number] = sample
    return dict(sorted(projects.items()))


def _write_projects(
    drawn: Mapping[str, Sample], study: str, files: Mapping[Medium, Path], addresses: Mapping[Medium, str] | None, folder: Path
) -> None:
    """Write the projects; without addresses of the media, these go into the tasks."""
    for project, members in _projects(drawn).items():
        target = folder / project
        target.mkdir()
        modalities = [medium.modality for medium in next(iter(members.values())).item.media]
        (target / CONFIG).write_text(labelling_config(modalities), encoding="utf-8")
        with (target / TASKS).open("w", encoding="utf-8") as stream:
            for place, (number, sample) in enumerate(members.items()):
                shown_media = {medium.modality: addresses[medium] if addresses else data_uri(files[medium]) for medium in sample.item.media}
                task = {"data": {"study": study, "sample": number, **_texts(sample), **shown_media}}
                stream.write(("[\n" if place == 0 else ",\n") + json.dumps(task, ensure_ascii=False, sort_keys=True))
            stream.write("\n]\n")
    if addresses is None:
        shutil.rmtree(folder / MEDIA)


def _write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(content)
    partial.rename(path)


def read_key(path: Path) -> Key:
    """Read a key file.

    Raises:
        DataError: if it is missing or no key.
    """
    if not path.is_file():
        raise DataError(f"--key {path}: no such file; give the key that `anymal human export` wrote, the study cannot be scored without it")
    if (size := path.stat().st_size) > MAX_KEY_BYTES:
        raise DataError(f"--key {path}: holds {size} bytes, more than the {MAX_KEY_BYTES} that a key may have; give the key of the export")
    content = path.read_bytes()
    try:
        document = json.loads(content)
        if document["kind"] != KIND:
            raise ValueError(f"its kind is {document['kind']!r}")
        first, second = document["systems"]
        samples = {number: {field: str(entry[field]) for field in FIELDS} for number, entry in document["samples"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"--key {path}: is no key of a study ({type(error).__name__}: {error}); give the file that the export wrote") from error
    return Key(_name(content), (first, second), samples)

