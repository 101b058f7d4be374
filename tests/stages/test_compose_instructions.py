"""Template instructions from curated samples: complete, true, labelled, reproducible; and refusals."""

import json

import pytest

from anymal.data.instructions import read_instructions
from anymal.errors import DataError
from anymal.stages.compose_instructions import ComposeInstructionsConfig, compose_instructions
from tests.tiny import make_features

KNOBS = {
    "seed": 0, "questions": {"image": {"colour": 10}}, "captions": {"imu": {"question": "what is the motion ?", "count": 5}},
    "pairs": [{"kinds": {"image": "colour", "imu": "colour"}, "question": "which colours ?", "answer": "{image} and then {imu} .", "count": 8}],
    "val_share": 0.5,
}


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    root = tmp_path_factory.mktemp("compose")
    return tuple(make_features(root / modality, {"train": 20, "val": 9}, modality=modality) for modality in ("image", "imu"))


def run(folder, features, **knobs):
    folder.mkdir(exist_ok=True)
    compose_instructions(ComposeInstructionsConfig(**{**KNOBS, **knobs}), features=features, instructions=folder / "out",
                         statistics=folder / "statistics.json")
    return folder / "out"


COLOURS = ("red", "green", "blue")


def colour_of(member):
    return COLOURS[int(member[-8:-4]) % 3]


def test_questions_captions_and_pairs_are_true_and_labelled(tmp_path, features):
    folder = run(tmp_path / "x", features)
    made = read_instructions(folder, "train")
    assert {entry.origin for entry in made} == {"template"}
    by_kind = {kind: [entry for entry in made if entry.kind == kind] for kind in ("colour", "caption", "image+imu")}
    assert {kind: len(found) for kind, found in by_kind.items()} == {"colour": 10, "caption": 5, "image+imu": 8}
    for entry in by_kind["colour"]:
        assert entry.turns[0][1] == colour_of(entry.media[0].member)
    orders = set()
    for entry in by_kind["image+imu"]:
        of = {medium.modality: colour_of(medium.member) for medium in entry.media}
        assert entry.turns[0] == ("\n".join(f"<{m.modality}>" for m in entry.media) + "\nwhich colours ?", f"{of['image']} and then {of['imu']} .")
        orders.add(tuple(m.modality for m in entry.media))
    assert len(orders) == 2
    assert len(read_instructions(folder, "val")) == 5 + 2 + 4
    counts = json.loads((tmp_path / "x" / "statistics.json").read_text())
    assert counts["train"]["instructions"] == 23


def test_the_same_inputs_give_the_same_bytes(tmp_path, features):
    one, two = run(tmp_path / "a", features), run(tmp_path / "b", features)
    assert (one / "train.json").read_bytes() == (two / "train.json").read_bytes()
    assert (run(tmp_path / "c", features, seed=1) / "train.json").read_bytes() != (one / "train.json").read_bytes()


def test_no_knobs_make_no_instructions(tmp_path, features):
    folder = run(tmp_path / "x", features, questions={}, captions={}, pairs=[])
    assert read_instructions(folder, "train") == []


def test_refusals_name_the_knob(tmp_path, features):
    with pytest.raises(DataError, match="no image sample has a question of kind shape"):
        run(tmp_path / "a", features, questions={"image": {"shape": 3}})
    with pytest.raises(DataError, match="--features has nothing of imu, it has image"):
        run(tmp_path / "b", features[:1])
    with pytest.raises(DataError, match="holds a placeholder"):
        run(tmp_path / "c", features, captions={"imu": {"question": "what is <imu> ?", "count": 2}})
    with pytest.raises(ValueError, match=r"answer must hold \{imu\}"):
        run(tmp_path / "d", features, pairs=[{**KNOBS["pairs"][0], "answer": "{image}"}])
