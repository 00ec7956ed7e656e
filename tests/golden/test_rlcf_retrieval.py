"""Retrieval adapted to each query, both ways, against the published code's arrays."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from rlcf_models import arrays, clip, texts

from perdure.data.captions import retrieval_text
from perdure.families.clip import clipscore
from perdure.families.clip.clipscore import unit
from perdure.families.test_time import objectives
from perdure.families.test_time.prompt_tuning import Steps, Trace
from perdure.families.test_time.retrieval import QueryTuner
from perdure.metrics import retrieval as metric
from perdure.types import Example, Query

EXACT = {"rtol": 0, "atol": 1e-9}
AFTER_STEPS = {"rtol": 0, "atol": 1e-6}
MOMENTUM = {
    "image": {"momentum": 0.95, "update_every": 3, "update_share": 0.8},
    "text": {"momentum": 0.95, "update_every": 4, "update_share": 1.0},
}
RUNS = {"": 3, "ens": 2, "mom": 2, "kd": 2}
"""Variant -> optimizer steps."""
SHORT = {"image": "i2t", "text": "t2i"}


def close(ours, theirs, **tolerance):
    torch.testing.assert_close(ours.to(theirs.dtype), theirs, **(tolerance or EXACT))


@pytest.fixture
def world(golden):
    folder = golden("rlcf")
    assert (folder / "retrieval.npz").is_file()
    a = arrays(folder, "retrieval")
    models = {name: clip(a, name) for name in ("policy", "reward", "reward2")}
    return SimpleNamespace(a=a, folder=folder, **models)


def test_features_and_zero_shot_logits_equal_the_published_ones(world):
    a = world.a
    for name in ("policy", "reward"):
        model = getattr(world, name)
        close(model.image_features(clipscore.resize(a["images"], model.image_size)), a[f"{name}_image_features"])
        close(model.text_features(model.cut(a["tokens"])), a[f"{name}_text_features"])
    images, captions = unit(a["policy_image_features"]), unit(a["policy_text_features"])
    close(world.policy.scale * images @ captions.T, a["zs_i2t"])
    both = clipscore.ClipReward([world.reward, world.reward2], [0.5, 0.5], like=world.policy)
    cosines = [
        f @ unit(m.text_features(m.cut(a["tokens"]))).T
        for f, m in zip(both.encode_images(a["images"]), both.models, strict=True)
    ]
    close(sum(cosines) / 2, a["zs_ensemble_i2t"])


def test_no_steps_are_zero_shot(world):
    a = world.a
    tuner = QueryTuner(world.policy, a["tokens"], Steps(count=0, lr=1.0, weight_decay=0.0), query="image")
    rows = [tuner.logits(image[None], objective=lambda z: z.sum()) for image in a["images"]]
    close(torch.cat(rows), a["zs_i2t"])


def rewarded(world, names):
    """Score table ``[images, texts]`` and teacher logits of the reward models."""
    a = world.a
    models = [getattr(world, n) for n in names]
    weights = [1.0]
    if len(models) == 2:  # the golden run's confidences: the two best of the paper's table
        weights = clipscore.ensemble_weights([5, 3])
    reward = clipscore.ClipReward(models, weights, like=world.policy)
    images = reward.encode_images(a["images"])
    captions = [unit(m.text_features(m.cut(a["tokens"]))).detach() for m in models]
    return reward.table(images, captions), reward.logits(images, captions)


def adapt(world, query, variant, *, at_once=1, **more):
    """Scores and losses of every query, the tuner, and what the published run has."""
    a, name = world.a, "_".join(filter(None, (SHORT[query], variant)))
    steps = Steps(count=RUNS[variant], lr=float(a["lr"]), weight_decay=float(a["weight_decay"]), eps=float(a["eps"]))
    gallery, items = (a["tokens"], a["images"]) if query == "image" else (a["images"], a["tokens"])
    if variant == "mom":
        more |= MOMENTUM[query]
    tuner = QueryTuner(world.policy, gallery, steps, query=query, **more)
    table, teacher = rewarded(world, ("reward", "reward2") if variant == "ens" else ("reward",))
    if query == "text":
        table, teacher = table.T, teacher.T
    settings, trace, rows = objectives.Reinforce(samples=int(a["sample_k"])), Trace(), []
    for some, scores, wise in zip(items.split(at_once), table.split(at_once), teacher.split(at_once)):
        if variant == "kd":
            objective = objectives.imitate("kd", wise[:, None])
        else:
            objective = objectives.reinforce(scores[:, None], settings)
        rows.append(tuner.logits(some, objective, trace=trace))
    found = torch.cat([losses.view(steps.count, -1) for losses in trace.losses], dim=1).T
    return torch.cat(rows), found, tuner, name


@pytest.mark.parametrize("variant", ["", "ens", "kd"])
@pytest.mark.parametrize("query", ["image", "text"])
@pytest.mark.parametrize("at_once", [2, 4])
def test_queries_adapted_side_by_side_equal_the_published_ones(world, query, variant, at_once):
    scores, losses, tuner, name = adapt(world, query, variant, at_once=at_once)
    assert at_once in tuner.beside
    close(losses, world.a[f"{name}_losses"], **AFTER_STEPS)
    close(scores, world.a[f"{name}_scores"], **AFTER_STEPS)


@pytest.mark.parametrize("variant", RUNS)
@pytest.mark.parametrize("query", ["image", "text"])
def test_adapted_queries_equal_the_published_ones(world, query, variant):
    a = world.a
    before = {n: t.clone() for n, t in world.policy.state_dict().items()}
    scores, found, tuner, name = adapt(world, query, variant)
    close(found, a[f"{name}_losses"], **AFTER_STEPS)
    close(scores, a[f"{name}_scores"], **AFTER_STEPS)
    side = world.policy.visual_parameters() if query == "image" else world.policy.text_parameters()
    assert sum(p.numel() for p in side.values()) == int(a[f"{name}_n_trainable"])
    assert {n for n, p in world.policy.model.named_parameters() if p.requires_grad} == set(side)
    assert all(torch.equal(before[n], t) for n, t in world.policy.state_dict().items())
    names = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
    kept = [n for n in a if n.startswith((f"{name}_momentum/", f"{name}_initial/"))]
    assert bool(kept) == (variant == "mom")
    for key in kept:
        kind, official = key.removeprefix(f"{name}_").split("/")
        state = tuner.slow.slow if kind == "momentum" else tuner.slow.start
        ours = state[names.get(official, official)]
        close((ours.T if official in names else ours).reshape(a[key].shape), a[key], **AFTER_STEPS)


def test_every_array_of_scores_belongs_to_a_run_here(world):
    runs = {"_".join(filter(None, (d, v))) for d in SHORT.values() for v in RUNS}
    assert {n.removesuffix("_scores") for n in world.a if n.endswith("_scores")} == runs


def test_few_rows_of_the_token_embeddings_stand_in_for_all(world):
    """Momentum 1 with no refresh keeps every start, but moves the whole table."""
    few, losses, tuner, _ = adapt(world, "text", "")
    assert tuner.own_rows
    whole, again, tuner, _ = adapt(world, "text", "", momentum=1.0, update_every=10**9)
    assert not tuner.own_rows
    torch.testing.assert_close(few, whole, rtol=0, atol=1e-7)
    torch.testing.assert_close(losses, again, rtol=0, atol=1e-7)


@pytest.mark.parametrize("prefix", ["", "rand_"])
def test_recalls_equal_the_published_ones(world, prefix):
    a = world.a
    images, captions = (a["rand_i2t"], a["rand_t2i"]) if prefix else (a["i2t_scores"], a["t2i_scores"])
    belongs = a[f"{prefix}txt2img"].tolist()
    found = {}
    for side, scores, targets in (
        ("txt", images, [[t for t, i in enumerate(belongs) if i == image] for image in range(len(images))]),
        ("img", captions, belongs),
    ):
        examples = [Example(id=str(i), inputs={}, target=t) for i, t in enumerate(targets)]
        query = Query(kind="retrieve", candidates=tuple(map(str, range(scores.shape[1]))))
        rows = metric.records(scores, examples, query)
        found |= {f"{side}_r{k}": getattr(metric, f"recall_{k}")(rows) for k in (1, 5, 10)}
        found[f"{side}_r_mean"] = metric.recall_mean(rows)
    found["r_mean"] = (found["txt_r_mean"] + found["img_r_mean"]) / 2
    found["agg_metrics"] = found["txt_r_mean"]
    published = {n.split("/")[1]: float(v) for n, v in a.items() if n.startswith(f"{prefix}metric/")}
    assert found == pytest.approx(published, abs=1e-3) and len(found) == 10


def test_captions_are_cleaned_as_published(world):
    raw, clean = (texts(world.folder, "retrieval", f"captions_{n}") for n in ("raw", "processed"))
    assert [retrieval_text(text) for text in raw] == clean
