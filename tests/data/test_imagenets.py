"""ImageNet-1k, ImageNet-100, ImageNet-R and Tiny ImageNet: the class folders and lists that decide labels."""

import json
import shutil

import pytest

from perdure.data import imagenet, imagenet100, imagenet_r, lists, tiny_imagenet
from perdure.errors import DataError

WNIDS = lists.load("imagenet_wnids.json")
NAMES = lists.load("class_names.json")


def touch(root, *paths):
    """Files of a byte: readers look at names and sizes alone."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def ids(examples):
    return [e.id for e in examples]


def test_shipped_lists_agree_with_each_other():
    assert len(WNIDS) == 1000 and sorted(set(WNIDS)) == WNIDS
    assert NAMES["imagenet100__wnid"] == WNIDS[:100]
    assert NAMES["imagenet100"] == NAMES["imagenet1000"][:100]
    for key in ("imagenet_R__wnid", "tinyimagenet__wnid"):
        assert len(NAMES[key]) == len(set(NAMES[key])) == 200 and set(NAMES[key]) <= set(WNIDS)
    for order in lists.load("class_orders.json").values():
        assert sorted(order) == list(range(len(order)))
    split = lists.load("imagenet_r_split.json.gz")
    assert {name: len(set(paths)) for name, paths in split.items()} == {"train": 24_000, "test": 6_000}


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet")
    touch(root, *(f"val/{w}/ILSVRC2012_val_0000000{k}.JPEG" for w in WNIDS for k in (1, 2)))
    return touch(root, *(f"train/{w}/{w}_1.JPEG" for w in WNIDS))


def test_imagenet_labels_are_places_of_sorted_wnids(thousand):
    data = imagenet.read(imagenet.Config(root=thousand))
    assert data.train.targets == list(range(1000)) and len(data.test) == 2000
    assert data.train[1].id == "train/n01443537/n01443537_1.JPEG" and data.candidates[1] == "goldfish"
    only = imagenet.read(imagenet.Config(root=thousand, splits="test"))
    assert len(only.train) == 0 and ids(only.test) == ids(data.test)
    assert all(folder.is_dir() for folder in imagenet.files(imagenet.Config(root=thousand)))


def test_imagenet_names_a_missing_and_a_surplus_folder(thousand):
    gone, kept = thousand / "val" / "n02110185", thousand / "val" / "n02110185_old"
    gone.rename(kept)
    try:
        said = r"missing: n02110185 \(nearest: n02110185_old\); .* no class: n02110185_old"
        with pytest.raises(DataError, match=said):
            imagenet.read(imagenet.Config(root=thousand))
    finally:
        kept.rename(gone)


def test_imagenet_without_a_val_folder_says_so(tmp_path):
    (tmp_path / "valid").mkdir()
    with pytest.raises(DataError, match=r"val: this folder is missing \(there is 'valid'\)"):
        imagenet.read(imagenet.Config(root=tmp_path, splits="test"))


def test_imagenet100_takes_the_first_hundred_of_a_full_copy(thousand):
    data = imagenet100.read(imagenet100.Config(root=thousand))
    assert data.train.targets == list(range(100)) and len(data.test) == 200
    assert data.candidates[:2] == ("tench", "goldfish")


def write_list(path, wnids, folder="val", k=1):
    lines = (f"{folder}/{w}/ILSVRC2012_val_0000000{k}.JPEG {WNIDS.index(w)}" for w in wnids)
    path.write_text("\n".join(lines) + "\n")
    return path


def test_imagenet100_keeps_the_order_of_a_list_file(thousand, tmp_path):
    table = write_list(tmp_path / "val_100.txt", WNIDS[:100][::-1])
    data = imagenet100.read(imagenet100.Config(root=thousand, test_list=table))
    assert data.test.targets == list(range(99, -1, -1))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("val/n01440764/x.JPEG 3", "val_100.txt:1: .*Expected label 0 for n01440764"),
        ("val/n01440764/x.JPEG", r"Expected `folder/<wnid>/file label`"),
        ("val/n09999999/x.JPEG 0", r"Expected `folder/<wnid>/file label`"),
        ("val/n01440764/x.JPEG 0", "val/n01440764/x.JPEG is not under"),
        ("", "100 class folder"),
    ],
)
def test_imagenet100_refuses_a_wrong_line_by_number(thousand, tmp_path, line, said):
    table = tmp_path / "val_100.txt"
    table.write_text(line + "\n")
    with pytest.raises(DataError, match=said):
        imagenet100.read(imagenet100.Config(root=thousand, test_list=table))


@pytest.fixture(scope="module")
def renditions(tmp_path_factory):
    """All 30,000 files of ImageNet-R as the archive has them, and a stray one."""
    root = tmp_path_factory.mktemp("r") / "imagenet-r"
    for wnid in NAMES["imagenet_R__wnid"]:
        (root / wnid).mkdir(parents=True)
    for paths in lists.load("imagenet_r_split.json.gz").values():
        for path in paths:
            (root / path).write_bytes(b"x")
    (root / "n02437616" / "test_img_R.py").write_text("stray")
    return root


@pytest.mark.slow
def test_imagenet_r_is_split_by_the_published_list_wherever_its_files_lie(renditions, tmp_path):
    data = imagenet_r.read(imagenet_r.Config(root=renditions))
    split = lists.load("imagenet_r_split.json.gz")
    assert (len(data.train), len(data.test)) == (24_000, 6_000)
    assert ids(data.train) == sorted(split["train"]) and ids(data.test) == sorted(split["test"])
    assert data.candidates[data.test[0].target] == "goldfish"
    assert len(imagenet_r.read(imagenet_r.Config(root=renditions, split="test-only")).test) == 30_000

    divided = tmp_path / "divided"  # as upstream's README moves them, with val for test
    for part, paths in (("train", split["train"]), ("val", split["test"])):
        for path in paths:
            (divided / part / path).parent.mkdir(parents=True, exist_ok=True)
            (divided / part / path).hardlink_to(renditions / path)
    moved = imagenet_r.read(imagenet_r.Config(root=divided))
    assert ids(moved.test) == [f"val/{path}" for path in ids(data.test)]
    by_folder = imagenet_r.read(imagenet_r.Config(root=divided, split="folders"))
    assert (ids(by_folder.train), ids(by_folder.test)) == (ids(moved.train), ids(moved.test))

    (divided / "val" / split["test"][0]).unlink()
    with pytest.raises(DataError, match=rf"1 of 30000 files .* are missing: {split['test'][0]}"):
        imagenet_r.read(imagenet_r.Config(root=divided))


def test_imagenet_r_names_what_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"imagenet-r: this folder is missing.*imagenet-r.tar"):
        imagenet_r.read(imagenet_r.Config(root=tmp_path / "imagenet-r"))
    touch(tmp_path, "n01443537/art_0.jpg")
    with pytest.raises(DataError, match=r"199 class folder\(s\) missing"):
        imagenet_r.read(imagenet_r.Config(root=tmp_path))
    with pytest.raises(DataError, match="train: this folder is missing"):
        imagenet_r.read(imagenet_r.Config(root=tmp_path, split="folders"))


TINY = NAMES["tinyimagenet__wnid"]


@pytest.fixture
def tiny(tmp_path):
    """The published layout: images/ in each training folder, one folder of validation images."""
    touch(tmp_path, *(f"train/{w}/images/{w}_{k}.JPEG" for w in TINY for k in (0, 1)))
    touch(tmp_path, *(f"val/images/val_{k}.JPEG" for k in range(200)))
    rows = [f"val_{k}.JPEG\t{TINY[199 - k]}\t0\t0\t62\t62" for k in range(200)]
    (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_tiny_imagenet_labels_follow_its_own_order_of_classes(tiny):
    data = tiny_imagenet.read(tiny_imagenet.Config(root=tiny))
    assert data.candidates[0] == "Egyptian Mau" and TINY[0] == "n02124075"
    assert {e.target for e in data.train if TINY[0] in e.id} == {0}
    by_name = {e.id: e.target for e in data.test}
    assert (by_name["val/images/val_0.JPEG"], by_name["val/images/val_199.JPEG"]) == (199, 0)


def test_tiny_imagenet_reads_one_folder_a_class_as_well(tiny):
    shutil.rmtree(tiny / "val")
    touch(tiny, *(f"val/{w}/val_{k}.JPEG" for k, w in enumerate(TINY)))
    data = tiny_imagenet.read(tiny_imagenet.Config(root=tiny.parent / tiny.name))
    assert sorted(data.test.targets) == list(range(200))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda r: (r / "val/val_annotations.txt").unlink(), "val_annotations.txt: this file is missing"),
        (lambda r: (r / "val/val_annotations.txt").write_text("val_0.JPEG\tn02124076\t0"), "nearest: n02124075"),
        (lambda r: (r / "val/images/val_7.JPEG").unlink(), "1 of 200 files .* missing: val/images/val_7.JPEG"),
        (lambda r: touch(r, "val/images/val_200.JPEG"), "1 images are not listed .*val_200"),
        (lambda r: shutil.rmtree(r / "train" / TINY[5]), rf"missing: {TINY[5]}"),
        (lambda r: shutil.rmtree(r / "train"), "train: this folder is missing.*tiny-imagenet-200.zip"),
    ],
)
def test_tiny_imagenet_names_what_is_wrong(tiny, spoil, said):
    spoil(tiny)
    with pytest.raises(DataError, match=said):
        tiny_imagenet.read(tiny_imagenet.Config(root=tiny))


def test_lists_are_small_json():
    assert json.dumps(lists.load("imagenet100_wnid_to_label.json"))
    assert lists.load("class_names.json") is NAMES  # read once
