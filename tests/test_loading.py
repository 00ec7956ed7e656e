"""Batches: order, keys, shards, workers and unreadable examples change no result that they should not."""

import os

import pytest
import torch

from perdure.errors import DataError, UnreadableExample
from perdure.evaluate import _joined
from perdure.loading import ExampleBatches, TensorBatches
from perdure.runtime import Runtime
from perdure.types import Example, Examples

EXAMPLES = Examples.of([Example(id=str(i), inputs={}, target=i) for i in range(11)])


def noisy(example, training):
    return {"x": torch.rand(2) if training else torch.zeros(2), "label": example.target}


def broken_at_four(example, training):
    if example.target == 4:
        raise UnreadableExample("cut short", where="4.jpg")
    return noisy(example, training)


def batches(preprocess=noisy, training=True, batch_size=4, **settings):
    r = Runtime(device="cpu", quiet=True, **settings)
    return r, ExampleBatches(EXAMPLES, preprocess, batch_size=batch_size, runtime=r, stage="s", training=training)


def by_label(loader, epoch=0, start=0):
    pairs = (pair for batch, _ in loader.epoch(epoch, start) for pair in zip(batch["label"], batch["x"]))
    return {int(label): x.tolist() for label, x in pairs}


def test_every_example_comes_once_and_shares_add_up():
    _, loader = batches()
    parts = list(loader.epoch(0))
    assert sorted(int(i) for batch, _ in parts for i in batch["label"]) == list(range(11))
    assert [len(batch["position"]) for batch, _ in parts] == [4, 4, 3]
    assert [share for _, share in parts] == [1.0, 1.0, 1.0]
    assert len(loader) == 3


def test_augmentation_depends_on_the_sample_not_on_batches_or_workers():
    one = by_label(batches()[1])
    assert one == by_label(batches(batch_size=3)[1])
    assert one == by_label(batches(workers=2)[1])
    assert one != by_label(batches()[1], epoch=1)


def in_process(example, training):
    return {"x": torch.tensor([float(os.getpid())]), "label": example.target}


def test_workers_stay_for_all_epochs_also_after_one_that_was_left():
    _, loader = batches(in_process, batch_size=2, workers=2)
    next(iter(loader.epoch(0)))
    processes = [{x[0] for x in by_label(loader, epoch).values()} for epoch in (1, 2)]
    assert processes[0] == processes[1] and len(processes[0]) == 2 and float(os.getpid()) not in processes[0]
    _, loader = batches(batch_size=2, workers=2)
    next(iter(loader.epoch(0)))
    for epoch in (1, 2):
        assert by_label(loader, epoch) == by_label(batches()[1], epoch)


def test_starting_in_the_middle_of_an_epoch_gives_the_rest_of_it():
    _, loader = batches()
    whole = [batch["label"].tolist() for batch, _ in loader.epoch(2)]
    rest = [batch["label"].tolist() for batch, _ in loader.epoch(2, start=1)]
    assert rest == whole[1:]


def test_loading_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    list(batches()[1].epoch(0))
    assert torch.equal(torch.rand(1), expected)


def test_an_unreadable_example_stops_the_run_by_default():
    with pytest.raises(DataError, match=r"4.jpg: cut short.*run.unreadable=skip"):
        list(batches(broken_at_four)[1].epoch(0))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_example_is_skipped_and_counted_when_asked(workers):
    r, loader = batches(broken_at_four, unreadable="skip", workers=workers)
    labels = [int(i) for batch, _ in loader.epoch(0) for i in batch["label"]]
    assert sorted(labels) == [i for i in range(11) if i != 4]
    assert list(r.skipped) == ["4"]


def test_processes_share_each_batch_without_overlap():
    parts = []
    for rank in (0, 1):
        r, loader = batches()
        r.rank, r.processes = rank, 2
        parts.append([(batch["label"].tolist(), share) for batch, share in loader.epoch(0)])
    for (mine, a), (yours, b) in zip(*parts):
        assert not set(mine) & set(yours)
        assert a + b == pytest.approx(1.0)
    assert sorted(i for part in parts for labels, _ in part for i in labels) == list(range(11))


def test_tensor_batches_follow_the_runtimes_order():
    r = Runtime(device="cpu", quiet=True)
    loader = TensorBatches({"x": torch.arange(7)}, batch_size=3, runtime=r, stage="v")
    found = torch.cat([batch["x"] for batch, _ in loader.epoch(1)])
    assert torch.equal(found, r.permutation(7, "v", 1))


@pytest.mark.parametrize("size", [1, 3, 4, 7, 20])
def test_small_batches_of_features_are_joined_to_the_size_that_a_method_answers_at_once(size):
    rows = torch.arange(11)
    small = [*({"position": part, "x": part.float()} for part in rows.split(2)), None]
    joined = list(_joined(small, size))
    assert [part.tolist() for part in rows.split(size)] == [batch["position"].tolist() for batch in joined]
    assert all(torch.equal(batch["x"], batch["position"].float()) for batch in joined)
