"""A leaky mutant of each kind is caught, and an honest method is not."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from perdure.auditing import answers, claims, copies, examine, teaching
from perdure.auditing.finding import Subject
from perdure.evaluate import Evaluation
from perdure.loop import run, seed_everything
from perdure.runtime import Runtime
from perdure.testing import tiny_stream
from perdure.types import Example, Examples, Stream
from tests.toy import Config, Toy

STREAM = tiny_stream(tasks=3, classes=2, train=6, test=8)


def subject(method_class=Toy, stream=STREAM, **more):
    def make():
        return method_class(Config(epochs=8, lr=0.05))

    seed_everything(0)
    method, runtime = make(), Runtime(device="cpu", quiet=True)
    run(method, stream, runtime=runtime)
    given = {"evaluation": Evaluation(batch_size=8), "runtime": runtime, "done": len(stream), "count": 24}
    return Subject(method=method, make=make, stream=stream, **{**given, **more})


# -- mutants: methods ---------------------------------------------------------------------------------------


class CentersItsBatch(Toy):
    def predictor(self, query):
        plain = super().predictor(query)
        return lambda batch: plain(batch) - plain(batch).mean(0, keepdim=True)


class Counts(Toy):
    """Takes the k-th test for class k: of tests that are sorted by class."""

    def predictor(self, query):
        plain, asked = super().predictor(query), 0

        def predict(batch):
            nonlocal asked
            scores = plain(batch)
            for row in scores:
                row[asked * len(query.candidates) // 24 % len(query.candidates)] += 1
                asked += 1
            return scores

        return predict


class OneOfEach(Toy):
    """Prefers classes that no companion before it was given."""

    def predictor(self, query):
        plain = super().predictor(query)

        def predict(batch):
            scores = plain(batch).clone()
            given = torch.zeros(scores.shape[1])
            for row in scores:
                row -= given
                given[row.argmax()] += 3
            return scores

        return predict


class ReadsNames(Toy):
    """Knows by an example's id, `test/4/0`, of which class it is."""

    def preprocess(self, example, training):
        parts = example.id.split("/")
        return {**super().preprocess(example, training), "told": int(parts[1]) if len(parts) > 1 else -1}

    def predictor(self, query):
        plain = super().predictor(query)
        columns = torch.arange(len(query.candidates))
        return lambda batch: plain(batch) + (columns == batch["told"][:, None] + 0 * query.offset)


class ReadsTargets(Toy):
    def preprocess(self, example, training):
        label = -1 if example.target is None else example.target
        return {**super().preprocess(replace(example, target=0), training), "label": label}

    def predictor(self, query):
        plain = super().predictor(query)
        columns = torch.arange(len(query.candidates))
        return lambda batch: plain(batch) + (columns == batch["label"][:, None])


class Honest(Toy):
    """As the toy; its tests need no target."""

    def preprocess(self, example, training):
        return super().preprocess(replace(example, target=example.target or 0) if not training else example, training)


class KeepsPrompts(Honest):
    """Weighs each class by how many it was ever asked about."""

    known = 0

    def predictor(self, query):
        plain = super().predictor(query)
        self.known = max(self.known, len(query.candidates))
        return lambda batch: plain(batch) * self.known


class LearnsItsTests(Honest):
    def learn(self, task, runtime):
        super().learn(replace(task, train=Examples.of([*task.train, *task.test])), runtime)


class Online(CentersItsBatch):
    """Adapts to the tests in their order, and says so."""

    carries_state = True


class Whole(CentersItsBatch):
    """Answers its tests at once, and says so."""

    test_batch = 0


MUTANTS = {
    answers.batches_of_one: CentersItsBatch,
    answers.another_order: Counts,
    answers.other_companions: OneOfEach,
    answers.task_name_hidden: ReadsNames,
    answers.target_hidden: ReadsTargets,
    teaching.later_classes: KeepsPrompts,
    teaching.tests_unread: LearnsItsTests,
}


@pytest.mark.parametrize("experiment", MUTANTS, ids=lambda experiment: experiment.__name__)
def test_a_method_that_leaks_is_caught(experiment):
    found = experiment(subject(MUTANTS[experiment]))
    assert found.verdict == "leaks", found
    assert found.done
    assert found.seen


def test_an_honest_method_passes_all_that_can_be_asked_of_it():
    found = {each.check: each.verdict for each in examine(subject(Honest))}
    assert "leaks" not in found.values(), found
    assert sum(verdict == "passes" for verdict in found.values()) >= 8, found


def test_what_a_method_says_of_itself_is_no_leak_and_is_said():
    for method, word in ((Online, "carries_state"), (Whole, "test_batch")):
        found = answers.batches_of_one(subject(method))
        assert found.verdict == "by protocol"
        assert word in found.seen
        assert "differ" in found.seen


# -- mutants: streams ---------------------------------------------------------------------------------------


def with_tests(*tests: list[Example], stream: Stream = STREAM, **more) -> Stream:
    """The stream with further tests in its tasks."""
    tasks = [replace(task, test=Examples.of([*task.test, *new])) for task, new in zip(stream, tests)]
    return replace(stream, tasks=tuple(tasks), **more)


def copied(example: Example, change=lambda image: image, *, target: int) -> Example:
    return Example(id=f"copy of {example.id}", inputs={"image": change(example.inputs["image"])}, target=target)


def test_a_copy_of_a_training_image_is_caught_in_another_task_too():
    stolen = copied(STREAM.tasks[2].train[0], target=0)
    found = copies.tests_in_training(subject(Honest, with_tests([stolen], [], [])))
    assert found.verdict == "leaks"
    assert "1 of 49 tests" in found.seen
    assert "1 across tasks" in found.seen
    assert stolen.id in found.seen


def pictures(seed: int, count: int, labels: range) -> Examples:
    """Smooth pictures that differ clearly, as photographs do."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    small = [rng.integers(0, 256, (6, 6, 3), dtype=np.uint8) for _ in range(count)]
    large = [np.asarray(Image.fromarray(one).resize((48, 48), Image.Resampling.BICUBIC)) for one in small]
    return Examples.of(
        [
            Example(id=f"{seed}/{i}", inputs={"image": image}, target=labels[i % len(labels)])
            for i, image in enumerate(large)
        ]
    )


def again_as_jpeg(image: np.ndarray) -> np.ndarray:
    """Brighter, resized and compressed."""
    from PIL import Image

    file = io.BytesIO()
    brighter = Image.fromarray(np.clip(image.astype(int) + 15, 0, 255).astype(np.uint8))
    brighter.resize((64, 64)).save(file, "JPEG", quality=70)
    return np.asarray(Image.open(file))


def test_a_brighter_recompressed_copy_is_caught_and_other_pictures_are_not():
    pytest.importorskip("imagehash")
    labels = [range(task.offset, task.offset + 2) for task in STREAM]
    tasks = [
        replace(task, train=pictures(i, 30, labels[i]), test=pictures(9 + i, 30, labels[i]))
        for i, task in enumerate(STREAM)
    ]
    clean = replace(STREAM, tasks=tuple(tasks))
    assert copies.nearly_tests_in_training(subject(Honest, clean)).verdict == "passes"
    near = copied(tasks[1].train[4], again_as_jpeg, target=0)
    dirty = with_tests([near], [], [], stream=clean)
    assert copies.tests_in_training(subject(Honest, dirty)).verdict == "passes"
    found = copies.nearly_tests_in_training(subject(Honest, dirty))
    assert found.verdict == "leaks"
    assert near.id in found.seen


def test_pictures_alike_in_gray_alone_are_no_copies():
    pytest.importorskip("imagehash")
    labels = [range(task.offset, task.offset + 2) for task in STREAM]
    tasks = [replace(task, train=pictures(i, 30, labels[i])) for i, task in enumerate(STREAM)]
    red, green = (np.full((48, 48, 3), 128, dtype=np.uint8) for _ in range(2))
    red[12:36, 12:36], green[12:36, 12:36] = (250, 40, 40), (16, 149, 50)  # of the same gray
    learned, asked = (Example(id=name, inputs={"image": image}, target=0) for name, image in (("r", red), ("g", green)))
    tasks[0] = replace(tasks[0], train=Examples.of([*tasks[0].train, learned]), test=Examples.of([asked]))
    found = copies.nearly_tests_in_training(subject(Honest, replace(STREAM, tasks=tuple(tasks))))
    assert found.verdict == "passes", found.seen
    again = replace(tasks[0], test=Examples.of([replace(learned, inputs={"image": again_as_jpeg(red)})]))
    found = copies.nearly_tests_in_training(subject(Honest, replace(STREAM, tasks=(again, *tasks[1:]))))
    assert found.verdict == "leaks"


def test_a_validation_split_that_is_the_test_is_caught():
    honest = [replace(task, validation=task.train[:3]) for task in STREAM]
    assert copies.validation_is_test(subject(Honest, replace(STREAM, tasks=tuple(honest)))).verdict == "passes"
    same = [replace(task, validation=task.test[:3]) for task in STREAM]
    found = copies.validation_is_test(subject(Honest, replace(STREAM, tasks=tuple(same))))
    assert found.verdict == "leaks"


def test_a_stream_that_tells_later_classes_is_caught():
    told = replace(STREAM.tasks[0], facts={"all classes": ["color 0", "color 4"]})
    found = teaching.later_classes(subject(Honest, replace(STREAM, tasks=(told, *STREAM.tasks[1:]))))
    assert found.verdict == "leaks"
    assert "color 4" in found.seen
    known = teaching.later_classes(subject(Honest, settings={"method.classes": ["color 5"]}))
    assert known.verdict == "leaks"


def test_protocols_that_tell_are_reported_as_such():
    assert teaching.later_classes(subject(Honest, replace(STREAM, scope="all"))).verdict == "by protocol"
    assert answers.task_name_hidden(subject(Honest, replace(STREAM, task_revealed=True))).verdict == "by protocol"


# -- mutants: what a run's files say ------------------------------------------------------------------------


def test_settings_chosen_on_the_test_are_caught():
    chosen = {"on": "test", "metric": "average", "size": 9}
    assert claims.chosen_on_test(subject(card={"selection": chosen})).verdict == "leaks"
    assert claims.chosen_on_test(subject(card={"selection": {**chosen, "on": "validation"}})).verdict == "passes"
    assert claims.chosen_on_test(subject()).verdict == "not applicable"
    study = {"sweep": "rates", "settings": 1, "choice": {"by": "first-task", "metric": "accuracy", "tried": 9}}
    found = claims.chosen_on_test(subject(card={"study": study}))
    assert (found.verdict, found.seen) == ("passes", "the best of 9 by accuracy on first-task")
    found = claims.chosen_on_test(subject(card={"study": {"sweep": "rates", "settings": 9}}))
    assert found.verdict == "not applicable"
    assert "one of 9 settings" in found.seen


def test_seeds_that_do_not_differ_are_caught(tmp_path):
    folders = [tmp_path / f"seed_{i}" for i in range(3)]
    for i, folder in enumerate(folders):
        (folder / "predictions").mkdir(parents=True)
        (folder / "predictions" / "0_0.jsonl").write_text(f'{{"id": "a", "predicted": {i}}}\n')
    assert claims.seeds_differ(subject(folders=folders)).verdict == "passes"
    (folders[2] / "predictions" / "0_0.jsonl").write_text('{"id": "a", "predicted": 1}\n')
    found = claims.seeds_differ(subject(folders=folders))
    assert found.verdict == "leaks"
    assert "seed_1, seed_2 are one" in found.seen
    assert claims.seeds_differ(subject(folders=folders[:1])).verdict == "not applicable"
