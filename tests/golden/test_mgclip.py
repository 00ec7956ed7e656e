"""Parts of MG-CLIP and RAPF against the official code's arrays, on the tiny CLIP of the golden vectors.

A file that no family claims fails.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from clip_state import golden_clip
from mgclip_replay import (
    FAMILIES,
    Replay,
    close,
    close_to_scale,
    family,
    lora_settings,
    our_lora,
)
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPAttention

from perdure import training
from perdure.families.clip import classifier
from perdure.layers import lora
from perdure.layers.losses import local_cross_entropy
from perdure.loading import TensorBatches
from perdure.methods.mg_clip.gap import measure_gap
from perdure.methods.mg_clip.visual import cosine_scores, fit_rows, fuse
from perdure.methods.rapf import rapf_loss
from perdure.methods.rapf.fusion import fuse_adapters
from perdure.methods.rapf.gaussians import cholesky_factors, class_statistics, hard_pairs, sample, shrink
from perdure.metrics import continual
from perdure.models.clip import ClipTransform


def test_every_file_belongs_to_a_family(golden):
    strangers = [p.name for p in golden("mgclip").glob("*.npz") if not p.name.startswith(FAMILIES)]
    assert not strangers


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_lora_gives_the_official_logits_losses_and_gradients(golden, dtype, tolerance):
    for g in family(golden, "lora_clip"):
        check_lora_clip(golden, g, dtype, tolerance)


def check_lora_clip(golden, g: Mapping[str, Tensor], dtype: torch.dtype, tolerance: float) -> None:
    clip = golden_clip(golden("mgclip"), dtype)
    rank, alpha = lora_settings(golden)
    parameters = lora.add_clip_lora(clip.model, r=rank, alpha=alpha)
    images, ids, first = g["images"].to(dtype), clip.cut(g["tokens"]), int(g["class_offset"])
    y_all, y_new = g["y_all"], g["y_new"]

    def logits(rows: slice = slice(None)) -> Tensor:
        texts = F.normalize(clip.text_features(ids[rows]), dim=1)
        return clip.scale * F.normalize(clip.image_features(images), dim=1) @ texts.T

    close(logits(), g["zs_logits"], tolerance)
    lora.load_lora_state(clip.model, our_lora(g, "lora/"))
    close(clip.image_features(images), g["raw_image_features"], tolerance)
    close(clip.text_features(ids), g["raw_text_features"], tolerance)
    close(logits(), g["logits"], tolerance)
    new_only = F.cross_entropy(logits(slice(first, None)), y_new - first)
    for name, loss in {
        "all": F.cross_entropy(logits(), y_all),
        "local": local_cross_entropy(logits(), y_new, own=range(first, logits().shape[1])),
    }.items():
        close(loss, g[f"loss_{name}"], tolerance)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        for ours, theirs in zip(gradients, our_lora(g, f"grad_{name}/", parameters).values()):
            close_to_scale(ours, theirs, tolerance)
    current = torch.autograd.grad(new_only, list(parameters.values()))
    for ours, theirs in zip(current, our_lora(g, "grad_local/", parameters).values()):
        close_to_scale(ours, theirs, tolerance)


def test_three_adam_steps_equal_the_official_ones(golden):
    for g in family(golden, "lora_clip"):
        check_adam_steps(golden, g)


def check_adam_steps(golden, g: Mapping[str, Tensor]) -> None:
    clip = golden_clip(golden("mgclip"))
    rank, alpha = lora_settings(golden)
    parameters = lora.add_clip_lora(clip.model, r=rank, alpha=alpha)
    start = our_lora(g, "lora/")
    lora.load_lora_state(clip.model, {n: 0 * t if "lora_B" in n else t for n, t in start.items()})
    ids, images, first = clip.cut(g["tokens"]), g["images"].double(), int(g["class_offset"])

    def loss(batch) -> Tensor:
        texts = F.normalize(clip.text_features(ids[first:]), dim=1)
        logits = clip.scale * F.normalize(clip.image_features(batch["image"]), dim=1) @ texts.T
        return F.cross_entropy(logits, batch["label"] - first)

    steps, n = len(g["adam_losses"]), len(images)
    runtime = Replay({("adam", e): torch.arange(n) for e in range(steps)})
    batches = TensorBatches({"image": images, "label": g["y_new"]}, batch_size=n, runtime=runtime, stage="adam")
    settings = training.Fit(epochs=steps, lr=float(g["adam_lr"]))
    training.fit(loss, parameters, batches, settings, runtime=runtime, stage="adam")
    close(runtime.losses["adam"], g["adam_losses"], 1e-9)
    for step in (1, 3):
        for name, theirs in our_lora(g, f"adam_step{step}/").items():
            close_to_scale(runtime.trained_after["adam", step][name], theirs, 1e-9)


def test_an_attention_layer_with_lora_equals_the_official_one(golden):
    for g in family(golden, "lora_attention"):
        layer, x = lora_attention(g), g["x_LNE"].transpose(0, 1).clone().requires_grad_()
        length = x.shape[1]
        masks = {"nomask": None, "causal": torch.full((length, length), -torch.inf).double().triu(1)[None, None]}
        trained = lora.lora_parameters(layer)
        for case, mask in masks.items():
            out = layer(x, attention_mask=mask)[0]
            close(out.transpose(0, 1), g[f"out_{case}"], 1e-9)
            total = (out * g["cotangent"].transpose(0, 1)).sum()
            gradients = dict(zip(["x", *trained], torch.autograd.grad(total, [x, *trained.values()])))
            close(gradients["x"].transpose(0, 1), g[f"gx_{case}"], 1e-9)
            for projection in "kv":
                for part in "AB":
                    ours = gradients[f"{projection}_proj.lora_{part}.weight"]
                    close_to_scale(ours, g[f"g_{case}/{projection}_proj_weight_lora_{part}"], 1e-9)


def lora_attention(g: Mapping[str, Tensor]) -> CLIPAttention:
    """CLIP's attention with the golden weights and adapters, in float64."""
    width, heads, rank = g["x_LNE"].shape[2], int(g["heads"]), int(g["r"])
    config = CLIPVisionConfig(hidden_size=width, num_attention_heads=heads, attn_implementation="sdpa")
    layer = CLIPAttention(config).double()
    biases = dict(zip("qkv", g["p/in_proj_bias"].chunk(3)))
    state = {f"{p}_proj.weight": g[f"p/{p}_proj_weight"] for p in "qkv"}
    state |= {f"{p}_proj.bias": bias for p, bias in biases.items()}
    state |= {f"out_proj.{part}": g[f"p/out_proj.{part}"] for part in ("weight", "bias")}
    layer.load_state_dict(state)
    lora.add_lora(layer, targets=["k_proj", "v_proj"], r=rank, alpha=float(g["scaling"]) * rank)
    adapters = {f"{p}_proj.lora_{ab}.weight": g[f"p/{p}_proj_weight_lora_{ab}"] for p in "kv" for ab in "AB"}
    lora.load_lora_state(layer, adapters)
    return layer


def test_gap_is_the_official_mean_of_batch_means(golden):
    for g in family(golden, "gap_measure"):
        texts = torch.eye(g["logits"].shape[1], dtype=g["logits"].dtype)
        gap = measure_gap(g["logits"], texts, g["targets"], batch_size=int(g["batch_size"]))
        assert gap.positive == pytest.approx(g["positive_mean"].item(), rel=1e-12)
        assert gap.negative == pytest.approx(g["negative_mean"].item(), rel=1e-12)
        whole = measure_gap(g["logits"], texts, g["targets"], batch_size=len(g["logits"]))
        assert whole.positive == pytest.approx(g["positive_mean_samplewise"].item(), rel=1e-12)
        assert whole.negative == pytest.approx(g["negative_mean_samplewise"].item(), rel=1e-12)


def test_visual_classifier_trains_like_the_official_one(golden):
    for g in family(golden, "visual_classifier"):
        first, lr = int(g["class_offset"]), float(g["lr"])
        weight = torch.cat([g["old_weight"], g["class_means"]]).requires_grad_()
        logits = cosine_scores(g["features"], weight)
        loss = F.cross_entropy(logits[:, first:], g["targets"] - first)
        loss.backward()
        close(logits, g["logits0"], 1e-10)
        close(loss, g["loss0"], 1e-10)
        close(weight.grad, g["grad0"], 1e-10)
        means = classifier.class_means(g["features"], g["targets"], range(first, len(weight)))
        close(means, g["class_means"], 1e-10)
        epochs, batch_size = int(g["epochs"]), int(g["batch_size"])
        runtime = Replay({("visual", e): g["order"][e] for e in range(epochs)})
        settings = training.Fit(epochs=epochs, lr=lr, schedule="cosine_step")
        per_epoch = -(-len(g["features"]) // batch_size)
        lrs = [lr * training.lr_factor(settings, step, per_epoch) for step in range(epochs * per_epoch)]
        close(torch.tensor(lrs, dtype=torch.float64), g["lrs"], 1e-10)
        rows = fit_rows(
            g["class_means"],
            g["features"],
            g["targets"] - first,
            batch_size=batch_size,
            settings=settings,
            runtime=runtime,
        )
        close(runtime.losses["visual"], g["losses"], 1e-10)
        close(torch.cat([g["old_weight"], rows]), g["weight_final"], 1e-10)
        close(runtime.trained_after["visual", 1]["rows"], g["weight_after_step1"][first:], 1e-10)


def test_fusion_equals_the_official_one(golden):
    for g in family(golden, "fusion"):
        text, cosines = g["text_logits"], g["visual_cosine_logits"]
        weights = {"text_weight": float(g["a"]), "visual_weight": float(g["b"])}
        double = fuse(text, cosines, **weights)
        single = fuse(text, cosines, text_softmax="single", **weights)
        close(double, g["combined"], 1e-12)
        close(single, g["combined_single_softmax_variant"], 1e-12)
        assert torch.equal(double.argmax(1), g["pred"])
        assert torch.equal(single.argmax(1), g["pred_single_softmax_variant"])
        close(fuse(text, cosines, text_weight=1.0, visual_weight=0.0), g["text_prob_twice"], 1e-12)
        close(
            fuse(text, cosines, text_weight=1.0, visual_weight=0.0, text_softmax="single"), g["text_prob_once"], 1e-12
        )
        close(fuse(text, cosines, text_weight=0.0, visual_weight=1.0), g["visual_prob"], 1e-12)
        assert torch.equal(text.argmax(1), g["pred_text"])
        assert torch.equal(cosines.argmax(1), g["pred_visual"])


def test_metrics_equal_continuum_and_the_textbook(golden):
    for g in family(golden, "metrics"):
        tasks = int(g["tasks"])
        matrix, counts = np.full((tasks, tasks), np.nan), np.zeros((tasks, tasks), dtype=np.int64)
        for t in range(tasks):
            right = g[f"pred_{t}"] == g[f"target_{t}"]
            for j in range(t + 1):
                own = right[g[f"taskid_{t}"] == j]
                matrix[t, j], counts[t, j] = own.double().mean().item(), len(own)
        np.testing.assert_allclose(matrix, g["acc_matrix"].numpy(), atol=1e-12)
        for t in range(tasks):
            part, n = matrix[: t + 1, : t + 1], counts[: t + 1, : t + 1]
            compat = continual.continuum_compat(part)
            assert continual.last_accuracy(part, counts=n) == pytest.approx(g["accuracy"][t].item(), abs=1e-12)
            average = g["average_incremental_accuracy"][t].item()
            assert continual.average_accuracy(part, counts=n) == pytest.approx(average, abs=1e-12)
            assert compat["forgetting"] == pytest.approx(g["forgetting"][t].item(), abs=1e-12)
            assert compat["bwt"] == pytest.approx(g["backward_transfer"][t].item(), abs=1e-12)
            assert compat["fwt"] == pytest.approx(g["forward_transfer"][t].item(), abs=1e-12)
        assert 100 * continual.last_accuracy(matrix, counts=counts) == pytest.approx(g["last"].item(), abs=1e-10)
        assert 100 * continual.average_accuracy(matrix, counts=counts) == pytest.approx(g["avg"].item(), abs=1e-10)
        assert continual.forgetting(matrix) == pytest.approx(g["textbook_forgetting"].item(), abs=1e-12)
        assert continual.backward_transfer(matrix) == pytest.approx(g["textbook_bwt"].item(), abs=1e-12)


def test_preprocessing_equals_the_official_one_in_every_case(golden):
    for g in family(golden, "preprocess"):
        cases = {name.split("/")[0] for name in g}
        assert cases
        for case in cases:
            (pixels,) = [g[n].numpy() for n in g if n.startswith(f"{case}/uint8")]
            ours = ClipTransform(size=int(g[f"{case}/n_px"]))(pixels)
            torch.testing.assert_close(ours, g[f"{case}/out"], rtol=0, atol=1e-6)


def test_rapf_components_equal_the_official_ones(golden):
    for g in family(golden, "rapf_components"):
        classes = range(int(g["stat_labels"].max()) + 1)
        means, covariances = class_statistics(g["stat_features"], g["stat_labels"], classes)
        close(means, g["stat_means"], 1e-9)
        close(covariances, g["stat_covs"], 1e-9)
        close(shrink(g["shrink_in"]), g["shrink_out"], 1e-9)
        for shrinkage in (0, 1):
            factor = cholesky_factors(g["shrink_in"][None], shrinkage=bool(shrinkage))
            drawn = sample(g["sample_mean"][None], factor, torch.tensor([0]), g["sample_noise"][None])
            close(drawn, g[f"sample_out_shrink{shrinkage}"], 1e-9)
        fused = [name for name in g if name.startswith("fuse_out_")]
        assert fused
        for name in fused:
            mix_bias = float(name.removeprefix("fuse_out_"))
            close(fuse_adapters(g["fuse_old"], g["fuse_new"], mix_bias=mix_bias), g[name], 1e-9)
        check_rapf_loss(g)
        first = int(g["hp_initial"]) + (int(g["hp_task"]) - 1) * int(g["hp_increment"])
        found = hard_pairs(g["hp_features"], first=first, threshold=float(g["hp_threshold"]))
        assert torch.equal(found, g["hp_pairs"])
        distances = torch.cdist(g["hp_features"][:first], g["hp_features"][first:])
        torch.testing.assert_close(distances.float(), g["hp_class_diff"], rtol=1e-5, atol=1e-6)


def check_rapf_loss(g: Mapping[str, Tensor]) -> None:
    adapter = g["loss_adapter"].clone().requires_grad_()
    n = len(g["loss_image_feats"])
    batch = {
        "feature": g["loss_image_feats"],
        "label": g["loss_targets"][:n],
        "replay": g["loss_replay"],
        "replay_label": g["loss_targets"][n:],
        "pair": g["loss_edge"],
        "pair_own": g["loss_edge_pos"],
        "pair_other": g["loss_edge_neg"],
    }
    scale = torch.tensor(100.0, dtype=torch.float64)
    values = rapf_loss(batch, adapter, g["loss_text"], scale=scale, margin=0.1)
    values["loss"].backward()
    close(values["cross_entropy"], g["loss_ce"], 1e-9)
    close(values["hinge"], g["loss_hinge"], 1e-9)
    close(adapter.grad, g["loss_grad_adapter"], 1e-9)
