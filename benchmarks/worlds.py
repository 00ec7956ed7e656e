"""Premises of the embedded worlds, measured on frozen models: see docs/worlds.md.

    python benchmarks/worlds.py                                   # the models in the package
    python benchmarks/worlds.py --policy DIR --reward DIR --per-class 50

Pictures are of a seed of the world that no recipe uses. Knows micro-clip, its reward model and microworld; runs no
method.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import RandomResizedCrop

from perdure.data import microworld
from perdure.data.microworld import scenes, styles
from perdure.models import clip as clips

SEED = 1000
"""Of the pictures: recipes take 0."""
TEMPLATE = "a photo of a {}."
SHIFTS = [style for style in styles.STYLES if style != "plain"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--policy", default="micro-clip")
    parser.add_argument("--reward", default="micro-clip-reward")
    parser.add_argument("--per-class", type=int, default=100, help="pictures of a class, in training and in test")
    parser.add_argument("--severity", type=int, default=5, help="of the shifts")
    parser.add_argument("--look", default="rotated", help="look of the class stream, at severity 3")
    parser.add_argument("--out", type=Path, help="JSON")
    given = parser.parse_args()
    torch.manual_seed(0)
    policy = Frozen(given.policy)
    found = class_stream(policy, given.look, given.per_class) | concepts(policy, given.look, given.per_class)
    reward = Frozen(given.reward) if given.reward != "none" else None
    found |= shifts(policy, reward, max(given.per_class // 4, 10), given.severity)
    for name, value in found.items():
        print(f"{name:<40} {value:8.3f}")
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


class Frozen:
    """A CLIP and its features of pictures and of texts."""

    def __init__(self, weights: str) -> None:
        self.clip = clips.load(clips.Config(weights=weights)).eval()

    @torch.inference_mode()
    def texts(self, names: Sequence[str]) -> Tensor:
        """Unit features ``[names, dim]``."""
        ids = self.clip.cut(self.clip.tokenize([TEMPLATE.format(name) for name in names]))
        return F.normalize(self.clip.text_features(ids), dim=-1)

    @torch.inference_mode()
    def pooled(self, pixels: Tensor) -> Tensor:
        """What the image tower's projection is applied to ``[images, width]``."""
        return torch.cat([self.clip.model.vision_model(part).pooler_output for part in pixels.split(512)])

    @torch.inference_mode()
    def images(self, pooled: Tensor) -> Tensor:
        """Unit features ``[images, dim]``."""
        return F.normalize(self.clip.model.visual_projection(pooled), dim=-1)

    def pixels(self, pictures: Tensor) -> Tensor:
        """uint8 ``[images, 3, h, w]`` of the model's own size, normalised: all that its transform does to them."""
        return self.clip.transform.normalize(pictures)


def class_stream(model: Frozen, look: str, per_class: int) -> dict[str, float]:
    """Premises C1 to C4, C6 and C7."""
    parts = {split: pictures(look, split, per_class) for split in ("train", "validation", "test")}
    pooled = {split: model.pooled(model.pixels(images)) for split, (images, _) in parts.items()}
    labels = {split: torch.tensor(targets) for split, (_, targets) in parts.items()}
    text, image = model.texts(scenes.CLASSES), {split: model.images(p) for split, p in pooled.items()}
    cosines = image["test"] @ text.T
    zero_shot = accuracy(cosines, labels["test"])
    means = F.normalize(
        torch.stack([image["train"][labels["train"] == c].mean(0) for c in range(len(scenes.CLASSES))]), dim=-1
    )
    truth = F.one_hot(labels["test"], len(scenes.CLASSES)).bool()
    return {
        "C1 logit scale": model.clip.scale.item(),
        "C2 zero-shot": zero_shot,
        "C2 standard error": 100 * (zero_shot / 100 * (1 - zero_shot / 100) / len(labels["test"])) ** 0.5,
        "C3 class means - zero-shot": accuracy(image["test"] @ means.T, labels["test"]) - zero_shot,
        "C4 linear probe - zero-shot": probe(pooled, labels) - zero_shot,
        "C6 cosine of right - of wrong pairs": (cosines[truth].mean() - cosines[~truth].mean()).item(),
        "C6 mean logit of wrong pairs": (model.clip.scale * cosines[~truth].mean()).item(),
        "C7 gap": (image["test"].mean(0) - text.mean(0)).norm().item(),
        "C9 sure views - plain view, stream": views(model, parts["test"][0][:400], labels["test"][:400], text),
    }


def concepts(model: Frozen, look: str, per_class: int) -> dict[str, float]:
    """Premise C10: what else it knows of the same pictures."""
    config = microworld.Config(seed=SEED, style=look, test_per_class=per_class)
    index = np.arange(len(scenes.CLASSES) * per_class)
    world = microworld.world(config, "test", index)
    image = model.images(model.pooled(model.pixels(channels_first(styles.pictures(world, look)))))
    colors = model.texts([f"{color} object" for color in scenes.COLORS])
    kinds = [f"{color} {shape}" for color in scenes.COLORS for shape in scenes.SHAPES]
    kind = torch.from_numpy(world.color[:, 0] * len(scenes.SHAPES) + world.shape[:, 0])
    return {
        "C10 color (8)": accuracy(image @ colors.T, torch.from_numpy(world.color[:, 0])),
        "C10 color and shape (80)": accuracy(image @ model.texts(kinds).T, kind),
    }


def shifts(policy: Frozen, reward: Frozen | None, per_class: int, severity: int) -> dict[str, float]:
    """Premises C9 and R1 to R4, means over the shifted sets."""
    rows: dict[str, list[float]] = {}
    text = policy.texts(scenes.CLASSES)
    for style in ("plain", *SHIFTS):
        images, targets = pictures(style, "test", per_class, severity)
        labels = torch.tensor(targets)
        scores = policy.images(policy.pooled(policy.pixels(images))) @ text.T
        right = scores.argmax(1) == labels
        best3 = (scores.topk(3).indices == labels[:, None]).any(1)
        found = {"R1 policy": 100 * right.float().mean().item()}
        found["R4 among the best three - first"] = 100 * (best3.float() - right.float()).mean().item()
        found["C9 sure views - plain view"] = views(policy, images[:200], labels[:200], text)
        if reward:
            other = reward.images(reward.pooled(reward.pixels(images))) @ reward.texts(scenes.CLASSES).T
            known = other.argmax(1) == labels
            found["R2 reward - policy"] = 100 * (known.float() - right.float()).mean().item()
            found["R3 share of errors it has right"] = (known & ~right).sum().item() / max((~right).sum().item(), 1)
        print(f"{style:<10}", *(f"{name} {value:.2f}" for name, value in found.items()), sep="  ")
        if style != "plain":
            for name, value in found.items():
                rows.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in rows.items()}


def pictures(look: str, split: str, per_class: int, severity: int = 3) -> tuple[Tensor, list[int]]:
    """Pictures of all classes in a look, uint8 ``[images, 3, h, w]``, and their labels."""
    counts: dict[str, Any] = {f"{split}_per_class": per_class}
    config = microworld.Config(seed=SEED, style=look, severity=severity, **counts)
    examples = getattr(microworld.read(config), split)
    return channels_first(np.stack([example.inputs["image"] for example in examples])), list(examples.targets)


def channels_first(pictures: np.ndarray) -> Tensor:
    """uint8 ``[images, h, w, 3]`` -> ``[images, 3, h, w]``."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def probe(pooled: dict[str, Tensor], labels: dict[str, Tensor]) -> float:
    """Accuracy of logistic regression on standardised features; its penalty is chosen on validation pictures."""
    mean, deviation = pooled["train"].mean(0), pooled["train"].std(0) + 1e-6
    x = {split: ((p - mean) / deviation).numpy() for split, p in pooled.items()}
    y = {split: target.numpy() for split, target in labels.items()}
    fitted = [LogisticRegression(C=c, max_iter=300).fit(x["train"], y["train"]) for c in (0.003, 0.03, 0.3)]
    return 100 * float(
        max(fitted, key=lambda one: one.score(x["validation"], y["validation"])).score(x["test"], y["test"])
    )


def views(model: Frozen, images: Tensor, labels: Tensor, text: Tensor, count: int = 64) -> float:
    """Points by which the tenth of the views that the model is most sure of is right more often than the plain view."""
    cut = RandomResizedCrop(images.shape[2:], scale=(0.08, 1), antialias=True)
    differences = []
    for image, label in zip(images, labels):
        pixels = model.pixels(torch.stack([image, *(cut(image) for _ in range(count - 1))]))
        scores = model.clip.scale * model.images(model.pooled(pixels)) @ text.T
        chance = scores.softmax(1)
        entropy = -(chance * (chance + 1e-12).log()).sum(1)
        sure = entropy.argsort()[: max(count // 10, 1)]
        right = (scores.argmax(1) == label).float()
        differences.append((right[sure].mean() - right[0]).item())
    return 100 * float(np.mean(differences))


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """In percent."""
    return 100 * (scores.argmax(1) == labels).float().mean().item()


if __name__ == "__main__":
    main()
