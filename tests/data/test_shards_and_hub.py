"""Tar shards in WebDataset's form, and data sets of Hugging Face `datasets`."""

import gzip
import os
import shutil

import pytest

from perdure.data import hf_dataset, webdataset
from perdure.data.fitting import fitting
from perdure.data.webdataset import Config, braces, read
from perdure.errors import DataError
from perdure.images import open_image
from perdure.kept_examples import pack, unpack
from perdure.prepare.check_images import check_path
from tests.data.own_rows import pictures, sample, write_tar


@pytest.fixture
def rows(tmp_path):
    return pictures(tmp_path)


def members(tmp_path, rows, suffix="cls"):
    """As ``tar --sort=name`` writes them: the members of a key side by side."""
    return [
        one
        for i, row in enumerate(rows)
        for one in sample(f"{row['label']}/{i:03d}", tmp_path / row["file_name"], **{suffix: row["label"]})
    ]


def test_shards_are_read_in_any_order_by_their_index(tmp_path, rows):
    for name, some in (("train-000000", rows[:4] + rows[6:10]), ("test-000000", [rows[5], rows[11]])):
        folder = name.split("-")[0]
        made = [(f"{folder}_{n}", data) for n, data in members(tmp_path, some)]
        write_tar(tmp_path / f"{name}.tar", [("._hidden", b"x"), *made])
    named = fitting(tmp_path)
    data = named.build()
    assert named.name == "webdataset" and data.candidates == ("cat", "dog")
    assert data.facts["counts"] == {"train": 8, "test": 2}
    last = data.train[7]
    assert last.id == "train_dog/007" and open_image(last.inputs["image"]).getpixel((0, 0)) == (13, 0, 90)
    (kept,) = unpack(pack([last]))
    assert kept.inputs["image"] == last.inputs["image"].read_bytes()
    assert check_path(tmp_path).exit_code == 0


def test_captions_and_json_say_what_images_are(tmp_path, rows):
    write_tar(tmp_path / "a.tar", members(tmp_path, rows, "txt"))
    data = read(Config(shards=str(tmp_path / "a.tar")))
    assert data.kind == "caption" and data.train[0].target == ["cat"]
    said = [
        one
        for i, row in enumerate(rows)
        for one in sample(str(i), tmp_path / row["file_name"], json={"class": row["label"], "split": row["split"]})
    ]
    write_tar(tmp_path / "b.tar", said)
    assert read(Config(shards=str(tmp_path / "b.tar"))).facts["counts"] == {"train": 8, "validation": 2, "test": 2}


def test_a_pattern_names_shards_and_a_missing_one_is_told(tmp_path, rows):
    assert braces("a-{08..10}.{x,y}") == ["a-08.x", "a-08.y", "a-09.x", "a-09.y", "a-10.x", "a-10.y"]
    made = members(tmp_path, rows)
    write_tar(tmp_path / "s-00.tar", made[:12])
    write_tar(tmp_path / "s-01.tar", made[12:])
    assert len(webdataset.files(Config(shards=str(tmp_path / "s-*.tar")))) == 2
    assert sum(read(Config(shards=str(tmp_path / "s-{00..01}.tar"))).facts["counts"].values()) == 12
    with pytest.raises(DataError, match=r"s-02.tar: there is no such shard"):
        read(Config(shards=str(tmp_path / "s-{00..02}.tar")))


def test_a_key_torn_apart_or_twice_is_refused(tmp_path, rows):
    made = members(tmp_path, rows)
    write_tar(tmp_path / "torn.tar", [*made[::2], *made[1::2]])  # all images, then all classes
    with pytest.raises(DataError, match="members of this key do not lie next to each other"):
        read(Config(shards=str(tmp_path / "torn.tar")))
    write_tar(tmp_path / "x-0.tar", made)
    write_tar(tmp_path / "x-1.tar", made)
    with pytest.raises(DataError, match=r"x-1.tar, cat/000: the key is in x-0.tar, too"):
        read(Config(shards=str(tmp_path / "x-{0..1}.tar")))
    write_tar(tmp_path / "two.tar", [*made, ("dog/011.jpg", b"x")])
    with pytest.raises(DataError, match="a second image of this key"):
        read(Config(shards=str(tmp_path / "two.tar")))


def test_a_compressed_or_truncated_shard_is_refused(tmp_path, rows):
    path = write_tar(tmp_path / "a.tar", members(tmp_path, rows))
    data = path.read_bytes()
    (tmp_path / "z.tar").write_bytes(gzip.compress(data))
    with pytest.raises(DataError, match="compressed shard cannot be read in any order"):
        read(Config(shards=str(tmp_path / "z.tar")))
    path.write_bytes(data[:700])
    with pytest.raises(DataError, match=r"truncated|no whole tar"):
        read(Config(shards=str(path)))
    path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match=r"no whole tar"):
        read(Config(shards=str(path)))
    with pytest.raises(DataError, match="no shard there"):
        read(Config(shards=str(tmp_path / "images")))


def test_a_shard_that_is_gone_later_is_one_unreadable_image(tmp_path, rows):
    path = write_tar(tmp_path / "a.tar", members(tmp_path, rows))
    data = read(Config(shards=str(path)))
    path.unlink()
    with pytest.raises(DataError, match="the bytes cannot be read"):
        open_image(data.train[0].inputs["image"], where=data.train[0].id)


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    found = pytest.importorskip("datasets")
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return found


def saved(datasets, tmp_path, rows, **splits):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})

    def made(some, label):
        columns = {"image": [str(tmp_path / r["file_name"]) for r in some], "label": [label(r) for r in some]}
        return datasets.Dataset.from_dict(columns, features=features)

    known = {split: made(some, lambda r: int(r["label"] == "dog")) for split, some in splits.items()}
    blind = {"test": made(rows[-2:], lambda r: -1)}
    datasets.DatasetDict({**blind, **known}).save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def test_a_saved_data_set_has_its_classes_and_leaves_out_a_split_without_labels(tmp_path, rows, datasets):
    folder = saved(datasets, tmp_path, rows, train=rows[:4] + rows[6:10], validation=rows[4:5] + rows[10:11])
    shutil.rmtree(tmp_path / "images")  # save_to_disk has them
    named = fitting(folder)
    data = named.build()
    assert named.name == "hf_dataset" and data.candidates == ("cat", "dog")
    assert data.facts["counts"] == {"train": 8, "test": 2}  # validation is tested with, for the test has no labels
    assert open_image(data.train[5].inputs["image"]).getpixel((0, 0)) == (11, 0, 90)
    assert unpack(pack([data.train[5]]))[0].inputs["image"] == data.train[5].inputs["image"].read_bytes()
    assert check_path(folder).images == 10


def test_an_imagefolder_is_read_by_datasets_when_it_is_asked_for(tmp_path, rows, datasets):
    for row in rows:
        target = tmp_path / "folder" / ("test" if row["split"] == "test" else "train") / row["label"]
        target.mkdir(parents=True, exist_ok=True)
        os.link(tmp_path / row["file_name"], target / os.path.basename(row["file_name"]))
    data = hf_dataset.read(hf_dataset.Config(path=str(tmp_path / "folder")))
    assert data.candidates == ("cat", "dog") and data.facts["counts"] == {"train": 10, "test": 2}


def test_a_hub_id_is_looked_up_at_a_revision_and_its_absence_is_one_message(tmp_path, rows, datasets, monkeypatch):
    asked = []

    def load(name, config, *, revision):
        asked.append((name, config, revision))
        raise ConnectionError("the hub is not to be reached")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match=r"someone/birds: cannot be loaded \(the hub is not to be reached\)"):
        fitting("hf:someone/birds@v2:small").build()
    assert asked == [("someone/birds", "small", "v2")]
    with pytest.raises(DataError, match="no folder and no hub id"):
        hf_dataset.read(hf_dataset.Config(path=str(tmp_path / "nothing")))
