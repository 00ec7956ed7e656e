"""Dynamos: warm-up, what is stored and replayed, and its options."""

from __future__ import annotations

import pytest
import torch

from perdure.errors import Interrupted
from perdure.loop import run
from perdure.methods.dynamos import Config, Dynamos, skipping
from perdure.methods.dynamos_sgd import Config as SgdConfig
from perdure.methods.dynamos_sgd import DynamosSgd
from perdure.models import gated_resnet
from perdure.runtime import Runtime
from perdure.testing import CHECKS, check_method, tiny_stream
from perdure.types import Query


class Steps(Runtime):
    """Keeps the logged values of each step."""

    def __init__(self) -> None:
        super().__init__(device="cpu", quiet=True)
        self.values: list[dict] = []

    def log(self, event, **values):
        if event == "step":
            self.values.append(values | {"task": self.task})


def method(**settings) -> Dynamos:
    net = gated_resnet.load(gated_resnet.Config(classes=6, width=8, hidden_ratio=2, seed=0))
    defaults = {"lr": 0.02, "batch_size": 4, "minibatch_size": 4, "buffer_size": 10, "policy_penalty": -5.0}
    return Dynamos(Config(**defaults | settings), net=net)


def test_warm_up_is_ten_steps_without_gates_replay_or_storing():
    dynamos, runtime = method(), Steps()
    sizes = []
    add = dynamos.memory.add
    dynamos.memory.add = lambda *args, **kw: (sizes.append(len(runtime.values)), add(*args, **kw))
    run(dynamos, tiny_stream(tasks=2, train=30, size=8), runtime=runtime)
    first = [values for values in runtime.values if values["task"] == 0]
    assert len(first) == 15
    assert all("policy" not in values for values in first[:10])
    assert all("policy" in values for values in first[10:])
    assert min(sizes) == 10, "the first sample is offered in step 10"
    assert all("policy" in values for values in runtime.values if values["task"] == 1), "warm-up never returns"


@pytest.mark.parametrize("epochs", [2, 10, 12])
def test_warm_up_in_epochs_ends_at_the_latest_with_the_first_task(epochs):
    dynamos, runtime = method(epochs=epochs), Steps()
    run(dynamos, tiny_stream(tasks=2, train=2, test=1, size=8), runtime=runtime)
    warm = [values["epoch"] for values in runtime.values if "policy" not in values]
    assert warm == list(range(min(epochs, 10)))
    assert all("policy" in values for values in runtime.values if values["task"] == 1)


def test_before_the_first_task_the_plain_network_answers():
    dynamos = method()
    query = tiny_stream(size=8).query(tiny_stream(size=8).tasks[0], after=-1)
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        scores = dynamos.predictor(query)({"image": images})
        torch.testing.assert_close(scores, dynamos.net(images / 255)[:, :2])


def test_no_empty_slot_is_ever_replayed():
    dynamos = method(buffer_size=100, warmup=0)
    drawn = []
    draw = dynamos.memory.draw

    def watched(*args, **kw):
        drawn.append(draw(*args, **kw))
        return drawn[-1]

    dynamos.memory.draw = watched
    run(dynamos, tiny_stream(size=8), runtime=Steps())
    replayed = [columns for columns in drawn if columns is not None]
    assert replayed, "something was replayed"
    assert len(dynamos.memory) < dynamos.memory.seen, "some images were predicted wrong"
    assert all(columns["image"].flatten(1).any(dim=1).all() for columns in replayed)


def test_only_images_that_were_predicted_right_are_stored():
    dynamos = method(buffer_size=100, warmup=0)
    run(dynamos, tiny_stream(size=8), runtime=Steps())
    stored = dynamos.memory.everything()
    assert stored is not None
    assert (stored["logits"].argmax(dim=1) == stored["label"]).all()
    assert dynamos.memory.seen == 36


def test_the_threshold_takes_effect_in_evaluation():
    dynamos = method(warmup=0, threshold=1.01)
    dynamos.tasks = 1
    query = tiny_stream(size=8).query(tiny_stream(size=8).tasks[0], after=0)
    with torch.no_grad():
        scores = dynamos.predictor(query)({"image": torch.zeros(1, 3, 8, 8)})
        assert torch.equal(scores[0], dynamos.net.head.bias[:2])


def test_sampling_in_evaluation_uses_the_given_numbers():
    dynamos = method(warmup=0, inference="sample")
    dynamos.net.eval()
    with torch.no_grad():
        assert dynamos.infer(torch.rand(2, 3, 8, 8), torch.zeros(2, dynamos.net.boundaries[-1])).actions.all()


def test_drawn_gates_hang_on_the_image_and_the_runs_seed_alone():
    """In batches of any size, in any order, and where a test is stopped and goes on."""
    settings = {"warmup": 0, "inference": "sample", "batch_size": 2, "minibatch_size": 2}
    allow = [name for name in CHECKS if name != "answers_do_not_depend_on_batch_mates"]
    check_method(lambda: method(**settings), tiny_stream(size=8, train=2), allow=allow)
    dynamos = method(**settings)
    run(dynamos, tiny_stream(size=8, train=2), runtime=Runtime(device="cpu", quiet=True))
    task = tiny_stream(size=8, train=2).tasks[0]
    predict = dynamos.predictor(Query(kind="classify", candidates=tuple("abcdef")))
    image = torch.stack([dynamos.preprocess(task.test[0], False)["image"]] * 2)
    with torch.no_grad():
        one, other = predict({"image": image, "seed": torch.tensor([3, 4])})
    assert not torch.equal(one, other)


def test_a_second_run_with_the_same_seed_is_identical():
    runs = []
    for _ in range(2):
        dynamos, runtime = method(warmup=2), Steps()
        run(dynamos, tiny_stream(size=8), runtime=runtime)
        runs.append([values["loss"].item() for values in runtime.values])
    assert runs[0] == runs[1]


def test_after_each_task_the_work_of_the_gates_is_logged():
    class Logged(Steps):
        def log(self, event, **values):
            super().log(event, **values)
            if event == "modularity":
                self.modularity = values

    dynamos, runtime = method(warmup=0, buffer_size=100), Logged()
    run(dynamos, tiny_stream(size=8), runtime=runtime)
    found = runtime.modularity
    assert found["gates"] == [f"stage2.block{b}.gate{g}" for b in (0, 1) for g in (1, 2)]
    assert all(0 <= ratio <= 1 for ratio in found["keep_ratio"])
    assert len(found["overlap"]) == len(found["classes"]) == len(found["keep_ratio_of_class"])
    assert found["multiply_accumulates"] < found["multiply_accumulates_plain"]
    assert dynamos.facts()["modularity"] == found


def test_without_replay_the_gates_are_looked_at_on_the_task_just_learned():
    class Heard(Steps):
        def log(self, event, **values):
            if event == "modularity":
                self.values.append(values)

    net = gated_resnet.load(gated_resnet.Config(classes=6, width=8, hidden_ratio=2, seed=0))
    runtime = Heard()
    run(DynamosSgd(SgdConfig(batch_size=4), net=net), tiny_stream(tasks=2, train=6, size=8), runtime=runtime)
    assert len(runtime.values) == 2, "one a task"
    assert all(len(values["keep_ratio"]) == len(net.gates()) for values in runtime.values)
    assert not set(runtime.values[0]["classes"]) & set(runtime.values[1]["classes"])


def path_of_inference(monkeypatch, chosen: list[str]) -> None:
    """What measuring finds, one after another."""
    found = iter(chosen)
    monkeypatch.setattr(skipping, "fastest", lambda passes, x: (next(found), dict.fromkeys(passes, 0.0)))


def test_the_path_by_name_is_the_one_that_answers_without_measuring(monkeypatch):
    path_of_inference(monkeypatch, [])
    asked = []
    real = skipping.gated_pass
    monkeypatch.setattr(skipping, "gated_pass", lambda net, path, **kw: (asked.append(path), real(net, path, **kw))[1])
    for path in skipping.PATHS:
        run(method(inference_path=path), tiny_stream(tasks=1, size=8), runtime=Steps())
    assert asked == list(skipping.PATHS)


def test_the_measured_path_is_kept_with_the_run_also_where_the_test_after_it_is_stopped(tmp_path, monkeypatch):
    path_of_inference(monkeypatch, ["dense", "skipping", "folded"])
    stream = tiny_stream(tasks=2, size=8)
    dynamos = method(inference_path="auto")
    assert dynamos.path == "folded", "nothing is measured yet"
    predictor = dynamos.predictor
    asked = []

    def stopped_in_the_second_test(query):
        asked.append(dynamos.path)
        if asked == ["dense", "skipping"]:
            raise Interrupted("stopped")
        return predictor(query)

    dynamos.predictor = stopped_in_the_second_test
    with pytest.raises(Interrupted):
        run(dynamos, stream, runtime=Runtime(device="cpu", quiet=True, out=tmp_path))
    resumed = method(inference_path="auto")
    run(resumed, stream, runtime=Runtime(device="cpu", quiet=True, out=tmp_path))
    assert resumed.path == "skipping" == resumed.facts()["inference_path"]
