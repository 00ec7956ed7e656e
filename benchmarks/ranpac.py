"""What a task costs RanPAC beyond its features: the published schedule beside ours, with equal answers.

    python benchmarks/ranpac.py                            # 5,000 features of 768 to 10,000: CIFAR-100, 10 x 10
    python benchmarks/ranpac.py --rows 500 --width 1000    # quick

The published schedule: one product of all rows for the sums, another of the first four fifths, and a solve of the whole
width for each of 17 ridges and once more in the end, in float32. Ours is `perdure.methods.ranpac` as it is, in float64.
Features are those of ten Gaussian classes; both choose their ridge and answer the held-back rows.

Knows both schedules and clocks. Does not know images.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from perdure.layers import ridge
from perdure.methods.ranpac import RIDGES

RESULTS = Path(__file__).parent / "results" / "ranpac.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--width", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (asked.rows,), generator=generator)
    centers = torch.randn(10, asked.dim, generator=generator)
    features = centers[labels] + 2 * torch.randn(asked.rows, asked.dim, generator=generator)
    projection = torch.randn(asked.dim, asked.width, generator=generator)
    tests = centers[labels] + 2 * torch.randn(asked.rows, asked.dim, generator=generator)
    found, seconds = {}, {}
    for name, schedule in (("ours", ours), ("plain", plain)):
        begin = time.process_time()
        found[name] = schedule(features, labels, projection)
        seconds[name] = round(time.process_time() - begin, 2)
        print(name, seconds[name], f"ridge {found[name][0]:g}", flush=True)
    answers = {
        name: (F.relu(tests.to(w.dtype) @ projection.to(w.dtype)) @ w).argmax(1) for name, (_, w) in found.items()
    }
    result = {
        **{k: getattr(asked, k) for k in ("rows", "dim", "width", "threads")},
        "seconds": seconds,
        "plain / ours": round(seconds["plain"] / seconds["ours"], 2),
        "ridges": {name: r for name, (r, _) in found.items()},
        "answers that differ": int((answers["ours"] != answers["plain"]).sum()),
        "torch": torch.__version__,
    }
    print(json.dumps(result, indent=1))
    asked.out.write_text(json.dumps(result, indent=1) + "\n")


def ours(features: Tensor, labels: Tensor, projection: Tensor) -> tuple[float, Tensor]:
    """The ridge and the weights."""
    wide = projection.double()
    targets, rows = ridge.one_hot(labels, 10), features.double()

    def expand(part: Tensor) -> Tensor:
        return F.relu(part @ wide)

    chosen = ridge.smallest(ridge.errors(rows, targets, RIDGES, fit=int(0.8 * len(rows)), expand=expand), RIDGES)
    sums = ridge.Sums()
    sums.add(rows, targets, expand)
    return chosen, sums.solve(chosen)


def plain(features: Tensor, labels: Tensor, projection: Tensor) -> tuple[float, Tensor]:
    """The ridge and the weights, by the published schedule."""
    hidden, targets = F.relu(features @ projection), F.one_hot(labels, 10).float()
    cross, gram = hidden.T @ targets, hidden.T @ hidden
    fit = int(0.8 * len(hidden))
    own_cross, own_gram = hidden[:fit].T @ targets[:fit], hidden[:fit].T @ hidden[:fit]
    one = torch.eye(hidden.shape[1])
    errors = []
    for r in RIDGES:
        weights = torch.linalg.solve(own_gram + r * one, own_cross)
        errors.append(float(F.mse_loss(hidden[fit:] @ weights, targets[fit:])))
    chosen = RIDGES[min(range(len(RIDGES)), key=lambda i: errors[i] if errors[i] == errors[i] else float("inf"))]
    return chosen, torch.linalg.solve(gram + chosen * one, cross)


if __name__ == "__main__":
    main()
