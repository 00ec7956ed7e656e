"""Updates of earlier tasks: in float32 weights, or beside weights of another type, where nothing is lost."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from perdure.errors import CheckpointError
from perdure.families.instruction import stacked
from perdure.families.instruction.adapters import Adapters
from perdure.loop import seed_everything
from perdure.methods.lora_sequential import Config as SequentialConfig
from perdure.methods.lora_sequential import LoraSequential
from perdure.methods.sefe import Config, Sefe
from perdure.runtime import Runtime
from perdure.testing import check_method
from tests.every_method import MERGES
from tests.tiny_instruction import TUNING, tiny_llava, tiny_tasks

STACKED = replace(TUNING, past="stacked")


def learned(method, tasks=2):
    seed_everything(0)
    runtime = Runtime(device="cpu", quiet=True)
    for task in tiny_tasks(tasks=tasks):
        runtime.task = task.index
        method.learn(task, runtime)
    return method


def test_factors_add_up_to_the_sum_of_the_updates_also_beyond_the_matrixs_rank():
    torch.manual_seed(0)
    for outputs, inputs in [(6, 10), (10, 6)]:
        layer = nn.Linear(inputs, outputs, bias=False)
        stacked.prepare(layer, inputs=inputs, outputs=outputs, device=torch.device("cpu"))
        x, total = torch.randn(3, 4, inputs), torch.zeros(outputs, inputs)
        assert torch.equal(layer(x), x @ layer.weight.T)
        for task in range(4):
            a, b = torch.randn(2, inputs), torch.randn(outputs, 2)
            stacked.append(layer, a, b)
            total += b @ a
            torch.testing.assert_close(layer(x), x @ (layer.weight + total).T, rtol=1e-5, atol=1e-5)
            assert len(stacked.factors(layer)[0]) == min(2 * (task + 1), 6)
        assert layer.state_dict().keys() == {"weight"}


def test_stacking_learns_what_merging_learns_where_weights_are_float32():
    def logits(tuning):
        method = learned(Sefe(Config(tuning=tuning, fraction=0.1, weight=100), llm=tiny_llava()))
        batch = method.collate([method.preprocess(e, True) for e in tiny_tasks().tasks[0].train])
        with torch.no_grad():
            return method.llm.answer_logits(batch)[0]

    torch.testing.assert_close(logits(STACKED), logits(TUNING), rtol=1e-4, atol=1e-5)


def test_half_precision_weights_stay_as_they_are_and_eight_small_updates_are_all_there():
    """What was lost before: of eight merged updates as small as these, a large part."""

    def total(past):
        llm = tiny_llava().to(torch.bfloat16)
        adapters = Adapters(llm, replace(TUNING, past=past))
        runtime = Runtime(device="cpu", quiet=True)
        runtime.task = 0
        first = {n: m.weight.detach().clone() for n, m in adapters.matrices.items()}
        sums = {n: torch.zeros(m.shape) for n, m in adapters.matrices.items()}
        for task in range(8):
            runtime.task = task
            adapters.start(runtime)
            for name, m in adapters.matrices.items():
                m.b.data.copy_(1e-4 * runtime.normal(tuple(m.b.shape), "b", name))
                sums[name] += adapters.scale * (m.b @ m.a).detach()
            adapters.merge()
        lost = []
        for name, m in adapters.matrices.items():
            a, b = stacked.factors(m.layer.base_layer) if adapters.stacks else (sums[name][:0], sums[name][:, :0])
            have = m.weight.float() - first[name].float() + b @ a
            lost.append((have - sums[name]).norm() / sums[name].norm())
        return max(lost).item(), adapters

    lost, adapters = total("auto")
    assert adapters.stacks
    assert lost < 1e-5
    lost, _ = total("merged")
    assert lost > 0.2


def test_state_is_factors_alone_and_one_kind_does_not_load_as_the_other():
    method = learned(LoraSequential(SequentialConfig(tuning=STACKED), llm=tiny_llava()))
    state = method.state_dict()
    assert state["own"] == {}
    assert all(len(pair["a"]) == 2 * TUNING.rank for pair in state["stacked"].values())
    again = LoraSequential(SequentialConfig(tuning=STACKED), llm=tiny_llava())
    again.load_state_dict(state)
    for name, (a, b) in ((n, stacked.factors(m.layer.base_layer)) for n, m in again.adapters.matrices.items()):
        assert torch.equal(a, state["stacked"][name]["a"])
        assert torch.equal(b, state["stacked"][name]["b"])
    with pytest.raises(CheckpointError, match=r"earlier updates are stacked.*tuning\.past=stacked"):
        LoraSequential(SequentialConfig(tuning=TUNING), llm=tiny_llava()).load_state_dict(state)
    merged = learned(LoraSequential(SequentialConfig(tuning=TUNING), llm=tiny_llava())).state_dict()
    with pytest.raises(CheckpointError, match=r"earlier updates are merged.*tuning\.past=merged"):
        LoraSequential(SequentialConfig(tuning=STACKED), llm=tiny_llava()).load_state_dict(merged)


def test_export_of_stacked_updates_is_the_model_that_answers(tmp_path):
    from transformers import LlavaForConditionalGeneration

    method = learned(Sefe(Config(tuning=STACKED, fraction=0.1), llm=tiny_llava()))
    method.export(tmp_path)
    plain = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    batch = method.collate([method.preprocess(e, True) for e in tiny_tasks().tasks[0].train])
    asked = {k: batch[k] for k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = method.llm.model.lm_head(method.llm.hidden(batch))
        found = plain(**asked, pixel_values=batch["pixel_values"][batch["has_image"]]).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_stacking_keeps_all_that_every_method_must_keep():
    """The weights are never touched; only the projector, which is unfrozen to train, changes."""
    check_method(
        lambda: Sefe(Config(tuning=STACKED, fraction=0.1), llm=tiny_llava()), stream=tiny_tasks(), allow=MERGES
    )
