"""Every rehearsal method and its baselines behave: the public suite on tiny streams."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from perdure import registry, testing
from perdure.errors import DataError, TrainingError
from perdure.run import run
from perdure.runtime import Runtime
from perdure.types import NO_EXAMPLES, Stream, Task

GATED = ("dynamos", "dynamos_sgd")
BUFFERED = ("dynamos", "multi_scale", "er", "der", "derpp", "er_ace", "agem", "agem_r", "gem", "icarl", "cls_er")
ALL = (*BUFFERED, "dynamos_sgd", "sgd", "ewc_online", "si", "lwf_net", "joint_net")


def make(name: str, *, classes: int = 6, **settings):
    """A factory of fresh methods with a tiny network."""

    def build():
        from perdure.models import gated_resnet, resnet18

        if name in GATED:
            net = gated_resnet.load(gated_resnet.Config(classes=classes, width=4, hidden_ratio=2, seed=0))
            settings.setdefault("warmup", 1)
        else:
            net = resnet18.load(resnet18.Config(classes=classes, width=4, stages=(1, 2), seed=0))
        cls = registry.load("methods", name)
        if name in BUFFERED:
            settings.setdefault("buffer_size", 8)
        if "minibatch_size" in cls.Config.__dataclass_fields__:
            settings.setdefault("minibatch_size", 4)
        settings.setdefault("batch_size", 4)
        settings.setdefault("lr", 0.01)
        return cls(cls.Config(**settings), net=net)

    return build


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_passes_the_public_suite(name):
    assert testing.check_method(make(name), testing.tiny_stream(size=8)) == list(testing.CHECKS)


@pytest.mark.parametrize("name", ALL)
def test_trains_on_batches_of_one_image(name):
    stream = testing.tiny_stream(tasks=2, classes=1, train=2, test=1, size=8)
    scores = run(make(name, batch_size=1)(), stream, runtime=Runtime(device="cpu", quiet=True))
    assert len(scores.rows) == 3


@pytest.mark.parametrize("name", [n for n in BUFFERED if n != "icarl"])
def test_a_buffer_of_no_slots_replays_nothing(name):
    method = make(name, buffer_size=0)()
    run(method, testing.tiny_stream(tasks=2, train=3, test=1, size=8), runtime=Runtime(device="cpu", quiet=True))
    assert len(method.memory) == 0


@pytest.mark.parametrize("name", BUFFERED)
def test_a_buffer_larger_than_the_stream_keeps_what_it_may(name):
    method = make(name, buffer_size=1000)()
    run(method, testing.tiny_stream(tasks=2, train=3, test=1, size=8), runtime=Runtime(device="cpu", quiet=True))
    assert 0 < len(method.memory) <= 12 or name in ("dynamos", "multi_scale")


@pytest.mark.parametrize("name", ALL)
def test_augmentation_changes_training(name):
    stream = testing.tiny_stream(tasks=1, train=4, test=1, size=8)
    weights = []
    for kind in ("none", "crop_flip"):
        method = make(name, augment=kind)()
        run(method, stream, runtime=Runtime(device="cpu", quiet=True))
        weights.append(torch.cat([p.flatten() for p in method.net.parameters()]))
    assert not torch.equal(*weights)


@pytest.mark.parametrize("name", ALL)
def test_a_label_outside_the_head_is_named(name):
    with pytest.raises(DataError, match="label 2"):
        run(make(name, classes=2)(), testing.tiny_stream(size=8), runtime=Runtime(device="cpu", quiet=True))


@pytest.mark.parametrize("name", [n for n in ALL if n != "joint_net"])  # starts from its initial weights
def test_a_loss_that_is_not_finite_stops_with_step_and_layer(name):
    method = make(name)()
    with torch.no_grad():
        method.net.get_parameter("stage1.block1.conv2.weight")[0, 0, 0, 0] = torch.nan
    with pytest.raises(TrainingError, match=r"at step 0; first in layer stage1\.block1\.conv2"):
        run(method, testing.tiny_stream(size=8), runtime=Runtime(device="cpu", quiet=True))


@pytest.mark.parametrize("name", ALL)
def test_images_of_two_sizes_are_refused(name):
    small, large = testing.tiny_stream(size=8).tasks[0], testing.tiny_stream(size=10).tasks[0]
    from perdure.types import Examples

    mixed = Examples.of([*small.train, *large.train])
    task = Task(index=0, name="mixed", kind="classify", candidates=small.candidates, train=mixed, test=small.test)
    with pytest.raises(DataError, match="2 sizes"):
        run(make(name)(), Stream(name="mixed", tasks=(task,)), runtime=Runtime(device="cpu", quiet=True))


def test_a_later_task_of_another_size_is_refused_by_the_memory():
    first, second = testing.tiny_stream(size=8).tasks[0], testing.tiny_stream(size=10).tasks[1]
    stream = Stream(name="growing", tasks=(first, second))
    with pytest.raises(DataError, match=r"\[3, 10, 10\], earlier samples have \[3, 8, 8\]|Sizes of tensors"):
        run(make("derpp")(), stream, runtime=Runtime(device="cpu", quiet=True))


@pytest.mark.parametrize("name", ALL)
def test_an_empty_task_is_refused(name):
    task = Task(index=0, name="empty", kind="classify", candidates=("a",), train=NO_EXAMPLES)
    with pytest.raises(TrainingError, match="no training image"):
        make(name)().learn(task, Runtime(device="cpu", quiet=True))


def test_every_method_is_described():
    for name in ALL:
        assert registry.describe("methods", name).roles == ("net",)
        assert all(registry.field_docs("methods", name).values()), name
        import_module(f"perdure.methods.{name}")
