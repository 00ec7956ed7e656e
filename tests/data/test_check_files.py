"""Looking through one's own images finds each kind of fault, and nothing where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perdure.data.check_files import inspect
from perdure.errors import DataError


def image(path: Path, shade: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), shade, dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def tree(tmp_path):
    """Two classes in two splits, all different."""
    for shade, name in enumerate(("train/cat/a", "train/cat/b", "train/dog/a", "test/cat/a", "test/dog/a")):
        image(tmp_path / f"{name}.png", 40 * shade)
    return tmp_path


def test_a_sound_tree_is_counted_and_sound(tree):
    found = inspect(tree, decode=True)
    assert found.counts == {"test": {"cat": 1, "dog": 1}, "train": {"cat": 2, "dog": 1}}
    assert found.sound


def test_class_folders_without_splits_are_one_split(tmp_path):
    image(tmp_path / "cat" / "a.png", 1)
    assert inspect(tmp_path).counts == {"all": {"cat": 1}}


def test_broken_and_empty_files_are_named(tree):
    (tree / "train/cat/b.png").write_bytes(b"")
    (tree / "train/dog/a.png").write_bytes(b"no image")
    found = inspect(tree)
    assert [line.split(":")[0].split("/")[-1] for line in found.unreadable] == ["b.png", "a.png"]


def test_a_torn_image_is_found_by_decoding_it(tree):
    whole = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    file = tree / "train/cat/torn.jpg"
    Image.fromarray(whole).save(file)
    file.write_bytes(file.read_bytes()[:-800])
    assert inspect(tree).sound  # its header is right
    assert len(inspect(tree, decode=True).unreadable) == 1


def test_the_same_image_in_two_splits_is_found_and_twice_in_one_is_not(tree):
    twin = tree / "test/dog/twin.png"
    twin.write_bytes((tree / "train/cat/a.png").read_bytes())
    (tree / "train/dog/again.png").write_bytes((tree / "train/cat/b.png").read_bytes())
    assert inspect(tree).duplicates == [(tree / "train/cat/a.png", twin)]


def test_a_class_that_training_does_not_have_gets_the_nearest_name(tree):
    (tree / "test/dog").rename(tree / "test/dogs")
    assert inspect(tree).unmatched == ["test: class `dogs` is not in train; is it `dog`?"]


def test_an_empty_class_folder_is_named(tree):
    (tree / "train/cow").mkdir()
    assert inspect(tree).empty == [str(tree / "train/cow")]


@pytest.mark.parametrize("columns", [("path", "label", "split"), ("image", "class", "subset")])
def test_lists_are_read_as_csv_and_json_lines(tree, columns):
    rows = [("train/cat/a.png", "cat", "train"), ("test/cat/a.png", "cat", "test"), ("gone.png", "cat", "test")]
    (tree / "list.csv").write_text("\n".join(",".join(row) for row in (columns, *rows)))
    (tree / "list.jsonl").write_text("\n".join(json.dumps(dict(zip(columns, row))) for row in rows))
    for name in ("list.csv", "list.jsonl"):
        found = inspect(tree / name)
        assert found.counts == {"test": {"cat": 2}, "train": {"cat": 1}}
        assert len(found.unreadable) == 1


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("x.csv", "file,lable\na.png,cat", "record 1: has no label"),
        ("x.jsonl", '{"path": 1', "x.jsonl:1: is not JSON"),
        ("x.jsonl", "[1]", "is not a JSON object"),
        ("x.jsonl", "", "holds no image"),
        ("x.txt", "a", "is no list of images"),
    ],
)
def test_a_list_that_cannot_be_read_is_one_message(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=expected):
        inspect(tmp_path / name)


def test_a_folder_without_images_and_a_path_to_nothing_are_errors(tmp_path):
    with pytest.raises(DataError, match="holds no image"):
        inspect(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        inspect(tmp_path / "gone")
