"""ClipCap: a mapper from CLIP's image features to the prefix of a frozen language model, learned from captions.

Mokady et al., ClipCap: CLIP Prefix for Image Captioning, 2021. Only the mapper learns; features come from a frozen
CLIP and are made once, or read from a file of `perdure prepare features`.

Needs: 6 GB GPU memory, captioned images.

Knows settings and roles. What both captioners share (learning, answers) is in `perdure.families.captioning`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from perdure import training
from perdure.families.captioning import learning, settings, speaking
from perdure.families.captioning.features import stored
from perdure.families.clip.clipscore import unit
from perdure.loading import ExampleBatches
from perdure.models.captioner import Captioner
from perdure.models.captioner.convert import save_mapper
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.Mapper):
    """Settings of ClipCap; the defaults are those of RLCF's code, with OPT-125m."""

    features: Path | None = None
    """Image features that `perdure prepare features` wrote; null: they are made at the start."""


class Clipcap:
    """A frozen CLIP, a mapper that learns, a frozen language model."""

    Config = Config
    answers = frozenset({"caption"})

    def __init__(self, config: Config, *, clip: Clip, captioner: Captioner) -> None:
        speaking.require_widths(captioner, clip)
        self.config, self.clip, self.captioner = config, clip.requires_grad_(False), captioner
        captioner.mapper.requires_grad_()

    def preprocess(self, example: Example, training: bool) -> Batch:
        return speaking.preprocess(self.clip, example)

    def learn(self, task: Task, runtime: Runtime) -> None:
        if not len(task.train):
            return
        images, captions = self._encoded(task, runtime)
        texts, owner = learning.flat(captions)
        learning.learn_mapper(self.captioner, images, texts, owner, self.config, runtime=runtime)

    def _encoded(self, task: Task, runtime: Runtime) -> tuple[Tensor, list[list[str]]]:
        """Unit features of the readable images, and their captions."""
        if self.config.features is not None:
            return unit(stored(self.config.features, "images", [e.id for e in task.train])), task.train.targets
        batches = ExampleBatches(
            task.train, self.preprocess, batch_size=128, runtime=runtime, stage="features", training=False
        )
        found = training.features(
            lambda batch: {"features": speaking.caption_features(self.clip, batch)}, batches, runtime=runtime
        )
        return found["features"], [task.train.targets[i] for i in found["position"].tolist()]

    def predictor(self, query: Query):
        return speaking.predictor(self.clip, self.captioner, self.config)

    def export(self, folder: Path) -> str:
        """The mapper; give its folder to a captioner as `weights`."""
        file = save_mapper(folder, self.captioner.mapper)
        return (
            f'from safetensors.torch import load_file\nmapper = load_file("{file}")  # a captioner: weights={folder}\n'
        )

    def state_dict(self) -> dict[str, Any]:
        return {"mapper": dict(self.captioner.mapper.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.captioner.mapper.load_state_dict(state["mapper"])
