"""Methods of instruction tuning on several families of image-text-to-text models: two tasks, stopped and resumed."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from perdure.errors import Interrupted
from perdure.files.tensor_files import shapes
from perdure.loop import run, seed_everything
from perdure.methods.lora_sequential import Config as SequentialConfig
from perdure.methods.lora_sequential import LoraSequential
from perdure.methods.sefe import Config as SefeConfig
from perdure.methods.sefe import Sefe
from perdure.models import vlm
from perdure.runtime import Runtime
from perdure.testing import check_method
from tests import tiny_vlm
from tests.every_method import MERGES, METHODS

EACH = [*((family, "sefe") for family in tiny_vlm.FAMILIES), *((f, "lora_sequential") for f in ("qwen2_vl", "gemma3"))]
TUNING = replace(tiny_vlm.TUNING, batch_size=2, epochs=2)


def model(root, family, **settings):
    return vlm.load(vlm.Config(weights=str(tiny_vlm.folder(root, family)), **{"dtype": "float32", **settings}))


def made(root, family, name, **settings):
    llm = model(root, family, **settings)
    if name == "sefe":
        return Sefe(SefeConfig(tuning=TUNING, fraction=0.1, weight=100), llm=llm)
    return LoraSequential(SequentialConfig(tuning=TUNING), llm=llm)


def learned(method, out, *, stop_after=None):
    """The method's state after two tasks; `stop_after`: losses until it is asked to stop."""
    seed_everything(0)
    runtime = Runtime(device="cpu", out=out, quiet=True)
    penalties = []
    own = method.loss

    def loss(batch):
        nonlocal stop_after
        stop_after = None if stop_after is None else stop_after - 1
        runtime.stop_requested = runtime.stop_requested or stop_after == 0
        values = own(batch)
        if isinstance(values, dict) and "penalty" in values:
            penalties.append(values["penalty"].item())
        return values

    method.loss = loss
    scores = run(method, tiny_vlm.tasks(), runtime=runtime)
    return method, scores, penalties


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    return one == other


@pytest.mark.parametrize(("family", "name"), EACH)
def test_two_tasks_stopped_in_the_second_and_resumed_give_the_same_bits(vlm_root, tmp_path, family, name):
    straight, scores, penalties = learned(made(vlm_root, family, name), tmp_path / "straight")
    assert [(r["after"], r["asked"]) for r in scores.rows] == [(0, 0), (1, 0), (1, 1)]
    if name == "sefe":
        assert penalties[-1] > 0
    with pytest.raises(Interrupted):
        learned(made(vlm_root, family, name), tmp_path / "cut", stop_after=7)  # of eight steps, four a task
    again, rows, _ = learned(made(vlm_root, family, name), tmp_path / "cut")
    assert rows.rows == scores.rows
    assert same(again.state_dict(), straight.state_dict())


def test_half_precision_weights_are_left_alone_and_what_is_trained_is_float32(vlm_root, tmp_path):
    settings = {"dtype": "bfloat16", "tune": "language+projector"}
    straight, scores, _ = learned(made(vlm_root, "gemma3", "sefe", **settings), tmp_path / "straight")
    with pytest.raises(Interrupted):
        learned(made(vlm_root, "gemma3", "sefe", **settings), tmp_path / "cut", stop_after=7)
    again, rows, _ = learned(made(vlm_root, "gemma3", "sefe", **settings), tmp_path / "cut")
    state = straight.state_dict()
    assert rows.rows == scores.rows
    assert same(again.state_dict(), state)
    assert state["weights"] == {}
    trained = [*state["projector"].values(), *(t for pair in state["stacked"].values() for t in pair.values())]
    assert {t.dtype for t in trained} == {torch.float32}
    first = model(vlm_root, "gemma3", **settings).projector_state()
    assert all(not torch.equal(first[name].float(), t) for name, t in state["projector"].items())
    straight.export(tmp_path / "model")
    assert {t.dtype for t in vlm.load(vlm.Config(weights=str(tmp_path / "model"))).state_dict().values()} == {
        torch.bfloat16
    }


@pytest.mark.slow
def test_all_that_every_method_must_keep(vlm_root):
    tuned = {"tune": "language+projector"}
    check_method(lambda: made(vlm_root, "gemma3", "sefe", **tuned), stream=tiny_vlm.tasks(), allow=MERGES)


def test_accumulating_cuts_a_batch_by_examples(vlm_root):
    """Patches of images lie in one dimension: parts of a batch take their own."""

    def weights(accumulate):
        tuning = replace(TUNING, dropout=0, mean="conversation", batch_size=4, accumulate=accumulate)
        method = LoraSequential(SequentialConfig(tuning=tuning), llm=model(vlm_root, "qwen2_vl"))
        runtime = Runtime(device="cpu", quiet=True)
        runtime.task = 0
        seed_everything(0)
        method.learn(tiny_vlm.tasks().tasks[0], runtime)
        return method.adapters.weights()

    whole, parts = weights(1), weights(2)
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", tiny_vlm.FAMILIES)
def test_export_is_a_folder_that_transformers_loads_and_that_answers_the_same(vlm_root, tmp_path, family):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    method, _, _ = learned(made(vlm_root, family, "sefe", tune="language+projector"), tmp_path / "run")
    method.export(tmp_path / "model")
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    first = AutoModelForImageTextToText.from_pretrained(tiny_vlm.folder(vlm_root, family))
    assert theirs.state_dict().keys() == first.state_dict().keys()
    assert shapes(str(tmp_path / "model")) == shapes(str(tiny_vlm.folder(vlm_root, family)))
    assert configuration(tmp_path / "model") == configuration(tiny_vlm.folder(vlm_root, family))
    answer = method.predictor(None)
    for asked in tiny_vlm.questions():
        said = [{"type": "image", "image": image} for image in asked.inputs.get("image", [])]
        said.append({"type": "text", "text": asked.inputs["text"]})
        taken = processor.apply_chat_template(
            [{"role": "user", "content": said}],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        )
        tokens = theirs.generate(**taken)[0, taken["input_ids"].shape[1] :]
        expected = processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        assert answer(method.collate([method.preprocess(asked, False)])) == [expected]


def configuration(folder):
    """What vLLM and llama.cpp's converter read first: ``architectures`` and all sizes; but for the type of the weights,
    which transformers adds within the parts."""

    def kept(value):
        return {k: kept(v) for k, v in value.items() if k != "dtype"} if isinstance(value, dict) else value

    return kept(json.loads((folder / "config.json").read_text()))


@pytest.mark.parametrize("family", ["llava_next", "gemma3"])
def test_tensors_keep_the_names_of_checkpoints_on_the_hub(vlm_root, tmp_path, family):
    """These were written by older versions of transformers, whose names other programs know."""
    old = shutil.copytree(tiny_vlm.folder(vlm_root, family), tmp_path / "old")
    tensors = load_file(old / "model.safetensors")
    renamed = {name.replace("vision_tower.", "vision_tower.vision_model."): t for name, t in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, old / "model.safetensors", metadata={"format": "pt"})
    method = LoraSequential(SequentialConfig(tuning=TUNING), llm=vlm.load(vlm.Config(weights=str(old))))
    method.export(tmp_path / "model")
    assert shapes(str(tmp_path / "model")) == shapes(str(old))


def test_a_tasks_update_is_a_peft_folder_for_the_plain_checkpoint(vlm_root, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    method, _, _ = learned(made(vlm_root, "smolvlm", "lora_sequential"), tmp_path)
    base = AutoModelForImageTextToText.from_pretrained(tiny_vlm.folder(vlm_root, "smolvlm"))
    both = PeftModel.from_pretrained(base, str(tmp_path / "adapters" / "01_task_0")).merge_and_unload()
    both = PeftModel.from_pretrained(both, str(tmp_path / "adapters" / "02_task_1")).merge_and_unload().eval()
    for name, weight in method.adapters.weights().items():
        torch.testing.assert_close(both.get_submodule(method.adapters.names[name]).weight, weight)


BASELINES = sorted(
    n for n, tiny in METHODS.items() if "instruct" in tiny.streams and n not in ("sefe", "lora_sequential")
)


@pytest.mark.parametrize("name", BASELINES)
def test_every_other_method_learns_two_tasks_with_a_trained_projector_and_its_state_answers_alike(vlm_root, name):
    def method():
        tiny = METHODS[name]
        roles = {**tiny.roles, "llm": lambda: model(vlm_root, "qwen2_vl", tune="language+projector")}
        return replace(tiny, roles=roles).make()

    seed_everything(0)
    first, runtime = method(), Runtime(device="cpu", quiet=True)
    before = {n: p.clone() for n, p in first.llm.projector_state().items()}
    for task in tiny_vlm.tasks():
        runtime.task = task.index
        first.learn(task, runtime)
    changed = any(not torch.equal(before[n], p) for n, p in first.llm.projector_state().items())
    assert changed == (name != "zero_shot_llm")
    seed_everything(0)
    again = method()
    again.load_state_dict(first.state_dict())
    batch = first.collate([first.preprocess(e, False) for e in tiny_vlm.questions()])
    answers, others = (m.predictor(None)(batch) for m in (first, again))
    assert getattr(answers, "predictions", answers) == getattr(others, "predictions", others)
    assert len(getattr(answers, "predictions", answers)) == 5
