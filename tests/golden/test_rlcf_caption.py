"""Captioner, training, beam search, adaptation and caption metrics, against the published code's arrays."""

from __future__ import annotations

import pytest
import torch
from rlcf_captioner import ToyClipWords, captioner, part
from rlcf_models import arrays, clip, texts
from torch.nn import functional as F

from perdure import training
from perdure.families.captioning.adapting import CaptionTrace, CaptionTuner, Sampling, caption_losses
from perdure.families.captioning.learning import caption_loss, schedule
from perdure.families.clip import clipscore
from perdure.families.test_time.prompt_tuning import Steps
from perdure.loading import TensorBatches
from perdure.methods.capdec.noise import add_noise, in_ball
from perdure.metrics import caption_scores, caption_words, captioning
from perdure.models.captioner.words import padded, usual_length
from perdure.runtime import Runtime

EXACT = {"rtol": 0, "atol": 1e-9}
AFTER_STEPS = {"rtol": 0, "atol": 1e-6}
SINGLE = {"rtol": 0, "atol": 1e-6}
FILES = ("caption_model", "caption_tta", "caption_metrics")
RUNS = {"tta": 3, "tta_ens": 2, "tta_amp": 2, "tta_mom": 2}
"""Run -> optimizer steps."""


def close(ours, theirs, **tolerance):
    torch.testing.assert_close(ours.to(theirs.dtype), theirs, **(tolerance or EXACT))


@pytest.fixture
def folder(golden):
    found = golden("rlcf")
    assert all((found / f"{name}.npz").is_file() for name in FILES)
    return found


@pytest.fixture
def model(folder):
    return arrays(folder, "caption_model")


# -- the model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "expected"), [("transformer", "mapper_out"), ("mlp", "mlp_out")])
def test_mappers_give_the_published_prefixes(model, kind, expected):
    close(captioner(model, kind=kind).mapper(model["prefix"]), model[expected])


def test_the_language_model_and_its_loss_equal_the_published_ones(model):
    made = captioner(model)
    ids = model["tokens"]
    mask = model["mask"][:, made.prefix :].long()
    prefix = made.mapper(model["prefix"])
    logits = made.all_logits(prefix, ids, mask)
    close(logits, model["lm_logits"])
    each = F.cross_entropy(made.logits(prefix, ids, mask).transpose(1, 2), ids, reduction="none") * mask
    close(each, model["train_ce_each"])
    close(caption_loss(made, model["prefix"], ids, mask).reshape(1), model["train_ce"])


def test_captions_that_share_a_prefix_which_is_read_once_have_the_same_logits(model):
    made = captioner(model)
    ids, mask = model["tokens"], model["mask"][:, made.prefix :].long()
    prefix = made.mapper(model["prefix"][:1])
    together = made.follow(made.read(prefix), ids, mask)
    close(together, made.logits(prefix.expand(len(ids), -1, -1), ids, mask))


def test_noise_equals_the_published_one(model):
    x, variance = model["noise_x"].float(), float(model["noise_variance"])
    for untouched in (0, 1):
        ours = add_noise(x, model["noise_eps"], variance=variance, normalize=not untouched)
        close(ours, model[f"noise_out_dontnorm{untouched}"], **SINGLE)
    ball = in_ball(model["ball_normal"], model["ball_u"])
    close(add_noise(x, ball, variance=variance, normalize=False), model["ball_out"], **SINGLE)
    assert add_noise(x, ball, variance=0.0) is x


def test_captions_are_padded_and_features_chosen_as_published(folder, model):
    made = captioner(model)
    rows = made.words.ids(texts(folder, "caption_model", "dataset_captions"))
    length = usual_length(rows)
    assert length == int(model["dataset_max_seq_len"])
    ids, mask = padded(rows, pad=0, length=length)
    full = torch.cat([torch.ones(len(rows), made.prefix), mask.float()], dim=1)
    for image in (0, 1):
        close(ids, model[f"dataset_img{image}_tokens"])
        close(full, model[f"dataset_img{image}_mask"])
    close(F.normalize(model["dataset_text_emb"], dim=-1), model["dataset_img0_prefix"], **SINGLE)
    owner = torch.arange(len(rows)) // (len(rows) // len(model["dataset_image_emb"]))
    close(F.normalize(model["dataset_image_emb"], dim=-1)[owner], model["dataset_img1_prefix"], **SINGLE)


def test_learning_goes_through_the_published_losses_and_rates(model):
    made = captioner(model)
    made.mapper.requires_grad_()
    prefixes, tokens = model["train_batches_prefix"], model["train_batches_tokens"]
    rates, losses = model["train_lrs"], model["train_losses"]
    epochs = len(losses) // len(prefixes)
    tensors = {"features": prefixes.flatten(0, 1), "ids": tokens.flatten(0, 1)}
    runtime = Runtime(device="cpu", quiet=True)
    runtime.task = 0
    batches = TensorBatches(
        tensors, batch_size=tokens.shape[1], runtime=runtime, stage="mapper", shuffle=False, drop_last=True
    )
    settings = schedule(lr=float(rates.max()), epochs=epochs, warmup=int(rates.argmax()) + 1)
    factors = [training.lr_factor(settings, step, len(prefixes)) for step in range(len(rates))]
    close(torch.tensor(factors, dtype=torch.float64) * settings.lr, rates)

    def loss(batch):
        return caption_loss(made, batch["features"], batch["ids"], (batch["ids"] != 0).long())

    found = training.fit(loss, dict(made.mapper.named_parameters()), batches, settings, runtime=runtime, stage="mapper")
    close(torch.tensor(found, dtype=torch.float64), losses, **AFTER_STEPS)
    after = part(model, "train_after")
    assert after
    for name, tensor in after.items():
        close(made.mapper.state_dict()[name], tensor, **AFTER_STEPS)


# -- beam search --------------------------------------------------------------------------------------------


def official(found, *, end, length, pad=1):
    """Captions as the published code returns them: the end token where there is room, then padding."""
    rows = torch.full((len(found), length), pad)
    for i, caption in enumerate(found):
        whole = [*caption, end][:length]
        rows[i, : len(whole)] = torch.tensor(whole)
    return rows


@pytest.mark.parametrize(("beams", "captions"), [(5, 1), (4, 4)])
def test_beam_search_finds_the_published_captions(folder, model, beams, captions):
    made = captioner(model)
    most = int(model["gen_max_new_tokens"])
    spoken = made.read(made.mapper(model["prefix"][:1]))
    found = made.search(spoken, beams=beams, captions=captions, most=most)[0]
    assert official(found, end=3, length=most + 1).tolist() == model[f"beam{beams}_ids"].tolist()
    assert made.captions(found) == texts(folder, "caption_model", f"beam{beams}_text")


@pytest.mark.parametrize("together", [True, False])
def test_beam_search_ends_captions_early_as_published_alone_or_side_by_side(model, together):
    end = int(model["beamset_eos_id"])
    made = captioner(model, end=end)
    expected = model["beamset_ids"]
    most = expected.shape[-1] - 1
    prefix = made.mapper(model["beamset_prefix"])
    parts = [prefix] if together else prefix.split(1)
    search = {"beams": expected.shape[1], "captions": expected.shape[1], "most": most}
    found = [captions for p in parts for captions in made.search(made.read(p), **search)]
    ours = torch.stack([official(captions, end=end, length=most + 1) for captions in found])
    assert ours.tolist() == expected.tolist()


# -- adaptation ---------------------------------------------------------------------------------------------


def tuner(folder, model, name, **more):
    """The tuner of a published run, its feature extractor's arrays, and the images."""
    a = arrays(folder, "caption_tta")
    clips = {n: clip(a, n) for n in ("enc", "reward", "reward2")}
    for one in clips.values():
        context, vocabulary = one.context_length, one.text_config.vocab_size
        one.tokenizer = ToyClipWords(sot=vocabulary - 2, eot=vocabulary - 1, context_length=context)
        one.eot = vocabulary - 1
    models = [clips["reward"], *([clips["reward2"]] if name == "tta_ens" else [])]
    weights = clipscore.ensemble_weights([5, 3]) if len(models) == 2 else [1.0]
    reward = clipscore.ClipReward(models, weights, like=clips["enc"])
    steps = Steps(count=RUNS[name], lr=float(a["lr"]), weight_decay=float(a["weight_decay"]), eps=float(a["eps"]))
    sampling = Sampling(
        samples=int(a["sample_k"]),
        most=int(a["max_new_tokens"]),
        beams=int(a["final_num_beams"]),
        amplify=name == "tta_amp",
    )
    return CaptionTuner(captioner(model), reward, steps, sampling, **more), clips["enc"], a


@pytest.mark.parametrize("name", RUNS)
def test_adapted_captions_equal_the_published_ones(folder, model, name):
    momentum = {"momentum": 0.9, "update_every": 2, "update_share": 0.6} if name == "tta_mom" else {}
    made, encoder, a = tuner(folder, model, name, **momentum)
    before = {n: t.clone() for n, t in made.captioner.state_dict().items()}
    images = a["images"]
    features = clipscore.unit(encoder.image_features(clipscore.resize(images, encoder.image_size)))
    close(features, a["image_prefix"])
    final, sampled, scores, losses = [], [], [], []
    for image, feature in zip(images, features):
        trace = CaptionTrace(keep_gradients=True)
        seen = made.reward.encode_images(image[None])
        final.append(made.caption(feature[None], seen, trace=trace))
        sampled.append(trace.sampled)
        scores.append(torch.stack(trace.scores))
        losses.append(trace.losses[0])
        if name == "tta" and len(final) == 1:
            first_step_is_published(a, trace, before)
    published = texts_of(folder, f"{name}_sampled")
    assert sampled == published
    close(torch.stack(scores), a[f"{name}_clipscores"])
    close(torch.stack(losses), a[f"{name}_losses"], **AFTER_STEPS)
    assert final == texts_of(folder, f"{name}_final")
    assert all(torch.equal(before[n], t) for n, t in made.captioner.state_dict().items())
    assert all(p.grad is None for p in made.captioner.llm.parameters())
    kept = [n for n in a if n.startswith((f"{name}_momentum/", f"{name}_initial/"))]
    assert bool(kept) == (name == "tta_mom")
    for key in kept:
        slow = made.episodes.slow
        state = slow.slow if key.startswith(f"{name}_momentum/") else slow.start
        close(state[key.split("/", 1)[1]], a[key], **AFTER_STEPS)


def first_step_is_published(a, trace, before):
    assert trace.ids[0].tolist() == a["first_tokens"].tolist()
    assert trace.masks[0].tolist() == a["first_attention"].tolist()
    gradients = part(a, "first_grad")
    assert gradients
    for name, gradient in gradients.items():
        close(trace.gradients[0][name], gradient)
        moved = before[f"mapper.{name}"].clone().requires_grad_()
        moved.grad = trace.gradients[0][name]
        optimizer = torch.optim.AdamW(
            [moved], lr=float(a["lr"]), weight_decay=float(a["weight_decay"]), eps=float(a["eps"])
        )
        optimizer.step()
        close(moved.detach(), a[f"after1/{name}"], **AFTER_STEPS)


def texts_of(folder, key):
    import numpy as np

    with np.load(folder / "caption_tta.npz") as file:
        return file[key].tolist()


def test_every_published_adaptation_is_repeated_here(folder):
    found = {n.removesuffix("_losses") for n in arrays(folder, "caption_tta") if n.endswith("_losses")}
    assert found == set(RUNS)


def test_padding_counts_in_the_published_loss_and_can_be_left_out():
    logits = torch.zeros(1, 3, 4)
    ids, mask = torch.tensor([[2, 3, 1]]), torch.tensor([[1, 1, 0]])
    logits[0, 2, 1] = 50.0  # padding is foreseen with certainty
    nats = torch.tensor(4.0).log()
    torch.testing.assert_close(caption_losses(logits, ids)[0], 2 * nats / 3)
    torch.testing.assert_close(caption_losses(logits, ids, mask)[0], nats)


# -- metrics ------------------------------------------------------------------------------------------------


def captions_and_references(folder, suffix):
    made = texts(folder, "caption_metrics", f"cand{suffix}")
    said = texts(folder, "caption_metrics", f"refs{suffix}")
    owner = arrays(folder, "caption_metrics")["refs_owner"].tolist()
    return made, [[text for text, o in zip(said, owner) if o == i] for i in range(len(made))]


@pytest.mark.parametrize("tokenizer", ["ptb", "fallback"])
def test_text_is_split_into_the_published_words(folder, tokenizer):
    if tokenizer == "ptb" and caption_words.default_tokenizer() != "ptb":
        pytest.skip("Stanford's tokenizer needs pycocoevalcap and Java")
    for key in ("cand", "refs"):
        raw, expected = (texts(folder, "caption_metrics", f"{key}{suffix}") for suffix in ("", "_ptb"))
        assert caption_words.tokenize(raw, tokenizer) == expected


def test_bleu_rouge_and_cider_equal_the_published_ones(folder):
    a = arrays(folder, "caption_metrics")
    made, references = captions_and_references(folder, "_ptb")
    whole, each = caption_scores.bleu(made, references)
    close(torch.tensor(whole, dtype=torch.float64), a["bleu"])
    close(torch.tensor(each, dtype=torch.float64), a["bleu_per"])
    for name, score in (("rouge", caption_scores.rouge_l), ("cider", caption_scores.cider_d)):
        found = torch.tensor(score(made, references), dtype=torch.float64)
        close(found, a[f"{name}_per"])
        close(found.mean().reshape(1), a[name])


def test_metrics_of_records_equal_the_published_ones_times_100(folder, monkeypatch):
    monkeypatch.setenv("PERDURE_TOKENIZER", "fallback")
    a = arrays(folder, "caption_metrics")
    made, references = captions_and_references(folder, "")
    rows = [{"id": str(i), "caption": c, "references": r} for i, (c, r) in enumerate(zip(made, references))]
    found = captioning.caption_scores(rows)
    assert [found[f"bleu_{k}"] for k in (1, 2, 3, 4)] == pytest.approx((100 * a["bleu"]).tolist(), abs=1e-7)
    assert found["cider"] == pytest.approx(100 * float(a["cider"]), abs=1e-7) == captioning.cider(rows)
    assert found["rouge_l"] == pytest.approx(100 * float(a["rouge"]), abs=1e-7) == captioning.rouge_l(rows)


@pytest.mark.slow
def test_meteor_equals_the_published_one(folder):
    if caption_words.default_tokenizer() != "ptb":
        pytest.skip("METEOR needs pycocoevalcap and Java")
    a = arrays(folder, "caption_metrics")
    score, each = caption_words.meteor(*captions_and_references(folder, "_ptb"))
    assert score == pytest.approx(float(a["meteor"]), abs=1e-6)
    assert each == pytest.approx(a["meteor_per"].tolist(), abs=1e-6)


def test_clipscore_and_refclipscore_equal_the_published_ones(folder):
    a = arrays(folder, "caption_metrics")
    image, made, said = (a[f"cs_{name}"].numpy() for name in ("image", "cand", "ref"))
    owner = a["cs_ref_owner"].tolist()
    score, with_references = caption_scores.clip_scores(image, made, said, owner)
    close(torch.from_numpy(score), a["cs_clipscore"])
    close(torch.from_numpy(caption_scores.reference_similarity(made, said, owner)), a["cs_text_text"])
    close(torch.from_numpy(with_references), a["cs_refclipscore"])
