"""Shifted test sets: short names, subsets, order, and data sets of one's own."""

from itertools import pairwise

import pytest

from perdure.data import imagenet_shifted
from perdure.errors import DataError, RecipeError
from perdure.settings import config, registry
from perdure.streams.shifted_tests import Config, build


def parse(**settings):
    return config.parse(registry.settings("streams", "shifted_tests"), settings, where="stream")


def of(**settings):
    return build(config.parse(Config, settings, where="stream"))


def micro(**settings):
    return {"name": "microworld", "train_per_class": 0, "validation_per_class": 0, "test_per_class": 2, **settings}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Every set of ImageNet with one image a class."""
    root = tmp_path_factory.mktemp("sets")
    for name, folder in imagenet_shifted.FOLDERS.items():
        under = f"{folder}/fog/3" if name == "c" else folder
        for k in imagenet_shifted.classes(name)[0]:
            (root / under / k).mkdir(parents=True)
            (root / under / k / "1.jpg").write_bytes(b"x")
    for k in imagenet_shifted.classes("sketch")[0]:
        (root / "ImageNet" / "val" / k).mkdir(parents=True)
        (root / "ImageNet" / "val" / k / "1.JPEG").write_bytes(b"x")
    return root


def test_a_list_with_slashes_names_sets_in_order_each_with_its_classes(root):
    stream = of(sets="A/V/R/K/I", root=str(root))
    assert [task.name for task in stream] == ["A", "V", "R", "K", "I"]
    assert [len(task.candidates) for task in stream] == [200, 1000, 200, 1000, 1000]
    assert all(len(task.train) == 0 and len(task.test) == len(task.candidates) for task in stream)
    a, v, r, *_ = stream.tasks
    assert a.candidates[0] == "stingray" and r.candidates[0] == "goldfish"
    assert v.candidates[2] == imagenet_shifted.classes("sketch")[1][10]  # folders sort as text: 0, 1, 10, 100 ...
    query = stream.query(a, after=0)
    assert query.candidates == a.candidates and query.offset == 0
    assert set(stream.manifest["data"]) == {"A", "V", "R", "K", "I"}


def test_corruptions_and_severities_are_a_task_each(root):
    assert len(imagenet_shifted.CORRUPTIONS) == 15
    stream = of(sets="C", root=str(root), corruptions=["fog"], severities=[3])
    assert [task.name for task in stream] == ["C fog 3"] and len(stream.tasks[0].test) == 1000
    with pytest.raises(DataError, match="snow"):
        of(sets="C", root=str(root), corruptions=["snow"], severities=[3])


@pytest.mark.parametrize("name", ["I", "V"])
def test_a_subset_of_classes_keeps_names_and_images_together(root, name):
    (whole,), (part,) = of(sets=name, root=str(root)).tasks, of(sets=name, root=str(root), subset="imagenet_a").tasks
    wanted = set(imagenet_shifted.classes("a")[1])
    assert len(part.candidates) == len(part.test) == 200 and set(part.candidates) == wanted
    names = {e.id: whole.candidates[e.target] for e in whole.test}
    assert all(names[e.id] == part.candidates[e.target] for e in part.test)


def test_styles_of_the_microworld_are_test_sets_in_an_order_that_does_not_depend_on_the_machine():
    styles = [micro(style="plain"), micro(style="sketch")]
    stream = of(data=styles, limit=5)
    assert [task.name for task in stream] == ["plain", "sketch"] and [len(t.test) for t in stream] == [5, 5]
    ids = [e.id for e in stream.tasks[0].test]
    assert (
        ids
        == [e.id for e in of(data=styles, limit=5).tasks[0].test]
        != [e.id for e in of(data=styles, limit=5, order_seed=1).tasks[0].test]
    )
    straight = of(data=styles, shuffle=False).tasks[0].test
    assert [e.id for e in straight] == sorted(e.id for e in straight)


def test_classes_by_name_give_new_labels_in_their_order():
    whole = of(data=[micro()]).tasks[0]
    first, second = whole.candidates[7], whole.candidates[2]
    part = of(data=[micro()], classes=[first, second]).tasks[0]
    assert part.candidates == (first, second)
    assert sorted(e.target for e in part.test) == [0, 0, 1, 1]
    with pytest.raises(RecipeError, match=r"has no class 'solid circl'.*'solid circle'"):
        of(data=[micro()], classes=["solid circl"])


def test_an_image_folder_is_a_test_set_and_an_empty_one_is_an_error(tmp_path):
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / "own" / name).mkdir(parents=True)
        Image.new("RGB", (5, 5)).save(tmp_path / "own" / name / "1.png")
    own = {"name": "image_folder", "root": str(tmp_path / "own"), "test_share": 1}
    task = of(data=[own], names=["mine"]).tasks[0]
    assert task.name == "mine" and task.candidates == ("cat", "dog") and len(task.test) == 2
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no class folders here"):
        of(data=[{**own, "root": str(tmp_path / "none")}])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "no test set"),
        ({"sets": "A/Pet"}, "there is no set 'Pet'; did you mean Pets"),
        ({"sets": "A", "names": ["x"]}, "1 names for 0 data sets"),
        ({"sets": "I", "classes": ["tench"], "subset": "imagenet_a"}, "drop one of the two"),
        ({"sets": "C", "severities": [6]}, "1, 2, 3, 4 or 5"),
    ],
)
def test_wrong_settings_are_named(settings, said):
    with pytest.raises(RecipeError, match=said):
        parse(**settings)


def test_questions_that_are_no_classification_are_refused():
    with pytest.raises(RecipeError, match="kind caption"):
        of(data=[{"name": "microworld", "content": "captions", "train_scenes": 0, "validation_scenes": 0}])


def world(*styles, **settings):
    return of(data=[micro(style=style) for style in styles], **settings)


def test_mixed_sets_are_one_and_ids_stay_apart():
    (task,) = world("plain", "noise", mixed=True).tasks
    apart = world("plain", "noise").tasks
    assert task.name == "mixed" and len(task.test) == sum(len(t.test) for t in apart)
    ids = [e.id for e in task.test]
    assert len(set(ids)) == len(ids) and {name.partition(":")[0] for name in ids} == {"plain", "noise"}
    assert ids != [e.id for e in world("plain", "noise", mixed=True, order_seed=1).tasks[0].test]
    with pytest.raises(RecipeError, match="different classes"):
        of(data=[micro(), {"name": "digits"}], mixed=True)


def test_imbalanced_draws_make_one_class_after_another_frequent():
    (task,) = world("plain", classes=list(world("plain").tasks[0].candidates[:4]), imbalance=500000).tasks
    ids, targets = [e.id for e in task.test], task.test.targets
    assert len(ids) == len(set(ids)) == 400 and any("#" in name for name in ids)
    stretches = [set(targets[i : i + 100]) for i in range(0, 400, 100)]
    assert all(len(found) == 1 for found in stretches) and len(set.union(*stretches)) == 4
    (even,) = world("plain", classes=list(task.candidates), imbalance=1).tasks
    assert all(len(set(even.test.targets[i : i + 100])) == 4 for i in range(0, 400, 100))


def test_images_of_other_classes_stay_as_unknown_ones():
    names = list(world("plain").tasks[0].candidates)
    (task,) = world("plain", classes=names[:3], open_set=True).tasks
    assert task.candidates == tuple(names[:3]) and len(task.test) == 2 * len(names)
    assert sorted({e.target for e in task.test} - {None}) == [0, 1, 2] and task.test.targets.count(None) > 0


def test_clean_training_images_come_with_the_first_task():
    clean = {"name": "microworld", "train_per_class": 1, "validation_per_class": 0, "test_per_class": 1}
    first, second = world("noise", "blur", clean=clean).tasks
    assert len(first.train) == len(first.candidates) and len(second.train) == 0
    with pytest.raises(RecipeError, match="other classes"):
        world("noise", clean={"name": "digits"})


def test_corruptions_come_in_cottas_orders_and_gradually():
    from perdure.data.imagenet_shifted import CORRUPTIONS
    from perdure.streams import arrival
    from perdure.streams.shifted_tests import _corruptions

    assert all(sorted(order) == list(range(1, 16)) for order in arrival.COTTA_ORDERS)
    found = list(_corruptions(parse(sets="CIFAR10C", cotta_order=0, severities=[5])))
    assert found[0] == (CORRUPTIONS[10], 5) and len(found) == 15
    steps = [severity for _, severity in _corruptions(parse(sets="C", gradual=True))]
    assert steps[:14] == [5, 4, 3, 2, 1, 1, 2, 3, 4, 5, 4, 3, 2, 1] and len(steps) == 5 + 14 * 9


def test_cifar_c_is_read_severity_by_severity(tmp_path, monkeypatch):
    import numpy as np

    from perdure.data import cifar_c

    monkeypatch.setattr(cifar_c, "EACH", 4)
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    images = np.zeros((20, 32, 32, 3), np.uint8) + np.arange(20, dtype=np.uint8)[:, None, None, None]
    np.save(folder / "fog.npy", images)
    np.save(folder / "labels.npy", np.tile(np.arange(4), 5))
    (task,) = of(sets="CIFAR10C", root=str(tmp_path), corruptions=["fog"], severities=[3], shuffle=False).tasks
    assert task.name == "CIFAR10C fog 3" and task.candidates[0] == "airplane"
    assert [int(e.inputs["image"][0, 0, 0]) for e in task.test] == [8, 9, 10, 11]
    assert task.test[0].id == "fog/3/00000" and task.test.targets == [0, 1, 2, 3]
    np.save(folder / "snow.npy", images[:3])
    with pytest.raises(DataError, match=r"uint8 \[3, 32, 32, 3\]"):
        of(sets="CIFAR10C", root=str(tmp_path), corruptions=["snow"], severities=[1])
    (folder / "frost.npy").write_bytes(b"\x80\x04 pickle")
    with pytest.raises(DataError, match="no array of numpy"):
        of(sets="CIFAR10C", root=str(tmp_path), corruptions=["frost"], severities=[1])
    with pytest.raises(DataError, match="no such file"):
        of(sets="CIFAR100C", root=str(tmp_path), corruptions=["fog"], severities=[1])


def test_an_order_in_bursts_holds_every_example_once_and_hangs_on_its_seed():
    from perdure.draws import in_bursts

    targets = [c for c in range(10) for _ in range(50)]

    def changes(order):
        return sum(targets[a] != targets[b] for a, b in pairwise(order))

    bursts, even = in_bursts(targets, 0.01, seed=0), in_bursts(targets, 100.0, seed=0)
    assert sorted(bursts) == sorted(even) == list(range(500))
    assert bursts == in_bursts(targets, 0.01, seed=0) != in_bursts(targets, 0.01, seed=1)
    assert changes(bursts) < 0.7 * changes(even)
