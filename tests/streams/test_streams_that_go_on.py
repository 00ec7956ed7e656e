"""Streams one after another: labels, names, ids and tests of what comes later."""

import json

import numpy as np
import pytest
from PIL import Image

from perdure.errors import DataError, RecipeError
from perdure.settings.config import Named
from perdure.streams import appending, class_names
from perdure.types import Stream
from tests.updating import pictures


def built(name, **settings) -> Stream:
    return Named(place="streams", name=name, settings=settings).build()


def folder(root, **more):
    return {"name": "image_folder", "root": str(root), "test_share": 0, **more}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return pictures.folder(tmp_path_factory.mktemp("base"), "ant bee cat dog", n=5)


@pytest.fixture
def first(base):
    return {"name": "class_incremental", "data": {"name": "image_folder", "root": str(base)}, "step": 2}


def test_known_classes_keep_their_labels_and_new_ones_follow(first, tmp_path):
    more = folder(pictures.folder(tmp_path, "Bee eel", colors="bee eel", n=10))
    stream = built("chained", parts=[first, {"name": "one_task", "data": more, "called": "week 1"}])
    task = stream.tasks[2]
    assert (task.index, task.name, task.candidates, task.offset, task.labels) == (2, "week 1", ("eel",), 4, (1, 4))
    assert set(task.train.targets) == {1, 4} and len(task.train) + len(task.test) == 20
    assert all(e.id.startswith("u2/") for e in [*task.train, *task.test])
    assert stream.query(task, after=2).candidates == ("ant", "bee", "cat", "dog", "eel")
    assert [part["n"] for t in stream.manifest["tasks"] for part in (t["train"],)] == [8, 8, len(task.train)]


def test_what_is_known_of_tasks_is_all_that_later_ones_need(first, tmp_path):
    more = built("one_task", data=folder(pictures.folder(tmp_path, "eel dog", n=5)))
    whole = built(**first)
    saved = json.loads(json.dumps(appending.known(whole)))
    ours, theirs = appending.append(whole, more), appending.append(appending.from_known("x", saved), more)
    assert [appending.known(s)["tasks"] for s in (ours,)] == [appending.known(s)["tasks"] for s in (theirs,)]
    assert ours.tasks[2].train.targets == theirs.tasks[2].train.targets and not len(theirs.tasks[0].train)


def test_a_second_task_of_a_later_stream_may_repeat_a_class_of_its_first(first, tmp_path):
    root = pictures.folder(tmp_path, "eel bee fox gnu", n=5)
    later = {"name": "class_incremental", "data": {"name": "image_folder", "root": str(root)}, "step": 2}
    stream = built("chained", parts=[first, later])
    assert [(t.candidates, t.offset) for t in stream.tasks[2:]] == [(("eel",), 4), (("fox", "gnu"), 5)]
    assert [t.name for t in stream.tasks[2:]] == ["classes 0-1 (3)", "classes 2-3 (4)"]


def test_a_domain_has_all_known_classes_and_no_other(base, tmp_path):
    domains = {"name": "domain", "domains": [{"name": "image_folder", "root": str(base)}], "names": ["one"]}
    other = pictures.folder(tmp_path / "other", "ant bee cat dog", n=5, kind=4)
    task = built("chained", parts=[domains, {"name": "one_task", "data": folder(other), "teaches": "domain"}]).tasks[1]
    assert (task.candidates, task.offset, set(task.train.targets)) == (("ant", "bee", "cat", "dog"), 0, {0, 1, 2, 3})
    few = pictures.folder(tmp_path / "few", "ant bee", n=5)
    with pytest.raises(DataError, match="this one lacks the class 'cat'"):
        built("chained", parts=[domains, {"name": "one_task", "data": folder(few), "teaches": "domain"}])


def test_an_example_stays_on_its_side_whatever_its_name_and_whatever_comes_beside_it(tmp_path):
    def sides(stream):
        task = stream.tasks[0]
        return [{np.asarray(Image.open(e.inputs["image"])).tobytes() for e in part} for part in (task.train, task.test)]

    pictures.folder(tmp_path / "one", "ant bee", n=12)
    train, test = sides(built("one_task", data=folder(tmp_path / "one"), test_share=0.3))
    for file in (tmp_path / "one" / "ant").iterdir():
        file.rename(file.with_name(f"renamed_{file.name}"))
    pictures.folder(tmp_path / "one", "cat", n=12)
    later = sides(built("one_task", data=folder(tmp_path / "one"), test_share=0.3))
    assert train <= later[0] and test <= later[1] and test


def test_tests_come_from_elsewhere_and_a_class_of_one_keeps_it(tmp_path):
    learned = folder(pictures.folder(tmp_path / "learned", "ant bee", n=1))
    tests = folder(pictures.folder(tmp_path / "tests", "bee ant", n=3, kind=2), test_share=1)
    task = built("one_task", data=learned, test=tests).tasks[0]
    assert len(task.train) == 2 and sorted(task.test.targets) == [0, 0, 0, 1, 1, 1]
    assert len(built("one_task", data=learned, test_share=0.99).tasks[0].train) == 2
    foreign = folder(pictures.folder(tmp_path / "foreign", "cow", n=3), test_share=1)
    with pytest.raises(DataError, match="the test has the class 'cow', of which there is nothing to learn from"):
        built("one_task", data=learned, test=foreign)


def test_conversations_that_are_held_out_become_questions(tmp_path):
    said = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "a bee"}]
    records = [{"id": str(i), "conversations": [{**said[0], "value": f"What is {i}?"}, said[1]]} for i in range(20)]
    (tmp_path / "talk.json").write_text(json.dumps(records))
    data = {"name": "instruction", "train": str(tmp_path / "talk.json"), "images": str(tmp_path)}
    task = built("one_task", data=data, test_share=0.4).tasks[0]
    assert task.kind == "instruct" and task.metrics[0] == "answer_accuracy" and len(task.train) + len(task.test) == 20
    question = task.test[0]
    assert question.inputs["text"].startswith("What is ") and question.target["answer"] == "a bee"
    captions = [{"image": f"{i}.png", "caption": [f"picture {i}"], "split": "train"} for i in range(3)]
    for i in range(3):
        Image.new("RGB", (2, 2), (i, i, i)).save(tmp_path / f"{i}.png")
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    data = {"name": "captioned_images", "annotations": str(tmp_path / "captions.json"), "root": str(tmp_path)}
    with pytest.raises(RecipeError, match="the test is of kind caption, what is learned of kind instruct"):
        built("one_task", data={**DATA, "train": str(tmp_path / "talk.json")}, test=data)


DATA = {"name": "instruction"}


@pytest.mark.parametrize(
    ("name", "known", "label"),
    [
        ("Red_Panda ", "red panda", 0),
        ("Cafe\u0301", "caf\u00e9", 0),
        ("bat", "cat", None),  # short names lie near each other
        ("class 12", "class 13", None),
        ("heron", "swan", None),
    ],
)
def test_names_are_matched(name, known, label):
    assert class_names.match([name], [known], {}, where="here") == [label]


@pytest.mark.parametrize(
    ("name", "known"), [("dogs", "dog"), ("boxes", "box"), ("mouse", "house"), ("heronn", "heron")]
)
def test_near_names_are_refused_until_it_is_said_what_they_are(name, known):
    with pytest.raises(DataError, match=f"{name!r} is nearly the known class {known!r}"):
        class_names.match([name], [known], {}, where="here")
    assert class_names.match([name], [known], {name: known}, where="here") == [0]
    assert class_names.match([name], [known], {name: name}, where="here") == [None]


def test_two_names_of_one_class_are_refused():
    for names, known in ((["A b", "a_b"], []), (["bee", "bees"], ["bee"])):
        with pytest.raises(DataError, match="are one"):
            class_names.match(names, known, {"bees": "bee"} if known else {}, where="here")
    with pytest.raises(DataError, match="'x' is said to be 'y', which is no known class"):
        class_names.match(["x"], ["z"], {"x": "y"}, where="here")
