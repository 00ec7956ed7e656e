"""What a stream demands is known before anything is learned: labels, validation examples, names of tasks."""

from dataclasses import replace

import pytest

from perdure import demands, recipe
from perdure.errors import RecipeError
from perdure.evaluate import Evaluation
from perdure.loop import run
from perdure.runtime import Runtime
from perdure.testing import tiny_stream
from perdure.types import Stream
from tests.toy import Config, Toy


class Untaught(Toy):
    def learn(self, task, runtime):
        raise AssertionError("it began to learn")


def go(stream, **settings):
    run(Untaught(Config()), stream, runtime=Runtime(device="cpu", quiet=True), **settings)


def test_a_split_that_a_task_lacks_is_refused_before_work():
    first, second = tiny_stream(tasks=2)
    half = replace(tiny_stream(tasks=2), tasks=(replace(first, validation=first.test), second))
    with pytest.raises(RecipeError, match=r"no validation examples in task 1$|no validation examples in task 1[^0]"):
        go(half, evaluation=Evaluation(split="validation"))


def test_check_refuses_a_split_that_the_data_lack():
    loaded = recipe.load("er/digits", ["evaluate.split=validation", "stream.validation_share=0"])
    with pytest.raises(RecipeError, match="no validation examples"):
        recipe.check_fit(loaded, recipe.build_stream(loaded))


def test_a_method_that_must_know_the_task_is_refused_where_tests_do_not_name_it():
    class Told(Untaught):
        needs_task_name = frozenset({"classify"})

    with pytest.raises(RecipeError, match="must be told the task"):
        run(Told(Config()), tiny_stream(), runtime=Runtime(device="cpu", quiet=True))


def tasks(*offsets):
    return tuple(replace(t, offset=o) for t, o in zip(tiny_stream(tasks=len(offsets)), offsets))


@pytest.mark.parametrize(("offsets", "missing"), [((5,), 0), ((0, 3), 2), ((0, 4, 2), 2)])
def test_labels_that_leave_a_gap_are_refused_for_their_scores_would_stand_for_others(offsets, missing):
    with pytest.raises(RecipeError, match=f"no task seen has the label {missing}"):
        Stream(name="gap", tasks=tasks(*offsets))


def test_labels_may_come_in_any_order_where_all_are_asked_from_the_start():
    stream = Stream(name="all", tasks=tasks(0, 4, 2), scope="all")
    query = stream.query(stream.tasks[0], after=0)
    assert query.candidates == ("color 0", "color 1", "color 4", "color 5", "color 2", "color 3")


def test_tasks_may_share_their_labels():
    stream = Stream(name="domains", tasks=tasks(0, 0))
    assert len(stream.query(stream.tasks[1], after=1).candidates) == 2


def test_classes_that_come_again_are_refused_for_a_method_that_cannot_learn_more_of_them():
    first, second = tiny_stream(tasks=2).tasks
    again = replace(tiny_stream(tasks=2), tasks=(first, replace(second, train=first.train)))
    given = {"method": "php", "answers": {"classify"}, "needs_task_name": (), "split": "test"}
    demands.check(again, **given)  # another method may
    with pytest.raises(RecipeError, match=r"'task 1' brings examples of classes .*php.*a head of its own"):
        demands.check(again, **given, new_labels_only="each task has a head of its own")
