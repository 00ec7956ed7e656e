"""The methods that PHP is compared with: each behaves, and does what its name says."""

from __future__ import annotations

import pytest
import tiny_audio_visual as tiny
import torch

from perdure.evaluate import Evaluation
from perdure.loop import run
from perdure.methods import av_joint
from perdure.runtime import Runtime
from tests.every_method import METHODS

NAMES = ("av_finetune", "av_l2p", "av_dualprompt", "av_coda_prompt", "av_joint", "zero_shot_av")


def make(name: str):
    return METHODS[name].make()


def learned(name: str, stream) -> object:
    method, runtime = make(name), Runtime(device="cpu", quiet=True)
    for task in stream:
        runtime.task = task.index
        method.learn(task, runtime)
    return method


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "zero_shot_av"])
def test_it_goes_through_all_four_kinds(name):
    runtime = Runtime(device="cpu", quiet=True)
    scores = run(
        make(name), tiny.stream(*tiny.ALL, train=2, test=2), evaluation=Evaluation(batch_size=2), runtime=runtime
    )
    assert len(scores.rows) == 10
    assert all(0 <= row["values"]["score"] <= 100 for row in scores.rows)


def test_zero_shot_learns_nothing():
    method = learned("zero_shot_av", tiny.stream("localize-events"))
    assert method.state_dict() == {"seconds": 2.0}


def test_past_components_stay_as_they_are():
    stream = tiny.stream("localize-events", "parse-video")
    method, runtime = make("av_coda_prompt"), Runtime(device="cpu", quiet=True)
    kept = []
    for task in stream:
        runtime.task = task.index
        method.learn(task, runtime)
        kept.append(method.tasks.current["components"].key.detach()[:2].clone())
    assert torch.equal(kept[0], kept[1])


def test_expert_prompts_are_kept_and_the_general_one_is_shared():
    stream = tiny.stream("localize-events", "parse-video")
    method = learned("av_dualprompt", stream)
    first, second = (method.tasks.of(stream.query(task, after=1))[1] for task in stream)
    assert torch.equal(first["general"].prompt, second["general"].prompt)
    assert not torch.equal(first["expert"].prompt, second["expert"].prompt)


def test_joint_training_mixes_the_batches_of_all_tasks():
    class Fake:
        def __init__(self, n: int) -> None:
            self.n = n

        def __len__(self) -> int:
            return self.n

        def epoch(self, epoch: int, start: int = 0):
            return (({"position": torch.tensor([i])}, 1.0) for i in range(start, self.n))

    mixed = av_joint.Mixed([Fake(3), Fake(2)], Runtime(device="cpu", quiet=True))
    whole = [(b["task"], int(b["position"])) for b, _ in mixed.epoch(0)]
    assert sorted(whole) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert [(b["task"], int(b["position"])) for b, _ in mixed.epoch(0, start=2)] == whole[2:]
