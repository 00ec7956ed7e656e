"""MG-CLIP: keep CLIP's modality gap by few LoRA epochs, make up for the rest with a classifier in image space.

Huang et al., Mind the Gap: Preserving and Compensating for the Modality Gap in CLIP-Based Continual Learning,
ICCV 2025. One LoRA is carried through all tasks and trained on the current task's classes alone; the number of epochs
is the one that keeps the mean similarity of negative pairs within a tenth in the first task. Then one weight row a
class is trained on frozen image features, and both classifiers vote. No example of a past task is kept by default.

Needs: 12 GB GPU memory for ViT-B/16 at batch size 128.

Knows the stages of a task and what is kept between tasks. The maths is in `gap`, `visual` and `replay`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from perdure import kept_examples, training
from perdure.checkpoint import stored_bytes
from perdure.families.clip import classifier, export, settings
from perdure.layers import lora
from perdure.loading import ExampleBatches
from perdure.methods.mg_clip.gap import Gap, gap_left, measure_gap, select_epochs
from perdure.methods.mg_clip.replay import replay_loss, update_memory
from perdure.methods.mg_clip.visual import cosine_scores, fit_rows, fuse
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.Adapters):
    """Settings of MG-CLIP; the defaults are the paper's for CIFAR-100 in ten tasks of ten classes."""

    epochs: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """LoRA epochs of every task. `auto`: probe the first task for as many as keep the gap (paper: eq. 3); if
    none of them leaves it, `fallback_epochs`."""
    max_epochs: Annotated[int, Field(ge=1)] = 10
    """Most epochs that `auto` probes."""
    min_epochs: Annotated[int, Field(ge=1)] = 1
    """Fewest epochs that `auto` chooses."""
    fallback_epochs: Annotated[int, Field(ge=1)] = 1
    """Epochs that `auto` chooses where `max_epochs` epochs do not leave the gap, so that the rule gives no number;
    the default is what the published configuration of CIFAR-100 states. At least `min_epochs`."""
    gap_tolerance: Annotated[float, Field(gt=0)] = 0.1
    """Largest relative change of the mean negative similarity that counts as a kept gap."""
    gap_examples: Annotated[int, Field(ge=0)] = 2048
    """Most images of a task whose gap is logged (zero-shot and after training); 0: none. `auto` uses all images."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate of the LoRA stage (Adam); falls to a hundredth as a cosine, epoch by epoch."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Images a step of the LoRA stage, and at a time where features are computed."""
    lora_init: Literal["xavier", "kaiming"] = "xavier"
    """How A is drawn (B is 0): as in the paper's code, or as peft does."""
    reset: Literal["never", "B", "all"] = "never"
    """Put B, or A and B, back to their first values before each later task."""
    freeze_A: bool = False
    """Train only B after the first task."""
    visual: bool = True
    """Train and use the classifier in image space."""
    visual_lr: Annotated[float, Field(gt=0)] = 5e-4
    """Learning rate of the visual classifier (Adam); falls to a hundredth as a cosine, step by step."""
    visual_batch_size: Annotated[int, Field(ge=1)] = 64
    """Images a step of the visual classifier."""
    visual_epochs: Annotated[int, Field(ge=0)] = 3
    """Epochs of the visual classifier; 0 keeps the class means."""
    text_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the text classifier's probabilities in the vote."""
    visual_weight: Annotated[float, Field(ge=0)] = 4.0
    """Weight of the visual classifier's probabilities in the vote."""
    text_softmax: Literal["double", "single"] = "double"
    """`double` takes the softmax of the text probabilities again, as the published numbers do."""
    real_replay: bool = False
    """Keep raw images of past classes and mix them into the LoRA stage."""
    memory_size: Annotated[int, Field(ge=1)] = 2000
    """Images kept by `real_replay`, equally many of each class."""
    replay_weight: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the replayed images' cross-entropy over all classes."""
    balance_epochs: Annotated[int, Field(ge=0)] = 0
    """With `real_replay`: epochs on the balanced memory alone after each later task, at a hundredth of `lr` for the
    LoRA and a tenth of `visual_lr` for all rows of the visual classifier."""

    def faults(self):
        if self.epochs != "auto":
            return
        for name in ("min_epochs", "fallback_epochs"):
            if getattr(self, name) > self.max_epochs:
                yield name, f"{getattr(self, name)} is above max_epochs, {self.max_epochs}"


class Probe(NamedTuple):
    """What the search for the number of epochs has seen."""

    epochs: int
    before: Gap
    after: list[Gap]
    """After 1, 2, ... epochs; the last one has left the gap, unless `held`."""
    held: bool
    """The gap was never left: `epochs` is the fallback."""


class MgClip(classifier.OfNames):
    """State: LoRA, one row a class of the visual classifier, class names, the number of epochs, the memory."""

    Config = Config
    answers = frozenset({"classify"})
    not_merged = "its low-rank update and its visual classifier belong together"

    def __init__(self, config: Config, *, clip: Clip) -> None:
        classifier.check_template(config.template)
        self.config, self.clip = config, clip
        lora.add_clip_lora(
            clip.model, mode=config.lora_mode, r=config.lora_rank, alpha=config.lora_alpha, init=config.lora_init
        )
        self.initial = lora.lora_state(clip.model)
        self.rows = torch.zeros(0, clip.dim, dtype=clip.dtype)
        self.classes: list[str] = []
        self.epochs: int | None = None if config.epochs == "auto" else config.epochs
        self.memory: list[Example] = []

    def preprocess(self, example: Example, training: bool) -> Batch:
        return classifier.preprocess(self.clip, example)

    # -- learning ---------------------------------------------------------------------------------------

    def learn(self, task: Task, runtime: Runtime) -> None:
        config, later = self.config, bool(self.classes)
        classifier.require_every_class(task)
        classes = classifier.extend_classes(self.classes, task)
        if later and config.reset != "never":
            lora.reset_lora(self.clip.model, self.initial, only_b=config.reset == "B")
        if later and config.freeze_A:
            lora.freeze_a(self.clip.model)
        if self.epochs is None:
            probe = self.probe(task, runtime)
            self.epochs, before = probe.epochs, probe.before
        else:
            before = self._zero_shot_gap(task, classes, runtime, config.gap_examples)
        self.fit_lora(task, classes, self.epochs, "lora", runtime)
        if config.real_replay:
            self.memory = update_memory(self.memory, task, size=config.memory_size, runtime=runtime)
            if later and config.balance_epochs:
                self._balance_lora(classes, runtime)
        if config.visual or before is not None:
            found = self.encode(task.train, runtime)
            self._log_gap(found, before, classes, task, runtime)
        if config.visual:
            self.fit_visual(found, task, runtime)
            if later and config.real_replay and config.balance_epochs:
                self._balance_visual(runtime)
        self.classes = classes

    def probe(self, task: Task, runtime: Runtime) -> Probe:
        """How many epochs keep the gap in this task; leaves the LoRA as it was.

        The schedule is that of `max_epochs` epochs. The mean negative similarity over all training images is
        measured before and after each epoch; the first epoch that changes it by more than `gap_tolerance` ends
        the search and does not count.
        """
        config, start = self.config, lora.lora_state(self.clip.model)
        classes = classifier.extend_classes(self.classes, task)
        before = self._zero_shot_gap(task, classes, runtime, len(task.train))
        assert before is not None
        trace = _Trace()

        def left(epoch: int) -> bool:
            found = self.encode(task.train.select(self._gap_order(task, runtime, epoch).tolist()), runtime)
            trace.gaps.append(self._gap(found, classes))
            return gap_left(before.negative, trace.gaps[-1].negative, tolerance=config.gap_tolerance)

        gap_left(before.negative, before.negative, tolerance=config.gap_tolerance)  # a start of 0 is refused early
        self.fit_lora(task, classes, config.max_epochs, "probe", runtime, until=left, keep={"gaps": trace})
        lora.load_lora_state(self.clip.model, start)
        negatives = [gap.negative for gap in trace.gaps]
        held = not gap_left(before.negative, negatives[-1], tolerance=config.gap_tolerance)
        if held:
            epochs = max(config.fallback_epochs, config.min_epochs)
            runtime.say(
                f"warning: {len(negatives)} epochs did not leave the gap, so that the rule gives no number of epochs; "
                f"every task is trained for {epochs} (method.fallback_epochs)"
            )
        else:
            tolerance = config.gap_tolerance
            epochs = select_epochs(before.negative, negatives, tolerance=tolerance, minimum=config.min_epochs)
        runtime.log(
            "epochs",
            chosen=epochs,
            held=held,
            negative_before=before.negative,
            negatives=negatives,
            positive_before=before.positive,
            positives=[gap.positive for gap in trace.gaps],
        )
        return Probe(epochs, before, trace.gaps, held)

    def fit_lora(
        self,
        task: Task,
        classes: Sequence[str],
        epochs: int,
        stage: str,
        runtime: Runtime,
        until: Callable[[int], bool] | None = None,
        keep: Mapping[str, Any] | None = None,
    ) -> None:
        """Local cross-entropy over the current task's prompts; over all seen ones only where images are replayed."""
        config, first, clip = self.config, task.offset, self.clip
        taught = classifier.Taught(task)
        replayed = [e for e in self.memory if e.target not in taught.labels] if first else []
        ids = self._ids(classes if replayed else taught.names(classes))

        def loss(batch: Batch) -> Tensor:
            logits = classifier.logits(clip, batch["image"], ids)
            if replayed:
                return replay_loss(logits, batch["label"], own=taught.labels, weight=config.replay_weight)
            return F.cross_entropy(logits, taught.places(batch["label"]))

        examples = classifier.Joined(task.train, replayed) if replayed else task.train
        batches = ExampleBatches(
            examples, self.preprocess, batch_size=config.batch_size, runtime=runtime, stage=stage, training=True
        )
        settings = training.Fit(epochs=epochs, lr=config.lr, schedule="cosine_epoch", accumulate=config.accumulate)
        training.fit(
            loss,
            lora.lora_parameters(clip.model),
            batches,
            settings,
            runtime=runtime,
            stage=stage,
            until=until,
            keep=keep,
        )

    def fit_visual(self, found: Mapping[str, Tensor], task: Task, runtime: Runtime) -> None:
        """New rows from class means, trained on the cached features together with the rows of classes that come again;
        the others stay, bit for bit."""
        config, taught = self.config, classifier.Taught(task)
        classifier.require_every_class(task, found["label"])
        again = [label for label in taught.labels if label < task.offset]
        rows = classifier.class_means(found["feature"], found["label"], classifier.labels_of(task))
        rows = torch.cat([self.rows[again].to(rows), rows])
        if config.visual_epochs:
            rows = fit_rows(
                rows,
                found["feature"],
                taught.places(found["label"]),
                batch_size=config.visual_batch_size,
                settings=training.Fit(epochs=config.visual_epochs, lr=config.visual_lr, schedule="cosine_step"),
                runtime=runtime,
            )
        self.rows = self.rows.index_copy(0, torch.tensor(again, dtype=torch.long), rows[: len(again)].cpu())
        self.rows = classifier.replace_rows(self.rows, rows[len(again) :], first=task.offset)

    def _balance_lora(self, classes: Sequence[str], runtime: Runtime) -> None:
        """Full cross-entropy on the memory alone."""
        config, ids = self.config, self._ids(classes)
        batches = ExampleBatches(
            self.memory,
            self.preprocess,
            batch_size=config.batch_size,
            runtime=runtime,
            stage="balance",
            training=True,
        )
        settings = training.Fit(
            epochs=config.balance_epochs,
            lr=0.01 * config.lr,
            schedule="cosine_epoch",
            floor=0.1,
            accumulate=config.accumulate,
        )
        training.fit(
            lambda batch: F.cross_entropy(classifier.logits(self.clip, batch["image"], ids), batch["label"]),
            lora.lora_parameters(self.clip.model),
            batches,
            settings,
            runtime=runtime,
            stage="balance",
        )

    def _balance_visual(self, runtime: Runtime) -> None:
        """All rows of the visual classifier on the memory's features; lowest rate: a hundredth of the LoRA's."""
        config = self.config
        found = self.encode(self.memory, runtime)
        lr = 0.1 * config.visual_lr
        floor = min(0.01 * config.lr / lr, 1.0)
        self.rows = fit_rows(
            self.rows,
            found["feature"],
            found["label"],
            batch_size=config.visual_batch_size,
            settings=training.Fit(epochs=config.balance_epochs, lr=lr, schedule="cosine_step", floor=floor),
            runtime=runtime,
            stage="balance visual",
        ).cpu()

    # -- features and the gap ---------------------------------------------------------------------------

    def _ids(self, names: Sequence[str]) -> Tensor:
        texts = classifier.prompts(self.config.template, names, clean=self.config.clean_names)
        return classifier.tokenize(self.clip, texts, self.clip.device)

    def encode(self, examples: Sequence[Example], runtime: Runtime) -> dict[str, Tensor]:
        """Unit image features, labels and positions of examples, by one pass of the image tower."""
        return classifier.encode_images(self.clip, examples, batch_size=self.config.batch_size, runtime=runtime)

    def _texts(self, names: Sequence[str]) -> Tensor:
        texts = classifier.prompts(self.config.template, names, clean=self.config.clean_names)
        return classifier.encode_prompts(self.clip, texts)

    def _gap_order(self, task: Task, runtime: Runtime, *key: int) -> Tensor:
        return runtime.permutation(len(task.train), "gap", *key)

    def _gap(self, found: Mapping[str, Tensor], classes: Sequence[str]) -> Gap:
        texts = self._texts(classes).cpu()
        scale = self.clip.scale.item()
        return measure_gap(found["feature"], texts, found["label"], scale=scale, batch_size=self.config.batch_size)

    def _zero_shot_gap(self, task: Task, classes: Sequence[str], runtime: Runtime, limit: int) -> Gap | None:
        """The gap of the pretrained model over at most `limit` of the task's images and all classes seen."""
        if not limit:
            return None
        chosen = task.train.select(self._gap_order(task, runtime)[:limit].tolist())
        with lora.without_lora(self.clip.model):
            return self._gap(self.encode(chosen, runtime), classes)

    def _log_gap(
        self, found: Mapping[str, Tensor], before: Gap | None, classes: Sequence[str], task: Task, runtime: Runtime
    ) -> None:
        """Log the zero-shot gap and, from the features at hand, the one after training, over the same images."""
        if before is None:
            return
        order = self._gap_order(task, runtime)[: self.config.gap_examples or None]
        order = order[torch.isin(order, found["position"])]
        rows = torch.searchsorted(found["position"], order)
        after = self._gap({name: found[name][rows] for name in ("feature", "label")}, classes)
        values = {f"{name}_before": value for name, value in before._asdict().items()}
        values |= {f"{name}_after": value for name, value in after._asdict().items()}
        runtime.log("gap", **values)

    # -- predicting and state ---------------------------------------------------------------------------

    def predictor(self, query: Query) -> Callable[[Batch], Tensor]:
        config, clip, classes = self.config, self.clip, len(query.candidates)
        texts = self._texts(query.candidates)
        rows = self.rows[query.offset : query.offset + classes].to(clip.device)

        def predict(batch: Batch) -> Tensor:
            features = classifier.unit_image_features(clip, batch["image"])
            logits = clip.scale * features @ texts.T
            if not len(rows):
                return logits.softmax(1)
            return fuse(
                logits,
                classifier.widen(cosine_scores(features, rows), classes=classes),
                text_weight=config.text_weight,
                visual_weight=config.visual_weight,
                text_softmax=config.text_softmax,
            )

        return predict

    def logits_of(self, scores: Float[Tensor, "images classes"]) -> Float[Tensor, "images classes"]:
        """The vote in CLIP's own units: its logarithm times the logit scale.

        The vote is a mean of probabilities that were made of cosines and probabilities without that scale, so the best
        of 40 classes gets little more than a fortieth. Up to a constant its logarithm is the weighted mean of what the
        two classifiers say; the order of classes stays.
        """
        if not len(self.rows):
            return scores.log()  # CLIP's own probabilities
        return self.clip.scale.to(scores) * scores.log()

    def state_dict(self) -> dict[str, Any]:
        return {
            "lora": lora.lora_state(self.clip.model),
            "initial": self.initial if self.config.reset != "never" else {},
            "rows": self.rows,
            "classes": list(self.classes),
            "epochs": self.epochs,
            "memory": kept_examples.pack(self.memory),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        lora.load_lora_state(self.clip.model, state["lora"])
        self.initial = dict(state["initial"]) or self.initial
        self.rows, self.classes, self.epochs = state["rows"], list(state["classes"]), state["epochs"]
        self.memory = kept_examples.unpack(state["memory"])

    def export(self, folder: Path) -> str:
        """The pretrained model, the PEFT adapter, the visual classifier's rows, and the classes with the vote."""
        config = self.config
        vote = {name: getattr(config, name) for name in ("text_weight", "visual_weight", "text_softmax")}
        more = {"rows": self.rows, **vote}
        return export.save_prompted(
            self.clip, folder, self.classes, template=config.template, clean=config.clean_names, **more
        )

    def facts(self) -> dict[str, Any]:
        """Extra parameters, the chosen epochs and what is kept of past tasks, for the result card."""
        adapters = lora.lora_state(self.clip.model)
        return {
            "extra_parameters": sum(t.numel() for t in adapters.values()) + self.rows.numel(),
            "epochs": self.epochs,
            "memory_examples": len(self.memory),
            "stored_bytes": stored_bytes([adapters, self.rows]),
        }


class _Trace:
    """The gaps of a probe so far; a part of its stage's state."""

    def __init__(self) -> None:
        self.gaps: list[Gap] = []

    def state_dict(self) -> dict[str, Any]:
        return {"gaps": [list(gap) for gap in self.gaps]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.gaps = [Gap(*gap) for gap in state["gaps"]]
