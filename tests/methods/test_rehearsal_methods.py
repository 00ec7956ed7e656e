"""Every rehearsal method and its baselines behave: the public suite on tiny streams."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import pytest
import torch
from torch.nn import functional as F

from perdure import testing
from perdure.errors import DataError, TrainingError
from perdure.families import rehearsal
from perdure.loop import run
from perdure.runtime import Runtime
from perdure.settings import registry
from perdure.types import NO_EXAMPLES, Stream, Task

GATED = ("dynamos", "dynamos_sgd")
STORES_THE_RIGHT_ONLY = ("dynamos", "multi_scale")  # perhaps none of a short task
BUFFERED = ("dynamos", "multi_scale", "er", "der", "derpp", "er_ace", "agem", "agem_r", "gem", "icarl", "cls_er")
ALL = (*BUFFERED, "dynamos_sgd", "sgd", "ewc_online", "si", "lwf_net", "joint_net")


def make(name: str, *, classes: int = 6, **settings):
    """A factory of fresh methods with a tiny network."""

    def build():
        from perdure.models import gated_resnet, resnet18

        if name in GATED:
            net = gated_resnet.load(gated_resnet.Config(classes=classes, width=8, hidden_ratio=2, seed=0))
            settings.setdefault("warmup", 1)
        else:
            net = resnet18.load(resnet18.Config(classes=classes, width=8, stages=(1, 2), seed=0))
        cls = registry.load("methods", name)
        if name in BUFFERED:
            settings.setdefault("buffer_size", 8)
        if "minibatch_size" in cls.Config.__dataclass_fields__:
            settings.setdefault("minibatch_size", 4)
        settings.setdefault("batch_size", 4)
        settings.setdefault("lr", 0.01)
        return cls(cls.Config(**settings), net=net)

    return build


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
def test_bf16_leaves_weights_and_statistics_in_full(name):
    method = make(name, epochs=2)()
    run(method, testing.tiny_stream(size=8), runtime=Runtime(device="cpu", precision="bf16", quiet=True))
    state = method.net.state_dict()
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}
    assert all(torch.isfinite(value).all() for value in state.values())


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
    with pytest.raises(DataError, match=r"'image' of shape \[3, 10, 10\], unlike \[3, 8, 8\]"):
        run(make(name)(), Stream(name="mixed", tasks=(task,)), runtime=Runtime(device="cpu", quiet=True))


@pytest.mark.parametrize("name", [n for n in (*BUFFERED, "joint_net") if n not in STORES_THE_RIGHT_ONLY])
def test_a_later_task_of_another_size_is_refused_before_it_is_learned(name):
    first, second = testing.tiny_stream(size=8).tasks[0], testing.tiny_stream(size=10).tasks[1]
    method, runtime = make(name)(), Runtime(device="cpu", quiet=True)
    method.learn(first, runtime)
    learned = {key: value.clone() for key, value in method.net.state_dict().items()}
    with pytest.raises(DataError, match=r"task 2 .*earlier tasks: images of 2 sizes: \[3, 8, 8\] and \[3, 10, 10\]"):
        method.learn(second, runtime)
    assert all(torch.equal(value, learned[key]) for key, value in method.net.state_dict().items())


@pytest.mark.parametrize("name", ALL)
def test_an_empty_task_is_refused(name):
    task = Task(index=0, name="empty", kind="classify", candidates=("a",), train=NO_EXAMPLES)
    with pytest.raises(TrainingError, match="no training image"):
        make(name)().learn(task, Runtime(device="cpu", quiet=True))


@pytest.mark.parametrize("name", ALL)
def test_the_same_classes_may_come_again(name):
    first, second = testing.tiny_stream(tasks=2, train=3, test=1, size=8).tasks
    again = replace(first, index=1, name="again", train=second.train.relabel(lambda label: label - second.offset))
    stream = Stream(name="domains", tasks=(first, again))
    scores = run(make(name)(), stream, runtime=Runtime(device="cpu", quiet=True))
    assert [row["after"] for row in scores.rows] == [0, 1, 1]


def test_every_method_is_described():
    for name in ALL:
        assert registry.describe("methods", name).roles == ("net",)
        assert all(registry.field_docs("methods", name).values()), name
        import_module(f"perdure.methods.{name}")


@pytest.mark.parametrize("name", ["er", "derpp"])
def test_a_step_equals_the_plain_one(name):
    """Layout, in-place layers and looked-up augmentation change no number: the same step, written plainly."""
    quick, plain = make(name, lr=0.1)(), make(name, lr=0.1)()
    generator = torch.Generator().manual_seed(0)
    stored = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=generator)
    columns = {"image": stored, "label": torch.arange(8) % 6}
    if name == "derpp":
        columns["logits"] = torch.randn(8, 6, generator=generator)
    for method in (quick, plain):
        method.memory.put({key: column.clone() for key, column in columns.items()})
        method.net.train()
    runtime = Runtime(device="cpu", quiet=True)
    optimizer = rehearsal.sgd(quick.net, 0.1)
    for step in range(3):
        images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 6, (4,), generator=generator)
        torch.manual_seed(step)
        found = quick.losses(images, labels)
        loss = (found[0] if name == "derpp" else found)["loss"]
        rehearsal.descend(loss, optimizer, runtime)
        torch.manual_seed(step)
        told = plainly(plain, images, labels)
        told.backward()
        torch.testing.assert_close(loss, told, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            for parameter in plain.net.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
    for mine, theirs in zip(quick.net.state_dict().values(), plain.net.state_dict().values()):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def plainly(method, images, labels):
    """The loss of ER or DER++ as the papers write it, in torch's default layout."""
    replay = method.memory.draw(4, method.draws)
    if "logits" not in replay:
        x = torch.cat([images, replay["image"]]) / 255
        return F.cross_entropy(method.net(x), torch.cat([labels, replay["label"]]))
    loss = F.cross_entropy(method.net(images / 255), labels)
    loss = loss + method.config.alpha * F.mse_loss(method.net(replay["image"] / 255), replay["logits"])
    again = method.memory.draw(4, method.draws)
    return loss + method.config.beta * F.cross_entropy(method.net(again["image"] / 255), again["label"])


@pytest.mark.parametrize("name", ["sgd", "cls_er", "dynamos", "dynamos_sgd", "icarl", "si"])
def test_the_modules_of_a_network_in_training_mode_are_not_walked_through_at_every_step(name):
    method = make(name)()
    nets = [item for item in vars(method).values() if isinstance(item, torch.nn.Module)]
    walks = []
    for net in nets:
        real = net.train
        net.train = lambda mode=True, real=real: (walks.append(mode), real(mode))[1]
    run(method, testing.tiny_stream(tasks=2, train=40, size=8), runtime=Runtime(device="cpu", quiet=True))
    assert len(walks) <= 8 * len(nets), "some a task, for 10 steps and more"
    assert any(walks)
