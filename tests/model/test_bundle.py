"""The bundle: what it holds, that it answers, and that nothing in it can be missing, extra or changed unseen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from anymal.data.manifest import write_manifest
from anymal.errors import BundleError
from anymal.model.bundle import bundle_sha256, read_bundle, write_bundle
from anymal.model.loading import load_bundle

INFERENCE = {"dtype": "float32", "quantization": "none", "attention": "eager", "merge": False, "max_new_tokens": 5}


def make(root: Path, name: str = "bundle", modalities: Sequence[str] = ("image",)) -> Path:
    """A bundle of the fixture `workspace`."""
    folder = root / name
    write_bundle(folder, checkpoints=[root / "models/checkpoints" / modality for modality in modalities], assets=root / "data/assets",
                 inference=INFERENCE, card="# Card\n", provenance={"seed": 1})
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_holds_what_the_architecture_says_and_no_pickles(workspace):
    files = contents(make(workspace))
    assert set(files) == {"README.md", "bundle.json", "manifest.json", "image/manifest.json", "image/projector.json", "image/projector.safetensors"}
    document = json.loads(files["bundle.json"])
    assert document["llm"] == "tiny-llm" and document["encoders"] == {"image": "tiny-encoder"}
    assert {name: set(record) for name, record in document["assets"].items()} == {name: {"entry", "sha256"} for name in ("tiny-llm", "tiny-encoder")}


def test_an_encoder_that_no_asset_holds_goes_along(workspace):
    folder = make(workspace, modalities=("image", "audio", "imu"))
    files = set(contents(folder))
    for modality in ("audio", "imu"):
        assert {f"{modality}/encoder/encoder.json", f"{modality}/encoder/encoder.safetensors", f"{modality}/projector.json"} <= files
    document = read_bundle(folder)
    assert document["encoders"] == {"image": "tiny-encoder", "audio": None, "imu": None}
    assert set(document["assets"]) == {"tiny-llm", "tiny-encoder"}
    weights = folder / "audio/encoder/encoder.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleError, match=r"changed audio/encoder/encoder\.safetensors"):
        load_bundle(folder)


def test_same_inputs_give_the_same_bytes(workspace):
    first, second = make(workspace, "a"), make(workspace, "b")
    assert contents(first) == contents(second)
    assert bundle_sha256(first) == bundle_sha256(second)


def test_answers_as_the_checkpoint_it_was_made_from(workspace):
    from anymal.model.anymal import load_anymal
    from anymal.serving.answer import Request, answer

    request = Request("what colour is the picture ?", [("image", workspace / "red.png")])
    bundled = answer(load_bundle(make(workspace)), [request], max_new_tokens=5, batch_size=1)
    direct = answer(load_anymal(Path("data/assets"), [Path("models/checkpoints/image")], dtype="float32"), [request], max_new_tokens=5, batch_size=1)
    assert bundled == direct


@pytest.mark.parametrize("name", ["README.md", "bundle.json", "image/projector.json", "image/projector.safetensors", "image/manifest.json"])
def test_refuses_a_missing_and_a_changed_file_by_name(workspace, name):
    folder = make(workspace)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(BundleError, match=f"changed {name}"):
        load_bundle(folder)
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"missing {name}"):
        load_bundle(folder)


def test_refuses_an_extra_file_and_a_missing_manifest(workspace):
    folder = make(workspace)
    (folder / "image" / "extra.bin").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"extra image/extra\.bin"):
        load_bundle(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        load_bundle(folder)


def test_refuses_another_llm_than_the_recorded_one(workspace):
    folder = make(workspace)
    config = Path("data/assets/tiny-llm/config.json")
    config.write_text(config.read_text() + " ")
    write_manifest(config.parent)  # a well-formed asset of the same name, but not the same files
    with pytest.raises(BundleError, match="tiny-llm"):
        load_bundle(folder)


def test_refuses_what_is_no_bundle(workspace):
    with pytest.raises(BundleError, match="no such bundle folder"):
        read_bundle(workspace / "nothing")
    with pytest.raises(BundleError, match=r"bundle\.json"):
        read_bundle(workspace / "models/checkpoints/image")
    folder = make(workspace)
    document = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**document, "format": 99}))
    write_manifest(folder)
    with pytest.raises(BundleError, match="format = 99"):
        read_bundle(folder)


def test_refuses_a_checkpoint_without_its_assets_and_two_of_one_modality(workspace):
    with pytest.raises(BundleError, match="run ingest"):
        write_bundle(workspace / "b", checkpoints=[workspace / "models/checkpoints/image"], assets=workspace, inference=INFERENCE, card="",
                     provenance={})
    with pytest.raises(BundleError, match="one checkpoint per modality"):
        write_bundle(workspace / "b", checkpoints=[workspace / "models/checkpoints/image"] * 2, assets=workspace / "data/assets",
                     inference=INFERENCE, card="", provenance={})
    assert not (workspace / "b").exists()
