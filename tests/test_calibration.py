"""One temperature, fitted on validation examples alone, and what asks for it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from perdure.calibration import FEWEST, MOST, _shares, calibrate, fit, probabilities
from perdure.errors import Interrupted
from perdure.loop import run, seed_everything
from perdure.runtime import Runtime
from perdure.testing import tiny_stream
from perdure.types import Evaluation, Examples, Stream
from tests.toy import Config, Toy


def drawn(count: int, *, temperature: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn from their softmax at a temperature: what is right by construction."""
    generator = torch.Generator().manual_seed(seed)
    logits = 6 * torch.randn(count, 5, generator=generator)
    labels = torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)[:, 0]
    return logits, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_the_labels_were_drawn_with_is_found(temperature):
    found = fit([drawn(20_000, temperature=temperature)])
    assert found is not None and found["temperature"] == pytest.approx(temperature, rel=0.03)
    assert found["n"] == 20_000 and found["nll_after"] <= found["nll_before"]


def test_at_the_minimum_the_mean_logit_is_that_of_the_labels():
    """The likelihood's derivative by 1/T, worked out by hand, is zero there; over tasks with other candidates."""
    first, (wide, labels) = drawn(300, temperature=2.0), drawn(200, temperature=2.0, seed=1)
    pairs = [first, (F.pad(wide, (0, 2), value=-3.0), labels)]
    found = fit(pairs)
    assert found is not None
    of_labels = sum(x.gather(1, y[:, None]).sum() for x, y in pairs)
    expected = sum(((x / found["temperature"]).softmax(1) * x).sum() for x, _ in pairs)
    assert expected.item() == pytest.approx(of_labels.item(), rel=1e-4)


def test_there_is_none_where_every_example_is_right_too_few_are_there_or_a_label_is_impossible():
    labels = torch.arange(100) % 5
    assert fit([(F.one_hot(labels).float(), labels)]) is None
    assert fit([drawn(FEWEST - 1, temperature=3.0)]) is None
    logits, labels = drawn(100, temperature=3.0)
    logits[0, labels[0]] = -torch.inf
    assert fit([(logits, labels)]) is None
    assert fit([]) is None


class LogitToy(Toy):
    """The toy, which says that its scores are logits."""

    scores_are = "logits"


def with_validation(*, labels_of_tests=lambda label: label):
    """One task with validation examples, each fifth of another class than it looks; its tests may have other labels."""
    (task,) = tiny_stream(tasks=1, classes=6, train=12, test=20)
    targets = [(label + (i % 5 == 0)) % 6 for i, label in enumerate(task.test.targets)]
    validation = Examples.of([replace(e, target=label) for e, label in zip(task.test, targets)])
    return Stream(name="tiny", tasks=(replace(task, validation=validation, test=task.test.relabel(labels_of_tests)),))


def learned(out, stream, kind=LogitToy, **changes):
    seed_everything(0)
    method = kind(Config(epochs=1))
    for name, value in changes.items():
        setattr(method, name, value)
    run(method, stream, evaluation=Evaluation(batch_size=7), runtime=Runtime(device="cpu", out=out, quiet=True))
    return method


def test_a_run_fits_it_after_the_last_task_on_validation_examples_and_never_on_tests(tmp_path):
    method = learned(tmp_path / "a", with_validation())
    kept = json.loads((tmp_path / "a" / "calibration.json").read_text())
    assert kept["n"] == sum(len(task.validation) for task in with_validation())
    assert kept["nll_after"] < kept["nll_before"] and kept["temperature"] != 1
    learned(tmp_path / "b", with_validation(labels_of_tests=lambda label: 0))
    assert (tmp_path / "b" / "calibration.json").read_bytes() == (tmp_path / "a" / "calibration.json").read_bytes()
    assert (tmp_path / "b" / "scores.json").read_bytes() != (tmp_path / "a" / "scores.json").read_bytes()
    logits = torch.tensor([[1.0, 0.0]])
    cooler = probabilities(method, logits, temperature=0.5)
    assert cooler is not None and cooler[0, 0].item() == pytest.approx(1 / (1 + torch.e**-2))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [(Toy, {}), (LogitToy, {"adapts": True}), (LogitToy, {"carries_state": True})],
    ids=["scores alone", "adapts", "carries state"],
)
def test_there_is_none_for_methods_without_logits_or_with_another_model_at_each_example(tmp_path, kind, changes):
    (tmp_path / "calibration.json").write_text("{}")  # of a run that has gone on since
    learned(tmp_path, with_validation(), kind, **changes)
    assert not (tmp_path / "calibration.json").exists()


def test_there_is_none_without_validation_examples(tmp_path):
    learned(tmp_path, tiny_stream())
    assert not (tmp_path / "calibration.json").exists()


def test_there_is_none_where_one_task_has_no_validation_examples(tmp_path):
    """As after an update: fitted to the new task alone it would say nothing of the others."""
    tasks = [replace(task, validation=task.test) if task.index else task for task in tiny_stream(tasks=2, test=40)]
    learned(tmp_path, Stream(name="tiny", tasks=tuple(tasks)))
    assert not (tmp_path / "calibration.json").exists()


def test_many_validation_examples_are_asked_in_part_evenly_over_tasks_and_within_them():
    few = [replace(task, validation=task.test) for task in tiny_stream(tasks=2)]
    many = [replace(task, validation=task.validation.select([0, 1] * n)) for task, n in zip(few, (1000, 3000))]
    (_, first), (_, second) = _shares(many)
    assert (len(first), len(second)) == (MOST // 4, 3 * MOST // 4)
    assert first == list(range(0, 2000, 8)) and second == list(range(0, 6000, 8))
    assert [positions for _, positions in _shares(few)] == [list(range(len(task.validation))) for task in few]


def test_a_stop_meanwhile_is_a_stop_and_the_run_goes_on_with_it(tmp_path):
    stream = with_validation()
    learned(tmp_path / "whole", stream)
    seed_everything(0)
    runtime = Runtime(device="cpu", out=tmp_path / "cut", quiet=True)
    method = LogitToy(Config(epochs=1))
    run(method, stream, evaluation=Evaluation(batch_size=7), runtime=runtime)
    (tmp_path / "cut" / "calibration.json").unlink()
    runtime.stop_requested = True
    with pytest.raises(Interrupted, match="temperature"):
        calibrate(method, stream, Evaluation(batch_size=7), runtime=runtime)
    learned(tmp_path / "cut", stream)
    kept = [(tmp_path / name / "calibration.json").read_bytes() for name in ("whole", "cut")]
    assert kept[0] == kept[1]
