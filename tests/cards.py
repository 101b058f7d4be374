"""Dataset cards as the hub reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard


def check_dataset_card(folder: Path) -> None:
    """The hub's reader takes the card of a folder, and each split that it names has its files there, and none else has."""
    data: dict[str, Any] = DatasetCard.load(folder / "README.md").data.to_dict()
    assert data["license"] == "other" and data["language"] == ["en"] and data["task_categories"]
    (config,) = data["configs"]
    named = {entry["split"]: sorted(path.name for path in folder.glob(entry["path"])) for entry in config["data_files"]}
    assert named and all(named.values()), named
    assert set(named) <= {"train", "validation", "test"}
    rest = {path.name for path in folder.iterdir() if path.suffix in {".tar", ".json"}} - {"manifest.json"}
    assert sorted(name for names in named.values() for name in names) == sorted(rest)
