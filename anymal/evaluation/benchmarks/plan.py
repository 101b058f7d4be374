"""What is to be asked of a benchmark: its files read and checked before any model is loaded, or the reason why it is skipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anymal.data.asset_folders import read_asset
from anymal.data.manifest import sha256_of
from anymal.errors import DataError
from anymal.evaluation.benchmarks.declaration import Protocol, declaration_of
from anymal.evaluation.benchmarks.items import Layout, Medium, Motions, Reading
from anymal.evaluation.benchmarks.prompts import messages
from anymal.evaluation.benchmarks.readers import READERS
from anymal.evaluation.benchmarks.running import Asking
from anymal.model.prompt import Template

SAMPLE_DATA = "sample_data.json"
"""In an asset's folder: its files have the benchmark's layout, but are not the benchmark's; they were made from other data, which it names."""
CONDITION_NOTES = {
    "shuffled": "shuffled: another medium of the sample's pool, by one fixed cycle",
    "blank": "blank: the encoder's features of an empty medium",
    "similar": "similar: the medium of the pool whose pooled features are nearest (cosine) and about which something else is true",
}


@dataclass(frozen=True)
class Planned:
    """A benchmark that can be asked."""

    asking: Asking
    reading: Reading
    samples: int | None
    split: str
    protocol: str
    pool: int
    files: Mapping[str, str]
    """Official file -> SHA-256."""
    data: Mapping[str, Any]

    @property
    def media(self) -> dict[str, Medium]:
        """All media by name."""
        return {item.medium.name: item.medium for item in self.reading.items}

    def described(self, templates: Mapping[str, Mapping[str, Template]]) -> dict[str, Any]:
        """What `protocol.json` holds of it, the same for every part.

        Args:
            templates: the checkpoint's own, by modality.
        """
        first = next((item for item in self.reading.items if item.medium.modality in templates), self.reading.items[0])
        asked = "all" if self.samples is None else f"at most {self.samples}"
        asking = self.asking
        text = "; ".join([
            f"{asked} of {self.reading.available} samples of split {self.split} (seed {asking.seed}), in pools of about {self.pool} media",
            f"greedy decoding up to the end of turn, at most {asking.max_new_tokens} new tokens, batches of {asking.batch_size}",
            *(CONDITION_NOTES[condition] for condition in asking.conditions if condition in CONDITION_NOTES),
            "equal inputs are asked once; an answer that cannot be told counts as wrong",
        ])  # fmt: skip
        return {
            "split": self.split, "protocol_name": self.protocol, "protocol": text, "extract": asking.wording.extract, "data": dict(self.data),
            "prompt": messages(asking.wording, first, templates.get(first.medium.modality, {}), asking.name), "files": dict(self.files),
            "available": self.reading.available, "conditions": list(asking.conditions), "pool": self.pool, "samples": self.samples,
        }  # fmt: skip


def plan(
    name: str, assets: Path, *, motions: Motions, reads: Sequence[str], asset: str | None, split: str, protocol: Protocol, samples: int | None,
    max_new_tokens: int, media: str | None, conditions: Sequence[str], batch_size: int, pool: int, seed: int,
) -> Planned | str:
    """Read a benchmark's official files.

    Args:
        assets: folder with a folder an asset.
        reads: modalities that the model reads.
        media: where a sample's medium is, if not where the official layout has it.

    Returns:
        What to ask, or why the benchmark is skipped, in a sentence.

    Raises:
        DataError: naming file, record and field, if a file is there but not as the official layout has it.
    """
    declaration = declaration_of(name)
    if asset is None:
        return f"no data: benchmark.benchmarks.{name}.asset is null; name an asset that holds its official files"
    folder = assets / asset
    if not folder.is_dir():
        return f"no data: the asset {asset} is not there; name it in ingest.assets, and where it is in ingest.sources"
    if declaration.modality is not None and declaration.modality not in reads:
        return f"the model reads {', '.join(reads)}, and this benchmark's media are of {declaration.modality}"
    chosen = declaration.splits[split]
    files = {role: folder / path for role, path in chosen.files.items()}
    layout = Layout(folder, files, media or chosen.media, declaration.modality, declaration.fields, split, motions, seed)
    reading = READERS[declaration.reader](layout)
    if not reading.items:
        reasons = Counter(reason.partition(":")[0] for _, reason in reading.unusable)
        most = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items())) or "its files hold none"
        return f"none of the {reading.available} samples of split {split} can be asked ({most})"
    ids = Counter(str(item.id) for item in reading.items)
    if twice := [key for key, count in ids.items() if count > 1]:
        raise DataError(f"{folder}: {name} holds sample {twice[0]} {ids[twice[0]]} times; give the benchmark's official files")
    wording = declaration.protocols[protocol]
    asking = Asking(name, declaration, wording, tuple(conditions), max_new_tokens, batch_size, seed)
    record = read_asset(folder) or {}
    data = {"asset": asset, "license": (record.get("licence") or {}).get("id"), "real": not (folder / SAMPLE_DATA).is_file()}
    hashes = {path.relative_to(folder).as_posix(): sha256_of(path) for path in files.values()}
    return Planned(asking, reading, samples, split, protocol, pool, hashes, data)
