"""What prompts do to features: heads, class means and a linear probe of all classes, with prompts and without.

    python benchmarks/claims.py vit --ways l2p dualprompt coda_prompt --seeds 0 1 2 --work runs/claims --out vit.csv
    python benchmarks/prompted_features.py runs/claims/vit --out benchmarks/results/prompted_features.csv

Reads the finished runs ``<way>_<seed>`` of prompt methods. Features of all training and test images are those that the
method's head reads at test, after the last task; `frozen` are those of the same backbone without prompts. In percent of
the test images: the `head` as learned; the nearest of the training images' `class means`, by cosine; and a linear
`probe` that sees the training images of all classes at once. The CSV has a line for each (way, seed, number).

Knows what prompt methods have alike. Does not know where their prompts come from.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from claims import means, read, write
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from perdure import api, recipe
from perdure.families.class_incremental.prompting import Prompted
from perdure.types import Stream

RUN = re.compile(r"(.+)_(\d+)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder in which claims.py left the runs")
    parser.add_argument("--out", type=Path, required=True, help="CSV")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    frozen: set[int] = set()
    for folder in sorted(given.runs.iterdir()):
        named = RUN.fullmatch(folder.name)
        method = api.reopen(folder / f"seed_{named[2]}", device="cpu").method if named else None
        if not named or not isinstance(method, Prompted):
            continue
        way, seed = named[1], int(named[2])
        stream = recipe.build_stream(recipe.load(folder / f"seed_{seed}" / "recipe.yaml"))
        both = {way: True} | ({} if seed in frozen else {"frozen": False})
        frozen.add(seed)
        for name, prompted in both.items():
            found = numbers(method, stream, prompted=prompted)
            print(name, seed, *(f"{key} {value:.1f}" for key, value in found.items()), flush=True)
            rows += [{"way": name, "seed": seed, "number": n, "value": round(v, 3)} for n, v in found.items()]
        write(rows, given.out)
    print("\n".join(means(read(given.out))))


def numbers(method: Prompted, stream: Stream, *, prompted: bool) -> dict[str, float]:
    """Percent of test images that each classifier has right."""
    known, labels = features(method, stream, "train", prompted=prompted)
    asked, targets = features(method, stream, "test", prompted=prompted)
    unit = F.normalize(known, dim=1)
    centers = torch.stack([unit[labels == label].mean(dim=0) for label in labels.unique()])
    middle, width = known.mean(dim=0), known.std(dim=0)
    probe = LogisticRegression(C=0.1, max_iter=300).fit(((known - middle) / width).numpy(), labels.numpy())
    answers: dict[str, Any] = {
        "class means": (asked @ F.normalize(centers, dim=1).T).argmax(dim=1),
        "probe": torch.from_numpy(probe.predict(((asked - middle) / width).numpy())),
    }
    if prompted:
        answers = {"head": method.head(asked.float()).argmax(dim=1), **answers}
    return {name: 100 * float((found == targets).double().mean()) for name, found in answers.items()}


@torch.no_grad()
def features(method: Prompted, stream: Stream, split: str, *, prompted: bool) -> tuple[Tensor, Tensor]:
    """Features of all tasks' images, in float64, and their labels."""
    rows: list[Tensor] = []
    labels: list[int] = []
    for task in stream.tasks:
        examples = getattr(task, split)
        for part in torch.arange(len(examples)).split(100):
            images = [method.preprocess(examples[int(i)], False)["image"] for i in part]
            pixels = method.vit.transform.normalize(torch.stack(images))
            plain = method.vit.image_features(pixels)
            rows.append(method.forward(pixels, plain, None)[0] if prompted else plain)
            labels += [int(examples.targets[int(i)]) for i in part]
    return torch.cat(rows).double(), torch.tensor(labels)


if __name__ == "__main__":
    main()
