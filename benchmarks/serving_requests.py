"""What a server is asked in benchmarks: text, a medium of each modality, and two media within a text, of held-out test data."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anymal.data.shards import Sample, read_shard, shard_paths

TEXTS = (
    "What is a drum?", "Name three animals that live in water and say something about each of them.", "Write a short story about a fox and a crow.",
    "How is bread made? Explain each step.")
PICTURES = {"png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "webp": "image/webp"}


@dataclass(frozen=True)
class Asked:
    """A request."""

    name: str
    kind: str
    """`text`, a modality, or two of them: `image and audio`."""
    content: tuple[dict[str, Any], ...]

    def body(self, model: str, *, tokens: int, stream: bool = False) -> dict[str, Any]:
        """What is posted; a greedy answer of at most `tokens` tokens."""
        return {"model": model, "messages": [{"role": "user", "content": list(self.content)}], "max_tokens": tokens, "stream": stream,
                **({"stream_options": {"include_usage": True}} if stream else {})}


def requests_of(folder: Path, modalities: Sequence[str], count: int) -> list[Asked]:
    """`count` requests of each kind: text, each modality of which the folder has shards, and two media of different modalities."""
    held = {modality: _spread(folder / modality, count) for modality in modalities if (folder / modality).is_dir()}
    asked = [Asked(f"text {number}", "text", (_text(words),)) for number, words in enumerate(TEXTS[:count])]
    for modality, samples in held.items():
        for sample in samples:
            questions = [_text(entry["question"]) for entry in sample.meta["questions"][:1]]
            asked.append(Asked(sample.key, modality, (_medium(modality, sample), *questions)))
    pairs = itertools.cycle(itertools.combinations(held, 2))
    for number, (one, other) in enumerate(itertools.islice(pairs, count if len(held) > 1 else 0)):
        first, second = held[one][number % len(held[one])], held[other][-1 - number % len(held[other])]
        asked.append(Asked(f"{first.key} and {second.key}", f"{one} and {other}", (
            _text("Here is"), _medium(one, first), _text("and here is"), _medium(other, second), _text("What do you find in each of them?"))))
    return asked


def _spread(folder: Path, count: int) -> list[Sample]:
    """Samples of the test split, evenly over it: neighbours are alike."""
    size = sum(1 for path in shard_paths(folder, "test") for _ in read_shard(path))
    places = {round(number * (size - 1) / max(1, count - 1)) for number in range(min(count, size))}
    every = itertools.chain.from_iterable(read_shard(path) for path in shard_paths(folder, "test"))
    return [sample for place, sample in enumerate(every) if place in places]


def _text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def _medium(modality: str, sample: Sample) -> dict[str, Any]:
    data = base64.b64encode(sample.data).decode()
    if modality == "image":
        return {"type": "image_url", "image_url": {"url": f"data:{PICTURES[sample.extension]};base64,{data}"}}
    if modality == "video":
        return {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}}
    if modality == "audio":
        return {"type": "input_audio", "input_audio": {"data": data, "format": sample.extension}}
    return {"type": "imu", "imu": {"data": data, "format": sample.extension}}
