"""IoU and F-score of masks of what sounds, and masks as run lengths.

Knows logits and masks of frames. Does not know records or models. As of AVSBench (Zhou et al. 2022).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from perdure.images import open_image

THRESHOLDS = 255
BETA_SQUARED = 0.3


def frame_iou(
    logits: Float[Tensor, "frames height width"], truth: Bool[Tensor, "frames height width"]
) -> Float[Tensor, " frames"]:
    """IoU of ``sigmoid > 0.5`` with the truth. In a frame without truth: the share of pixels left empty, all or none
    of which count: background pixels that are background over all pixels."""
    predicted = logits > 0
    inter = (predicted & truth).sum((1, 2)).double()
    union = (predicted | truth).sum((1, 2)).double()
    empty = ~truth.flatten(1).any(1)
    pixels = float(truth.shape[1] * truth.shape[2])
    inter = torch.where(empty, (~predicted & ~truth).sum((1, 2)).double(), inter)
    union = torch.where(empty, torch.full_like(union, pixels), union)
    return inter / (union + 1e-7)


def best_f_score(logits: Float[Tensor, "frames height width"], truth: Bool[Tensor, "frames height width"]) -> float:
    """Best of 255 thresholds of the F-score averaged over frames with truth; 0 if no frame has any."""
    curves = [f_curve(p, t)[0] for p, t in zip(logits.sigmoid(), truth) if t.any()]
    return float(torch.stack(curves).mean(0).max()) if curves else 0.0


def f_curve(
    probability: Float[Tensor, "height width"], truth: Bool[Tensor, "height width"]
) -> tuple[Float[Tensor, " thresholds"], Float[Tensor, " thresholds"], Float[Tensor, " thresholds"]]:
    """F-score, precision and recall at each threshold from 0 to 1 (a pixel counts if it reaches it)."""
    thresholds = torch.linspace(0, 1 - 1e-10, THRESHOLDS, device=probability.device)
    inside, everything = (values.sort().values.contiguous() for values in (probability[truth], probability.flatten()))
    hits = len(inside) - torch.searchsorted(inside, thresholds)
    found = len(everything) - torch.searchsorted(everything, thresholds)
    precision, recall = hits / (found + 1e-20), hits / (truth.sum() + 1e-20)
    f = (1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)
    return f.nan_to_num(0.0), precision, recall


def read_mask(value: Any, *, where: str) -> Bool[Tensor, "height width"]:
    """A mask from a path or an array: what is not black."""
    if isinstance(value, np.ndarray | Tensor):
        return torch.as_tensor(np.asarray(value)) > 0
    return torch.from_numpy(np.asarray(open_image(value, where=where)).max(2) > 0)


def run_lengths(mask: Bool[Tensor, "height width"]) -> list[int]:
    """Lengths of runs row by row, beginning with one of zeros."""
    flat = mask.flatten().cpu().numpy().astype(np.int8)
    edges = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    return np.diff([0, *edges, len(flat)]).tolist()
