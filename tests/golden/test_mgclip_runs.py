"""Whole runs of MG-CLIP, RAPF and Continual-CLIP against the official runs: losses, weights, scores, metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from mgclip_replay import (
    Replay,
    between,
    check_metrics,
    check_predictions,
    close,
    close_to_scale,
    family,
    learn_and_score,
    lora_settings,
    our_lora,
    relabelled,
    replay_clip,
    replay_stream,
)
from torch import Tensor
from torch.nn import functional as F

from perdure.families.clip import classifier
from perdure.layers import lora
from perdure.methods.continual_clip import Config as ContinualClipConfig
from perdure.methods.continual_clip import ContinualClip
from perdure.methods.mg_clip import Config as MgClipConfig
from perdure.methods.mg_clip import MgClip
from perdure.methods.mg_clip.visual import cosine_scores
from perdure.methods.rapf import Config as RapfConfig
from perdure.methods.rapf import Rapf
from perdure.methods.rapf.gaussians import shrink
from perdure.types import Stream, Task


def test_continual_clip_answers_as_the_official_run(golden):
    for g in family(golden, "e2e_continual_clip"):
        clip = replay_clip(golden("mgclip"), g, torch.float32)
        method = ContinualClip(ContinualClipConfig(template="{}"), clip=clip)
        stream, runtime = replay_stream(g), Replay({})
        predictions = []
        for t, task in enumerate(stream):
            scores = learn_and_score(method, stream, task, runtime)
            close(scores.softmax(1), g[f"task{t}/prob"], 1e-4)
            predictions.append(check_predictions(g, t, scores, stream))
        check_metrics(g, stream, predictions)


def test_mg_clip_learns_as_the_official_run(golden):
    for g in family(golden, "e2e_mgclip"):
        method, stream = replay_mg_clip(golden, g), replay_stream(g)
        predictions = []
        for t, task in enumerate(stream):
            runtime = Replay(mg_clip_orders(g, t))
            scores = learn_and_score(method, stream, task, runtime)
            gap = runtime.logged["gap"]
            assert gap["positive_before"] == pytest.approx(g["gap_positive"][t].item(), rel=1e-8)
            assert gap["negative_before"] == pytest.approx(g["gap_negative"][t].item(), rel=1e-8)
            close(runtime.losses["lora"], g[f"task{t}/lora_losses"], 1e-8)
            for name, theirs in our_lora(g, f"task{t}/lora/").items():
                close_to_scale(lora.lora_state(method.clip.model)[name], theirs, 1e-8)
            close(runtime.losses["visual"], g[f"task{t}/visual_losses"], 1e-8)
            close(method.rows, g[f"task{t}/visual_weight"], 1e-8)
            close(scores, g[f"task{t}/combined"], 1e-8)
            check_both_classifiers(method, stream, task, g, t)
            predictions.append(check_predictions(g, t, scores, stream))
            check_task_ids(g, t, stream)
        check_metrics(g, stream, predictions)


def test_the_probe_chooses_the_official_number_of_epochs(golden):
    for g in family(golden, "epoch_selection"):
        runs = sorted({name.split("/")[0] for name in g if name.startswith("run")})
        assert runs
        for run in runs:
            r = {name.removeprefix(f"{run}/"): value for name, value in g.items() if name.startswith(f"{run}/")}
            check_probe(golden, g, r)


def check_probe(golden, g: Mapping[str, Tensor], r: Mapping[str, Tensor]) -> None:
    initial, most = int(g["initial_increment"]), int(g["max_epochs"])
    train = between(relabelled(g, "train", list(range(len(g["tokens"])))), 0, initial)
    names = tuple(map(str, range(initial)))
    task = Task(index=0, name="task 0", kind="classify", candidates=names, train=train)
    settings = {"lr": float(r["lr"]), "max_epochs": most, "gap_tolerance": float(g["threshold"])}
    method = replay_mg_clip(golden, g, **settings)
    start = lora.lora_state(method.clip.model)
    ran = len(r["neg_per_epoch"])
    orders: dict[tuple[Any, ...], Tensor] = {("gap",): r["gap_order0"]}
    orders |= {("gap", e): r["gap_orders"][e] for e in range(ran)}
    orders |= {("probe", e): r["train_orders"][e] for e in range(ran)}
    probe = method.probe(task, Replay(orders))
    assert probe.before.negative == pytest.approx(r["neg0"].item(), rel=1e-8)
    assert probe.before.positive == pytest.approx(r["pos0"].item(), rel=1e-8)
    assert [gap.negative for gap in probe.after] == pytest.approx(r["neg_per_epoch"].tolist(), rel=1e-8)
    assert [gap.positive for gap in probe.after] == pytest.approx(r["pos_per_epoch"].tolist(), rel=1e-8)
    official = int(r["selected_epochs"])
    assert probe.held == (official == -1)
    assert probe.epochs == (method.config.fallback_epochs if official == -1 else official)
    for name, value in lora.lora_state(method.clip.model).items():
        assert torch.equal(value, start[name])


def replay_mg_clip(golden, g: Mapping[str, Tensor], **settings: Any) -> MgClip:
    rank, alpha = lora_settings(golden)
    known = {"batch_size": "train_batch_size", "epochs": "epochs", "lora_rank": "lora_rank"}
    known |= {"visual_batch_size": "visual_batch_size", "visual_epochs": "visual_epochs"}
    counts = {ours: int(g[theirs]) for ours, theirs in known.items() if theirs in g}
    rates = {name: float(g[name]) for name in ("lr", "visual_lr") if name in g}
    config = MgClipConfig(**{"template": "{}", "lora_rank": rank, "lora_alpha": alpha, **counts, **rates, **settings})
    method = MgClip(config, clip=replay_clip(golden("mgclip"), g, torch.float64))
    lora.load_lora_state(method.clip.model, our_lora(g, "init_lora/"))
    return method


def mg_clip_orders(g: Mapping[str, Tensor], t: int) -> dict[tuple[Any, ...], Tensor]:
    orders: dict[tuple[Any, ...], Tensor] = {("gap",): g[f"task{t}/order/gap"]}
    orders |= {("lora", e): g[f"task{t}/order/lora_epoch{e}"] for e in range(int(g["epochs"]))}
    orders |= {("visual", e): g[f"task{t}/order/visual_epoch{e}"] for e in range(int(g["visual_epochs"]))}
    return orders


def check_both_classifiers(method: MgClip, stream: Stream, task: Task, g: Mapping[str, Tensor], t: int) -> None:
    """The text classifier's probabilities and the visual one's cosines before the vote, and the class means."""
    images = torch.stack([torch.from_numpy(e.inputs["image"]) for e in task.facts["test of all seen"]])
    with torch.no_grad():
        features = classifier.unit_image_features(method.clip, images)
        names = classifier.prompts("{}", method.classes)
        texts = classifier.encode_prompts(method.clip, names)
        close((method.clip.scale * features @ texts.T).softmax(1), g[f"task{t}/text_prob"], 1e-8)
        close(cosine_scores(features, method.rows), g[f"task{t}/visual_cosine"], 1e-8)
        train = torch.stack([torch.from_numpy(e.inputs["image"]) for e in task.train])
        own = classifier.unit_image_features(method.clip, train)
        means = classifier.class_means(own, torch.tensor(task.train.targets), classifier.labels_of(task))
        close(means, g[f"task{t}/class_means"], 1e-8)


def check_task_ids(g: Mapping[str, Tensor], t: int, stream: Stream) -> None:
    targets = stream.tasks[t].facts["test of all seen"].targets
    ours = [next(task.index for task in stream if y in classifier.labels_of(task)) for y in targets]
    assert ours == g[f"task{t}/eval_task_ids"].tolist()


def test_rapf_learns_as_the_official_run(golden):
    for g in family(golden, "e2e_rapf"):
        clip = replay_clip(golden("mgclip"), g, torch.float32)
        method = Rapf(rapf_config(g), clip=clip)
        method.adapter = g["init_adapter"].clone()
        stream = replay_stream(g)
        predictions = []
        for t, task in enumerate(stream):
            runtime = Replay(rapf_orders(g, t), noise=g.get(f"task{t}/gaussian_noise"))
            scores = learn_and_score(method, stream, task, runtime)
            assert runtime.noise_left() == 0
            torch.testing.assert_close(runtime.losses["train"], g[f"task{t}/losses"], rtol=1e-3, atol=1e-3)
            trained = runtime.trained["train"]["adapter"]
            close(trained, g[f"task{t}/adapter_before_fusion"], 1e-4)
            close(method.adapter, g[f"task{t}/adapter_after_fusion"], 1e-4)
            close(method.means, g[f"task{t}/class_means"], 1e-4)
            check_factors(method.factors[task.offset :], g[f"task{t}/class_covs"], shrinkage=bool(g["shrinkage"]))
            assert torch.equal(runtime.logged["pairs"]["pairs"], g[f"task{t}/hard_pairs"])
            texts = classifier.encode_prompts(clip, method.classes)
            close(texts, F.normalize(g[f"task{t}/class_name_features"], dim=1), 1e-4)
            torch.testing.assert_close(scores, g[f"task{t}/eval_logits"], rtol=1e-3, atol=1e-3)
            predictions.append(check_predictions(g, t, scores, stream))
        check_metrics(g, stream, predictions)


def rapf_config(g: Mapping[str, Tensor]) -> RapfConfig:
    return RapfConfig(
        template="{}",
        epochs=int(g["epochs"]),
        lr=float(g["lr"]),
        milestones=tuple(g["milestones"].tolist()),
        batch_size=int(g["train_batch_size"]),
        beta=float(g["beta"]),
        threshold=float(g["threshold"]),
        mix_bias=float(g["mix_bias"]),
        shrinkage=bool(g["shrinkage"]),
    )


def rapf_orders(g: Mapping[str, Tensor], t: int) -> dict[tuple[Any, ...], Tensor]:
    orders: dict[tuple[Any, ...], Tensor] = {}
    for epoch in range(int(g["epochs"])):
        orders["train", epoch] = g[f"task{t}/order/train_epoch{epoch}"]
        if t:
            orders["classes", epoch] = g[f"task{t}/old_class_shuffle"][epoch]
    return orders


def check_factors(factors: Tensor, covariances: Tensor, *, shrinkage: bool) -> None:
    expected = torch.stack([shrink(c) for c in covariances]) if shrinkage else covariances
    close(factors @ factors.mT, expected, 1e-4)
