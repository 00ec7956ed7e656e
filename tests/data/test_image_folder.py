from dataclasses import replace
from hashlib import sha256

import pytest

from perdure.data import image_folder
from perdure.data.image_folder import Config, read
from perdure.errors import DataError


def ids(examples):
    return [e.id for e in examples]


def test_labels_follow_sorted_folders_and_examples_sorted_paths(class_tree):
    root = class_tree("train", ["dog", "cat"], 2)
    class_tree("test", ["dog", "cat"], 1)
    data = read(Config(root=root))
    assert data.candidates == ("cat", "dog")
    assert ids(data.train) == [
        "train/cat/cat_0.png",
        "train/cat/cat_1.png",
        "train/dog/dog_0.png",
        "train/dog/dog_1.png",
    ]
    assert data.train.targets == [0, 0, 1, 1]
    assert data.test.targets == [0, 1]
    assert data.train[0].inputs["image"] == root / "train/cat/cat_0.png"
    assert data.facts["counts"] == {"train": 4, "test": 2}


def test_val_is_the_test_set_unless_there_is_a_test_folder(class_tree):
    root = class_tree("train", ["a", "b"], 2)
    class_tree("val", ["a", "b"], 1)
    assert len(read(Config(root=root)).validation) == 0
    assert len(read(Config(root=root)).test) == 2
    class_tree("test", ["a", "b"], 3)
    data = read(Config(root=root))
    assert (len(data.train), len(data.validation), len(data.test)) == (4, 2, 6)


def test_without_split_folders_a_share_of_each_class_is_the_test_set(class_tree):
    root = class_tree("", ["a", "b"], 10)
    class_tree("", ["rare"], 1)
    data = read(Config(root=root, test_share=0.3))
    assert [data.test.targets.count(c) for c in range(3)] == [3, 3, 0]
    assert [data.train.targets.count(c) for c in range(3)] == [7, 7, 1]
    assert not set(ids(data.train)) & set(ids(data.test))


def test_the_split_depends_on_its_seed_and_the_names_alone(class_tree):
    root = class_tree("", ["a"], 10)
    config = Config(root=root, test_share=0.5)
    first = ids(read(config).test)
    assert first == ids(read(config).test)
    assert first != ids(read(replace(config, split_seed=1)).test)
    class_tree("", ["b"], 4)  # another class moves nothing in this one
    assert [i for i in ids(read(config).test) if i.startswith("a/")] == first
    # The rule, so that others can make the same split: those whose sha256 of key and name come first.
    names = [f"a/a_{k}.png" for k in range(10)]
    assert first == sorted(sorted(names, key=lambda n: sha256(f"image_folder/0/{n}".encode()).digest())[:5])


def test_all_images_may_be_test_images(class_tree):
    data = read(Config(root=class_tree("", ["a", "b"], 2), test_share=1))
    assert (len(data.train), len(data.test)) == (0, 4)


def test_the_fingerprint_tells_copies_apart(class_tree, image):
    root = class_tree("", ["a", "b"], 3)
    before = read(Config(root=root)).facts["fingerprint"]
    assert before == read(Config(root=root)).facts["fingerprint"]
    image(root / "a" / "a_9.png")
    assert read(Config(root=root)).facts["fingerprint"] != before


def test_hidden_files_and_other_files_are_no_examples(class_tree):
    root = class_tree("", ["a"], 2)
    (root / "a" / ".DS_Store").write_bytes(b"x")
    (root / "a" / "notes.txt").write_text("x")
    (root / ".cache").mkdir()
    data = read(Config(root=root, test_share=0))
    assert data.candidates == ("a",) and len(data.train) == 2


def test_linked_folders_are_followed_once(class_tree):
    root = class_tree("", ["a"], 2)
    (root / "a" / "again").symlink_to(root / "a")
    assert len(read(Config(root=root, test_share=0)).train) == 2


def test_chosen_classes_keep_their_order_and_leave_the_others(class_tree):
    data = read(Config(root=class_tree("", ["a", "b", "c"], 1), classes=("c", "a"), test_share=0))
    assert data.candidates == ("c", "a") and data.train.targets == [1, 0]  # files stay sorted: a before c


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: root / "nowhere", "nowhere: this folder is missing"),
        (lambda root: root, "no class folders here"),
        (lambda root: (root / "file").write_text("x") and root / "file", "is a file, not a folder"),
    ],
)
def test_a_missing_or_empty_root_is_named(tmp_path, make, said):
    with pytest.raises(DataError, match=said):
        read(Config(root=make(tmp_path)))


def test_a_class_missing_in_the_test_folder_is_named_with_its_nearest_name(class_tree):
    root = class_tree("train", ["cat", "zebra"], 1)
    class_tree("test", ["cat", "zebrra"], 1)
    with pytest.raises(DataError, match=r"1 class folder\(s\) missing: zebra \(nearest: zebrra\)"):
        read(Config(root=root))


def test_a_class_without_an_image_is_named(class_tree):
    root = class_tree("", ["cat"], 1)
    (root / "dog").mkdir()
    with pytest.raises(DataError, match="without an image: dog"):
        read(Config(root=root))


def test_a_misspelt_root_is_met_with_the_nearest_folder(tmp_path):
    (tmp_path / "flowers").mkdir()
    with pytest.raises(DataError, match="there is 'flowers'"):
        read(Config(root=tmp_path / "flovers"))


def test_split_folders_need_both_halves(class_tree):
    root = class_tree("", ["train", "bus"], 1)  # a class may be called train
    assert image_folder.split_folders(root) == {}
    assert read(Config(root=root)).candidates == ("bus", "train")
