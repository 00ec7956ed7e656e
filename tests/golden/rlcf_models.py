"""The tiny CLIPs and arrays of RLCF's golden vectors, by file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from perdure.families.clip import clipscore
from perdure.families.test_time import losses, objectives
from perdure.models.clip import Clip
from perdure.models.clip.convert import from_openai
from perdure.models.clip.prompts import ContextPrompts, Wording


def arrays(folder: Path, name: str) -> dict[str, Tensor]:
    """Numbers of a file; half-precision ones are exact and become float64. Text is left out."""
    with np.load(folder / f"{name}.npz") as file:
        kept = {n: file[n] for n in file.files if file[n].dtype.kind != "U"}
    return {n: torch.from_numpy(a.astype(np.float64) if a.dtype == np.float16 else a) for n, a in kept.items()}


def texts(folder: Path, name: str, key: str) -> list[str]:
    """An array of strings."""
    with np.load(folder / f"{name}.npz") as file:
        return [str(s) for s in file[key]]


def clip(models: dict[str, Tensor], name: str) -> Clip:
    """One of the CLIPs of ``models.npz``, in float64."""
    state = {n.removeprefix(f"{name}/"): t for n, t in models.items() if n.startswith(f"{name}/")}
    state["logit_scale"] = state["logit_scale"].reshape(())
    return Clip(from_openai(state, dtype=torch.float64))


def setting(folder: Path) -> SimpleNamespace:
    """Models, views, prompts and text features that prompt and encoder episodes share."""
    models = arrays(folder, "models")
    made = {name: clip(models, name) for name in ("policy", "reward", "reward2")}
    ids = models["prompt_tokens"]
    features = {name: clipscore.unit(c.text_features(c.cut(ids))).detach() for name, c in made.items()}
    words = Wording(words="a photo of a", length=4)
    return SimpleNamespace(
        **made,
        arrays=models,
        views=models["images_views"],
        ids=ids,
        features=features,
        words=words,
        prompts=ContextPrompts(made["policy"], ids, words),
    )


class Rewarding:
    """The selected views of some images, and the objectives that their rewards give."""

    def __init__(self, world: SimpleNamespace, *names: str, weights: list[float] | None = None, **reinforce) -> None:
        models = [getattr(world, name) for name in names or ("reward",)]
        self.texts = [world.features[name] for name in names or ("reward",)]
        self.reward = clipscore.ClipReward(models, weights or [1.0], like=world.policy)
        self.settings = objectives.Reinforce(**{"samples": 3, **reinforce})
        self.index = self.table = None

    def for_views(self, pixels: Tensor, distill: losses.Distillation | None = None, entropy: bool = False):
        """What `PromptTuner.logits` takes as `prepare`."""

        def prepare(index: Tensor):
            self.index = index
            kept = losses.take_views(pixels, index)
            images = [f.view(*index.shape, -1) for f in self.reward.encode_images(kept.flatten(0, 1))]
            self.table = self.reward.table(images, self.texts)
            if entropy:
                return losses.average_entropy
            if distill:
                return objectives.imitate(distill, self.reward.logits(images, self.texts))
            return objectives.reinforce(self.table, self.settings)

        return prepare

    def one_by_one(self, pixels: Tensor, **how):
        """What `EncoderTuner.logits` takes as `prepare`."""

        def prepare(index: Tensor):
            return [self.for_views(pixels[i : i + 1], **how)(index[i : i + 1]) for i in range(len(index))]

        return prepare
