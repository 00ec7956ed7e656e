"""Speed of RLCF's retrieval: the plain schedule of the published code beside perdure's, on the same random weights.

    python benchmarks/rlcf_retrieval.py text --out benchmarks/results/rlcf_retrieval_text.json

Plain: texts at all 77 positions, the whole token table in the optimizer, weights and optimizer reset by
`load_state_dict` and `deepcopy`. Both give logits of the gallery, which must agree within a hundredth of what an
episode moves them. ViT-B/32 as policy; galleries are encoded once, before, and not timed on either side. `bare`:
forward, backward and AdamW alone, the same number of steps on the same queries, without rewards, resets or answers: no
schedule of one query can be quicker. Seconds are those of this process on the CPU.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import torch
from rlcf import measured, names, random_clip
from torch.nn import functional as F

from perdure.families.clip import clipscore
from perdure.families.test_time import losses, objectives
from perdure.families.test_time.prompt_tuning import Steps
from perdure.families.test_time.retrieval import QueryTuner, unfreeze

STEPS = Steps(count=8, lr=1e-6, weight_decay=5e-4, eps=1e-6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("query", choices=("image", "text"))
    parser.add_argument("--queries", type=int, default=2)
    parser.add_argument("--gallery", type=int, default=64)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--tiny", action="store_true", help="a small network, to see that it runs")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clip = random_clip(0, tiny=asked.tiny)
    steps = Steps(count=asked.steps, lr=STEPS.lr, weight_decay=STEPS.weight_decay, eps=STEPS.eps)
    n, size = asked.queries, clip.image_size
    # Items that differ: among near-equal logits rounding decides which are the best, and the schedules part.
    coarse = 2 * torch.randn(asked.gallery if asked.query == "text" else n, 3, 4, 4)
    pixels = F.interpolate(coarse, size=(size, size), mode="bicubic")
    ids = clip.tokenize([f"a photo of a {name}, seen from the side" for name in names(False)[: max(n, asked.gallery)]])
    items, gallery = (ids[:n], pixels) if asked.query == "text" else (pixels, ids[: asked.gallery])
    table = torch.rand(n, asked.gallery)  # the reward is the same on both sides, and not timed
    schedule = plain_schedule(clip, asked, gallery, steps)
    plain, slow = measured(lambda: schedule(items, table), n)
    tuner = QueryTuner(clip, gallery, steps, query=asked.query)
    settings = objectives.Reinforce(samples=asked.samples)

    def ours():
        rows = [
            tuner.logits(item[None], objectives.reinforce(scores[None, None], settings))
            for item, scores in zip(items, table)
        ]
        return torch.cat(rows)

    found, quick = measured(ours, n)
    apart, moved = (float((found - each).abs().max()) for each in (plain, tuner.zero_shot(items)))
    assert apart < 0.01 * moved, f"the schedules differ by {apart}, and move by {moved}"
    best = [scores.topk(10).indices for scores in (found, plain)]
    result = {
        "query": asked.query,
        "steps": asked.steps,
        "gallery": asked.gallery,
        "largest_difference": apart,
        "moved": moved,
    }
    result |= {"same_ten_best": bool(torch.equal(*best))}
    _, least = measured(lambda: bare_steps(clip, asked, items, steps), n)
    result |= {"plain": slow, "ours": quick, "bare": least}
    result |= {
        f"{name} over {other}": slow["seconds_per_image"] / each["seconds_per_image"]
        for name, other, each in (("plain", "ours", quick), ("plain", "bare", least))
    }
    print(json.dumps(result, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def plain_schedule(clip, asked, gallery, steps):
    """One query after another, as written down in the paper's code: a function of queries and rewards."""
    encode = {"image": clip.image_features, "text": clip.text_features}
    with torch.no_grad():
        other = "text" if asked.query == "image" else "image"
        fixed = F.normalize(encode[other](gallery), dim=-1)
    tuned = unfreeze(clip, asked.query)
    first = {name: p.detach().clone() for name, p in tuned.items()}
    optimizer = torch.optim.AdamW(tuned.values(), lr=steps.lr, weight_decay=steps.weight_decay, eps=steps.eps)
    empty = copy.deepcopy(optimizer.state_dict())

    def adapted(item, scores):
        for _ in range(steps.count):
            logits = clip.scale * F.normalize(encode[asked.query](item[None]), dim=-1) @ fixed.T
            index = losses.top_answers(logits.detach(), asked.samples)
            rewards = clipscore.rewards(clipscore.pick(scores[None], index))
            loss = losses.policy_gradient(logits, index, rewards)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            found = clip.scale * F.normalize(encode[asked.query](item[None]), dim=-1) @ fixed.T
        clip.model.load_state_dict(first, strict=False)
        optimizer.load_state_dict(copy.deepcopy(empty))
        return found

    return lambda items, table: torch.cat([adapted(*each) for each in zip(items, table)])


def bare_steps(clip, asked, items, steps):
    """The arithmetic of the steps alone; weights drift from query to query, which nothing here reads."""
    encode = clip.image_features if asked.query == "image" else clip.text_features
    tuned = unfreeze(clip, asked.query)
    optimizer = torch.optim.AdamW(tuned.values(), lr=steps.lr, weight_decay=steps.weight_decay, fused=True)
    features = torch.empty(0)
    for item in items:
        for _ in range(steps.count):
            optimizer.zero_grad(set_to_none=True)
            features = encode(item[None])
            features.sum().backward()
            optimizer.step()
    return features


if __name__ == "__main__":
    main()
