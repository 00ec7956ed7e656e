"""The fine-grained sets with CoOp's splits, and FGVC-Aircraft, in their published layouts."""

import json

import pytest

from perdure.data import aircraft, fine_grained, lists
from perdure.errors import DataError


def split(root, name, content):
    folder, _, file = fine_grained.PLACES[name]
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / f"split_zhou_{file}.json").write_text(json.dumps(content))
    return fine_grained.Config(set=name, root=root)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *(("flower102", 102), ("food101", 101), ("dtd", 47), ("pets", 37), ("sun397", 397)),
        *(("caltech101", 100), ("ucf101", 101), ("cars", 196), ("eurosat", 10)),
    ],
)
def test_splits_are_read_with_the_shipped_names(tmp_path, image, name, count):
    folder, images, _ = fine_grained.PLACES[name]
    image(tmp_path / folder / images / "b" / "1.png")
    content = {"train": [["a/0.png", 1, "x"]], "val": [], "test": [["b/1.png", 0, "y"], ["c/2.png", count - 1, "z"]]}
    config = split(tmp_path, name, {k: v for k, v in content.items() if v})
    data = fine_grained.read(config)
    assert len(data.candidates) == count and data.test.targets == [0, count - 1] and len(data.train) == 1
    assert data.test[0].id == f"{images}/b/1.png" and data.test[0].inputs["image"].is_file()
    assert data.facts["counts"] == {"train": 1, "test": 2}
    missing = [path for path in fine_grained.files(config) if not path.exists()]
    assert len(missing) == 2


def test_the_root_may_be_the_sets_own_folder(tmp_path):
    split(tmp_path, "pets", {"test": [["a.jpg", 3, "x"]]})
    assert len(fine_grained.read(fine_grained.Config(set="pets", root=tmp_path / "oxford_pets")).test) == 1


def test_paths_that_repeat_the_folder_of_images_are_understood(tmp_path):
    data = fine_grained.read(split(tmp_path, "cars", {"test": [["cars_test/00001.jpg", 5, "x"]]}))
    assert data.test[0].id == "cars_test/00001.jpg"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"train": []}, "no 'test' in it"),
        ({"test": []}, "'test' is empty"),
        ({"test": [["a.jpg", 37, "x"]]}, r"record 0: label 37. Expected a number from 0 to 36"),
        ({"test": [["a.jpg", 1, "x"], ["b.jpg"]]}, r"record 1: is \['b.jpg'\]"),
    ],
)
def test_a_damaged_split_file_is_named_with_its_record(tmp_path, content, said):
    with pytest.raises(DataError, match=said):
        fine_grained.read(split(tmp_path, "pets", content))


def test_a_missing_or_broken_file_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"missing.*split_zhou_EuroSAT\.json"):
        fine_grained.read(fine_grained.Config(set="eurosat", root=tmp_path))
    config = split(tmp_path, "eurosat", {})
    (tmp_path / "eurosat" / "split_zhou_EuroSAT.json").write_text("{")
    with pytest.raises(DataError, match="this is no JSON"):
        fine_grained.read(config)


def test_aircraft_labels_are_places_in_the_list_of_variants(tmp_path):
    (tmp_path / "variants.txt").write_text("707-320\nA300B4\nDHC-8-100\n")
    (tmp_path / "images_variant_test.txt").write_text("0034309 DHC-8-100\n1025794 707-320\n")
    data = aircraft.read(aircraft.Config(root=tmp_path))
    assert data.candidates == ("707-320", "A300B4", "DHC-8-100") and data.test.targets == [2, 0]
    assert data.test[0].id == "images/0034309.jpg" and len(data.train) == 0
    (tmp_path / "images_variant_test.txt").write_text("0034309 DHC-8-10\n")
    with pytest.raises(DataError, match=r"test\.txt:1: variant 'DHC-8-10' is unknown \(nearest: DHC-8-100\)"):
        aircraft.read(aircraft.Config(root=tmp_path))


def test_shipped_names_have_published_sizes():
    names = lists.load("test_time_classes.json")
    assert len(names["aircraft"]) == 100 and names["flower102"][0] == "pink primrose"
    assert len(names["imagenet_a__index"]) == len(names["imagenet_r__index"]) == 200
