"""Prototypes, fine-tuning, LwF and joint training on a tiny real vision transformer, with a head that grows."""

from __future__ import annotations

import pytest
import torch
from clip_methods import fresh_clip, learn, small_stream

import perdure
from perdure.errors import RecipeError
from perdure.families.class_incremental.heads import Head, uniform
from perdure.layers.lora import lora_state
from perdure.loop import run
from perdure.runtime import Runtime
from perdure.settings import registry
from tests.every_method import ON_A_VIT
from tests.tiny_vit import fresh_vit, write


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("trains", ["lora", "all", "head"])
def test_old_rows_stay_bit_for_bit_where_only_new_classes_are_trained(trains, head):
    method, stream = ON_A_VIT["finetune"].make(loss="local", trains=trains, head=head), small_stream()
    learn(method, stream.tasks[0])
    before = method.state_dict()["head"]
    learn(method, stream.tasks[1])
    after = method.state_dict()["head"]
    old = len(before["weight"])
    assert len(after["weight"]) == 2 * old
    assert torch.equal(after["weight"][:old], before["weight"])
    assert not torch.equal(after["weight"][old:], fresh_rows(method, old))
    assert set(after) == ({"weight", "bias"} if head == "linear" else {"weight", "scale"})


def fresh_rows(method, old):
    head = Head(method.network.vit.dim, uniform(method.network.vit.dim))
    head.grow(2 * old, Runtime(device="cpu", quiet=True), like=torch.zeros(1))
    return head.weight[old:]


def test_what_is_trained_is_what_is_asked_for():
    stream = small_stream()
    for trains, moves in (("head", set()), ("lora", {"lora"}), ("all", {"plain"})):
        method = ON_A_VIT["finetune"].make(trains=trains)
        before = {n: t.clone() for n, t in method.network.vit.network.state_dict().items()}
        learn(method, stream.tasks[0])
        after = method.network.vit.network.state_dict()
        changed = {"lora" if "lora_" in n else "plain" for n, t in after.items() if not torch.equal(t, before[n])}
        assert changed == moves
        adapted = {n.split(".lora_")[0].split(".", 2)[2] for n in lora_state(method.network.vit.network)}
        assert adapted == ({"attn.qkv", "attn.proj"} if trains == "lora" else set())


@pytest.mark.parametrize("name", ["prototype", "joint"])
def test_they_tell_one_color_from_another(name):
    settings = {} if name == "prototype" else {"trains": "head", "epochs": 60, "head_lr": 0.1}
    scores = run(ON_A_VIT[name].make(**settings), small_stream(), runtime=Runtime(device="cpu", quiet=True))
    assert [row["values"]["accuracy"] for row in scores.rows] == [100.0, 100.0, 100.0]


def test_lwf_holds_on_to_the_old_answers():
    stream, drift = small_stream(), {}
    for weight in (0.0, 50.0):
        method = ON_A_VIT["lwf"].make(weight=weight, epochs=5, trains="all")
        learn(method, stream.tasks[0])
        names, images = list(stream.tasks[0].candidates), stream.tasks[1].train
        before = method.network.table(names, images, Runtime(device="cpu", quiet=True))
        learn(method, stream.tasks[1])
        after = method.network.table(names, images, Runtime(device="cpu", quiet=True))
        drift[weight] = (after.log_softmax(1) - before.log_softmax(1)).abs().mean()
    assert drift[50.0] < drift[0.0]


def test_joint_training_begins_anew_whatever_was_before():
    stream = small_stream()
    one, other = (ON_A_VIT["joint"].make(trains="all", lr=1e-3) for _ in range(2))
    for method in (one, other):
        learn(method, stream.tasks[0])
    with torch.no_grad():
        for parameter in [*other.network.parameters.values(), other.network.head.weight]:
            parameter.add_(1.0)
    for method in (one, other):
        learn(method, stream.tasks[1])
    assert torch.equal(one.state_dict()["head"]["weight"], other.state_dict()["head"]["weight"])


@pytest.mark.parametrize("models", [{}, {"clip": fresh_clip, "vit": fresh_vit}])
@pytest.mark.parametrize("name", sorted(ON_A_VIT))
def test_one_role_is_given(name, models):
    cls = registry.load("methods", name)
    with pytest.raises(RecipeError, match=r"models: found (none|clip and vit)\. Expected one of clip, vit"):
        cls(cls.Config(), **{role: make() for role, make in models.items()})


def test_a_clip_has_no_head_to_train_alone():
    cls = registry.load("methods", "finetune")
    with pytest.raises(RecipeError, match="a CLIP has no head"):
        cls(cls.Config(trains="head"), clip=fresh_clip())


def test_sets_that_the_stream_does_not_teach_are_not_asked_of_a_head(tmp_path):
    kept = "evaluate.retention=[{name: microworld, content: colors, test_per_class: 1, train_per_class: 0}]"
    small = ["stream.train_per_class=1", "stream.test_per_class=1", f"run.out={tmp_path}", kept]
    with pytest.raises(RecipeError, match="answers only for classes that it has learned"):
        perdure.run("finetune/microworld_vit", small, quiet=True)


def test_what_was_assumed_of_the_weights_is_said_at_the_start(tmp_path):
    weights = write(tmp_path / "vit")
    small = ["stream.train_per_class=1", "stream.test_per_class=1", "stream.step=20", f"run.out={tmp_path}"]
    (done,) = perdure.run("prototype/microworld_vit", [*small, f"models.vit.weights={weights}"], quiet=True)
    said = (done.folder / "log.txt").read_text()
    assert f"models.vit: {weights}: no preprocessor_config.json; pixels are normalized by mean 0.5 0.5 0.5" in said
