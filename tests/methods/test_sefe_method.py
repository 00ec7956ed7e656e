"""SEFE on a tiny LLaVA."""

from dataclasses import replace

import pytest
import torch
from tiny_instruction import TUNING, tiny_llava, tiny_tasks

from perdure.errors import CheckpointError
from perdure.loop import run, seed_everything
from perdure.methods.sefe import Config, Sefe
from perdure.runtime import Runtime


def make(**settings):
    return lambda: Sefe(Config(tuning=TUNING, **settings), llm=tiny_llava())


def learned(method, *, tasks=2, out=None, seed=0):
    seed_everything(0)
    runtime = Runtime(seed=seed, device="cpu", quiet=True, out=out)
    for task in tiny_tasks(tasks=tasks):
        runtime.task = task.index
        method.learn(task, runtime)
    return method


def test_only_adapted_weights_and_the_projector_change():
    before = {n: p.clone() for n, p in make()().llm.named_parameters()}
    method = learned(make()())
    changed = {n for n, p in method.llm.named_parameters() if not torch.equal(p, before[n]) and "lora_" not in n}
    adapted = {f"model.model.language_model.{n}.base_layer.weight" for n in method.adapters.matrices}
    projector = {n for n in before if "multi_modal_projector" in n}
    assert changed == adapted | projector


def test_weight_zero_and_no_regularizer_give_the_same_bits():
    plain, zero = learned(make(regularize=False)()), learned(make(weight=0)())
    for name, weight in plain.adapters.weights().items():
        assert torch.equal(weight, zero.adapters.weights()[name])


def test_penalty_keeps_the_second_update_small_at_the_key_elements():
    def second_update(**settings):
        config = Config(tuning=replace(TUNING, epochs=10), fraction=0.1, **settings)
        method = Sefe(config, llm=tiny_llava())
        first = learned(method, tasks=1)
        elements = dict(first.elements)
        before = {n: w.clone() for n, w in first.adapters.weights().items()}
        runtime = Runtime(device="cpu", quiet=True)
        runtime.task = 1
        method.learn(tiny_tasks().tasks[1], runtime)
        after = method.adapters.weights()
        moved = [(after[n] - before[n]).abs().flatten()[elements[n].flat()].mean() for n in elements]
        return torch.stack(moved).mean()

    regularized, free = second_update(weight=1e4), second_update(weight=0)
    assert regularized < 0.8 * free


def test_merging_leaves_the_answers_logits_unchanged():
    method = make()()
    runtime = Runtime(device="cpu", quiet=True)
    runtime.task = 0
    task = tiny_tasks().tasks[0]
    batch = method.collate([method.preprocess(e, True) for e in task.train])
    method.adapters.start(runtime)
    with torch.no_grad():
        fresh = method.llm.answer_logits(batch)[0]
        with method.adapters.off():
            torch.testing.assert_close(method.llm.answer_logits(batch)[0], fresh, rtol=0, atol=0)
        for m in method.adapters.matrices.values():
            m.b.normal_(std=0.1)
        adapted = method.llm.answer_logits(batch)[0]
        method.adapters.merge()
        torch.testing.assert_close(method.llm.answer_logits(batch)[0], adapted, rtol=1e-5, atol=1e-5)
    assert (adapted - fresh).abs().max() > 1e-3


def test_each_task_adds_its_elements():
    method = learned(make(fraction=0.1)())
    for name, elements in method.elements.items():
        size = method.adapters.matrices[name].weight.numel()
        assert elements.chosen == 2 * int(0.1 * size)
    assert len(method.elements) == 14


def test_elements_of_another_model_are_refused():
    method = learned(make(fraction=0.1)(), tasks=1)
    state = method.state_dict()
    state["elements"]["layers.0.mlp.up_proj"]["shape"] = [3, 3]
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.up_proj' are of a matrix \(3, 3\)"):
        make()().load_state_dict(state)


def test_adapters_are_peft_folders_and_the_merged_model_a_transformers_folder(tmp_path):
    from peft import PeftModel
    from transformers import LlavaForConditionalGeneration

    base = tiny_llava()
    method = learned(make()(), tasks=1, out=tmp_path / "run")
    batch = method.collate([method.preprocess(e, True) for e in tiny_tasks().tasks[0].train])
    with torch.no_grad():
        expected = method.llm.hidden(batch)
    loaded = PeftModel.from_pretrained(base.model, str(tmp_path / "run/adapters/01_task_0")).eval()
    images = batch["pixel_values"][batch["has_image"]]
    asked = {k: batch[k] for k in ("input_ids", "attention_mask")} | {"pixel_values": images}
    with torch.no_grad():
        logits = method.llm.model.lm_head(expected)
        torch.testing.assert_close(loaded(**asked).logits, logits, rtol=1e-4, atol=1e-5)
        method.export(tmp_path / "model")
        merged = LlavaForConditionalGeneration.from_pretrained(str(tmp_path / "model")).eval()
        torch.testing.assert_close(merged(**asked).logits, logits, rtol=1e-4, atol=1e-5)


def test_run_scores_every_seen_task(tmp_path):
    scores = run(make()(), tiny_tasks(), runtime=Runtime(device="cpu", quiet=True, out=tmp_path))
    assert [(r["after"], r["asked"]) for r in scores.rows] == [(0, 0), (1, 0), (1, 1)]
    assert set(scores.rows[0]["values"]) == {"answer_accuracy", "format_compliance"}


def test_accumulating_changes_no_weight():
    def weights(accumulate):
        tuning = replace(TUNING, dropout=0, mean="conversation", batch_size=4, accumulate=accumulate, epochs=4)
        return learned(Sefe(Config(tuning=tuning, fraction=0.1, weight=1e4), llm=tiny_llava())).adapters.weights()

    whole, parts = weights(1), weights(2)
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, rtol=1e-4, atol=1e-6)
