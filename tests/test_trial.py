"""`perdure check --steps`: the first steps of a recipe, with nothing kept."""

import re

import pytest
import torch

from perdure import recipe
from perdure.cli import main
from perdure.recipe import plan
from perdure.testing.miniature import shortened
from perdure.testing.trial import first_steps
from perdure.types import Example, Examples, Task

DIGITS = ("stream.train_per_class=20", "stream.test_per_class=2", "run.device=cpu", "run.threads=1")


def loaded(name, *overrides):
    return recipe.load(name, [*DIGITS, *overrides])


def task_of(targets, **facts):
    examples = Examples.of([Example(id=str(i), inputs={}, target=t) for i, t in enumerate(targets)])
    return Task(index=0, name="a", kind="classify", candidates=("x", "y"), train=examples, facts=facts)


def test_all_classes_take_turns_in_a_shortened_task():
    task = shortened(task_of([0, 0, 0, 0, 1, 1, 0, 1]), count=4)
    assert [e.id for e in task.train] == ["0", "1", "4", "5"]


def test_a_shortened_task_has_two_examples_of_a_class_at_least():
    assert shortened(task_of([0, 0, 0, 1, 1, 1]), count=1).train.targets == [0, 0, 1, 1]


def test_the_stream_s_own_batches_stay_whole():
    task = shortened(task_of([0, 1, 1, 0, 0, 1], batches=[3, 2, 1]), count=5)
    assert [e.id for e in task.train] == ["0", "1", "2", "3", "4"]
    assert task.facts["batches"] == [3, 2]


def test_passes_are_read_from_settings_of_any_depth():
    assert [(p.setting, p.epochs, p.batch_size) for p in plan.passes(recipe.load("sefe/coin"))] == [("epochs", 1, 128)]
    asked = recipe.load("mg_clip/digits", ["method.epochs=auto", "method.visual_epochs=0"])
    assert [(p.setting, p.epochs) for p in plan.passes(asked)] == [("epochs", "auto")]
    assert plan.passes(recipe.load("continual_clip/digits")) == []


def test_a_stage_is_not_ended_before_what_is_decided_after_an_epoch():
    """Early stopping asks after each epoch; what learns by its answer needs one."""
    from perdure import loading, training
    from perdure.testing.miniature import Miniature

    runtime, asked = Miniature(device="cpu", quiet=True), []
    weight = torch.ones(1, requires_grad=True)
    batches = loading.TensorBatches({"x": torch.ones(12)}, batch_size=2, runtime=runtime, stage="s")
    settings = training.Fit(lr=0.1, epochs=4)

    def until(epoch):
        asked.append(epoch)
        return False

    for stage, given in (("plain", None), ("stopping", until)):
        training.fit(
            lambda batch: (weight * batch["x"]).mean(),
            {"w": weight},
            batches,
            settings,
            runtime=runtime,
            stage=stage,
            until=given,
        )
    assert [len(stage.times) for stage in runtime.stages] == [1, 6]
    assert asked == [0]


@pytest.mark.slow
def test_the_steps_of_the_plan_are_those_of_a_run(tmp_path):
    import json

    from perdure import api

    asked = loaded("sgd/digits", "method.batch_size=16", "method.epochs=2", "run.seeds=[0]", f"run.out={tmp_path}")
    stream = recipe.build_stream(asked)
    planned = [plan.passes(asked)[0].steps(task) for task in stream]
    api.execute(asked, quiet=True)
    events = [json.loads(line) for line in (asked.folder(0) / "events.jsonl").read_text().splitlines()]
    made = [sum(e["event"] == "step" and e["task"] == t for e in events) for t in range(len(stream))]
    assert made == planned == [6] * 5  # 40 images: 3 batches, twice


@pytest.mark.slow
def test_stages_end_after_the_steps_asked_for_and_the_first_losses_are_those_of_a_run():
    asked = loaded("sgd/digits", "method.batch_size=16")
    trial = first_steps(asked, recipe.build_stream(asked), 2)
    stage, last = trial.stages
    assert (stage.name, stage.task, last.name, last.task) == ("train", 0, "train", 4)
    assert len(stage.losses) == len(stage.seconds) == 2
    net = recipe.build_method(asked, 0)[0].net
    assert stage.parameters == sum(p.numel() for p in net.parameters())
    assert trial.examples == {0: 32, 4: 32}
    again = first_steps(asked, recipe.build_stream(asked), 2)
    assert again.stages[0].losses == stage.losses


@pytest.mark.slow
def test_every_stage_of_a_method_is_tried_and_nothing_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["check", "mg_clip/microworld", *DIGITS, "--steps", "2"])
    out = capsys.readouterr().out
    assert left.value.code == 0
    rows = dict(re.findall(r"^1 +(\w+) +([\d,]+) +[\d.]+ \(first [\d.]+\) +\S+ \S+$", out, re.MULTILINE))
    assert list(rows) == ["probe", "lora", "visual"]
    assert int(rows["lora"].replace(",", "")) > 1000
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_method_without_training_says_so(capsys):
    with pytest.raises(SystemExit):
        main(["check", "continual_clip/microworld", "stream.test_per_class=2", "run.device=cpu", "--steps", "3"])
    assert "learns without steps" in capsys.readouterr().out
