"""Zero-shot, prototypes, fine-tuning, LwF and joint training on a tiny real CLIP."""

from __future__ import annotations

import re

import pytest
import torch
from clip_methods import TEMPLATE, fresh_clip, learn, small_stream
from PIL import Image

import perdure
from perdure import kept_examples
from perdure.errors import DataError, RecipeError
from perdure.families.clip import classifier
from perdure.loop import run
from perdure.methods.continual_clip import Config as ContinualClipConfig
from perdure.methods.continual_clip import ContinualClip
from perdure.methods.finetune import Config as FinetuneConfig
from perdure.methods.finetune import Finetune
from perdure.methods.joint import Config as JointConfig
from perdure.methods.joint import Joint
from perdure.methods.lwf import Config as LwfConfig
from perdure.methods.lwf import Lwf
from perdure.runtime import Runtime
from tests.every_method import METHODS

SMALL = {"template": TEMPLATE, "batch_size": 3, "lora_rank": 2}


def test_zero_shot_does_not_change_by_learning():
    method, stream = METHODS["continual_clip"].make(), small_stream()
    before = {name: p.clone() for name, p in method.clip.named_parameters()}
    for task in stream:
        learn(method, task)
    assert all(torch.equal(p, before[name]) for name, p in method.clip.named_parameters())
    assert method.state_dict() == {"classes": [name for task in stream for name in task.candidates]}


def test_prototypes_tell_one_color_from_another():
    scores = run(METHODS["prototype"].make(), small_stream(), runtime=Runtime(device="cpu", quiet=True))
    assert [row["values"]["accuracy"] for row in scores.rows] == [100.0, 100.0, 100.0]


def test_prototypes_take_one_pass_over_the_images():
    method, task, images = METHODS["prototype"].make(), small_stream().tasks[0], []
    hook = method.clip.model.vision_model.register_forward_hook(lambda _, inputs, output: images.append(len(output[0])))
    learn(method, task)
    hook.remove()
    assert sum(images) == len(task.train)


def trained(name: str, **settings) -> dict[str, torch.Tensor]:
    kind, config = {"finetune": (Finetune, FinetuneConfig), "lwf": (Lwf, LwfConfig)}[name]
    torch.manual_seed(0)
    method = kind(config(**{**SMALL, **settings}), clip=fresh_clip())
    for task in small_stream():
        learn(method, task)
    return method.state_dict()["parameters"]


def test_lwf_without_weight_is_fine_tuning():
    torch.testing.assert_close(trained("lwf", weight=0.0), trained("finetune"), rtol=1e-4, atol=1e-6)


def test_lwf_holds_on_to_the_old_answers():
    stream, drift = small_stream(), {}
    for weight in (0.0, 50.0):
        torch.manual_seed(0)
        method = Lwf(LwfConfig(**SMALL, weight=weight, epochs=5), clip=fresh_clip())
        learn(method, stream.tasks[0])
        before = old_logits(method, stream)
        learn(method, stream.tasks[1])
        drift[weight] = (old_logits(method, stream).log_softmax(1) - before.log_softmax(1)).abs().mean()
    assert drift[50.0] < drift[0.0]


def old_logits(method: Lwf, stream) -> torch.Tensor:
    names = classifier.prompts(TEMPLATE, stream.tasks[0].candidates)
    images = torch.stack([method.preprocess(e, False)["image"] for e in stream.tasks[1].train])
    with torch.no_grad():
        ids = classifier.tokenize(method.network.clip, names, torch.device("cpu"))
        return classifier.logits(method.network.clip, images, ids)


def test_joint_trains_on_all_tasks_from_the_first_weights():
    stream = small_stream()
    torch.manual_seed(0)
    two_tasks = Joint(JointConfig(**SMALL), clip=fresh_clip())
    for task in stream:
        learn(two_tasks, task)
    assert [e.target for e in two_tasks.examples] == [*stream.tasks[0].train.targets, *stream.tasks[1].train.targets]
    torch.manual_seed(0)
    other_start = Joint(JointConfig(**SMALL), clip=fresh_clip())
    learn(other_start, stream.tasks[0])
    with torch.no_grad():
        for parameter in other_start.network.parameters.values():
            parameter.add_(1.0)
    learn(other_start, stream.tasks[1])
    torch.testing.assert_close(other_start.state_dict()["parameters"], two_tasks.state_dict()["parameters"])


def test_the_logit_scale_is_never_trained():
    method = Finetune(FinetuneConfig(**SMALL, trains="all"), clip=fresh_clip())
    assert "logit_scale" not in method.network.parameters and len(method.network.parameters) > 50


@pytest.mark.parametrize(
    "kind", [(ContinualClip, ContinualClipConfig), (Finetune, FinetuneConfig), (Joint, JointConfig)]
)
def test_a_template_without_a_place_for_the_name_is_refused(kind):
    make, config = kind
    with pytest.raises(RecipeError, match="template"):
        make(config(template="a photo"), clip=fresh_clip())


def test_underscores_stay_unless_names_are_cleaned():
    assert classifier.prompts("a {}.", ["great_white_shark"]) == ["a great_white_shark."]
    assert classifier.prompts("a {}.", ["great_white_shark"], clean=True) == ["a great white shark."]


def test_cutting_prompts_at_the_longest_end_changes_no_feature():
    clip = fresh_clip()
    ids = clip.tokenize(["a cat", "a dog on a photo of a cat"])
    short = clip.cut(ids)
    assert short.shape[1] < ids.shape[1]
    torch.testing.assert_close(clip.text_features(short), clip.text_features(ids), rtol=1e-5, atol=1e-6)


def test_raw_examples_survive_packing():
    from pathlib import Path

    import numpy as np

    from perdure.types import Example

    arrays = [Example(id=str(i), inputs={"image": np.full((2, i + 1, 3), i, np.uint8)}, target=i) for i in range(2)]
    paths = [Example(id="p", inputs={"image": Path("/data/a.jpg"), "note": "x"}, target=7)]
    for examples in (arrays, arrays[:1] * 2, paths, []):
        back = kept_examples.unpack(kept_examples.pack(examples))
        assert [(e.id, e.target) for e in back] == [(e.id, e.target) for e in examples]
        for ours, theirs in zip(back, examples):
            assert all(np.array_equal(ours.inputs[name], theirs.inputs[name]) for name in theirs.inputs)


@pytest.mark.parametrize("method", ["rail", "bofa", "mg_clip", "lwf", "magmax"])
@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["red", "blue", "a b", "a_b"], "the classes 'a b' and 'a_b' are the same: they differ in nothing"),
        (["red", "blue", "xylograph", "qaid"], "are the same: its vocabulary lacks the words"),
    ],
)
def test_class_names_that_the_clip_cannot_tell_apart_are_refused_before_the_first_task(tmp_path, method, names, said):
    for name in names:
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (32, 32), (40 * i, 0, 99)).save(tmp_path / "images" / name / f"{i}.png")
    data = {"name": "image_folder", "root": str(tmp_path / "images")}
    stream = {"data": data, "step": None, "tasks": [names[:2], names[2:]]}
    where = {"out": str(tmp_path / "runs"), "seeds": [], "seed": 0}
    about = {"clean_names": True}
    with pytest.raises(DataError, match=re.escape(said)):
        perdure.run(f"{method}/microworld", quiet=True, stream=stream, method=about, run=where)
    assert not list(tmp_path.glob("runs/**/predictions/*")) and not list(tmp_path.glob("runs/**/checkpoint/*"))
