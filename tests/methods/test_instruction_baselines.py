"""The baselines of continual instruction tuning, on a tiny LLaVA."""

from dataclasses import replace

import torch
from tiny_instruction import TUNING, tiny_llava, tiny_tasks
from torch import nn

from perdure.methods.lora_ewc import Config as EwcConfig
from perdure.methods.lora_ewc import LoraEwc
from perdure.methods.lora_replay import Config as ReplayConfig
from perdure.methods.lora_replay import LoraReplay
from perdure.methods.lora_sequential import Config as SequentialConfig
from perdure.methods.lora_sequential import LoraSequential
from perdure.methods.moelora.mixture import MixtureLinear
from perdure.methods.multitask import Config as MultitaskConfig
from perdure.methods.multitask import Multitask
from perdure.methods.olora import Config as OloraConfig
from perdure.methods.olora import Olora, overlap
from perdure.runtime import Runtime


def learn(method, *, tasks=2, **settings):
    runtime = Runtime(device="cpu", quiet=True)
    for task in tiny_tasks(tasks=tasks, **settings):
        runtime.task = task.index
        method.learn(task, runtime)
    return method


def test_update_that_goes_on_leaves_the_dense_weights_alone():
    config = SequentialConfig(tuning=TUNING, merge=False)
    before = {n: w.clone() for n, w in LoraSequential(config, llm=tiny_llava()).adapters.weights().items()}
    method = learn(LoraSequential(config, llm=tiny_llava()))
    assert all(torch.equal(w, before[n]) for n, w in method.adapters.weights().items())
    assert any(m.b.any() for m in method.adapters.matrices.values())


def test_overlap_of_orthogonal_rows_is_zero_and_of_others_the_sum_of_their_products():
    a = torch.tensor([[1.0, 0, 0]])
    assert overlap(a, torch.tensor([[0, 1.0, 0], [0, 0, 2.0]])) == 0
    assert overlap(a, torch.tensor([[-2.0, 1, 0], [0.5, 0, 0]])) == 2.5


def test_olora_makes_the_second_subspace_more_orthogonal():
    def second_overlap(weight):
        config = OloraConfig(tuning=replace(TUNING, epochs=20, lr=2e-2), weight=weight)
        method = Olora(config, llm=tiny_llava())
        learn(method)
        rank = TUNING.rank
        return sum(overlap(past[rank:], past[:rank]) for past in method.past.values())

    assert second_overlap(1.0) < 0.5 * second_overlap(0.0)


def test_ewc_holds_what_mattered():
    def moved(weight):
        config = EwcConfig(tuning=replace(TUNING, epochs=10), weight=weight)
        method = learn(LoraEwc(config, llm=tiny_llava()), tasks=1)
        importance, anchor = dict(method.importance), dict(method.anchor)
        runtime = Runtime(device="cpu", quiet=True)
        runtime.task = 1
        method.learn(tiny_tasks().tasks[1], runtime)
        parts = [(importance[n] * (method.anchor[n] - anchor[n]) ** 2).sum() for n in anchor]
        return torch.stack(parts).sum()

    assert moved(1e5) < 0.5 * moved(0.0)


def test_replay_keeps_so_many_conversations_of_each_task():
    method = learn(LoraReplay(ReplayConfig(tuning=TUNING, per_task=2), llm=tiny_llava()))
    assert [e.id.split("/")[0] for e in method.kept] == ["0", "0", "1", "1"]
    again = LoraReplay(ReplayConfig(tuning=TUNING), llm=tiny_llava())
    again.load_state_dict(method.state_dict())
    assert [e.id for e in again.kept] == [e.id for e in method.kept]
    assert again.kept[0].inputs["conversations"] == method.kept[0].inputs["conversations"]


def test_multitask_learns_each_time_from_the_pretrained_model():
    config = MultitaskConfig(tuning=TUNING)
    whole = learn(Multitask(config, llm=tiny_llava()))
    assert len(whole.seen) == 10
    alone = Multitask(config, llm=tiny_llava())
    alone.seen = whole.seen[:5]
    runtime = Runtime(device="cpu", quiet=True)
    runtime.task = 1
    alone.learn(tiny_tasks().tasks[1], runtime)
    for name, factor in alone.adapters.parameters().items():
        torch.testing.assert_close(factor, whole.adapters.parameters()[name], rtol=1e-5, atol=1e-7)


def test_mixture_with_one_expert_is_a_plain_low_rank_update():
    torch.manual_seed(0)
    base = nn.Linear(6, 4)
    layer = MixtureLinear(base, experts=1, rank=3, alpha=6, dropout=0.0)
    nn.init.normal_(layer.a)
    nn.init.normal_(layer.b)
    x = torch.randn(5, 6)
    torch.testing.assert_close(layer(x), base(x) + 2 * (x @ layer.a.T) @ layer.b.T)


def test_mixture_weighs_each_experts_product_by_the_tokens_softmax():
    torch.manual_seed(0)
    base = nn.Linear(6, 4)
    layer = MixtureLinear(base, experts=2, rank=4, alpha=4, dropout=0.0)
    for parameter in (layer.a, layer.b, layer.router):
        nn.init.normal_(parameter)
    x = torch.randn(5, 6)
    gates = (x @ layer.router.T).softmax(-1)
    expected = base(x)
    for e in range(2):
        a, b = layer.a[2 * e : 2 * e + 2], layer.b[:, 2 * e : 2 * e + 2]
        expected = expected + gates[:, e : e + 1] * (x @ a.T) @ b.T
    torch.testing.assert_close(layer(x), expected)
