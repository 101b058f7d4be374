import io
import tarfile

import pytest

from anymal.data.shards import MAX_META_BYTES, Sample, ShardWriter, read_shard, shard_paths
from anymal.errors import DataError
from tests.tiny import make_shards, sample


def tar_of(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_what_is_written_is_read_in_order(tmp_path):
    samples = [sample(f"k{i}", "train") for i in range(5)]
    with ShardWriter(tmp_path, "train", 2) as writer:
        for one in samples:
            writer.write(one)
    assert [p.name for p in shard_paths(tmp_path)] == ["train-00000.tar", "train-00001.tar", "train-00002.tar"]
    assert [s for p in shard_paths(tmp_path, "train") for s in read_shard(p)] == samples


def test_the_same_samples_give_the_same_bytes(tmp_path):
    first, second = make_shards(tmp_path / "a", {"train": 5}), make_shards(tmp_path / "b", {"train": 5})
    assert (first / "train-00000.tar").read_bytes() == (second / "train-00000.tar").read_bytes()


def test_webdataset_reads_our_shards(tmp_path):
    wds = pytest.importorskip("webdataset")
    folder = make_shards(tmp_path, {"train": 3})
    read = list(wds.WebDataset(str(folder / "train-00000.tar"), shardshuffle=False, empty_check=False).decode())
    assert [item["__key__"] for item in read] == ["train-0000", "train-0001", "train-0002"]
    assert read[1]["json"]["captions"] == ["a green picture ."]


@pytest.mark.parametrize(("members", "said"), [
    ([("../../x.png", b"x"), ("../../x.json", b"{}")], "'../../x.png' is not a plain file"),
    ([("/etc/x.png", b"x")], "is not a plain file"),
    ([("a.png", b"x"), ("a.json", b"{}"), ("a.png", b"y"), ("a.json", b"{}")], "key 'a' comes twice"),
    ([("a.png", b"x"), ("b.json", b"{}")], "b.json has no medium before it"),
    ([("a.png", b"x"), ("b.png", b"{}")], "a.png has no a.json after it"),
    ([("a.png", b"x")], "ends after a.png"),
    ([("a.png", b"x"), ("a.json", b"{")], "is not valid JSON"),
    ([("a.png", b"x"), ("a.json", b"[]")], "must hold a JSON object"),
    ([("a.png", b"x"), ("a.json", b" " * (MAX_META_BYTES + 1))], "more than the"),
])
def test_a_wrong_shard_is_refused_by_name(tmp_path, members, said):
    path = tar_of(tmp_path / "train-00000.tar", members)
    with pytest.raises(DataError) as caught:
        list(read_shard(path))
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_links_are_refused(tmp_path):
    path = tmp_path / "train-00000.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(DataError, match="not a plain file"):
        list(read_shard(path))


def test_a_shard_cut_short_is_refused(tmp_path):
    folder = make_shards(tmp_path, {"train": 4})
    path = folder / "train-00000.tar"
    path.write_bytes(path.read_bytes()[:1200])
    with pytest.raises(DataError, match=r"damaged|ends after"):
        list(read_shard(path))


@pytest.mark.parametrize("key", ["", "../x", "a.b", "a/b", "-x"])
def test_keys_that_cannot_name_a_member_are_refused(tmp_path, key):
    with pytest.raises(DataError, match="sample key"), ShardWriter(tmp_path, "train", 2) as writer:
        writer.write(Sample(key, "png", b"", {}))


def test_a_key_written_twice_is_refused(tmp_path):
    with pytest.raises(DataError, match="written twice"), ShardWriter(tmp_path, "train", 2) as writer:
        writer.write(sample("a", "train"))
        writer.write(sample("a", "train"))


def test_a_folder_without_shards_is_named(tmp_path):
    with pytest.raises(DataError, match=str(tmp_path)):
        shard_paths(tmp_path, "train")
