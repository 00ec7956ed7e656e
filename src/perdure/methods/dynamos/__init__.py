"""Dynamos: each image chooses the channels that process it; class and policy logits are replayed.

Vijayan et al., "Dynamically Modular and Sparse General Continual Learning", VISAPP 2023 (arXiv 2301.00620).
Gates are trained by REINFORCE towards a keep ratio, pulled together within a class and apart between classes,
and held to their past policy logits. Needs no task boundaries.

Knows the losses, the warm-up and what is replayed. The gates are in `perdure.layers.gates`, their losses in
`perdure.families.rehearsal.policy`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from perdure.draws import uniforms
from perdure.families import rehearsal
from perdure.families.rehearsal import modularity, policy, settings
from perdure.families.rehearsal.buffer import Draws, Memory
from perdure.layers import gates
from perdure.layers.resnet import Gated, ResNet
from perdure.methods.dynamos import skipping
from perdure.runtime import Runtime
from perdure.types import Batch, Query, Task

MEASURED = 64
"""Images on which `inference_path: auto` measures, at most."""


@dataclass(frozen=True, kw_only=True)
class Config(settings.Replay, settings.Descent):
    """Settings of Dynamos."""

    lr: Annotated[float, Field(gt=0)] = 0.07
    buffer_size: Annotated[int, Field(ge=0)] = 500
    alpha: Annotated[float, Field(ge=0)] = 0.2
    """Weight of the replayed class logits."""
    beta: Annotated[float, Field(ge=0)] = 2.0
    """Weight of cross-entropy and reward on replayed images."""
    policy_alpha: Annotated[float, Field(ge=0)] = 0.2
    """Weight of the replayed policy logits."""
    policy_penalty: Annotated[float, Field(le=0)] = -500.0
    """The reward of an image that is predicted wrong is multiplied by minus this."""
    reward_weight: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the policy loss."""
    prototype_weight: Annotated[float, Field(ge=0)] = 0.3
    """Weight of the prototype loss, on current and replayed images."""
    keep_ratio: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Share of channels that a gate should keep."""
    warmup: Annotated[int, Field(ge=0)] = 10
    """Steps (epochs, if there are several) of the first task in which gates are bypassed and nothing is
    stored; at the latest it ends with the first task. 0 for none."""
    inference: Literal["threshold", "sample"] = "threshold"
    """Keep channels by probability, or draw them as in training."""
    threshold: Annotated[float, Field(ge=0)] = 0.5
    """Least keep probability of a kept channel: 0 keeps all, more than 1 none."""
    inference_path: Literal["folded", "skipping", "dense", "auto"] = "folded"
    """How evaluation by `threshold` is computed; answers are the same up to rounding. `folded`: batch norm as a part of
    the convolutions. `skipping`: so, without channels that are off where that saves more than it costs. `dense`: as in
    training, then masked. `auto`: the fastest of them on images of the task just learned, measured after each task and
    kept with the run; a run made again from the start may choose otherwise, and so differ by rounding."""
    replay_unfilled_slots: bool = False
    """Also replay slots that never held a sample (black images), as the official code does."""


class Dynamos:
    """One gated network and one replay memory."""

    Config = Config
    answers = frozenset({"classify"})
    not_merged = "its averages have weights of their own"
    scores_are = "logits"

    def __init__(self, config: Config, *, net: ResNet) -> None:
        gates.require_gates(net)
        self.config, self.net = config, net
        self.memory = Memory(config.buffer_size, replay_unfilled_slots=config.replay_unfilled_slots)
        self.draws = Draws()
        self.tasks = 0
        """Tasks learned."""
        self.chosen = {"path": torch.tensor(0)}
        """Number of the path in `skipping.PATHS` that was the fastest."""

    preprocess = staticmethod(rehearsal.preprocess)

    def learn(self, task: Task, runtime: Runtime) -> None:
        data = rehearsal.read(task, self.net, runtime, stored=self.memory.columns)
        optimizer = rehearsal.sgd(self.net, self.config.lr)
        rehearsal.enter_training(self.net)

        def step(images: Tensor, labels: Tensor, at: rehearsal.At) -> Mapping[str, Tensor]:
            rehearsal.enter_training(self.net)
            if self._warming_up(at):
                values = {"loss": F.cross_entropy(self.net(self._view(images)), labels)}
                rehearsal.descend(values["loss"], optimizer, runtime)
                return values
            with runtime.autocast():
                values, out = self.losses(images, labels)
            rehearsal.descend(values["loss"], optimizer, runtime)
            self.store(images, labels, out)
            return values

        rehearsal.train(
            step,
            data,
            epochs=self.config.epochs,
            batch_size=self.config.batch_size,
            runtime=runtime,
            stage="train",
            state={"net": self.net, "memory": self.memory},
        )
        self._choose_path(data, runtime)
        self.tasks += 1
        if found := self.modularity():
            runtime.log("modularity", **found)

    @property
    def path(self) -> skipping.Path:
        """How evaluation computes the network."""
        asked = self.config.inference_path
        return skipping.PATHS[int(self.chosen["path"])] if asked == "auto" else asked

    def losses(self, images: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Gated]:
        """All losses of a step, and the current images' pass through the gates.

        Values: ``loss`` and its unweighted terms; terms of the replay are absent while the memory is empty.
        """
        c = self.config
        out = self._pass(self._view(images), of="gates")
        now = self._terms(out, labels)
        total = now.cross_entropy + c.reward_weight * now.policy + c.prototype_weight * now.prototype
        values = {"cross_entropy": now.cross_entropy, "policy": now.policy, "prototype": now.prototype}
        replay = self.memory.draw(c.minibatch_size, self.draws)
        if replay is not None:
            replay = {name: column.to(total.device) for name, column in replay.items()}
            again = self._pass(self._view(replay["image"]), of="replay gates")
            then = self._terms(again, replay["label"])
            logit_error = F.mse_loss(again.logits, replay["logits"].to(again.logits))
            total = total + c.alpha * logit_error
            if c.policy_alpha:
                policy_error = F.mse_loss(again.policy, replay["policy"].to(again.policy))
                total = total + c.policy_alpha * policy_error
                values["replayed_policy_logits"] = policy_error
            total = total + c.beta * (then.cross_entropy + c.reward_weight * then.policy)
            total = total + c.prototype_weight * then.prototype
            values |= {
                "replayed_logits": logit_error,
                "replayed_cross_entropy": then.cross_entropy,
                "replayed_policy": then.policy,
                "replayed_prototype": then.prototype,
            }
        return {"loss": total, **values}, out

    def store(self, images: Tensor, labels: Tensor, out: Gated) -> None:
        """Offer the raw images to the memory; only those predicted right may be written."""
        columns = {"image": images, "label": labels, "logits": out.logits, "policy": out.policy}
        self.memory.add(
            {name: column.detach() for name, column in columns.items()},
            self.draws,
            among=policy.is_correct(out.logits, labels),
        )

    def predictor(self, query: Query) -> Callable[[Batch], Tensor]:
        if self.tasks == 0 and self.config.warmup:
            return rehearsal.predictor(self.net, query)
        self.net.eval()
        columns = slice(query.offset, query.offset + len(query.candidates))
        if self.config.inference == "threshold":
            infer = skipping.gated_pass(self.net, self.path, threshold=self.config.threshold)
            return lambda batch: infer(rehearsal.network_input(batch["image"], self.net)).logits[:, columns]

        def predict(batch: Batch) -> Tensor:
            x = rehearsal.network_input(batch["image"], self.net)
            drawn = uniforms(batch["seed"].tolist(), self.net.boundaries[-1], of=("gates",), dtype=torch.float64)
            return self.infer(x, drawn).logits[:, columns]

        return predict

    def infer(self, x: Tensor, uniforms: Tensor | None = None) -> Gated:
        """A pass in evaluation mode; the actions say which channels worked.

        Args:
            uniforms: ``[images, gated channels]`` in [0, 1): channels are drawn with them. None: by the threshold.
        """
        assert not self.net.training
        return self.net.gated(x, uniforms=uniforms, threshold=self.config.threshold)

    def modularity(self) -> dict[str, Any]:
        """What the gates do with the stored images (see `modularity.summary`); empty without any."""
        stored = self.memory.everything()
        if stored is None:
            return {}
        images = rehearsal.network_input(stored["image"], self.net)
        return modularity.measure(self.net, images, stored["label"], threshold=self.config.threshold)

    def facts(self) -> dict[str, Any]:
        found = self.modularity()
        path = {"inference_path": self.path} if self.config.inference == "threshold" else {}
        return {"modularity": found, **path} if found else path

    def state_dict(self) -> dict[str, Any]:
        state = {"net": self.net.state_dict(), "memory": self.memory.state_dict(), "tasks": self.tasks}
        return {**state, "chosen": dict(self.chosen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.memory.load_state_dict(state["memory"])
        self.tasks = int(state["tasks"])
        self.chosen = {name: value.clone() for name, value in state["chosen"].items()}

    def _choose_path(self, data: rehearsal.Images, runtime: Runtime) -> None:
        """Measure, once a task. A stage of its own, so that a resumed run keeps what was chosen, also where it was
        stopped in the test that follows."""
        if self.config.inference_path != "auto" or self.config.inference == "sample":
            return
        for _ in runtime.steps("inference path", total=1, state={"chosen": self.chosen}):
            x = rehearsal.network_input(data.images[:MEASURED], self.net.eval())
            passes: dict[skipping.Path, skipping.Pass] = {
                path: skipping.gated_pass(self.net, path, threshold=self.config.threshold) for path in skipping.PATHS
            }
            path, seconds = skipping.fastest(passes, x)
            self.chosen["path"].fill_(skipping.PATHS.index(path))
            runtime.log("inference path", chosen=path, **{f"seconds_{name}": s for name, s in seconds.items()})

    def _warming_up(self, at: rehearsal.At) -> bool:
        done = at.step if self.config.epochs == 1 else at.epoch
        return self.tasks == 0 and done < self.config.warmup

    def _pass(self, x: Tensor, *, of: str) -> Gated:
        return self.net.gated(x, uniforms=self._uniforms(len(x), of=of))

    def _uniforms(self, images: int, *, of: str) -> Tensor:
        device = next(self.net.parameters()).device
        return self.draws.uniforms(images, self.net.boundaries[-1], of=of).to(device, non_blocking=True)

    def _terms(self, out: Gated, labels: Tensor) -> policy.Terms:
        return policy.terms(
            *out,
            labels,
            boundaries=self.net.boundaries,
            keep_ratio=self.config.keep_ratio,
            penalty=self.config.policy_penalty,
        )

    def _view(self, images: Tensor) -> Tensor:
        return rehearsal.augmented(images, self.config.augment, self.draws, self.net)
