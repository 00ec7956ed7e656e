"""MG-CLIP on a tiny real CLIP: what is trained, what stays, what is chosen, and what goes wrong politely."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from clip_methods import TEMPLATE, Recording, fresh_clip, learn, small_stream
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn import functional as F

from perdure.errors import DataError, RecipeError, TrainingError
from perdure.families.clip import classifier
from perdure.layers import lora
from perdure.loop import run
from perdure.methods.mg_clip import Config, MgClip
from perdure.methods.mg_clip.replay import replay_loss, update_memory
from perdure.settings import config
from perdure.types import Query

SMALL = {"template": TEMPLATE, "epochs": 1, "batch_size": 3, "visual_batch_size": 4, "lora_rank": 2}


def method(**settings) -> MgClip:
    torch.manual_seed(0)
    return MgClip(Config(**{**SMALL, **settings}), clip=fresh_clip())


def scores(mg: MgClip, query: Query, task) -> torch.Tensor:
    images = torch.stack([mg.preprocess(example, False)["image"] for example in task.test])
    with torch.no_grad():
        return mg.predictor(query)({"image": images})


def test_before_training_it_answers_as_zero_shot_clip():
    mg, task = method(), small_stream().tasks[0]
    with lora.without_lora(mg.clip.model):
        texts = classifier.encode_prompts(mg.clip, classifier.prompts(TEMPLATE, task.candidates))
        images = torch.stack([mg.preprocess(example, False)["image"] for example in task.test])
        with torch.no_grad():
            plain = mg.clip.scale * classifier.unit_image_features(mg.clip, images) @ texts.T
    assert torch.equal(scores(mg, small_stream().query(task, after=-1), task), plain.softmax(1))


def test_only_the_adapters_are_trainable():
    mg = method()
    trainable = {name for name, p in mg.clip.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)


def test_current_prompts_alone_give_the_gradient_of_the_local_loss_over_all_prompts():
    mg, task = method(), small_stream().tasks[1]
    with torch.no_grad():
        for parameter in lora.lora_parameters(mg.clip.model).values():
            parameter.normal_(std=0.05)
    names = ["color 0", "color 1", *task.candidates]
    images = torch.stack([mg.preprocess(e, True)["image"] for e in task.train])
    labels = torch.tensor(task.train.targets) - task.offset
    everything = classifier.logits(mg.clip, images, mg._ids(names))[:, task.offset :]
    current = classifier.logits(mg.clip, images, mg._ids(task.candidates))
    parameters = list(lora.lora_parameters(mg.clip.model).values())
    expected = torch.autograd.grad(F.cross_entropy(everything, labels), parameters)
    found = torch.autograd.grad(F.cross_entropy(current, labels), parameters)
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_rows_of_old_classes_stay_bit_for_bit():
    mg, stream = method(), small_stream()
    learn(mg, stream.tasks[0])
    before = mg.rows.clone()
    learn(mg, stream.tasks[1])
    assert mg.rows.shape == (4, mg.clip.dim)
    assert torch.equal(mg.rows[:2], before)


def test_without_visual_epochs_the_rows_are_plain_class_means():
    mg, task = method(visual_epochs=0), small_stream().tasks[0]
    learn(mg, task)
    images = torch.stack([mg.preprocess(example, False)["image"] for example in task.train])
    with torch.no_grad():
        features = classifier.unit_image_features(mg.clip, images)
    mean = features[torch.tensor(task.train.targets) == 0].mean(0)
    torch.testing.assert_close(mg.rows[0], mean)
    assert mean.norm() < 1


def test_the_gap_is_logged_before_and_after_every_task():
    mg, runtime = method(), Recording()
    for task in small_stream():
        learn(mg, task, runtime)
        gap = runtime.last("gap")
        names = {f"{kind}_{when}" for kind in ("positive", "negative", "centroid") for when in ("before", "after")}
        assert set(gap) == names
        assert gap["negative_before"] != gap["negative_after"]
    assert [name for name, _ in runtime.events].count("gap") == 2


def test_the_first_task_chooses_the_epochs_of_all_tasks():
    mg, runtime = method(epochs="auto", max_epochs=3, fallback_epochs=2, gap_tolerance=1e9), Recording()
    for task in small_stream():
        learn(mg, task, runtime)
    assert mg.epochs == 2
    assert [name for name, _ in runtime.events].count("epochs") == 1
    steps = [values for name, values in runtime.events if name == "step" and values["stage"] == "lora"]
    assert max(values["epoch"] for values in steps) == 1


@pytest.mark.parametrize(
    ("settings", "epochs"), [({}, 1), ({"fallback_epochs": 2}, 2), ({"min_epochs": 3, "fallback_epochs": 2}, 3)]
)
def test_a_gap_that_is_never_left_gives_the_fallback_and_says_so(settings, epochs, capsys):
    mg, runtime = method(epochs="auto", max_epochs=3, gap_tolerance=1e9, **settings), Recording()
    runtime.quiet = False
    probe = mg.probe(small_stream().tasks[0], runtime)
    assert probe.held and probe.epochs == epochs
    said = capsys.readouterr().err
    assert "3 epochs did not leave the gap" in said and f"trained for {epochs} (method.fallback_epochs)" in said
    assert runtime.last("epochs")["chosen"] == epochs and runtime.last("epochs")["held"]


def test_a_gap_left_at_once_gives_the_least_epochs():
    probe = method(epochs="auto", gap_tolerance=1e-9).probe(small_stream().tasks[0], Recording())
    assert (probe.epochs, len(probe.after), probe.held) == (1, 1, False)


def test_the_probe_leaves_the_adapters_as_they_were():
    mg = method(epochs="auto", gap_tolerance=1e-9)
    before = lora.lora_state(mg.clip.model)
    mg.probe(small_stream().tasks[0], Recording())
    for name, value in lora.lora_state(mg.clip.model).items():
        assert torch.equal(value, before[name])


def test_one_class_has_no_negative_pairs_to_choose_epochs_by():
    task = small_stream(classes=1).tasks[0]
    with pytest.raises(TrainingError, match="Give epochs a number"):
        learn(method(epochs="auto"), task)


def test_resetting_b_starts_each_task_from_zero_shot():
    mg, stream, runtime = method(reset="B", lr=1e-9), small_stream(), Recording()
    learn(mg, stream.tasks[0], runtime)
    with torch.no_grad():
        for parameter in lora.lora_parameters(mg.clip.model).values():
            parameter.fill_(0.3)
    learn(mg, stream.tasks[1], runtime)
    after = lora.lora_state(mg.clip.model)
    assert all(value.abs().max() < 1e-6 for name, value in after.items() if "lora_B" in name)
    torch.testing.assert_close(after, {n: torch.full_like(v, 0.3) if "lora_A" in n else v for n, v in after.items()})


def test_frozen_a_moves_in_the_first_task_only():
    mg, stream = method(freeze_A=True), small_stream()
    start = lora.lora_state(mg.clip.model)
    learn(mg, stream.tasks[0])
    first = lora.lora_state(mg.clip.model)
    learn(mg, stream.tasks[1])
    second = lora.lora_state(mg.clip.model)
    a, b = next(n for n in first if "lora_A" in n), next(n for n in first if "lora_B" in n)
    assert not torch.equal(start[a], first[a]) or not torch.equal(start[b], first[b])
    assert torch.equal(first[a], second[a])
    assert not torch.equal(first[b], second[b])


def test_classes_not_learned_yet_get_no_visual_vote():
    mg, stream = method(), small_stream()
    learn(mg, stream.tasks[0])
    everything = replace(stream, scope="all").query(stream.tasks[0], after=0)
    voted = scores(mg, everything, stream.tasks[0])
    assert voted.shape[1] == 4
    # A softmax of a softmax over 4 columns lies below e / (e + 3); the text's share of the vote is a fifth.
    assert (voted[:, 2:] < 0.2 * 0.48).all()
    torch.testing.assert_close(voted.sum(1), torch.ones(len(voted)))


def test_a_revealed_task_is_answered_among_its_own_classes():
    mg, stream = method(), small_stream()
    for task in stream:
        learn(mg, task)
    seen = scores(mg, stream.query(stream.tasks[1], after=1), stream.tasks[1])
    own = scores(mg, replace(stream, task_revealed=True).query(stream.tasks[1], after=1), stream.tasks[1])
    assert seen.shape[1] == 4 and own.shape[1] == 2
    ratio = method(text_weight=0.0)
    ratio.load_state_dict(mg.state_dict())
    both = [
        scores(ratio, s.query(stream.tasks[1], after=1), stream.tasks[1])
        for s in (stream, replace(stream, task_revealed=True))
    ]
    torch.testing.assert_close(F.normalize(both[0][:, 2:], p=1.0), both[1])


def test_replay_loss_by_hand():
    # Old image, label 0, logits (0, 0, 0): ln 3. New image, label 2, local logits (0, 0): ln 2.
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 2])
    assert replay_loss(logits, labels, own=(1, 2), weight=0.1).item() == pytest.approx(0.693147 + 0.1 * 1.098612)


@pytest.mark.parametrize("labels", [[0, 0], [2, 1]])
def test_a_replay_batch_without_old_or_without_new_images_has_a_finite_loss(labels):
    logits = torch.randn(2, 3, requires_grad=True)
    loss = replay_loss(logits, torch.tensor(labels), own=(1, 2), weight=0.1)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all() and loss > 0


def test_the_memory_holds_equally_many_images_of_each_class():
    stream, runtime = small_stream(tasks=3), Recording()
    memory = []
    for task, quota in zip(stream, (4, 2, 1)):
        before = [e.id for e in memory]
        memory = update_memory(memory, task, size=8, runtime=runtime)
        counts = {label: sum(e.target == label for e in memory) for label in range(2 * task.index + 2)}
        assert set(counts.values()) == {quota}
        kept = [e.id for e in memory if e.target < task.offset]
        assert kept == [name for name in before if name in kept]


def test_replayed_images_change_what_is_learned():
    stream = small_stream()
    plain, replayed = method(), method(real_replay=True, memory_size=4)
    for task in stream:
        learn(plain, task)
        learn(replayed, task)
    assert len(replayed.memory) == 4
    name = next(iter(lora.lora_state(plain.clip.model)))
    assert not torch.equal(lora.lora_state(plain.clip.model)[name], lora.lora_state(replayed.clip.model)[name])


def test_a_class_without_an_example_is_named():
    task = small_stream().tasks[0]
    lacking = replace(task, train=task.train.select([i for i, y in enumerate(task.train.targets) if y == 0]))
    with pytest.raises(DataError, match="no training example of 'color 1'"):
        learn(method(), lacking)


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "a {name}", "{} {"])
def test_a_template_without_one_place_for_the_name_is_refused(template):
    with pytest.raises(RecipeError, match="where the class name goes"):
        method(template=template)


def test_an_unknown_lora_mode_is_refused():
    with pytest.raises(RecipeError, match="unknown LoRA mode"):
        method(lora_mode="vison")


def test_fewer_probed_epochs_than_may_be_chosen_are_refused():
    for name in ("min_epochs", "fallback_epochs"):
        with pytest.raises(RecipeError, match=f"{name}: 20 is above max_epochs, 10"):
            config.parse(Config, {name: 20}, where="method")
    assert config.parse(Config, {"min_epochs": 20, "epochs": 3}, where="method").epochs == 3


def test_tasks_out_of_order_are_refused():
    with pytest.raises(DataError, match="only 0 classes are known"):
        learn(method(), small_stream().tasks[1])


def test_an_export_loads_with_peft_and_gives_the_same_features(tmp_path):
    mg, stream = method(), small_stream()
    run(mg, stream, runtime=Recording())
    mg.export(tmp_path)
    images = torch.stack([mg.preprocess(example, False)["image"] for example in stream.tasks[0].test])
    with torch.no_grad():
        ours = classifier.raw_image_features(mg.clip, images)
        plain = fresh_clip()
        pixels = plain.transform.normalize(images)
        loaded = PeftModel.from_pretrained(plain.model, tmp_path / "adapter")
        theirs = loaded.get_image_features(pixels).pooler_output
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(load_file(tmp_path / "head.safetensors")["rows"], mg.rows)
    assert json.loads((tmp_path / "classes.json").read_text())["classes"] == mg.classes
