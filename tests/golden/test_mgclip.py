"""MG-CLIP, RAPF and Continual-CLIP against the official code's arrays, on the tiny CLIP of the golden vectors.

Files are found by pattern, so that a folder with other sizes or more files of a family is checked too; a file
that no family claims fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clip_state import golden_clip
from torch import Tensor
from torch.nn import functional as F

from perdure import training
from perdure.methods.continual_clip import Config as ContinualClipConfig
from perdure.methods.continual_clip import ContinualClip
from perdure.methods.mg_clip.gap import measure_gap
from perdure.methods.mg_clip.visual import cosine_scores, fit_rows, fuse
from perdure.methods.rapf import Config as RapfConfig
from perdure.methods.rapf import Rapf, rapf_loss
from perdure.methods.rapf.fusion import fuse_adapters
from perdure.methods.rapf.gaussians import cholesky_factors, class_statistics, hard_pairs, sample, shrink
from perdure.metrics import continual
from perdure.models.clip import Clip, ClipTransform
from perdure.nn import clip_classifier as classifier
from perdure.runtime import Runtime, Steps
from perdure.types import Example, Examples, Stream, Task

FAMILIES = (
    "clip_state",
    "lora_clip",
    "lora_attention",
    "gap_measure",
    "epoch_selection",
    "visual_classifier",
    "fusion",
    "metrics",
    "preprocess",
    "e2e_mgclip",
    "rapf_components",
    "e2e_rapf",
    "e2e_continual_clip",
)


def family(golden, name: str) -> Iterator[dict[str, Tensor]]:
    """The arrays of every file of a family, as tensors by name."""
    paths = sorted(golden("mgclip").glob(f"{name}*.npz"))
    assert paths, f"no file {name}*.npz"
    for path in paths:
        with np.load(path) as arrays:
            yield {n: torch.from_numpy(arrays[n]) for n in arrays.files}


def test_every_file_belongs_to_a_family(golden):
    strangers = [p.name for p in golden("mgclip").glob("*.npz") if not p.name.startswith(FAMILIES)]
    assert not strangers


# -- parts --------------------------------------------------------------------------------------------------


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
            g["targets"],
            first=first,
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


# -- whole runs ---------------------------------------------------------------------------------------------


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


# -- replaying ----------------------------------------------------------------------------------------------


class Replay(Runtime):
    """A Runtime with recorded orders and noise, which keeps what the stages trained."""

    def __init__(self, orders: Mapping[tuple[Any, ...], Tensor], *, noise: Tensor | None = None) -> None:
        super().__init__(device="cpu", quiet=True)
        self.orders, self.noise, self.drawn = orders, noise, 0
        self.losses: dict[str, Tensor] = {}
        self.trained: dict[str, dict[str, Tensor]] = {}
        self.trained_after: dict[tuple[str, int], dict[str, Tensor]] = {}
        self.logged: dict[str, dict[str, Any]] = {}

    def permutation(self, n: int, *key: Any) -> Tensor:
        order = self.orders[key]
        assert sorted(order.tolist()) == list(range(n))
        return order

    def normal(self, shape, *key: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        rows = int(np.prod(shape[:-1]))
        assert self.noise is not None
        taken = self.noise[self.drawn : self.drawn + rows]
        self.drawn += rows
        return taken.reshape(*shape).to(dtype)

    def noise_left(self) -> int:
        return 0 if self.noise is None else len(self.noise) - self.drawn

    def log(self, event: str, **values: Any) -> None:
        self.logged[event] = values

    def steps(self, stage: str, *, total: int, state: Mapping[str, Any], every: str = "") -> Steps:
        return RecordedSteps(self, stage, total=total, state=state, label=stage)


class RecordedSteps(Steps):
    """Steps that leave their losses and trained tensors with the Replay."""

    def __iter__(self) -> Iterator[int]:
        assert isinstance(self.runtime, Replay)
        for step in super().__iter__():
            yield step
            self.runtime.trained_after[self.stage, step + 1] = self._tensors()
        self.runtime.losses[self.stage] = torch.tensor(self.state["history"].losses, dtype=torch.float64)
        self.runtime.trained[self.stage] = self._tensors()

    def _tensors(self) -> dict[str, Tensor]:
        return {n.split("/", 1)[1]: p.detach().clone() for n, p in self.state["parameters"].items()}


class TableTokenizer:
    """The prompt of a class is its original number; its tokens are that row of the golden file."""

    def __init__(self, table: Tensor) -> None:
        self.table, self.eot = table, int(table.max())

    def __call__(self, texts, *, truncate: str = "no") -> Tensor:
        return self.table[[int(text) for text in texts]]


class Passthrough:
    """The golden images are normalised already."""

    def pixels(self, image: np.ndarray) -> Tensor:
        return torch.from_numpy(image)

    def normalize(self, pixels: Tensor) -> Tensor:
        return pixels


def replay_clip(folder: Path, g: Mapping[str, Tensor], dtype: torch.dtype) -> Clip:
    clip = golden_clip(folder, dtype)
    clip.tokenizer, clip.transform = TableTokenizer(g["tokens"]), Passthrough()  # type: ignore[assignment]
    return clip


def replay_stream(g: Mapping[str, Tensor]) -> Stream:
    """The run's tasks, in which a label is the place of the original class in the class order."""
    order, initial, increment = g["class_order"].tolist(), int(g["initial_increment"]), int(g["increment"])
    train = relabelled(g, "train", order)
    test = relabelled(g, "test", order)
    tasks = []
    for t in range(int(g["n_tasks"])):
        first, end = (0 if t == 0 else initial + (t - 1) * increment), initial + t * increment
        tasks.append(
            Task(
                index=t,
                name=f"task {t}",
                kind="classify",
                candidates=tuple(str(c) for c in order[first:end]),
                offset=first,
                train=between(train, first, end),
                test=between(test, first, end),
                facts={"test of all seen": between(test, 0, end)},
            )
        )
    return Stream(name="golden", tasks=tuple(tasks))


def relabelled(g: Mapping[str, Tensor], split: str, order: list[int]) -> Examples:
    images, labels = g[f"{split}_images"].numpy(), g[f"{split}_labels"].tolist()
    items = [
        Example(id=f"{split}/{i}", inputs={"image": image}, target=order.index(label))
        for i, (image, label) in enumerate(zip(images, labels))
    ]
    return Examples.of(items)


def between(examples: Examples, first: int, end: int) -> Examples:
    return examples.select([i for i, label in enumerate(examples.targets) if first <= label < end])


def learn_and_score(method: Any, stream: Stream, task: Task, runtime: Runtime) -> Tensor:
    """Scores over all seen classes, for all tests of seen classes in the data set's order."""
    runtime.task = task.index
    method.learn(task, runtime)
    images = [method.preprocess(example, False)["image"] for example in task.facts["test of all seen"]]
    with torch.no_grad():
        return method.predictor(stream.query(task, after=task.index))({"image": torch.stack(images)})


def check_predictions(g: Mapping[str, Tensor], t: int, scores: Tensor, stream: Stream) -> Tensor:
    predicted = scores.argmax(1)
    assert torch.equal(predicted, g[f"task{t}/pred"])
    targets = torch.tensor(stream.tasks[t].facts["test of all seen"].targets)
    assert torch.equal(targets, g[f"task{t}/target"])
    return predicted == targets


def check_metrics(g: Mapping[str, Tensor], stream: Stream, right: list[Tensor]) -> None:
    """The printed numbers: percent, rounded to two decimals."""
    tasks = len(stream)
    matrix, counts = np.full((tasks, tasks), np.nan), np.zeros((tasks, tasks), dtype=np.int64)
    for t in range(tasks):
        targets = torch.tensor(stream.tasks[t].facts["test of all seen"].targets)
        for j, task in enumerate(stream.tasks[: t + 1]):
            own = right[t][(targets >= task.offset) & (targets < task.offset + len(task.candidates))]
            matrix[t, j], counts[t, j] = 100 * own.double().mean().item(), len(own)
        part, n = matrix[: t + 1, : t + 1], counts[: t + 1, : t + 1]
        ours = continual.continuum_compat(part)
        ours["acc"] = continual.last_accuracy(part, counts=n)
        ours["avg_acc"] = continual.average_accuracy(part, counts=n)
        for name, value in ours.items():
            assert value == pytest.approx(g[f"task{t}/metric_{name}"].item(), abs=0.00501), (t, name)
        per_task = g.get(f"task{t}/metric_acc_per_task")
        if per_task is not None:
            np.testing.assert_allclose(matrix[t, : t + 1], per_task.numpy(), atol=0.00501)
    assert continual.last_accuracy(matrix, counts=counts) == pytest.approx(g["last"].item(), abs=0.00501)
    assert continual.average_accuracy(matrix, counts=counts) == pytest.approx(g["avg"].item(), abs=0.00501)


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours.detach().to(theirs.dtype), theirs, rtol=tolerance, atol=tolerance)
