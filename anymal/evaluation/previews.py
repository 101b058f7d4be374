"""Pictures of what the encoder was fed for the samples that a report may show: chosen when all predictions are there, wrong ones first."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anymal.data.features import FeatureStore
from anymal.data.shards import read_shard, shard_paths
from anymal.errors import DataError
from anymal.evaluation.names import Vocabulary, words
from anymal.evaluation.vqa import vqa_accuracy
from anymal.media import audio

if TYPE_CHECKING:
    from anymal.model.encoders import Encoder

FOLDER = "previews"

Record = dict[str, Any]


def media_of(record: Mapping[str, Any], modality: str) -> dict[str, str]:
    """Modality -> key of the media that a record is about.

    Args:
        modality: of the predictions; "mixed" for records that name their own.
    """
    return dict(record["keys"]) if "keys" in record else {modality: record["key"]}


def rough_score(record: Mapping[str, Any], vocabulary: Iterable[str]) -> float:
    """0 (wrong) to 1 (right) of what was said of the right input: enough to choose what to show, no figure.

    Args:
        vocabulary: labels or answers that a text may name.
    """
    said, references = record["prediction"]["right"], record["references"]
    known = Vocabulary(vocabulary)
    if "keys" in record:
        return float(all(known.named(said) >= Vocabulary([answer]).named(answer) for answer in references.values()))
    if "question" in record:
        return vqa_accuracy(said, references)
    if record["label"] is not None:
        return float(known.names_only(said, record["label"]))
    return max(_overlap(words(said), words(reference)) for reference in references)


def choose(
    tasks: Mapping[str, Sequence[Record]], vocabularies: Mapping[str, Any], *, modality: str, limit: int, seed: int
) -> dict[str, list[str]]:
    """Keys by modality of the media to draw, at most `limit` in all.

    Each task's records are parted by label, source or kind of question, and those into worse and better halves; the parts take turns.

    Args:
        tasks: task -> records.
        vocabularies: task -> labels, answers by modality, or None.
    """
    queues: list[list[Record]] = []
    for number, task in enumerate(sorted(tasks)):
        generator = np.random.default_rng((seed, 7, number))
        known = _flat(vocabularies.get(task))
        parts: dict[tuple[str, bool], list[tuple[float, Record]]] = {}
        for place in generator.permutation(len(tasks[task])).tolist():
            record = tasks[task][place]
            score = rough_score(record, known)
            part = record.get("kind") or record.get("label") or record.get("source") or ""
            parts.setdefault((part, score > 0.5), []).append((score, record))
        # The sort is stable, so that records of one score stay in random order.
        queues += [[record for _, record in sorted(parts[name], key=lambda entry: entry[0])] for name in sorted(parts, key=lambda p: (p[1], p[0]))]
    chosen: dict[str, set[str]] = {}
    count = 0
    for turn in range(max(map(len, queues), default=0)):
        for queue in queues:
            media = media_of(queue[turn], modality) if turn < len(queue) else {}
            new = [(name, key) for name, key in media.items() if key not in chosen.get(name, ())]
            if count + len(new) <= limit:
                count += len(new)
                for name, key in new:
                    chosen.setdefault(name, set()).add(key)
    return {name: sorted(keys) for name, keys in sorted(chosen.items())}


def draw_previews(encoder: Encoder, store: FeatureStore, shards: Path, keys: Iterable[str], folder: Path, *, split: str) -> None:
    """Write `KEY.png` for samples of a split's shards, and `KEY.mp3` of sounds, one medium in memory at a time.

    Raises:
        DataError: if a sample is not in the shards, or is there with another medium than the features were made from.
    """
    asked = set(keys)
    wanted = {meta["key"]: meta.get("sha256") for row in range(len(store)) if (meta := store.meta(row))["key"] in asked}
    missing = set(wanted)
    folder.mkdir(parents=True, exist_ok=True)
    for path in shard_paths(shards, split) if wanted else []:
        for sample in read_shard(path):
            if sample.key not in wanted:
                continue
            if sample.meta.get("sha256") != wanted[sample.key]:
                raise DataError(f"{path}: sample {sample.key} is another medium than the one that the features were made from; run encode again")
            medium = encoder.read(io.BytesIO(sample.data), f"{path}: {sample.key}.{sample.extension}")
            (folder / f"{sample.key}.png").write_bytes(encoder.picture(medium))
            if encoder.modality == "audio":
                (folder / f"{sample.key}.mp3").write_bytes(audio.preview(io.BytesIO(sample.data), f"{path}: {sample.key}.{sample.extension}"))
            missing.discard(sample.key)
    if missing:
        raise DataError(f"{shards}: holds no sample {min(missing)} (and {len(missing) - 1} more) in split {split}; the features were made from "
                        "other shards, run encode again")


def _flat(vocabulary: Mapping[str, Iterable[str]] | Iterable[str] | None) -> list[str]:
    return [phrase for part in vocabulary.values() for phrase in part] if isinstance(vocabulary, Mapping) else list(vocabulary or ())


def _overlap(said: Sequence[str], reference: Sequence[str]) -> float:
    """F1 of the words that two texts share."""
    shared = len(set(said) & set(reference))
    return 2 * shared / max(1, len(set(said)) + len(set(reference)))
