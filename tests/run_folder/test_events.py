"""The log of a run, and what trackers get of it."""

import json

import torch

from perdure.runtime import Runtime


def train(out, task, *, steps=3, **settings):
    runtime = Runtime(device="cpu", out=out, quiet=True, **settings)
    runtime.task = task
    for step in range(steps):
        runtime.log("step", stage="train", step=step, epoch=0, loss=torch.tensor(float(step)), good=True)
    runtime.log("test", after=task, asked=0, n=7, accuracy=50.0)
    runtime.finish()


def test_tensorboard_gets_steps_that_grow_and_integers_also_when_a_run_goes_on(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for task in range(2):  # the second as a resumed run: its stage's steps begin at 0 again
        train(tmp_path, task, trackers=("tensorboard",))
    drawn: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(tmp_path.rglob("events.out.tfevents.*")):
        read = EventAccumulator(str(file))
        read.Reload()
        for name in read.Tags()["scalars"]:
            drawn.setdefault(name, []).extend((point.step, point.value) for point in read.Scalars(name))
    assert drawn["step/loss"] == [(1, 0), (2, 1), (3, 2), (4, 0), (5, 1), (6, 2)]
    assert drawn["step/task"] == [(1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 1)]
    assert drawn["test/n"] == [(3, 7), (6, 7)]
    assert drawn["test/accuracy"] == [(3, 50), (6, 50)]
    assert "step/time" not in drawn and "step/good" not in drawn


def test_tensors_of_all_shapes_and_types_are_numbers_in_the_log(tmp_path):
    runtime = Runtime(device="cpu", out=tmp_path, quiet=True)
    same = torch.tensor([2.5])
    runtime.log("a", one=torch.tensor(3), half=torch.tensor(0.5, dtype=torch.float64), many=torch.arange(3), same=same)
    runtime.log("b", same=same, no=torch.empty(0), text="t")
    runtime.flush()
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in line.items() if k not in ("time", "task", "event")} for line in lines] == [
        {"one": 3, "half": 0.5, "many": [0, 1, 2], "same": 2.5},
        {"same": 2.5, "no": [], "text": "t"},
    ]
