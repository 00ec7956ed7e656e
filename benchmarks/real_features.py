"""RanPAC's regression against class means on features of a real CLIP: photographs of Flickr8k, told apart by a noun.

    python benchmarks/real_features.py --pack DIR --seeds 0 1 2 3 4 5 6 7 8 9

DIR holds ``clip_embeddings.npy`` (unit image features of ViT-B/32) and ``captions.json``, one caption an image. A class
is a noun of `NOUNS`; an image counts if its caption names exactly one of them. Two new classes a task; a seed is
another half for the test, another order of classes and another projection. What runs is the arithmetic of `prototype`
and `ranpac`, without a tower: there are no pixels.

Knows features and captions. Does not know how they were made.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from claims import margin
from torch import Tensor
from torch.nn import functional as F

from perdure.layers import ridge
from perdure.methods.ranpac import RIDGES

NOUNS = ("dog", "boy", "girl", "man", "woman", "child", "people", "skateboard", "beach", "snow")
"""Written down before any result."""
RESULTS = Path(__file__).parent / "results" / "real_features.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--widths", type=int, nargs="+", default=[0, 2000])
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    features, labels = read(given.pack)
    print("images of each class:", dict(zip(NOUNS, torch.bincount(labels).tolist())))
    ways: dict[str, Callable[..., Tensor]] = {"prototype": prototype}
    ways |= {f"ranpac, width {w}": ranpac(w) for w in given.widths}
    rows = [
        {"way": way, "seed": seed, "number": number, "value": round(value, 2)}
        for seed in given.seeds
        for way, learn in ways.items()
        for number, value in stream(features, labels, learn, seed).items()
    ]
    with given.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["way", "seed", "number", "value"])
        writer.writeheader()
        writer.writerows(rows)
    for number in ("average", "final"):
        of = {w: [float(r["value"]) for r in rows if (r["way"], r["number"]) == (w, number)] for w in ways}
        for way, values in of.items():
            apart = [a - b for a, b in zip(values, of["prototype"])]
            print(f"{number:<8} {way:<18} {interval(values)}   less prototype {interval(apart)}")


def read(pack: Path) -> tuple[Tensor, Tensor]:
    """Features ``[images dim]`` in float64 and labels ``[images]`` of the images that name one class."""
    embeddings = np.load(pack / "clip_embeddings.npy").astype(np.float64)
    captions = json.loads((pack / "captions.json").read_text())
    said = [set(re.findall("[a-z]+", str(caption).lower())) & set(NOUNS) for caption in captions]
    rows = [i for i, nouns in enumerate(said) if len(nouns) == 1]
    labels = [NOUNS.index(next(iter(said[i]))) for i in rows]
    return torch.from_numpy(embeddings[rows]), torch.tensor(labels)


def stream(features: Tensor, labels: Tensor, learn: Callable[..., Tensor], seed: int) -> dict[str, float]:
    """Accuracy in percent over the classes seen, after each task and at the end."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(NOUNS), generator=generator)
    labels = torch.argsort(order)[labels]
    half = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(len(NOUNS)):
        own = torch.nonzero(labels == label)[:, 0]
        half[own[torch.randperm(len(own), generator=generator)[: len(own) // 2]]] = True
    state: dict[str, Tensor] = {}
    curve = []
    for seen in range(2, len(NOUNS) + 1, 2):
        new = half & (labels >= seen - 2) & (labels < seen)
        shuffled = torch.nonzero(new)[:, 0][torch.randperm(int(new.sum()), generator=generator)]
        tests = ~half & (labels < seen)
        scores = learn(state, features[shuffled], labels[shuffled], seen, features[tests], seed)
        curve.append(100 * (scores.argmax(1) == labels[tests]).double().mean().item())
    return {"average": statistics.mean(curve), "final": curve[-1]}


def prototype(state: dict, train: Tensor, labels: Tensor, seen: int, tests: Tensor, seed: int) -> Tensor:
    """Cosines with the means of unit features."""
    new = torch.stack([train[labels == label].mean(0) for label in range(seen - 2, seen)])
    state["means"] = torch.cat([state["means"], new]) if state else new
    return tests @ F.normalize(state["means"], dim=1).T


def ranpac(width: int) -> Callable[..., Tensor]:
    """Ridge regression over sums, as `perdure.methods.ranpac` with this projection; 0: of the features as they are."""

    def learn(state: dict, train: Tensor, labels: Tensor, seen: int, tests: Tensor, seed: int) -> Tensor:
        if "sums" not in state:
            drawn = torch.Generator().manual_seed(seed)
            state["sums"] = ridge.Sums()
            state["projection"] = torch.randn(train.shape[1], width, generator=drawn, dtype=torch.float64)

        def expand(part: Tensor) -> Tensor:
            return F.relu(part @ state["projection"]) if width else part

        own = ridge.one_hot(labels - (seen - 2), 2)
        errors = ridge.errors(train, own, RIDGES, fit=int(0.8 * len(train)), expand=expand)
        state["sums"].add(train, ridge.one_hot(labels, seen), expand)
        return expand(tests) @ state["sums"].solve(ridge.smallest(errors, RIDGES))

    return learn


def interval(values: list[float]) -> str:
    """Mean and half of the 95 % interval, by Student's t."""
    return f"{statistics.mean(values):5.1f} ± {margin(values):.1f}"


if __name__ == "__main__":
    main()
