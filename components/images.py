"""The container images that the components run in, from the one file that says which."""

import os
from pathlib import Path

from ruamel.yaml import YAML, YAMLError

from anymal.errors import ConfigError

FILE = Path(os.environ.get("ANYMAL_IMAGES") or Path(__file__).parent.parent / "manifests" / "images" / "kustomization.yaml")
"""`ANYMAL_IMAGES` names another file of the same form: dist/images.yaml has the images that `make images` built on this machine."""


def reference(name: str) -> str:
    """What an engine or a cluster runs: `newName@digest` of the file's entry, or `newName:newTag`; ConfigError if there is no such entry."""
    try:
        (entry,) = [entry for entry in YAML(typ="safe", pure=True).load(FILE.read_text(encoding="utf-8"))["images"] if entry["name"] == name]
        return f"{entry['newName']}@{entry['digest']}" if "digest" in entry else f"{entry['newName']}:{entry['newTag']}"
    except (OSError, YAMLError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"images: {FILE} is missing or has no single entry {name} with newName and digest or newTag; correct it, or let "
                          "`make images` write dist/images.yaml and set ANYMAL_IMAGES to that") from error


DATA, TRAIN, EVAL = (reference(f"anymal-{group}") for group in ("data", "train", "eval"))
