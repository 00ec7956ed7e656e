"""A device without enough memory: what is said, and that the run goes on."""

import re

import pytest
import torch

from perdure import api, device_memory, recipe
from perdure.errors import DeviceMemoryError
from perdure.families import rehearsal

RECIPE = """stream: {name: class_incremental, data: digits, step: 5, train_per_class: 10, test_per_class: 5}
models: {net: {name: mlp, inputs: 192, hidden: 8}}
method: {name: er, epochs: 2, batch_size: 8}
run: {device: cpu, threads: 1, save_every: 0.001}
"""


@pytest.fixture
def execute(tmp_path):
    file = tmp_path / "q.yaml"
    file.write_text(RECIPE)
    return lambda *settings: api.execute(recipe.load(file, [f"run.out={tmp_path}", *settings]), quiet=True)


def exhausted(monkeypatch, place, name, *, after):
    """Memory is exhausted when the function is called once more than `after` times."""
    whole, calls = getattr(place, name), iter(range(10**9))

    def call(*args, **settings):
        if next(calls) == after:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(*args, **settings)

    monkeypatch.setattr(place, name, call)


def test_in_a_stage_it_says_where_and_what_to_set_and_the_same_command_goes_on(execute, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        exhausted(patch, rehearsal, "descend", after=20)  # 14 steps a task
        with pytest.raises(DeviceMemoryError) as said:
            execute()
    folder = re.escape(str(tmp_path / "q" / "seed_0"))
    assert re.match(
        f"{folder}: the device cpu has too little memory for task 2, stage train, batches of 8", str(said.value)
    )
    assert "(run.name=...) with method.batch_size=4 or method.minibatch_size=5 or run.precision=bf16." in str(
        said.value
    )
    assert "the same command goes on" in str(said.value)
    assert execute()[0].scores.rows == execute("run.name=whole")[0].scores.rows


def test_in_a_test_it_names_what_changes_no_number_and_the_run_goes_on_with_that_set(execute, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        exhausted(patch, rehearsal, "network_input", after=30)
        with pytest.raises(DeviceMemoryError, match=r"stage test .*batches of 6\. Set evaluate.batch_size=3, with"):
            execute("evaluate.batch_size=6")
    resumed = execute("evaluate.batch_size=3")
    assert resumed[0].scores.rows == execute("run.name=whole")[0].scores.rows


def advice(name, *overrides, testing=False):
    return device_memory._advice(recipe.flat(recipe.resolved(recipe.load(name, overrides))), testing=testing)


def test_accumulation_is_advised_where_it_makes_the_same_steps():
    said = advice("sefe/microworld", "method.tuning.mean=conversation", "method.tuning.accumulate=2")
    assert said.startswith("Set method.tuning.accumulate=4, with which this run goes on to the same numbers. Or make")
    by_token = advice("sefe/microworld")  # a mean over the tokens of each part
    assert by_token.startswith("Or make another run (run.name=...) with method.tuning.batch_size=8 or ")
    assert "accumulate" not in advice("sefe/microworld", testing=True)


def test_adapting_fewer_images_at_once_is_advised_in_tests():
    said = advice("rlcf_prompt/microworld", testing=True)
    assert "method.at_once=" in said.partition(", with which")[0]
