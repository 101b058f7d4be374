"""Which samples are drawn for the report, and how their media are found."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from anymal.data.features import FeatureStore
from anymal.data.manifest import write_manifest
from anymal.data.shards import Sample, ShardWriter, read_shard
from anymal.errors import DataError
from anymal.evaluation.predictions import sound_path
from anymal.evaluation.previews import choose, draw_previews, media_of, rough_score
from anymal.media.audio import open_audio
from tests.evaluation.copies import flac, sample, shards, wave
from tests.evaluation.toys import ToyEncoder

LABELS = ["bicep curls", "rows"]


def caption(number, said, label="rows"):
    return {"key": f"k{number:02d}", "label": label, "source": "s", "references": [f"A person does {label}."], "prediction": {"right": said}}


def question(number, said):
    return {"key": f"k{number:02d}", "kind": "color", "question": "?", "references": ["red"], "prediction": {"right": said}}


def mixed(number, said):
    return {"keys": {"image": f"i{number}", "imu": f"m{number}"}, "question": "?", "references": {"image": "red", "imu": "rows"},
            "prediction": {"right": said}}


def test_rough_scores_tell_right_from_wrong():
    assert rough_score(caption(0, "rows"), LABELS) == 1 > rough_score(caption(0, "rows, bicep curls"), LABELS)
    assert rough_score(question(0, "Red."), ()) == 1 > rough_score(question(0, "blue"), ())
    assert rough_score(mixed(0, "red rows"), ["red", *LABELS]) == 1 > rough_score(mixed(0, "rows"), ["red", *LABELS])
    plain = {**caption(0, "A person sits."), "label": None}
    assert 0 < rough_score(plain, ()) < rough_score({**plain, "prediction": {"right": "A person does row."}}, ()) == 1


def test_wrong_and_right_of_each_kind_take_turns():
    records = [caption(i, "rows" if i % 3 else "sits", LABELS[i % 2]) for i in range(40)]
    chosen = choose({"caption": records}, {"caption": LABELS}, modality="imu", limit=8, seed=0)
    assert chosen.keys() == {"imu"} and len(chosen["imu"]) == 8
    found = [record for record in records if record["key"] in chosen["imu"]]
    assert sum(rough_score(record, LABELS) < 1 for record in found) >= 5 and {record["label"] for record in found} == set(LABELS)
    assert chosen == choose({"caption": records}, {"caption": LABELS}, modality="imu", limit=8, seed=0)
    assert chosen != choose({"caption": records}, {"caption": LABELS}, modality="imu", limit=8, seed=1)


def test_the_limit_counts_media_and_a_sample_of_two_tasks_counts_once():
    tasks = {"caption": [caption(i, "rows") for i in range(9)], "qa": [question(i, "red") for i in range(9)]}
    assert len(choose(tasks, {}, modality="imu", limit=100, seed=0)["imu"]) == 9
    pairs = choose({"qa": [mixed(i, "") for i in range(9)]}, {}, modality="mixed", limit=7, seed=0)
    assert len(pairs["image"]) == len(pairs["imu"]) == 3
    assert choose(tasks, {}, modality="imu", limit=0, seed=0) == {}
    assert media_of(mixed(1, ""), "mixed") == {"image": "i1", "imu": "m1"}


def test_pictures_are_what_the_encoder_was_fed(toys, tmp_path):
    store = FeatureStore(toys["imu"]["features"], "test")
    draw_previews(ToyEncoder(tmp_path), store, toys["imu"]["shards"], ["imu-0007", "imu-0001"], tmp_path / "out", split="test")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["imu-0001.png", "imu-0007.png"]
    encoder, data = ToyEncoder(tmp_path), {s.key: s.data for path in toys["imu"]["shards"].glob("*.tar") for s in read_shard(path)}
    assert (tmp_path / "out" / "imu-0007.png").read_bytes() == encoder.picture(encoder.read(io.BytesIO(data["imu-0007"]), "x"))
    assert Image.open(tmp_path / "out" / "imu-0001.png").size == (16, 8)


def shards_with(folder, change):
    with ShardWriter(folder / "changed", "test", 5) as writer:
        for path in sorted(folder.glob("*.tar")):
            for sample in read_shard(path):
                if (kept := change(sample)) is not None:
                    writer.write(kept)
    write_manifest(folder / "changed")
    return folder / "changed"


@pytest.mark.parametrize(("change", "words"), [
    (lambda s: None if s.key == "imu-0003" else s, r"holds no sample imu-0003 \(and 0 more\) in split test; .* run encode again"),
    (lambda s: Sample(s.key, s.extension, s.data, {**s.meta, "sha256": "0"}), "sample imu-0003 is another medium than the one"),
    (lambda s: Sample(s.key, s.extension, b"broken", s.meta), r"test-00000.tar: imu-0003\.npy: is no \.npy file"),
])  # fmt: skip
def test_other_shards_are_refused(toys, tmp_path, change, words):
    shutil.copytree(toys["imu"]["shards"], tmp_path / "shards")
    store = FeatureStore(toys["imu"]["features"], "test")
    with pytest.raises(DataError, match=words):
        draw_previews(ToyEncoder(tmp_path), store, shards_with(tmp_path / "shards", change), ["imu-0003"], tmp_path / "out", split="test")


def test_sounds_can_be_heard_as_well(tmp_path):
    shards(tmp_path / "shards", "test", [sample(f"s{seed}", "flac", flac(wave(seed)), sha256=f"{seed}") for seed in range(2)])

    class Store:
        def __len__(self):
            return 2

        def meta(self, row):
            return {"key": f"s{row}", "sha256": f"{row}"}

    class Hearing(ToyEncoder):
        modality = "audio"

        def read(self, source, name):
            return np.ones(16, dtype=np.float32)

    draw_previews(Hearing(tmp_path), Store(), tmp_path / "shards", ["s1"], tmp_path / "drawn", split="test")
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["s1.mp3", "s1.png"]
    assert len(open_audio(tmp_path / "drawn" / "s1.mp3", "s1.mp3", rate=8000)) > 4000
    assert sound_path(tmp_path, "audio", "s1").name == "s1.mp3"
