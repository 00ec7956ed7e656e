"""check_method passes a sound method and catches each kind of fault."""

import pytest
import torch
from torch import nn

from perdure import testing
from perdure.draws import uniforms
from tests.toy import Config, Toy


def make(kind: type = Toy):
    return lambda: kind(Config())


def test_a_sound_method_passes_every_check():
    assert testing.check_method(make()) == list(testing.CHECKS)


class ForgetsItsState(Toy):
    def state_dict(self):
        return {"net": {"weight": self.net.weight}}

    def load_state_dict(self, state):
        self.net.weight.data.copy_(state["net"]["weight"])


class LooksAtBatchMates(Toy):
    def predictor(self, query):
        inner = super().predictor(query)
        return lambda batch: inner({"x": batch["x"] - batch["x"].mean(0)})


class ReplaysWithoutSaving(Toy):
    """Keeps a buffer of seen inputs that changes training, and leaves it out of its state."""

    def __init__(self, config):
        super().__init__(config)
        self.buffer = torch.zeros(12)

    def learn(self, task, runtime):
        self.net.weight.data += self.buffer
        super().learn(task, runtime)
        self.buffer = self.buffer + 0.1


class LooksAhead(Toy):
    stream = testing.tiny_stream()

    def learn(self, task, runtime):
        _ = [e.target for later in self.stream.tasks[task.index + 1 :] for e in later.train]
        super().learn(task, runtime)


class ReadsTheTest(Toy):
    def learn(self, task, runtime):
        _ = task.test[0]
        super().learn(task, runtime)


class DrawsInPassing(Toy):
    generator = torch.Generator()

    def learn(self, task, runtime):
        self.net.weight.data += torch.randn(6, 12, generator=self.generator)
        super().learn(task, runtime)


class LearnsWhilePredicting(Toy):
    def predictor(self, query):
        inner = super().predictor(query)

        def predict(batch):
            self.net.bias.data += 0.01
            return inner(batch)

        return predict


class DrawsFromTheGlobalGenerator(Toy):
    """Predictions that hang on torch's global generator, and so on what else is in the batch."""

    def predictor(self, query):
        inner = super().predictor(query)
        return lambda batch: inner({"x": batch["x"] + torch.rand(len(batch["x"]), 1)})


class AnswersByPlace(Toy):
    def predictor(self, query):
        inner = super().predictor(query)
        return lambda batch: inner({"x": batch["x"] * batch["position"][:, None]})


class DrawsForEachExample(Toy):
    """What the check asks for: numbers from each example's own seed."""

    def predictor(self, query):
        inner = super().predictor(query)

        def predict(batch):
            noise = uniforms(batch["seed"].tolist(), 1, of=("noise",)).to(batch["x"].device)
            return inner({"x": batch["x"] + noise})

        return predict


class KeepsAnObject(Toy):
    def state_dict(self):
        return {**super().state_dict(), "config": self.config}


class AnswersTheFirstAlone(Toy):
    def predictor(self, query):
        inner = super().predictor(query)
        return lambda batch: inner(batch)[:1]


class CountsItsSteps(Toy):
    """The loss depends on a number that the stage does not keep."""

    steps = 0

    def __init__(self, config):
        super().__init__(config)
        plain, self.net = self.net, nn.Linear(12, 6)
        self.net.load_state_dict(plain.state_dict())
        self.net.register_forward_pre_hook(self._count)

    def learn(self, task, runtime):
        self.steps = 0
        super().learn(task, runtime)

    def _count(self, module, inputs):
        self.steps += module.training
        return (inputs[0] * (1 + 0.1 * self.steps * torch.is_grad_enabled()),)


class EncodesCandidatesForEachBatch(Toy):
    def __init__(self, config):
        super().__init__(config)
        self.names = nn.Sequential(nn.Linear(2, 2))

    def predictor(self, query):
        inner = super().predictor(query)
        return lambda batch: inner(batch) + 0 * self.names(torch.ones(1, 2)).sum()


class DamagesAFrozenTower(Toy):
    def __init__(self, config):
        super().__init__(config)
        self.towers = {"image": [nn.Linear(2, 2).requires_grad_(False)]}

    def learn(self, task, runtime):
        super().learn(task, runtime)
        self.towers["image"][0].weight.data += 1


class DividesByTheOtherExamples(Toy):
    def learn(self, task, runtime):
        _ = 1 / (len(task.train) - 1)
        super().learn(task, runtime)


class CountsLabelsFromItsOwn(Toy):
    def learn(self, task, runtime):
        own = task.train.relabel(lambda label: label - task.offset)
        if any(label < 0 for label in own.targets):
            raise IndexError("a label below 0")
        super().learn(task, runtime)


class LeavesATensorBehind(Toy):
    def __init__(self, config):
        super().__init__(config)
        self.prior = torch.zeros(6)

    def predictor(self, query):
        inner, prior = super().predictor(query), self.prior[query.offset : query.offset + len(query.candidates)]
        return lambda batch: inner(batch) + prior


class HidesAModel(Toy):
    def __init__(self, config):
        super().__init__(config)
        hidden = nn.Linear(12, 12)
        self.hidden = lambda x: hidden(x)

    def predictor(self, query):
        inner = super().predictor(query)
        return lambda batch: inner({"x": self.hidden(batch["x"])})


class MovesItsModelBack(Toy):
    def __init__(self, config):
        super().__init__(config)
        self.spare = {"rarely": nn.Linear(2, 2)}

    def learn(self, task, runtime):
        self.spare = {"rarely": nn.Linear(2, 2)}
        super().learn(task, runtime)


MUTANTS = [
    (AnswersTheFirstAlone, "runs_and_scores_every_seen_task"),
    (DrawsInPassing, "same_seed_same_scores"),
    (ForgetsItsState, "state_is_tensors_and_json_and_complete"),
    (ReplaysWithoutSaving, "growing_task_by_task_equals_the_whole_stream"),
    (CountsItsSteps, "resuming_equals_never_stopping"),
    (LearnsWhilePredicting, "predicting_leaves_the_state_unchanged"),
    (LooksAtBatchMates, "answers_do_not_depend_on_batch_mates"),
    (DrawsFromTheGlobalGenerator, "answers_do_not_depend_on_batch_mates"),
    (AnswersByPlace, "answers_do_not_depend_on_batch_mates"),
    (EncodesCandidatesForEachBatch, "candidates_are_encoded_once_per_query"),
    (DamagesAFrozenTower, "frozen_weights_stay_bitwise_unchanged"),
    (DividesByTheOtherExamples, "degenerate_tasks_work_or_say_why"),
    (CountsLabelsFromItsOwn, "earlier_classes_may_come_again"),
    (LooksAhead, "learning_reads_no_future_task_and_no_test_example"),
    (ReadsTheTest, "learning_reads_no_future_task_and_no_test_example"),
    (LeavesATensorBehind, "every_tensor_follows_the_device"),
    (HidesAModel, "every_tensor_follows_the_device"),
    (MovesItsModelBack, "every_tensor_follows_the_device"),
]


@pytest.mark.parametrize(("mutant", "check"), MUTANTS)
def test_a_mutant_is_caught_by_the_check_made_for_it(mutant, check):
    with pytest.raises(AssertionError, match=f"^{check}"):
        testing.check_method(make(mutant), allow=[name for name in testing.CHECKS if name != check])


def test_draws_from_the_seed_of_each_example_pass_every_check():
    assert testing.check_method(make(DrawsForEachExample)) == list(testing.CHECKS)


def test_every_check_has_a_mutant():
    assert {check for _, check in MUTANTS} == set(testing.CHECKS)


def test_an_object_in_the_state_is_refused():
    with pytest.raises(AssertionError, match=r"^state_is_tensors_and_json_and_complete: .* a Config at '/config'"):
        testing.check_method(make(KeepsAnObject))


def test_an_unknown_exception_to_the_checks_is_refused():
    with pytest.raises(ValueError, match="allow names no check"):
        testing.check_method(make(), allow=["no_such_check"])
