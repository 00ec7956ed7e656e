"""Readers of captioned images, the streams made of them, and every way in which the files can be wrong."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perdure.data import captions
from perdure.errors import DataError, RecipeError
from perdure.metrics import captioning
from perdure.settings import registry
from perdure.streams import captions as caption_stream
from perdure.streams import retrieval as retrieval_stream


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def read(name, **settings):
    module = registry.load("data", name)
    return module.read(module.Config(**settings))


LAVIS = [{"image": "val2014/COCO_val2014_000000000042.jpg", "caption": ["A cat.", "One cat"]}]


def coco(root):
    picture(root / LAVIS[0]["image"])
    picture(root / "train2014/COCO_train2014_000000000007.jpg")
    image = "train2014/COCO_train2014_000000000007.jpg"
    one = [{"image": image, "caption": text, "image_id": "coco_7"} for text in ("A dog.", "Two dogs")]
    written(root / "coco_karpathy_train.json", one)
    written(root / "coco_karpathy_test.json", LAVIS)
    return root


def test_lavis_files_have_a_record_an_image_or_a_record_a_caption(tmp_path):
    found = read("coco_captions", root=coco(tmp_path))
    assert found.kind == "caption" and found.facts["captions"] == 4
    assert found.train.targets == [["A dog.", "Two dogs"]] and found.test.targets == [["A cat.", "One cat"]]
    assert found.test[0].inputs["image"] == tmp_path / LAVIS[0]["image"]


def karpathy(name, split, texts):
    return {"filename": name, "split": split, "sentences": [{"raw": text} for text in texts]}


def test_karpathys_file_has_all_splits_and_restval_is_for_training(tmp_path):
    records = [karpathy("1.jpg", "restval", ["a"]), karpathy("2.jpg", "test", ["b"]), karpathy("3.jpg", "val", ["c"])]
    for i in (1, 2, 3):
        picture(tmp_path / f"flickr30k-images/{i}.jpg")
    written(tmp_path / "dataset_flickr30k.json", {"images": records})
    found = read("flickr30k", root=tmp_path)
    assert [found.train.targets, found.validation.targets, found.test.targets] == [[["a"]], [["c"]], [["b"]]]


def nocaps(root):
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "domain": f"{d}-domain"} for i, d in enumerate(("in", "out"))],
        "annotations": [{"image_id": i, "caption": f"{k} of {i}"} for i in (0, 1) for k in range(10)],
    }
    for i in (0, 1):
        picture(root / f"images/{i}.jpg")
    written(root / "nocaps_val_4500_captions.json", content)
    return root


def test_nocaps_is_read_by_domain(tmp_path):
    root = nocaps(tmp_path)
    assert [len(read("nocaps", root=root, domain=d).test) for d in ("in", "near", "out", "all")] == [1, 0, 1, 2]
    example = read("nocaps", root=root, domain="out").test[0]
    assert example.inputs["image_id"] == 1 and len(example.target) == 10


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([{"image": "a.jpg", "caption": []}], "record 0: an image without captions"),
        ([{"image": "a.jpg", "caption": ["x"]}, {"image": "a.jpg", "caption": ["y"]}], r"a\.jpg occurs twice"),
        ([{"image": "a.jpg", "caption": ["x", " "]}], "a caption is ' '"),
        ([{"caption": ["x"]}], "'image' is missing"),
        ({"images": [karpathy("a.jpg", "test", ["x"])] * 2}, r"a\.jpg occurs twice"),
        ({"images": [{"id": 1, "file_name": "a.jpg"}] * 2, "annotations": []}, "image id 1 occurs twice"),
        ({"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}, "image 0: an image without captions"),
        ({"images": [], "annotations": [{"image_id": 3, "caption": "x"}]}, "an image 3 that is not listed"),
        ({"images": [karpathy("a.jpg", "later", ["x"])]}, "the split is 'later'"),
        ({"other": 1}, "no images with captions"),
        ([], "there are no images"),
        ([{"image": "gone.jpg", "caption": "x"}], "there is no such image"),
    ],
)
def test_faults_are_told_with_file_and_record(tmp_path, content, said):
    picture(tmp_path / "a.jpg")
    path = written(tmp_path / "c.json", content)
    with pytest.raises(DataError, match=said):
        read("captioned_images", root=tmp_path, annotations=path)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"coco_karpathy_test\.json"):
        read("coco_captions", root=tmp_path)
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(DataError, match=r"c\.json: this is no JSON"):
        read("captioned_images", root=tmp_path, annotations=tmp_path / "c.json")
    assert [f for f, _ in registry.load("data", "captioned_images").Config().faults()] == ["annotations"]


def test_captions_come_without_images_from_lines_and_columns(tmp_path):
    (tmp_path / "t.tsv").write_text("http://x\ta cat\n\nhttp://y\ta dog\n")
    assert read("caption_texts", path=tmp_path / "t.tsv").train.targets == [["a cat"], ["a dog"]]
    (tmp_path / "t.tsv").write_text("\n")
    with pytest.raises(DataError, match="no captions"):
        read("caption_texts", path=tmp_path / "t.tsv")


@pytest.mark.parametrize(
    ("content", "settings"),
    [
        ("http://x\ta cat\nhttp://y\ta dog\n", {}),
        ("a cat\thttp://x\na dog\thttp://y\n", {}),
        ("a cat\tx.jpg\t17\na dog\ty.jpg\t18\n", {}),
        ("caption\turl\na cat\thttp://x\na dog\thttp://y\n", {}),
        ("title\tcaption\nA\ta cat\nB\ta dog\n", {}),
        ("title\tsaid\nA\ta cat\nB\ta dog\n", {"column": "said"}),
        ("a cat\tA\na dog\tB\n", {"column": 1}),
        ("\ufeffa cat\na dog\n", {}),
    ],
)
def test_captions_are_taken_from_the_column_that_holds_them_wherever_it_is(tmp_path, content, settings):
    (tmp_path / "t.tsv").write_text(content, encoding="utf-8")
    assert read("caption_texts", path=tmp_path / "t.tsv", **settings).train.targets == [["a cat"], ["a dog"]]


@pytest.mark.parametrize(
    ("content", "settings", "said"),
    [
        ("a cat\tUne chatte\na dog\tUn chien\n", {}, "2 of 2 columns hold texts.*set `column`"),
        ("http://x\thttp://y\n", {}, "0 of 2 columns"),
        ("http://x\nhttp://y\n", {}, "'http://x' and others are taken for captions"),
        ("http://x\ta cat\n", {"column": 1}, "'http://x' and others"),
        ("http://x\ta cat\n", {"column": 3}, "`column` is 3. Expected a number from 1 to 2"),
        ("url\tsaid\nhttp://x\ta cat\n", {"column": "caption"}, "no column 'caption'.*url, said"),
        ("a cat\na\tdog\n", {}, "line 2: 2 columns by tabs. Expected 1"),
    ],
)
def test_a_column_that_is_not_clear_or_holds_addresses_is_refused(tmp_path, content, settings, said):
    (tmp_path / "t.tsv").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read("caption_texts", path=tmp_path / "t.tsv", **settings)


def test_an_image_id_is_the_annotations_own_or_that_of_cocos_file_names_and_never_a_guess(tmp_path):
    found = read("coco_captions", root=coco(tmp_path))
    assert (captioning.image_id(found.train[0]), captioning.image_id(found.test[0])) == ("coco_7", 42)
    own = written(tmp_path / "own.json", [{"image": f"{d}/1.jpg", "caption": "x"} for d in "ab"])
    found = read("captioned_images", test=own, check_images=False)
    assert [captioning.image_id(e) for e in found.test] == ["a/1.jpg", "b/1.jpg"]
    own = written(tmp_path / "own.json", {"images": [karpathy("9.jpg", "test", ["x"]) | {"cocoid": 5}]})
    assert captioning.image_id(read("captioned_images", test=own, check_images=False).test[0]) == 5


def test_two_images_of_one_id_are_refused_by_name(tmp_path):
    own = written(tmp_path / "own.json", [{"image": f"{d}.jpg", "caption": "x", "image_id": 3} for d in "ab"])
    with pytest.raises(DataError, match=r"test: a\.jpg and b\.jpg have the same image id 3"):
        read("captioned_images", test=own, check_images=False)
    names = [f"{d}2014/COCO_{d}2014_000000000042.jpg" for d in ("train", "val")]
    written(tmp_path / "coco_karpathy_test.json", [{"image": name, "caption": ["x"]} for name in names])
    with pytest.raises(DataError, match="the same image id 42"):
        read("coco_captions", root=tmp_path, check_images=False)


def test_texts_are_cleaned_by_hand():
    assert captions.retrieval_text(" A  dog's (big) ball; #1!\n") == "a dog's big ball 1"
    assert len(captions.retrieval_text("w " * 80).split()) == 50


def parsed(module, **settings):
    from perdure.settings.config import parse

    return module.build(parse(module.Config, settings, where="stream"))


WORLD = {"name": "microworld", "content": "captions", "train_scenes": 4, "validation_scenes": 0, "test_scenes": 5}


def test_galleries_hold_every_text_and_every_image_and_targets_point_into_them():
    stream = parsed(retrieval_stream, data=[WORLD], limit=3)
    images, texts = stream.tasks
    assert len(images.test) == 3 and len(images.candidates) == 15 and images.test.targets[1] == [5, 6, 7, 8, 9]
    assert len(texts.test) == 15 and len(texts.candidates) == 3 and texts.test.targets[7] == 1
    assert texts.test[7].inputs["text"] == images.candidates[7]
    assert (
        texts.candidates[1] == images.test[1].id and (texts.candidates[1].image == images.test[1].inputs["image"]).all()
    )
    assert images.test[2].target == [10, 11, 12, 13, 14]


def test_the_first_task_learns_and_the_others_are_out_of_domain():
    other = {**WORLD, "style": "sketch"}
    stream = parsed(caption_stream, train=WORLD, tests=[WORLD, other], limit=2)
    assert [(len(t.train), len(t.test)) for t in stream] == [(4, 2), (0, 2)]
    assert [t.name for t in stream] == ["microworld-captions plain", "microworld-captions sketch"]


@pytest.mark.parametrize(("module", "key"), [(retrieval_stream, "data"), (caption_stream, "tests")])
def test_data_without_captions_or_test_images_are_refused(module, key):
    with pytest.raises(RecipeError, match="kind classify"):
        parsed(module, **{key: [{"name": "microworld"}]})
    with pytest.raises(DataError, match="no test images"):
        parsed(module, **{key: [{**WORLD, "test_scenes": 0}]})


@pytest.mark.slow
def test_real_captions_are_read_tokenised_and_scored(tmp_path):
    """coco_mini: 239 photos with five captions each; the fifth of each is scored against the other four."""
    pack = Path(__file__).parents[3] / "shared" / "data" / "coco_mini"
    if not pack.is_dir():
        pytest.skip("the pack coco_mini is not in ../shared/data")
    from perdure.metrics import caption_words
    from perdure.models.clip.tokens import from_folder

    content = json.loads((pack / "annotations.json").read_text("utf-8"))
    said = {entry["image_id"]: entry["captions"] for entry in content["captions"]}
    records = [{"image": image["file"], "caption": said[image["id"]][:5]} for image in content["images"]]
    shutil.unpack_archive(pack / "images.tar.xz", tmp_path)
    root = next(p.parent.parent for p in tmp_path.rglob("*.jpg"))
    path = written(tmp_path / "c.json", records)
    found = read("captioned_images", root=root, test=path)
    assert len(found.test) == 239 and found.facts["captions"] == 239 * 5
    tokenizer = from_folder(None, vocabulary=49408, context_length=77)
    ids = tokenizer([captions.retrieval_text(text) for said in found.test.targets for text in said])
    assert ids.shape == (239 * 5, 77) and tokenizer.cut_texts == 0
    rows = [{"id": e.id, "caption": e.target[4], "references": e.target[:4]} for e in found.test]
    if caption_words.default_tokenizer() != "ptb":
        pytest.skip("METEOR needs pycocoevalcap and Java")
    table = captioning.caption_scores(rows)
    # People agree with each other about as far as the COCO paper says: BLEU-1 66, METEOR 25, CIDEr-D 85.
    assert 50 < table["bleu_1"] < 80 and 15 < table["meteor"] < 35 and 50 < table["cider"] < 130
    assert table["ptb_tokenizer"] == 1.0
