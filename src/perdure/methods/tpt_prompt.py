"""TPT on prompts: tune CLIP's prompt to each test image until its views agree (least entropy of their mean).

Shu et al., Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models, NeurIPS 2022. Begins with
a hand-written context, or with the file of CoOp or CoCoOp.

Needs: 6 GB GPU memory for ViT-B/16.

Knows settings and roles. Episodes are in `perdure.families.test_time`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from perdure.families.test_time import losses, objectives, views
from perdure.families.test_time.prompt_tuning import tuner_of
from perdure.models.clip import Clip
from perdure.models.clip.context import context_of
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of TPT on prompts; the defaults are the paper's."""

    context: str = "a photo of a"
    """Words that the context begins as. `[CLS]` among them puts the class name there."""
    context_file: Path | None = None
    """CoOp's or CoCoOp's `.pth.tar`, to begin with instead."""
    random_context: Annotated[int, Field(ge=0)] = 0
    """So many random vectors to begin with instead (drawn from the run's seed); 0: the words."""
    position: Literal["end", "middle", "front"] = "end"
    """Where the class name stands."""
    learned_names: bool = False
    """Put a vector of its own in place of each class's name and tune it with the context. It is drawn from the
    run's seed and the name (spread 0.02), so that without a step answers are random."""
    steps: Annotated[int, Field(ge=0)] = 1
    """Optimizer steps an image; 0 is zero-shot."""
    lr: Annotated[float, Field(ge=0)] = 5e-3
    """Learning rate (AdamW)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay."""
    views: Annotated[int, Field(ge=1)] = 64
    """Views of an image, the plain one included."""
    selection: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the views that is kept: those of least entropy."""
    augment: Literal["crop", "hard"] = "crop"
    """Random crop and flip; `hard` adds color jitter, grey and blur."""
    augmix: bool = False
    """AugMix on top (paper: for the fine-grained sets, not for ImageNet)."""
    answer: Literal["plain", "confident"] = "plain"
    """Answer from the plain view, or from the mean over the kept views."""
    at_once: Annotated[int, Field(ge=1)] = 4
    """Images adapted side by side, each with a context of its own. Moves no number."""
    chunk: Annotated[int, Field(ge=1)] = 256
    """Prompts, or views, encoded at a time. Moves no number."""

    def faults(self):
        yield from views.check(self.views, self.selection)


class TptPrompt:
    """Stateless: each query brings the class names, each image begins anew."""

    Config = Config
    answers = frozenset({"classify"})
    adapts = True

    def __init__(self, config: Config, *, policy: Clip) -> None:
        self.config, self.policy = config, policy.requires_grad_(False)
        self.context = context_of(config, policy)

    def preprocess(self, example: Example, training: bool) -> Batch:
        return views.preprocess_as(self.config, example, self.policy.transform)

    def learn(self, task: Task, runtime: Runtime) -> None:
        """Nothing is learned."""

    def predictor(self, query: Query):
        config = self.config
        objectives.require_candidates(query.candidates)
        tuner = tuner_of(config, self.policy, query.candidates, self.context)

        def answer(pixels: Tensor, seeds: list[int]) -> Tensor:
            return tuner.logits(pixels, lambda index: losses.average_entropy)

        def predict(batch: Batch) -> Tensor:
            return views.in_parts(batch, self.policy.transform, config.at_once, answer)

        return predict

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass
