import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.errors import DataError, RecipeError
from perdure.settings.config import Named, parse
from perdure.streams.class_incremental import Config, assemble, build, class_order, cuts
from perdure.types import Dataset, Example, Examples

RULES = {
    "clean_names": False,
    "train_per_class": None,
    "test_per_class": None,
    "validation_share": 0.0,
    "scope": "seen",
    "task_revealed": False,
}


def dataset(train, test=None, names=None, validation=(), name="toy"):
    """A data set with these labels; ids tell split and place."""

    def split(name, labels):
        return Examples.of([Example(id=f"{name}{i}", inputs={}, target=y) for i, y in enumerate(labels)])

    test = sorted(set(train)) if test is None else test
    names = names or [f"c{i}" for i in range(max(test) + 1)]
    return Dataset(
        name=name,
        kind="classify",
        candidates=tuple(names),
        train=split("train", train),
        validation=split("val", validation),
        test=split("test", test),
    )


def stream(data, order, bounds, **rules):
    return assemble(
        data, {"stream": "class_incremental", "source": "toy", "order": order, "cuts": bounds} | RULES | rules
    )


def ids(examples):
    return [e.id for e in examples]


def test_order_2_0_1_makes_2_the_first_label_and_names_follow():
    made = stream(dataset([0, 1, 2], names=["ant", "bee", "cat"]), [2, 0, 1], [0, 1, 2, 3])
    assert [t.candidates for t in made] == [("cat",), ("ant",), ("bee",)]
    assert [(t.train[0].id, t.train[0].target, t.offset) for t in made] == [
        ("train2", 0, 0),
        ("train0", 1, 1),
        ("train1", 2, 2),
    ]
    assert made.query(made.tasks[0], after=1).candidates == ("cat", "ant")


def test_images_of_a_task_keep_the_order_of_the_data_set():
    data = dataset([1, 0, 2, 1, 0], test=[2, 1, 0, 1])
    task = stream(data, [1, 2, 0], [0, 2, 3]).tasks[0]
    assert ids(task.train) == ["train0", "train2", "train3"] and task.train.targets == [0, 1, 0]
    assert ids(task.test) == ["test0", "test1", "test3"] and task.test.targets == [1, 0, 0]


def test_cuts_by_hand():
    assert cuts(100, first=50, step=10) == [0, 50, 60, 70, 80, 90, 100]
    assert cuts(6, first=2, step=2) == [0, 2, 4, 6]
    assert cuts(5, first=5, step=3) == [0, 5]  # one task: joint training


def test_cuts_that_do_not_come_out_even_are_refused_with_numbers():
    with pytest.raises(RecipeError, match=r"10 classes minus 4 of the first task leave 6, .* no multiple of 4"):
        cuts(10, first=4, step=4)
    with pytest.raises(RecipeError, match="near 4: 1, 2, 3, 6"):
        cuts(10, first=4, step=4)
    with pytest.raises(RecipeError, match="takes 11 classes, the data set has 10"):
        cuts(10, first=11, step=1)


def test_the_last_task_may_be_smaller_where_that_is_said():
    assert cuts(11, first=None, step=5, uneven=True) == [0, 5, 10, 11]
    assert cuts(10, first=None, step=5, uneven=True) == [0, 5, 10]
    assert cuts(3, first=None, step=5, uneven=True) == [0, 3]
    with pytest.raises(RecipeError, match=r"11 classes are no multiple of 5\. .*stream.uneven=true"):
        cuts(11, first=None, step=5)


def test_tasks_are_named_by_their_classes():
    digits = Named(place="data", name="digits")
    made = build(Config(data=digits, tasks=(("7", "1"), (0,), ("9", "2", "3", "4", "5", "6", 8))))
    assert [task.candidates for task in made] == [("7", "1"), ("0",), ("9", "2", "3", "4", "5", "6", "8")]
    assert [task.offset for task in made] == [0, 2, 3]
    assert {task.train.targets[0] for task in made.tasks[1:2]} == {2}
    with pytest.raises(RecipeError, match="8 of 10 classes are missing"):
        build(Config(data=digits, tasks=(("7", "1"),)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "step"),
        ({"step": 2, "tasks": [["0"]]}, "cannot stand beside step"),
        ({"tasks": [["0"], []]}, "a task without a class"),
    ],
)
def test_how_classes_come_is_said_once(settings, said):
    with pytest.raises(RecipeError, match=said):
        parse(Config, {"data": "digits", **settings}, where="stream")


@given(classes=st.integers(2, 60), step=st.integers(1, 60), first=st.none() | st.integers(1, 60))
def test_every_step_that_is_suggested_fits(classes, step, first):
    try:
        bounds = cuts(classes, first=first, step=step)
    except RecipeError as fault:
        if found := re.search(r"Steps that fit, near \d+: ([\d, ]+)", str(fault)):
            assert all(cuts(classes, first=first, step=int(other))[-1] == classes for other in found[1].split(", "))
        else:
            assert first > classes
    else:
        assert bounds[0] == 0 and bounds[-1] == classes and bounds[1] == (first or step)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_order_and_cut_divides_classes_and_images_without_rest(data):
    count = data.draw(st.integers(1, 12))
    order = data.draw(st.permutations(range(count)))
    first = data.draw(st.integers(1, count))
    step = data.draw(st.sampled_from([s for s in range(1, count + 1) if (count - first) % s == 0]))
    labels = data.draw(st.permutations([label for label in range(count) for _ in range(2)]))
    toy = dataset(labels, test=labels)
    made = stream(toy, order, cuts(count, first=first, step=step))
    assert sum((t.candidates for t in made), ()) == tuple(f"c{label}" for label in order)
    assert sorted(i for t in made for i in ids(t.train)) == sorted(ids(toy.train))
    for task in made:
        assert set(task.train.targets) == set(range(task.offset, task.offset + len(task.candidates)))
        # Undoing the order gives back every image's own class.
        own = {e.id: e.target for e in toy.train}
        assert all(order[e.target] == own[e.id] for e in task.train)


def test_limits_take_the_first_of_each_class():
    data = dataset([0, 0, 1, 0, 1, 1], test=[1, 1, 0, 0])
    task = stream(data, [0, 1], [0, 2], train_per_class=2, test_per_class=1).tasks[0]
    assert ids(task.train) == ["train0", "train1", "train2", "train4"]
    assert ids(task.test) == ["test0", "test2"]


def test_validation_is_a_share_of_each_class_and_leaves_the_rest_for_training():
    data = dataset([0, 1] * 10)
    task = stream(data, [0, 1], [0, 2], validation_share=0.2).tasks[0]
    assert [task.validation.targets.count(c) for c in (0, 1)] == [2, 2]
    assert sorted(ids(task.train) + ids(task.validation)) == sorted(ids(data.train))


def test_without_a_share_the_data_sets_own_validation_images_serve():
    task = stream(dataset([0, 1], validation=[1, 0, 1]), [1, 0], [0, 1, 2]).tasks[0]
    assert ids(task.validation) == ["val0", "val2"]


def test_clean_names_are_off_by_default():
    data = dataset([0], names=["great_white_shark"])
    assert stream(data, [0], [0, 1]).tasks[0].candidates == ("great_white_shark",)
    assert stream(data, [0], [0, 1], clean_names=True).tasks[0].candidates == ("great white shark",)


def test_a_class_without_training_image_is_named():
    data = dataset([0, 2], test=[0, 1, 2], names=["ant", "bee", "cat"])
    with pytest.raises(DataError, match=r"task 2 \(class 1\): no training image of 1 class\(es\) of this task: bee"):
        stream(data, [0, 1, 2], [0, 1, 2, 3])


def test_zero_shot_streams_need_no_training_image():
    made = stream(dataset([], test=[0, 1], names=["a", "b"]), [1, 0], [0, 1, 2], train_per_class=0)
    assert [len(t.train) for t in made] == [0, 0] and [len(t.test) for t in made] == [1, 1]


def test_a_task_without_test_image_is_refused():
    with pytest.raises(DataError, match="task 2: no test image"):
        stream(dataset([0, 1], test=[0], names=["a", "b"]), [0, 1], [0, 1, 2])


def test_default_order_is_the_published_one_where_there_is_one():
    names = [f"c{i}" for i in range(100)]
    assert class_order("default", dataset([0], names=names, name="cifar100"))[:5] == [87, 0, 52, 58, 44]
    assert class_order("default", dataset([0], names=names)) == list(range(100))
    assert class_order("default", dataset([0], names=["a", "b"], name="cifar100")) == [0, 1]
    assert class_order("numeric", dataset([0], names=names, name="cifar100")) == list(range(100))


def test_shipped_orders_have_long_and_short_names():
    data = dataset([0], names=[f"c{i}" for i in range(200)], name="imagenet_r")
    assert class_order("default", data)[:3] == [150, 119, 193]
    assert class_order("rapf", data) == class_order("imagenet_r__rapf", data)
    assert class_order("rapf", data)[:3] == [29, 75, 18]


def test_random_orders_follow_their_seed():
    data = dataset([0], names=[f"c{i}" for i in range(20)])
    first = class_order("random", data, seed=1)
    assert first == class_order("random", data, seed=1) != class_order("random", data, seed=2)
    assert sorted(first) == list(range(20))


def test_an_order_file_holds_labels_or_names(tmp_path):
    data = dataset([0], names=["ant", "bee", "cat"])
    path = tmp_path / "order.json"
    path.write_text(json.dumps(["cat", 0, "bee"]))
    assert class_order(str(path), data) == [2, 0, 1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[0, 1, 1]", r"1 classes occur twice: 1 \(bee\); 1 of 3 classes are missing: 2 \(cat\)"),
        ("[0, 1]", r"1 of 3 classes are missing: 2 \(cat\)"),
        ("[0, 1, 7]", "entry 2 is 7. Expected a label from 0 to 2"),
        ('[0, 1, "catt"]', "Did you mean 'cat'"),
        ("[0, 1, true]", "entry 2 is True"),
        ("[0, 1, [2]]", r"entry 2 is \[2\]"),
        ('{"order": []}', "holds a dict"),
        ("[0, 1,", "this is no JSON"),
    ],
)
def test_a_wrong_order_file_is_refused(tmp_path, content, said):
    path = tmp_path / "order.json"
    path.write_text(content)
    with pytest.raises(RecipeError, match=said):
        class_order(str(path), dataset([0], names=["ant", "bee", "cat"]))


def test_a_number_that_is_a_label_and_another_class_s_name_is_refused(tmp_path):
    data = dataset([0], names=sorted(map(str, range(12))))  # 0, 1, 10, 11, 2 ...
    path = tmp_path / "order.json"
    path.write_text(json.dumps([0, 1, *range(2, 12)]))
    with pytest.raises(RecipeError, match=r"entry 2 is 2: label 2, which is the class '10', or the name .*label is 4"):
        class_order(str(path), data)
    path.write_text(json.dumps([*map(str, range(12))]))
    assert class_order(str(path), data) == [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3]
    plain = dataset([0], names=["0", "1", "2"])  # each is called by its label
    path.write_text("[2, 0, 1]")
    assert class_order(str(path), plain) == [2, 0, 1]


def test_an_unknown_order_is_refused_with_the_nearest():
    data = dataset([0], names=[f"c{i}" for i in range(200)], name="imagenet_r")
    with pytest.raises(RecipeError, match="Did you mean `random`"):
        class_order("randm", data)
    with pytest.raises(RecipeError, match=r"default, numeric, random, mgclip, rapf, seed1993, or a \.json file"):
        class_order("sorted", data)
    with pytest.raises(RecipeError, match="there is no such file"):
        class_order("nowhere.json", data)
    with pytest.raises(RecipeError, match="each of 200 classes once"):  # the order of another data set
        class_order("cifar100__mgclip_rapf_continualclip", data)


def test_a_stream_is_built_from_settings_alone():
    config = Config(data=Named(place="data", name="digits"), step=2, order="random", scope="all")
    made = build(config)
    assert made.name == "digits-2-2" and len(made) == 5 and made.scope == "all"
    assert sum(len(t.train) + len(t.test) for t in made) == 1797
    assert len(made.query(made.tasks[0], after=0).candidates) == 10
    json.dumps(dict(made.manifest))  # JSON-ready


def test_task_incremental_queries_name_the_task_and_its_classes():
    made = build(Config(data=Named(place="data", name="digits"), first=4, step=3, task_revealed=True))
    query = made.query(made.tasks[1], after=2)
    assert (query.task, query.candidates, query.offset) == ("classes 4-6", ("4", "5", "6"), 4)
