"""The generated world: determinism, exact masks, shifts that keep labels, words, lazy Examples."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import perdure
from perdure.data import microworld
from perdure.data.microworld import disk, draws, render, scenes, styles, words
from perdure.data.microworld.scenes import CLASSES, HELD_OUT, PAIRS, SEEN
from perdure.errors import DataError

MICRO_CLIP = Path(perdure.__file__).parent / "models" / "micro" / "micro-clip"


def forty(split: str = "test") -> scenes.Scenes:
    return scenes.of_classes(0, split, np.arange(40), np.arange(40))


def test_there_are_forty_classes_one_for_each_shape_and_fill():
    assert len(set(CLASSES)) == 40 and set(PAIRS) == {(s, f) for s in range(10) for f in range(4)}
    assert "striped star" in CLASSES


def test_splitmix64_gives_its_published_first_output():
    # The reference generator seeded with 0 first returns e220a8397b1dcdaf.
    assert draws.mix(np.zeros(1, np.uint64))[0] == np.uint64(0xE220A8397B1DCDAF)


def test_normal_draws_have_mean_zero_and_variance_one():
    drawn = draws.normal(draws.keys(0, "x", np.arange(100)), 1, 1000)
    assert abs(drawn.mean()) < 0.01 and abs(drawn.var() - 1) < 0.01


def test_a_picture_depends_on_seed_split_and_index_alone():
    together = styles.pictures(forty(), "noise")
    alone = scenes.of_classes(0, "test", np.asarray([17]), np.asarray([17]))
    assert np.array_equal(styles.pictures(alone, "noise")[0], together[17])
    assert not np.array_equal(render.pictures(forty("train"))[17], render.pictures(forty())[17])
    other = scenes.of_classes(1, "test", np.asarray([17]), np.asarray([17]))
    assert not np.array_equal(render.pictures(other), render.pictures(alone))


def test_objects_lie_wholly_inside_the_picture():
    world = scenes.of_anything(0, "test", np.arange(500))
    there = np.arange(3) < world.count[:, None]
    for centre in (world.x, world.y):
        assert (centre - world.radius)[there].min() >= -1e-9 and (centre + world.radius)[there].max() <= 1 + 1e-9


def test_scenes_of_two_and_three_objects_are_common_and_keep_their_distance():
    world = scenes.of_anything(0, "test", np.arange(500))
    assert np.bincount(world.count, minlength=4)[1:].min() > 40
    row = np.flatnonzero(world.count >= 2)
    distance = np.hypot(world.x[row, 0] - world.x[row, 1], world.y[row, 0] - world.y[row, 1])
    assert distance.min() > 10 / 32


def test_a_mask_covers_what_the_object_changes_and_its_box_is_tight():
    world = forty()
    mask = render.masks(world)[:, 0]
    bare = scenes.replace(world, count=np.zeros(40, np.int64))
    changed = np.abs(render.pictures(world).astype(int) - render.pictures(bare)).sum(-1) > 0
    # A pixel that is half covered changes, except where the object's color equals the ground.
    assert (changed & mask).sum() > 0.97 * mask.sum()
    assert not mask[~render.canvases(world)[1].astype(bool)].any()
    for one, (left, top, right, bottom) in zip(mask, render.boxes(mask)):
        ys, xs = np.nonzero(one)
        assert (left, top, right, bottom) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


def test_the_mask_of_a_solid_circle_has_the_area_of_the_circle():
    label = CLASSES.index("solid circle")
    world = scenes.of_classes(0, "test", np.arange(20), np.full(20, label))
    area = render.masks(world, 64)[:, 0].sum(axis=(1, 2))
    expected = np.pi * (0.92 * world.radius[:, 0] * 64) ** 2
    assert np.allclose(area, expected, rtol=0.04)


def test_masks_of_two_objects_do_not_share_a_pixel():
    found = render.masks(scenes.of_anything(0, "test", np.arange(200)))
    assert found.sum(axis=1).max() == 1


def test_the_box_of_an_empty_mask_is_four_zeros():
    assert render.boxes(np.zeros((1, 8, 8), bool)).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("style", [s for s in styles.STYLES if s != "plain"])
def test_a_style_changes_pixels_more_with_severity_and_keeps_ids_and_labels(style):
    plain = microworld.read(microworld.Config(test_per_class=1))
    shifted = microworld.read(microworld.Config(test_per_class=1, style=style))
    assert plain.test.targets == shifted.test.targets
    assert [e.id for e in plain.test] == [e.id for e in shifted.test]
    before = render.pictures(forty()).astype(int)
    far = [np.abs(styles.pictures(forty(), style, s) - before).mean() for s in (1, 3, 5)]
    assert 0.2 < far[0] < far[1] < far[2]


def test_rotating_moves_the_masks_with_the_pixels():
    turned = styles.shown(forty(), "rotated", 5)
    mask = render.masks(turned)[:, 0]
    image = styles.pictures(forty(), "rotated", 5).astype(int).max(-1)
    solid = [i for i, name in enumerate(CLASSES) if name.startswith("solid")]
    assert all(image[i][mask[i]].mean() > image[i][~mask[i]].mean() + 50 for i in solid)


def test_each_scene_has_five_different_captions_that_name_its_objects():
    world = scenes.of_anything(0, "test", np.arange(100))
    for row, five in enumerate(words.captions(world)):
        assert len(set(five)) == 5
        for thing in world.objects(row):
            names = {thing.shape, *words.SYNONYMS.get(thing.shape, ())}
            assert all(names & set(re.findall(r"\w+", text)) for text in five)


def test_captions_name_the_relation_that_holds():
    def at(x: float, y: float) -> scenes.Object:
        return scenes.Object(shape="star", fill="solid", color="red", size="small", place="top", x=x, y=y)

    assert scenes.relation(at(0.2, 0.5), at(0.8, 0.6)) == "left of"
    assert scenes.relation(at(0.5, 0.9), at(0.6, 0.1)) == "below"


def test_pretraining_scenes_and_captions_hold_no_held_out_combination_or_synonym():
    assert len(HELD_OUT) == 10 and {s for s, _ in HELD_OUT} == set(range(10)) and len(SEEN) == 30
    world = scenes.of_anything(1, "pretraining", np.arange(1000), pairs=SEEN)
    assert not any(words.names_held_out_pair(world.objects(i)) for i in range(len(world)))
    said = {word for five in words.captions(world) for text in five for word in re.findall(r"\w+", text)}
    for word in words.HELD_OUT_SYNONYMS.values():
        if " " not in word:
            assert word not in said
    assert said <= set(words.vocabulary())


def test_held_out_synonyms_are_said_when_asked_for():
    world = scenes.of_classes(0, "test", np.arange(8), np.full(8, CLASSES.index("striped circle")))
    for five in words.captions(world, held_out=True):
        assert all("lined" in text and "dot" in text for text in five)


def test_every_scene_of_the_domain_combinations_shows_a_held_out_combination():
    config = microworld.Config(content="captions", domain="combinations", test_scenes=100)
    world = microworld.world(config, "test", np.arange(100))
    assert all(words.names_held_out_pair(world.objects(i)) for i in range(100))
    inside = microworld.world(microworld.Config(content="captions"), "test", np.arange(100))
    assert not any(words.names_held_out_pair(inside.objects(i)) for i in range(100))


def test_reading_gives_lazy_balanced_splits():
    data = microworld.read(microworld.Config(train_per_class=3, test_per_class=2, validation_per_class=0))
    assert data.kind == "classify" and data.candidates == CLASSES
    assert np.bincount(data.train.targets).tolist() == [3] * 40
    assert (len(data.validation), len(data.test)) == (0, 80)
    example = data.test[41]
    assert example.id == "microworld/test/000041" and example.target == 1
    assert example.inputs["image"].shape == (32, 32, 3) and example.inputs["image"].dtype == np.uint8


def test_changing_an_image_in_place_does_not_change_the_next_reading():
    data = microworld.read(microworld.Config(test_per_class=1))
    first = data.test[0].inputs["image"]
    kept = first.copy()
    first[:] = 0
    assert np.array_equal(data.test[0].inputs["image"], kept)


def test_examples_travel_to_loader_workers():
    data = microworld.read(microworld.Config(test_per_class=1, image_size=64))
    again = pickle.loads(pickle.dumps(data.test))
    assert np.array_equal(again[3].inputs["image"], data.test[3].inputs["image"])
    assert again[3].inputs["image"].shape == (64, 64, 3)


def test_reading_captions_gives_five_a_scene():
    data = microworld.read(microworld.Config(content="captions", train_scenes=2, validation_scenes=0, test_scenes=3))
    assert data.kind == "caption" and len(data.test) == 3
    assert len(data.test[1].target) == 5 and data.test[1].id == "microworld/captions-in/test/000001"


def test_an_image_folder_holds_every_picture_bit_for_bit(tmp_path):
    config = microworld.Config(train_per_class=1, test_per_class=2)
    written = disk.write("imagefolder", tmp_path / "out", config)
    assert len(written) == 120
    first = microworld.read(config).test[41]
    path = tmp_path / "out" / "test" / CLASSES[1].replace(" ", "_") / "000041.png"
    assert np.array_equal(np.asarray(Image.open(path)), first.inputs["image"])


@pytest.mark.parametrize(
    ("kind", "root", "test"),
    [
        ("coco-captions", "coco2014", "coco_karpathy_test.json"),
        ("flickr30k", "flickr30k", "annotations/flickr30k_test.json"),
    ],
)
def test_caption_layouts_list_images_that_exist_with_five_captions(tmp_path, kind, root, test):
    config = microworld.Config(train_scenes=2, validation_scenes=1, test_scenes=3)
    disk.write(kind, tmp_path / "out", config)
    folder = tmp_path / "out" / root
    listed = json.loads((folder / test).read_text())
    assert len(listed) == 3
    assert all(len(r["caption"]) == 5 and (folder / r["image"]).exists() for r in listed)
    trained = json.loads((folder / test.replace("test", "train")).read_text())
    assert len(trained) == 10 and set(trained[0]) == {"caption", "image", "image_id"}


def test_an_unknown_layout_and_a_full_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match="imagefolder"):
        disk.write("imagenet", tmp_path / "out", microworld.Config())
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(DataError, match="not an empty folder"):
        disk.write("imagefolder", tmp_path, microworld.Config())


def test_pixels_of_the_first_test_pictures_are_those_of_every_machine():
    # The sum of all pixels: any change of the world moves it, and then the micro models must be made again.
    sums = {style: int(styles.pictures(forty(), style).sum(dtype=np.int64)) for style in styles.STYLES}
    assert sums == PIXEL_SUMS


PIXEL_SUMS = {
    "plain": 4145472,
    "sketch": 3089810,
    "inverted": 6386150,
    "noise": 4553898,
    "blur": 4146800,
    "pixelated": 4146503,
    "contrast": 5452727,
    "textured": 6245130,
    "rotated": 4140359,
    "tinted": 4189103,
}


@pytest.mark.slow
def test_micro_clip_loads_with_plain_transformers_and_beats_ten_times_chance():
    if not (MICRO_CLIP / "model.safetensors").exists():
        pytest.skip("micro-clip is not here: python tools/pretrain_micro.py micro-clip")
    import torch
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(MICRO_CLIP).float().eval()
    tokenizer = AutoTokenizer.from_pretrained(MICRO_CLIP)
    processor = AutoImageProcessor.from_pretrained(MICRO_CLIP)
    text = tokenizer([f"a photo of a {name}." for name in CLASSES], padding=True, return_tensors="pt")
    assert tokenizer.unk_token_id not in text["input_ids"]
    data = microworld.read(microworld.Config(test_per_class=5))
    images = processor([Image.fromarray(e.inputs["image"]) for e in data.test], return_tensors="pt")
    with torch.inference_mode():
        answers = model(**text, **images).logits_per_image.argmax(1)
    accuracy = (answers == torch.tensor(data.test.targets)).float().mean()
    assert accuracy > 10 / 40
