"""Weights between trained and earlier ones: the formulas by hand, and around real methods."""

from dataclasses import replace

import pytest
import torch

from perdure import recipe
from perdure.errors import RecipeError
from perdure.layers.merging import between_products, largest
from perdure.merging import Merged
from perdure.methods.lora_sequential import Config as SequentialConfig
from perdure.methods.lora_sequential import LoraSequential
from perdure.runtime import Runtime
from perdure.settings import registry
from perdure.testing import CHECKS, check_method, tiny_stream
from perdure.types import Merge
from tests.every_method import METHODS
from tests.tiny_instruction import TUNING, tiny_llava, tiny_tasks
from tests.toy import Config, Toy


class Weighed(Toy):
    """A linear classifier whose weights may be merged; tells what it had before and after a task."""

    def __init__(self, config):
        super().__init__(config)
        self.seen = []

    def learn(self, task, runtime):
        before = self.net.weight.detach().clone()
        super().learn(task, runtime)
        self.seen.append((before, self.net.weight.detach().clone()))

    def merged(self, how):
        return dict(self.net.named_parameters())


def learned(tasks=2, **settings):
    torch.manual_seed(0)
    method = Merged(Weighed(Config()), Merge(**settings))
    stream = tiny_stream(tasks=tasks)
    stream = replace(stream, tasks=tuple(replace(task, validation=task.test) for task in stream))
    runtime = Runtime(device="cpu", quiet=True)
    for task in stream:
        runtime.task = task.index
        method.learn(task, runtime)
    return method, stream


def now(method):
    return method.net.weight.detach()


def test_towards_the_first_weights():
    method, _ = learned(how="base", weight=0.25)
    (_, first), (start, second) = method.seen
    base = method.base["weight"]
    assert torch.equal(start, 0.75 * base + 0.25 * first)  # the next task is learned from the merged weights
    assert torch.equal(now(method), 0.75 * base + 0.25 * second)


def test_towards_the_weights_before_the_task():
    method, _ = learned(how="previous", weight=0.5)
    start, second = method.seen[1]
    assert torch.equal(now(method), 0.5 * start + 0.5 * second)


def test_magmax_takes_each_number_from_the_task_that_changed_it_most():
    old, new = {"w": torch.tensor([1.0, -3.0, 2.0])}, {"w": torch.tensor([-2.0, 1.0, -2.0])}
    assert largest(None, old)["w"].tolist() == [1, -3, 2]
    assert largest(old, new)["w"].tolist() == [-2, -3, -2]  # of equal ones the later
    method, _ = learned(how="magmax", weight=0.5)
    (_, first), (start, second) = method.seen
    base = method.base["weight"]
    assert torch.equal(start, first)  # learned from the trained weights, not from the merged ones
    one, two = first - base, second - base
    assert torch.equal(now(method), base + 0.5 * torch.where(two.abs() >= one.abs(), two, one))


def test_the_weight_is_chosen_by_validation_examples_of_all_tasks():
    method, stream = learned(how="base", weight="auto", keep_validation=3)
    assert [len(task.validation) for task in method.past] == [3, 3]
    assert method.weight in [i / 10 for i in range(11)]
    mixed = method._mixed(method.base, {"weight": method.seen[1][1], "bias": method.net.bias.detach()}, method.weight)
    assert torch.equal(now(method), mixed["weight"])
    with pytest.raises(RecipeError, match=r"no validation examples.*stream\.validation_share"):
        method.learn(replace(stream.tasks[1], validation=tiny_stream().tasks[0].train[:0]), Runtime(device="cpu"))


def validated(stream):
    return replace(stream, tasks=tuple(replace(task, validation=task.test) for task in stream))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings", "merge"),
    [
        ("finetune", {}, Merge(how="base")),
        ("er", {}, Merge(how="magmax")),
        ("sgd", {}, Merge(how="previous", weight="auto")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_merged_method_behaves_as_a_method(name, settings, merge):
    tiny = METHODS[name]
    allow = ("degenerate_tasks_work_or_say_why", "earlier_classes_may_come_again")
    made = check_method(lambda: Merged(tiny.make(**settings), merge), validated(tiny.stream), allow=allow)
    assert {*made, *allow} == set(CHECKS)


def test_what_cannot_be_merged_is_refused():
    with pytest.raises(RecipeError, match=r"Finetune has no weights that magmax merges.*method\.trains=all"):
        Merged(METHODS["finetune"].make(), Merge(how="magmax"))
    with pytest.raises(RecipeError, match="Rapf has no weights"):
        Merged(METHODS["rapf"].make(), Merge(how="base"))


def test_a_recipe_says_it_and_is_written_back():
    loaded = recipe.load("er/digits", ["merge.how=previous", "merge.weight=auto"])
    assert loaded.merge == Merge(how="previous", weight="auto")
    assert recipe.load(recipe.to_mapping(loaded)).merge == loaded.merge
    assert ("merge.how", None, "previous") in recipe.differences(recipe.load("er/digits"), loaded)
    assert "merge" not in recipe.to_mapping(recipe.load("er/digits"))
    with pytest.raises(RecipeError, match=r"merge\.weight"):
        recipe.load("er/digits", ["merge.how=base", "merge.weight=2"])


# -- families -----------------------------------------------------------------------------------------------


def test_products_are_merged_exactly_whatever_their_ranks():
    draw = torch.Generator().manual_seed(0)
    a, b, more_a, more_b = (torch.randn(s, generator=draw) for s in ((2, 5), (4, 2), (3, 5), (4, 3)))
    for tuned in ((more_a, more_b), (torch.cat([a, more_a]), torch.cat([b, more_b], dim=1))):
        mixed_a, mixed_b = between_products((a, b), tuned, 0.3)
        torch.testing.assert_close(mixed_b @ mixed_a, 0.7 * b @ a + 0.3 * tuned[1] @ tuned[0])
        assert len(mixed_a) == 5
    nothing = (a[:0], b[:, :0])
    mixed_a, mixed_b = between_products(nothing, (a, b), 0.25)
    assert torch.equal(mixed_a, a) and torch.equal(mixed_b, 0.25 * b)


@pytest.mark.parametrize("name", ["er_ace", "der", "agem", "agem_r", "gem", "lwf_net", "multi_scale", "icarl"])
def test_methods_of_one_network_are_merged_whole(name):
    def learn(merge):
        torch.manual_seed(0)
        method = METHODS[name].make()
        start = {n: p.detach().clone() for n, p in method.net.named_parameters()}
        method = Merged(method, merge) if merge else method
        runtime = Runtime(device="cpu", quiet=True)
        method.learn(METHODS[name].stream.tasks[0], runtime)
        return start, dict(method.net.named_parameters())

    start, tuned = learn(None)
    _, merged = learn(Merge(how="previous", weight=0.25))
    for parameter, value in merged.items():
        torch.testing.assert_close(value.detach(), 0.75 * start[parameter] + 0.25 * tuned[parameter].detach())


@pytest.mark.parametrize("past", ["merged", "stacked"])
@pytest.mark.parametrize("how", ["base", "previous"])
def test_updates_of_a_language_model_are_merged_in_its_weights_or_as_products(past, how):
    def dense(method):
        return {name: tensor.detach().clone() for name, tensor in method.adapters.added().items()}

    tuning = replace(TUNING, past=past, dropout=0.0)
    plain = LoraSequential(SequentialConfig(tuning=tuning), llm=tiny_llava())
    first = dense(plain)
    method = Merged(LoraSequential(SequentialConfig(tuning=tuning), llm=tiny_llava()), Merge(how=how, weight=0.5))
    runtime, found, seen = Runtime(device="cpu", quiet=True), [first], []
    inner = method.method.learn

    def learn(task, runtime):
        inner(task, runtime)
        seen.append(dense(method))  # what was learned, before it is merged

    method.method.learn = learn
    for task in tiny_tasks(tasks=2):
        runtime.task = task.index
        method.learn(task, runtime)
        found.append(dense(method))
    for task, tuned in enumerate(seen):
        start = found[task] if how == "previous" else first
        for name, value in found[task + 1].items():
            torch.testing.assert_close(value, 0.5 * start[name] + 0.5 * tuned[name], atol=1e-6, rtol=1e-5)
    again = Merged(LoraSequential(SequentialConfig(tuning=tuning), llm=tiny_llava()), Merge(how=how, weight=0.5))
    again.load_state_dict(method.state_dict())
    assert all(torch.equal(value, found[-1][name]) for name, value in dense(again).items())


def test_what_is_not_merged_says_why_before_weights_load(monkeypatch):
    stacks = LoraSequential(SequentialConfig(tuning=replace(TUNING, past="stacked")), llm=tiny_llava())
    with pytest.raises(RecipeError, match="LoraSequential has no weights that magmax merges"):
        Merged(stacks, Merge(how="magmax"))
    asked = recipe.load("ewc_online/digits", ["merge.how=previous"])
    with pytest.raises(RecipeError, match="ewc_online cannot be merged: it holds the weights that were learned"):
        recipe.check_fit(asked, METHODS["ewc_online"].stream)
    for name in registry.names("methods"):
        about = registry.describe("methods", name)
        assert not (about.not_merged and hasattr(registry.load("methods", name), "merged")), name
