import json

import numpy as np
import pytest
from PIL import Image

from perdure.data import digits, image_folder
from perdure.errors import DataError
from perdure.prepare.check_images import check, check_path
from perdure.types import Dataset, Example, Examples


def picture(path, seed, size=(24, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def tree(tmp_path):
    """Two classes, three training images and one test image each; all sound."""
    for c, name in enumerate(("cat", "dog")):
        for k in range(3):
            picture(tmp_path / "train" / name / f"{k}.jpg", 10 * c + k)
        picture(tmp_path / "test" / name / "9.png", 10 * c + 9)
    return tmp_path


def test_sound_data_are_counted_and_nothing_is_found(tree):
    report = check_path(tree)
    assert report.counts == {"train": {"cat": 3, "dog": 3}, "test": {"cat": 1, "dog": 1}}
    assert (report.exit_code, report.images) == (0, 8)
    assert report.lines()[-1] == "sound" and "8 images" in report.lines()[0]
    assert check(image_folder.read(image_folder.Config(root=tree))).counts == report.counts


@pytest.mark.parametrize("decode", [False, True])
def test_every_kind_of_bad_file_is_found(tree, decode):
    good = (tree / "train/cat/0.jpg").read_bytes()
    (tree / "train/cat/empty.jpg").write_bytes(b"")
    (tree / "train/cat/page.jpg").write_text("<html>")
    (tree / "train/cat/cut.jpg").write_bytes(good[: len(good) * 2 // 3])
    png = (tree / "test/dog/9.png").read_bytes()
    (tree / "train/dog/cut.png").write_bytes(png[: len(png) // 2])
    (tree / "train/dog/huge.png").write_bytes(png[:16] + (60_000).to_bytes(4, "big") * 2 + png[24:])
    (tree / "train/dog/gone.png").symlink_to(tree / "nowhere.png")
    report = check_path(tree, decode=decode)
    said = dict(report.unreadable)
    assert list(said) == [f"train/cat/{n}.jpg" for n in ("cut", "empty", "page")] + [
        f"train/dog/{n}.png" for n in ("cut", "gone", "huge")
    ]
    for name, words in {"cat/cut.jpg": "truncated", "cat/empty.jpg": "0 bytes", "cat/page.jpg": "not an image",
                        "dog/gone.png": "no such file", "dog/cut.png": "truncated"}.items():  # fmt: skip
        assert words in said[f"train/{name}"]
    assert report.exit_code == 1
    assert any(line.startswith("unreadable: 6 (") for line in report.lines())


def test_a_jpeg_with_an_appendix_is_sound(tree):
    with (tree / "train/cat/0.jpg").open("ab") as file:
        file.write(b"camera notes" * 100)
    assert check_path(tree).exit_code == 0


def test_damage_in_the_middle_needs_decoding(tree):
    path = picture(tree / "train/cat/mid.png", 77, size=(80, 80))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert check_path(tree).exit_code == 0
    assert [name for name, _ in check_path(tree, decode=True).unreadable] == ["train/cat/mid.png"]


def test_the_same_image_in_two_splits_is_found_by_content_not_by_name(tree):
    data = (tree / "train/dog/1.jpg").read_bytes()
    (tree / "test/dog/other_name.jpg").write_bytes(data)
    (tree / "train/dog/again.jpg").write_bytes(data)  # twice in a split and class is no leak
    report = check_path(tree)
    assert report.duplicates == [("train/dog/1.jpg", "test/dog/other_name.jpg")] and report.conflicts == []
    assert "  train/dog/1.jpg = test/dog/other_name.jpg" in report.lines()


def test_files_that_agree_in_size_and_ends_alone_are_not_the_same(tree):
    image = Image.fromarray(np.zeros((80, 80, 3), np.uint8))
    for split, value in (("train", 1), ("test", 2)):
        image.putpixel((40, 40), (value, 0, 0))
        image.save(tree / split / "cat" / "flat.bmp")
    assert check_path(tree).duplicates == []


def test_one_image_under_two_classes_is_a_conflict(tree):
    (tree / "train/dog/cat.jpg").write_bytes((tree / "train/cat/2.jpg").read_bytes())
    assert check_path(tree).conflicts == [("train/cat/2.jpg", "train/dog/cat.jpg")]


def test_a_misspelt_class_is_named_with_its_nearest(tree):
    (tree / "test/dog").rename(tree / "test/dogs")
    assert check_path(tree).class_names == [
        "test: class dogs is not in train (nearest: dog)",
        "test: class dog of train is missing (nearest: dogs)",
    ]


def test_an_empty_class_folder_is_a_fault_and_other_files_are_a_remark(tree):
    (tree / "train/cow").mkdir()
    (tree / "train/notes.txt").write_text("x")
    (tree / "train/cat/script.py").write_text("x")
    report = check_path(tree)
    assert report.class_names == ["train: the folder cow holds no image"]
    assert report.ignored == ["train/cat/script.py", "train/notes.txt"]


def test_undivided_folders_and_loose_images_are_counted(tree, tmp_path):
    report = check_path(tree / "train")
    assert report.counts == {"all": {"cat": 3, "dog": 3}}
    assert check_path(tree / "train/cat").counts == {"all": {"(no class)": 3}}


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_lists_are_looked_through_relative_to_themselves(tree, form):
    rows = [
        {"path": "train/cat/0.jpg", "label": "cat", "split": "train"},
        {"path": "train/cat/0.jpg", "label": "cat", "split": "test"},
        {"path": "train/cat/none.jpg", "label": "cat", "split": "train"},
        {"path": "train/dog/0.jpg", "label": "", "split": "train"},
    ]
    path = tree / f"list.{form}"
    if form == "csv":
        path.write_text("path,label,split\n" + "".join(",".join(row.values()) + "\n" for row in rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = check_path(path)
    assert report.counts == {"train": {"cat": 2}, "test": {"cat": 1}}
    assert report.unreadable == [("train/cat/none.jpg", "there is no such file")]
    assert report.duplicates == [("train/cat/0.jpg", "train/cat/0.jpg")]
    assert report.rows == [f"line {5 if form == 'csv' else 4}: no label"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "picture,label\n", "has no column for the path: picture, label"),
        ("a.csv", "path,lable\n", "Is it 'lable'"),
        ("a.csv", "path,label\n", "lists no image"),
        ("a.csv", b"\xff\xfe\x00", "no UTF-8 text"),
        ("a.jsonl", "{", "a.jsonl, line 1: this is no JSON"),
        ("a.jsonl", "[1]\n", "is no JSON object"),
        ("a.jsonl", b"\xff", "no UTF-8 text"),
        ("a.txt", "x", "there is no reader for it"),
    ],
)
def test_a_wrong_list_is_refused(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=said):
        check_path(path)


def test_a_missing_or_empty_path_is_named(tree, tmp_path):
    with pytest.raises(DataError, match=r"Did you mean .*train"):
        check_path(tree / "trian")
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        check_path(tmp_path / "void")


def test_data_of_which_nothing_can_be_read_have_exit_code_2(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"")
    assert check_path(tmp_path).exit_code == 2


def test_images_in_memory_are_compared_as_well():
    data = digits.read(digits.Config())
    assert check(data).exit_code == 0
    leak = Dataset(name="leak", kind="classify", candidates=data.candidates, train=data.train, test=data.train[5:6])
    report = check(leak)
    assert report.duplicates == [(data.train[5].id, data.train[5].id)]
    assert any(line.startswith("test: no image of") for line in report.class_names)


def test_the_report_is_json_and_keeps_everything(tree):
    (tree / "train/cat/empty.jpg").write_bytes(b"")
    content = json.loads(json.dumps(check_path(tree).to_json()))
    assert content["unreadable"] == [["train/cat/empty.jpg", "the file is empty (0 bytes)"]]
    assert content["exit_code"] == 1 and content["counts"]["train"]["cat"] == 4


def test_only_the_first_ten_of_a_kind_are_shown(tree):
    for k in range(13):
        (tree / "train/cat" / f"bad{k:02d}.jpg").write_bytes(b"")
    lines = check_path(tree).lines()
    assert sum("bad" in line for line in lines) == 10 and "  ... and 3 more" in lines


def test_a_data_set_without_images_is_refused():
    sounds = Dataset(name="sounds", kind="classify", train=Examples.of([Example(id="a", inputs={"audio": 1})]))
    with pytest.raises(DataError, match="sounds has no images"):
        check(sounds)


def test_two_classes_of_one_name_are_counted_apart():
    image = np.zeros((4, 4, 3), np.uint8)
    examples = [Example(id=str(i), inputs={"image": image + i}, target=i) for i in range(3)]
    data = Dataset(name="birds", kind="classify", candidates=("crane", "owl", "crane"), train=Examples.of(examples))
    assert check(data).counts == {"train": {"crane (label 0)": 1, "owl": 1, "crane (label 2)": 1}}


def test_names_that_differ_in_case_and_classes_that_are_never_tested_are_named(tmp_path):
    for name, count in (("Cup", 2), ("cup", 2), ("one_image", 1)):
        for k in range(count):
            picture(tmp_path / name / f"{k}.png", sum(map(ord, name)) + k)
    report = check_path(tmp_path)
    assert report.remarks == [
        "the classes Cup and cup differ in case alone",
        "class one_image has one image: it is for training, the class is never tested",
    ]
    assert report.exit_code == 0 and "worth a look: 2" in report.lines() and report.to_json()["remarks"]


@pytest.mark.parametrize(("extra", "said"), [("", True), ("cartoon/loose.png", False), ("photo/car/0.png", False)])
def test_folders_of_domains_that_hold_the_classes_are_named(tmp_path, extra, said):
    """As PACS unpacked: to a reader of class folders each domain is a class."""
    for k, name in enumerate(f"{domain}/{c}/0.png" for domain in ("photo", "cartoon") for c in ("dog", "cat")):
        picture(tmp_path / name, k)
    if extra:
        picture(tmp_path / extra, 9)
    report = check_path(tmp_path)
    assert report.counts["all"].keys() == {"cartoon", "photo"}
    hold = "all 2 class folders (cartoon, photo) hold folders of the same 2 names (cat, dog): if these are the classes"
    assert any(remark.startswith(hold) for remark in report.remarks) == said


def test_what_unpackers_and_notebooks_leave_behind_is_no_class(tmp_path):
    for k in range(2):
        picture(tmp_path / "cat" / f"{k}.png", k)
    for left in ("__MACOSX/cat", ".ipynb_checkpoints", "cat/__MACOSX", "cat/.ipynb_checkpoints"):
        picture(tmp_path / left / "0.png", 5)
    assert image_folder.read(image_folder.Config(root=tmp_path, test_share=1)).facts["counts"] == {"test": 2}
    assert check_path(tmp_path).images == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"1 class folder\(s\) without an image: empty"):
        image_folder.read(image_folder.Config(root=tmp_path))


def test_a_missing_image_is_told_with_its_folder(tmp_path):
    from perdure.errors import UnreadableExample
    from perdure.images import open_image

    with pytest.raises(UnreadableExample, match="no such file") as told:
        open_image(tmp_path / "nothing.jpg")
    assert "root" not in told.value.todo
    with pytest.raises(UnreadableExample, match=r"The folder .*gone is missing, too"):
        open_image(tmp_path / "gone" / "nothing.jpg")


def test_what_a_run_does_to_images_is_a_remark_with_the_first_of_them(tree):
    exif = Image.Exif()
    exif[0x0112] = 6
    for k in range(2):
        Image.open(tree / f"train/cat/{k}.jpg").save(tree / f"train/cat/{k}.jpg", exif=exif)
    Image.open(tree / "train/dog/0.jpg").convert("CMYK").save(tree / "train/dog/0.jpg")
    report = check_path(tree)
    assert report.remarks == [
        "2 images: an EXIF mark says to turn it, which a run does not do (train/cat/0.jpg ...)",
        "1 image: CMYK, converted to RGB (train/dog/0.jpg)",
    ]
    assert report.exit_code == 0
