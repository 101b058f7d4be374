import numpy as np
import pytest
import torch

from anymal.data.features import FeatureStore, write_feature_shard
from anymal.errors import DataError
from tests.tiny import make_features


def test_rows_come_back_across_shards(tmp_path):
    folder = make_features(tmp_path / "f", {"train": 19, "test": 3})
    store = FeatureStore(folder, "train")
    assert (len(store), store.tokens, store.dim) == (19, 5, 16)
    assert [store.meta(i)["key"] for i in (0, 7, 8, 18)] == ["train-0000", "train-0007", "train-0008", "train-0018"]
    picked = store.features([18, 0])
    assert picked.shape == (2, 5, 16)
    assert picked.dtype == torch.float16
    assert torch.equal(picked[1], store.features([0])[0])
    assert len(FeatureStore(folder)) == 22
    assert store.blank().shape == (5, 16)
    assert (store.info["modality"], store.info["frames"]) == ("image", 1)


def test_values_that_half_precision_cannot_hold_are_refused(tmp_path):
    with pytest.raises(DataError, match="float16"):
        write_feature_shard(tmp_path / "x.safetensors", np.full((1, 2, 2), 1e6, dtype=np.float32), [{}])
    assert list(tmp_path.iterdir()) == []


def test_as_many_records_as_rows(tmp_path):
    with pytest.raises(DataError, match="2 feature rows for 1 samples"):
        write_feature_shard(tmp_path / "x.safetensors", np.zeros((2, 2, 2), dtype=np.float32), [{}])


def test_a_missing_shard_split_or_index_is_named(tmp_path):
    folder = make_features(tmp_path / "f", {"train": 9})
    with pytest.raises(DataError, match="'val'; it has train"):
        FeatureStore(folder, "val")
    (folder / "train-00001.safetensors").unlink()
    with pytest.raises(DataError, match=r"train-00001.safetensors: missing"):
        FeatureStore(folder)
    with pytest.raises(DataError, match=r"features.json"):
        FeatureStore(tmp_path)


def test_the_index_says_modality_and_frames(tmp_path):
    store = FeatureStore(make_features(tmp_path / "f", {"train": 3}, modality="video", tokens=6, frames=3), "train")
    assert (store.info["modality"], store.info["frames"], store.tokens) == ("video", 3, 6)


def test_a_shard_of_another_shape_than_the_index_says_is_refused(tmp_path):
    folder = make_features(tmp_path / "f", {"train": 3})
    write_feature_shard(folder / "train-00000.safetensors", np.zeros((3, 4, 16), dtype=np.float32), [{}] * 3)
    with pytest.raises(DataError, match=r"features of shape \[3, 4, 16\], features.json says \[3, 5, 16\]; run encode again"):
        FeatureStore(folder)
