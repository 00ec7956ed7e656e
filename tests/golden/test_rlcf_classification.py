"""Rewards, losses, views and episodes of RLCF, TPT and distillation, against the published code's arrays."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from rlcf_models import Rewarding, arrays, setting, texts
from torch import nn
from torch.nn import functional as F

from perdure.families.clip import clipscore
from perdure.families.test_time import augmix, losses, views
from perdure.families.test_time.encoder_tuning import EncoderTuner, blended_batch_norm
from perdure.families.test_time.episodes import SlowStart
from perdure.families.test_time.prompt_tuning import PromptTuner, Steps, Trace
from perdure.metrics import classification
from perdure.models.clip.prompts import Context, ContextPrompts, MetaNet, Wording, shifted
from perdure.models.clip.transform import ClipTransform
from perdure.types import Example, Query

EXACT = {"rtol": 0, "atol": 1e-9}
AFTER_STEPS = {"rtol": 0, "atol": 1e-6}
UNTOUCHED = {"retrieval", "caption_model", "caption_tta", "caption_metrics"}
"""Files of the other two parts of RLCF."""
COVERED = {"reward", "losses", "models", "prompt_tta", "cocoop", "image_tta", "augment"}


@pytest.fixture
def folder(golden):
    return golden("rlcf")


@pytest.fixture
def world(folder):
    return setting(folder)


def close(ours, theirs, **tolerance):
    torch.testing.assert_close(ours.to(theirs.dtype), theirs, **(tolerance or EXACT))


def test_every_file_is_covered(folder):
    assert {path.stem for path in folder.glob("*.npz")} <= COVERED | UNTOUCHED


# -- rewards ------------------------------------------------------------------------------------------------


def test_scores_rewards_and_ensembles_equal_the_published_ones(folder):
    a = arrays(folder, "reward")
    index = a["index"]
    table = clipscore.clip_score(a["image_features"] @ a["text_features"].T, scale=float(a["clipscore_weight"]))
    scores = clipscore.pick(table, index)
    close(scores.flatten(), a["clipscore_flat"])
    # Rows are the sampled texts, columns the images, each as often as it was sampled for.
    columns = torch.arange(len(index)).repeat_interleave(index.shape[1])
    close(table[columns][:, index.flatten()].T, a["clipscore_pairwise"])
    first = scores[:, :1]
    close(first.flatten(), a["clipscore_k1"])
    close(clipscore.rewards(first).flatten(), a["rewards_k1"])
    found = [re.fullmatch(r"rewards_process(\d)_amplify(\d)_batch(\d)", name) for name in a]
    for name in filter(None, found):
        process, amplify, batch = (int(part) for part in name.groups())
        baseline = ("batch" if batch else "image") if process else "none"
        ours = clipscore.rewards(scores, baseline=baseline, amplify=bool(amplify))
        close(ours.flatten(), a[name.string])


def test_several_reward_models_are_combined_as_published(folder):
    a = arrays(folder, "reward")
    weights = a["ens_weights"].tolist()
    assert weights == clipscore.ensemble_weights([10, 3, 5])
    tables = [
        clipscore.clip_score(a[f"ens_image_features_{i}"] @ a[f"ens_text_features_{i}"].T) for i in range(len(weights))
    ]
    scores = clipscore.pick(clipscore.combine(tables, weights), a["index"])
    close(scores.flatten(), a["ens_score_weighted"])
    close(clipscore.rewards(scores).flatten(), a["ens_rewards_weighted"])
    mean = clipscore.combine(tables, [1 / len(weights)] * len(weights))
    close(clipscore.pick(mean, a["index"]).flatten(), a["ens_score_mean"])


def test_the_confidence_gap_is_that_of_the_two_best_answers(folder):
    a = arrays(folder, "reward")
    best = a["gap_logits"].topk(2, dim=-1).values
    gap = best[:, 0] - best[:, 1]
    close(gap - gap.mean(), a["confidence_gap"])


# -- losses -------------------------------------------------------------------------------------------------


def test_views_are_selected_as_published(folder):
    a = arrays(folder, "losses")
    close(losses.entropy(a["logits_views"]), a["view_entropy"])
    for name in (n for n in a if n.startswith("select_idx_")):
        assert losses.select_views(a["logits_views"], float(name.split("_")[-1])).tolist() == a[name].tolist()


def test_losses_and_their_gradients_equal_the_published_ones(folder):
    a = arrays(folder, "losses")
    index, teacher = a["topk_index"], a["teacher_logits"]
    rewards = a["rewards"].view(index.shape)
    assert losses.top_answers(a["logits"], index.shape[1]).tolist() == index.tolist()
    each = -a["logits"].log_softmax(-1).gather(-1, index)
    close(each.flatten(), a["ce_each"])
    cases = {
        ("pg_loss", "pg_grad"): lambda z: losses.policy_gradient(z, index, rewards),
        ("avg_entropy", "avg_entropy_grad"): losses.average_entropy,
        ("loss_kd", "grad_kd"): lambda z: losses.distill("kd_plain", z, teacher),
        ("loss_kd_v2", "grad_kd_v2"): lambda z: losses.distill("kd", z, teacher),
        ("loss_kd_v2_T2_4", "grad_kd_v2_T2_4"): lambda z: losses.knowledge_distillation(
            z, teacher, temperature=2, teacher_temperature=4
        ),
        ("loss_dkd", "grad_dkd"): lambda z: losses.distill("dkd", z, teacher),
        ("loss_atkd1", "grad_atkd1"): lambda z: losses.distill("atkd", z, teacher),
        ("loss_atkd2", "grad_atkd2"): lambda z: losses.distill("atkd2", z, teacher),
    }
    compared = {name for names in cases for name in names}
    assert {n for n in a if n.startswith(("pg_", "avg_", "loss_", "grad_"))} == compared
    for (value, gradient), loss in cases.items():
        logits = a["logits"].clone().requires_grad_()
        found = loss(logits)
        close(found.reshape(1), a[value].reshape(1))
        close(torch.autograd.grad(found, logits)[0], a[gradient])


def test_the_log_sum_exp_cancels_where_rewards_sum_to_zero(folder):
    a = arrays(folder, "losses")
    index = a["topk_index"]
    centered = clipscore.rewards(a["rewards"].view(index.shape))
    short, long = (losses.policy_gradient(a["logits"], index, centered, zero_sum=z) for z in (True, False))
    torch.testing.assert_close(short, long, rtol=0, atol=1e-14)


def test_blended_batch_norm_equals_the_published_one(folder):
    a = arrays(folder, "losses")
    norm = nn.BatchNorm2d(a["bn_x"].shape[1], eps=float(a["bn_eps"])).double()
    norm.load_state_dict({n: a[f"bn_{n}"] for n in ("running_mean", "running_var", "weight", "bias")}, strict=False)
    close(blended_batch_norm(a["bn_x"], norm, float(a["bn_prior_strength"])), a["bn_out"])


def test_accuracies_equal_the_published_ones(folder):
    a = arrays(folder, "losses")
    top1, top5 = accuracies(a["logits_views"], a["acc_target"])
    assert top1 == pytest.approx(float(a["acc1"]), abs=1e-3)
    assert top5 == pytest.approx(float(a["acc5"]), abs=1e-3)


def accuracies(logits, targets):
    names = tuple(map(str, range(logits.shape[1])))
    examples = [Example(id=str(i), inputs={}, target=int(t)) for i, t in enumerate(targets)]
    found = classification.records(logits, examples, Query(kind="classify", candidates=names))
    return classification.accuracy(found), classification.top5(found)


# -- models and views ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["policy", "reward", "reward2"])
def test_features_equal_the_published_ones_also_at_another_resolution(world, name):
    model = getattr(world, name)
    pixels = clipscore.resize(world.views[0], model.image_size)
    close(model.image_features(pixels), world.arrays[f"{name}_image_features"])
    close(model.text_features(world.ids), world.arrays[f"{name}_text_features"])


def test_view_pixels_are_within_one_step_of_the_published_ones(folder):
    a = arrays(folder, "augment")
    transform = ClipTransform(size=224)
    plain = transform.pixels(a["image"].numpy())
    assert (plain.permute(1, 2, 0)[::4, ::4] == a["base_uint8_s4"]).all()
    close(transform.normalize(plain)[:, ::8, ::8], a["base_norm_s8"], rtol=0, atol=1e-6)
    crop = views.resized_crop(a["image"].permute(2, 0, 1), tuple(a["rrc_box_tlhw"].tolist()), 224)
    assert apart(crop, a["rrc_bilinear_s4"], 4) <= 1
    assert apart(crop.flip(-1), a["rrc_flip_s4"], 4) <= 1
    seen = 0
    for name in (n for n in a if re.fullmatch(r"op8?_\w+_s8", n)):
        prefix, operation = re.fullmatch(r"(op8?)_(\w+)_s8", name).groups()
        level, sign = a[f"{prefix}_{operation}_level_u"].tolist()
        step = augmix.Step(name=operation, level=level, negative=sign > 0.5)
        assert apart(augmix.apply(crop, step), a[name], 8) <= 1, name
        seen += 1
    assert seen >= 2 * len(augmix.OPERATIONS)


def apart(pixels, published, stride):
    """The largest difference in grey levels."""
    return int((pixels.permute(1, 2, 0)[::stride, ::stride].int() - published.int()).abs().max())


def test_an_augmix_view_equals_the_published_one(folder):
    a = arrays(folder, "augment")
    crop = views.resized_crop(a["image"].permute(2, 0, 1), tuple(a["rrc_box_tlhw"].tolist()), 224)
    # The published code draws from numpy's stream: weights, share, then depth and operations of each chain.
    draw = np.random.RandomState(int(a["augmix_np_seed"]))
    weights, share = np.float32(draw.dirichlet([1] * 3)), np.float32(draw.beta(1, 1))
    assert weights == pytest.approx(a["augmix_w"].numpy()) and share == pytest.approx(float(a["augmix_m"]))
    chains = []
    for depth in a["augmix_depths"].tolist():
        assert draw.randint(1, 4) == depth
        steps = []
        for _ in range(depth):
            name = augmix.OPERATIONS[draw.randint(len(augmix.OPERATIONS))]
            level = draw.uniform(0.1, 1) if augmix.takes_level(name) else 0.0
            negative = draw.uniform() > 0.5 if augmix.takes_sign(name) else False
            steps.append(augmix.Step(name=name, level=level, negative=negative))
        chains.append(tuple(steps))
    assert [s.name for chain in chains for s in chain] == texts(folder, "augment", "augmix_ops")
    mix = augmix.Mix(chains=tuple(chains), weights=tuple(weights.tolist()), share=float(share))
    mixed = ClipTransform(size=224).normalize(augmix.augmix(crop, mix))
    grey_level = 1 / 255 / 0.26
    close(mixed[:, ::8, ::8], a["augmix_view_s8"], rtol=0, atol=grey_level)


# -- prompt episodes ----------------------------------------------------------------------------------------


def prompt_tuner(world, a, *, steps, **start):
    down = Steps(count=steps, lr=float(a["lr"]), weight_decay=float(a["weight_decay"]))
    share = float(a["selection_p"]) if "selection_p" in a else 0.25
    context = Context(wording=world.words, **start)
    return PromptTuner(world.policy, [], context, down, selection=share, prompts=world.prompts)


def contexts_after(tuner, pixels, prepare):
    """The adapted contexts of a tuner's images: its text features hide them, so a trace of gradients is stepped."""
    trace = Trace(keep_gradients=True)
    logits = tuner.logits(pixels, prepare, trace=trace)
    context = tuner.start.clone().requires_grad_()
    steps = tuner.steps
    optimizer = torch.optim.AdamW([context], lr=steps.lr, weight_decay=steps.weight_decay, eps=steps.eps)
    for gradient in trace.gradients:
        context.grad = gradient[0]
        optimizer.step()
    return logits, context.detach(), torch.stack(trace.losses)[:, 0], trace.gradients


def test_the_first_step_of_a_prompt_episode_equals_the_published_one(folder, world):
    a = arrays(folder, "prompt_tta")
    close(world.prompts.initial(), a["ctx_init"])
    tuner, image = prompt_tuner(world, a, steps=1), world.views[:1]
    features = F.normalize(world.policy.image_features(image[0]), dim=-1)
    close(world.policy.scale * features @ tuner.first[0].T, a["logits_view_zero_shot"])
    rewarding = Rewarding(world, samples=int(a["sample_k"]))
    _, _, found, gradients = contexts_after(tuner, image, rewarding.for_views(image))
    assert rewarding.index[0].tolist() == a["selected_idx"].tolist()
    index = a["topk_index"]
    scores = clipscore.pick(rewarding.table[0], index)
    close(scores.flatten(), a["clipscore"])
    close(clipscore.rewards(scores).flatten(), a["rewards"])
    close(found, a["step1_loss"])
    close(gradients[0][0], a["step1_grad_ctx"])


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_prompt_episodes_equal_the_published_ones(folder, world, steps):
    a = arrays(folder, "prompt_tta")
    tuner, image = prompt_tuner(world, a, steps=steps), world.views[:1]
    prepare = Rewarding(world, samples=int(a["sample_k"])).for_views(image)
    logits, context, found, _ = contexts_after(tuner, image, prepare)
    close(logits, a[f"rlcf_logits_after_{steps}"], **AFTER_STEPS)
    close(context, a[f"rlcf_ctx_after_{steps}"], **AFTER_STEPS)
    close(found, a[f"rlcf_losses_{steps}"], **AFTER_STEPS)


VARIANTS = {
    "amplify": {"amplify": True},
    "batchbase": {"baseline": "batch"},
    "noproc": {"baseline": "none"},
    "k1": {"samples": 1},
    "k5": {"samples": 5},
    "ens_weighted": {},
    "ens_mean": {},
    "minent": {"min_entropy": 0.3},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_prompt_episodes_equal_the_published_ones(folder, world, name):
    a = arrays(folder, "prompt_tta")
    published = {n.removeprefix("rlcf_").removesuffix("_losses") for n in a if n.endswith("_losses")} - {"tpt"}
    assert published == set(VARIANTS)
    models, weights = ("reward",), None
    if name.startswith("ens"):
        models = ("reward", "reward2")
        assert a[f"{name}_weights"].tolist() == clipscore.ensemble_weights([5, 3])
        weights = a["ens_weighted_weights"].tolist() if name == "ens_weighted" else [0.5, 0.5]
    rewarding = Rewarding(world, *models, weights=weights, **{"samples": int(a["sample_k"]), **VARIANTS[name]})
    image = world.views[:1]
    logits, context, found, _ = contexts_after(prompt_tuner(world, a, steps=2), image, rewarding.for_views(image))
    close(found, a[f"rlcf_{name}_losses"], **AFTER_STEPS)
    close(context, a[f"rlcf_{name}_ctx_after_2"], **AFTER_STEPS)
    close(logits, a[f"rlcf_{name}_logits"], **AFTER_STEPS)


def test_entropy_episodes_equal_the_published_ones(folder, world):
    a = arrays(folder, "prompt_tta")
    image = world.views[:1]
    prepare = Rewarding(world).for_views(image, entropy=True)
    logits, context, found, _ = contexts_after(prompt_tuner(world, a, steps=2), image, prepare)
    close(found, a["tpt_losses"], **AFTER_STEPS)
    close(context, a["tpt_ctx_after_2"], **AFTER_STEPS)
    close(logits, a["tpt_logits"], **AFTER_STEPS)


@pytest.mark.parametrize("together", [True, False])
def test_a_stream_of_images_gives_the_published_answers_side_by_side_or_one_by_one(folder, world, together):
    a = arrays(folder, "prompt_tta")
    tuner, rewarding = prompt_tuner(world, a, steps=3), Rewarding(world, samples=int(a["sample_k"]))
    parts = [world.views] if together else list(world.views.split(1))
    logits = torch.cat([tuner.logits(part, rewarding.for_views(part)) for part in parts])
    close(logits, a["eval_logits"], **AFTER_STEPS)
    assert accuracies(logits, a["eval_targets"]) == pytest.approx(a["eval_acc1_acc5"].tolist(), abs=1e-3)


def test_another_list_of_classes_gives_the_published_text_features(folder, world):
    a = arrays(folder, "prompt_tta")
    other = ContextPrompts(world.policy, a["names2_tokens"], world.words)
    close(other.features(other.initial()[None])[0], a["names2_text_features"])


@pytest.mark.parametrize("position", ["front", "middle"])
def test_the_class_name_may_stand_before_or_within_the_context(folder, world, position):
    a = arrays(folder, "prompt_tta")
    words = Wording(words="a photo of a", length=4, position=position, split=int(a["middle_split_idx"]))
    prompts = ContextPrompts(world.policy, world.ids, words, name_lengths=a["name_lens"].tolist())
    close(prompts.features(a["ctx_init"][None])[0], a[f"{position}_text_features"])


def test_cocoop_inference_and_adaptation_equal_the_published_ones(folder, world):
    a = arrays(folder, "cocoop")
    state = {n.removeprefix("cocoop/meta_net."): t for n, t in a.items() if n.startswith("cocoop/meta_net.")}
    net = MetaNet(world.policy.dim, world.policy.text_config.hidden_size)
    net.load_state_dict(state)
    net, context = net.double().requires_grad_(False), a["cocoop/ctx"].double()
    raw = world.policy.image_features(world.views[0])
    close(raw, a["image_features"])

    features = F.normalize(raw[:3], dim=-1)
    given = world.prompts.features(shifted(context, net, features))
    inference = world.policy.scale * (features[:, None] @ given.transpose(-1, -2))[:, 0]
    close(inference, a["logits_inference"])

    close(shifted(context, net, raw[:1]), a["tpt_ctx0"])
    tuner, image = prompt_tuner(world, a, steps=1, vectors=context, net=net), world.views[:1]
    trace = Trace(keep_gradients=True)
    logits = tuner.logits(image, Rewarding(world).for_views(image, entropy=True), trace=trace)
    close(trace.losses[0], a["tpt_loss"])
    close(logits, a["tpt_logits_view0"], **AFTER_STEPS)
    moved = a["tpt_ctx0"].clone().requires_grad_()
    moved.grad = trace.gradients[0]
    torch.optim.AdamW([moved], lr=float(a["lr"]), weight_decay=float(a["weight_decay"])).step()
    close(moved.detach(), a["tpt_ctx_after_1"], **AFTER_STEPS)


# -- encoder episodes ---------------------------------------------------------------------------------------


def encoder_tuner(world, a, *, steps, only_norm=False, slow=None):
    policy = world.policy
    state = policy.visual_parameters()
    tuned = {n: p.requires_grad_() for n, p in state.items() if not only_norm or "norm" in n or "layrnorm" in n}
    down = Steps(count=steps, lr=float(a["lr"]), weight_decay=float(a["weight_decay"]))
    return EncoderTuner(
        state,
        policy.image_features,
        tuned,
        world.features["policy"],
        down,
        scale=policy.scale.detach(),
        selection=float(a["selection_p"]),
        slow=slow,
    )


OFFICIAL = {
    "visual.proj": "visual_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
}


def ours(official):
    """Our name of a parameter of the image tower, and whether it is stored transposed."""
    name = official if official.startswith("visual.") else f"visual.{official}"
    if name in OFFICIAL:
        return OFFICIAL[name], name == "visual.proj"
    block = re.fullmatch(r"visual\.transformer\.resblocks\.(\d+)\.(.+)", name)
    inside = {"mlp.c_proj.bias": "mlp.fc2.bias", "ln_1.weight": "layer_norm1.weight"}
    return f"vision_model.encoder.layers.{block[1]}.{inside[block[2]]}", False


def as_published(tensor, transposed):
    return tensor.T if transposed else tensor


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_encoder_episodes_equal_the_published_ones(folder, world, steps):
    a = arrays(folder, "image_tta")
    close(world.features["policy"], a["class_features"])
    tuner, image = encoder_tuner(world, a, steps=steps), world.views[:1]
    close(tuner._scores(image[0]), a["logits_view_zero_shot"])
    trace = Trace(keep_gradients=True)
    prepare = Rewarding(world, samples=int(a["sample_k"])).one_by_one(image)
    logits = tuner.logits(image, prepare, trace=trace)
    close(trace.losses[0][0].reshape(1), a["step1_loss"])
    for name in (n for n in a if n.startswith("step1_grad/")):
        own, transposed = ours(name.removeprefix("step1_grad/"))
        close(as_published(trace.gradients[0][own], transposed), a[name])
    close(trace.losses[0], a[f"rlcf_losses_{steps}"], **AFTER_STEPS)
    close(logits, a[f"rlcf_logits_after_{steps}"], **AFTER_STEPS)


def test_the_adapted_encoder_equals_the_published_one(folder, world):
    a = arrays(folder, "image_tta")
    captured = {}

    class Watch(SlowStart):
        def update(self, adapted):
            captured.update({n: t.detach().clone() for n, t in adapted.items()})
            captured["features"] = world.policy.image_features(world.views[0, :4]).detach()

    state = world.policy.visual_parameters()
    watch = Watch(state, momentum=1.0, every=1, share=0.0)
    tuner, image = encoder_tuner(world, a, steps=3, slow=watch), world.views[:1]
    tuner.logits(image, Rewarding(world, samples=int(a["sample_k"])).one_by_one(image))
    close(captured["features"], a["after3_image_features"], **AFTER_STEPS)
    for name in (n for n in a if n.startswith("after3/")):
        own, transposed = ours(name.removeprefix("after3/"))
        close(as_published(captured[own], transposed), a[name], **AFTER_STEPS)


@pytest.mark.parametrize("name", ["tpt", "KD", "DKD", "ATKD"])
def test_other_objectives_of_encoder_episodes_equal_the_published_ones(folder, world, name):
    a = arrays(folder, "image_tta")
    how = {"entropy": True} if name == "tpt" else {"distill": name.lower()}
    tuner, image, trace = encoder_tuner(world, a, steps=2), world.views[:1], Trace()
    logits = tuner.logits(image, Rewarding(world).one_by_one(image, **how), trace=trace)
    close(trace.losses[0], a[f"{name}_losses"], **AFTER_STEPS)
    close(logits, a[f"{name}_logits"], **AFTER_STEPS)


def test_tuning_norms_alone_equals_the_published_run(folder, world):
    a = arrays(folder, "image_tta")
    tuner, image, trace = encoder_tuner(world, a, steps=2, only_norm=True), world.views[:1], Trace()
    assert sum(p.numel() for p in tuner.tuned.values()) == int(a["only_norm_n_params"])
    logits = tuner.logits(image, Rewarding(world, samples=int(a["sample_k"])).one_by_one(image), trace=trace)
    close(trace.losses[0], a["only_norm_losses"], **AFTER_STEPS)
    close(logits, a["only_norm_logits"], **AFTER_STEPS)


@pytest.mark.parametrize("together", [True, False])
def test_a_stream_of_encoder_episodes_gives_the_published_answers(folder, world, together):
    a = arrays(folder, "image_tta")
    tuner, rewarding = encoder_tuner(world, a, steps=3), Rewarding(world, samples=int(a["sample_k"]))
    parts = [world.views] if together else list(world.views.split(1))
    logits = torch.cat([tuner.logits(part, rewarding.one_by_one(part)) for part in parts])
    close(logits, a["eval_logits"], **AFTER_STEPS)
    assert accuracies(logits, a["eval_targets"]) == pytest.approx(a["eval_acc1_acc5"].tolist(), abs=1e-3)


def test_slow_weights_move_as_in_the_published_run(folder, world):
    a = arrays(folder, "image_tta")
    every = int(a["mom_update_freq"])
    slow = SlowStart(
        world.policy.visual_parameters(),
        momentum=float(a["mom_momentum"]),
        every=every,
        share=float(a["mom_update_w"]),
    )
    tuner, rewarding = encoder_tuner(world, a, steps=3, slow=slow), Rewarding(world, samples=int(a["sample_k"]))
    logits = torch.cat([tuner.logits(part, rewarding.one_by_one(part)) for part in world.views.split(1)])
    close(logits, a["eval_mom_logits"], **AFTER_STEPS)
    assert accuracies(logits, a["eval_targets"]) == pytest.approx(a["eval_mom_acc1_acc5"].tolist(), abs=1e-3)
    for name in (n for n in a if n.startswith(("mom_state/", "mom_initial/"))):
        kind, official = name.split("/")
        own, transposed = ours(official)
        found = (slow.slow if kind == "mom_state" else slow.start)[own]
        close(as_published(found, transposed), a[name], **AFTER_STEPS)


def test_the_naive_ensemble_equals_the_published_one(folder, world):
    a = arrays(folder, "image_tta")
    logits = []
    for name in ("reward", "reward2"):
        model = getattr(world, name)
        pixels = clipscore.resize(world.views[0, : len(a["zs_ensemble_logits"])], model.image_size)
        logits.append(model.scale * clipscore.unit(model.image_features(pixels)) @ world.features[name].T)
    close(torch.stack(logits).mean(0), a["zs_ensemble_logits"])
