"""Speed and memory of RLCF: the plain schedule of the published code beside perdure's, on the same random weights.

    python benchmarks/rlcf.py encoder
    python benchmarks/rlcf.py encoder --images 4 --at-once 4 --against one-by-one
    python benchmarks/rlcf.py encoder --micro --images 16 --at-once 16 --against one-by-one
    python benchmarks/rlcf.py prompt --classes 50
    python benchmarks/rlcf.py prompt --classes 1000 --plain-classes 50 100

The plain schedule of an image: all views forward and backward in the first step, the kept ones alone in the others;
every prompt at all 77 positions in every step, images encoded again in every step, weights and optimizer reset by
`load_state_dict` and `deepcopy`. What is made once for a test set (the text features of fixed prompts) is not timed, on
either side. Random weights are such that an episode moves its logits by more than 1; both schedules give logits, which
must agree within a hundredth of that. Plain prompt tuning at 1000 classes does not fit most machines: with
`--plain-classes` it is measured at fewer, twice, and continued as a straight line (its text part is linear in classes).
With `--against one-by-one` ours takes the place of the plain schedule, too, and adapts to one image after another.

Seconds are those of this process on the CPU (other load on the machine counts little), memory is the peak of the
resident set above what it was before the images came. Models: ViT-B/32 as policy and as reward, 64 views, 6 kept.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from perdure.data import lists, microworld
from perdure.methods.rlcf_encoder import Config as EncoderConfig
from perdure.methods.rlcf_encoder import RlcfEncoder
from perdure.methods.rlcf_prompt import Config as PromptConfig
from perdure.methods.rlcf_prompt import RlcfPrompt
from perdure.models import clip
from perdure.models.clip import Clip
from perdure.models.clip.tokens import Tokenizer, openai_encoder
from perdure.types import Example, Query

VIEWS, KEPT, SAMPLES, STEPS = 64, 6, 3, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("encoder", "prompt"))
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--plain-classes", type=int, nargs=2, help="measure the plain schedule at these instead")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=1, help="images that ours adapts to side by side")
    parser.add_argument("--against", choices=("plain", "one-by-one"), default="plain")
    parser.add_argument("--tune", choices=("all", "norm"), default="all", help="parameters of the encoder that move")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="a small network, to see that it runs")
    parser.add_argument("--micro", action="store_true", help="the embedded micro-clip and micro-clip-reward")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.micro:
        policy, reward = (clip.load(clip.Config(weights=name)) for name in ("micro-clip", "micro-clip-reward"))
    else:
        policy, reward = (random_clip(seed, tiny=asked.tiny) for seed in (0, 1))
    result = {"what": asked.what, "models": "micro-clip" if asked.micro else "ViT-B/32", "classes": asked.classes}
    result |= {"images": asked.images, "at_once": asked.at_once, "against": asked.against, "tune": asked.tune}
    result["threads"] = asked.threads
    result |= compare(asked, policy, reward)
    for name, value in result.items():
        print(f"{name:28} {value:.3g}" if isinstance(value, float) else f"{name:28} {value}")
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=1) + "\n")


def compare(asked: argparse.Namespace, policy: Clip, reward: Clip) -> dict[str, Any]:
    """Ours and plain, measured; at `plain_classes` the logits are compared, too."""
    plain = {"encoder": plain_encoder, "prompt": plain_prompt}[asked.what]
    counts, titles = asked.plain_classes or [asked.classes], names(asked.micro)
    method, one_by_one = (make(asked, policy, reward, at_once) for at_once in (asked.at_once, 1))
    batch = images(method, asked.images)
    still = make(asked, policy, reward, 1, steps=0).predictor(Query(kind="classify", candidates=titles[: counts[-1]]))
    views = policy.transform.normalize(batch["views"])
    ours, theirs, apart, moved = {}, {}, 0.0, 0.0
    for n in dict.fromkeys([asked.classes, *counts]):
        predict = method.predictor(Query(kind="classify", candidates=titles[:n]))
        logits, ours[n] = measured(lambda predict=predict: predict(batch), asked.images)
        if n in counts:
            if asked.against == "one-by-one":
                alone = one_by_one.predictor(Query(kind="classify", candidates=titles[:n]))
                expected, theirs[n] = measured(lambda alone=alone: alone(batch), asked.images)
            else:
                schedule = plain(policy, reward, titles[:n])
                expected, theirs[n] = measured(lambda schedule=schedule: schedule(views), asked.images)
            apart = max(apart, float((logits - expected).abs().max()))
            if n == counts[-1]:
                moved = float((logits - still(batch)).abs().max())
    assert apart < 0.01 * moved, f"logits differ by {apart}, and move by {moved}"
    if asked.classes not in theirs:
        low, high = counts
        share = (asked.classes - low) / (high - low)
        theirs[asked.classes] = {k: theirs[low][k] + share * (theirs[high][k] - theirs[low][k]) for k in theirs[low]}
    mine, other = ours[asked.classes], theirs[asked.classes]
    return {
        "logits_apart": apart,
        "logits_moved": moved,
        **{f"plain_{k}": v for k, v in other.items()},
        **{f"ours_{k}": v for k, v in mine.items()},
        "plain_measured_at": counts,
        "faster": other["seconds_per_image"] / mine["seconds_per_image"],
        "less_memory": other["peak_mb"] / mine["peak_mb"],
        "faster_at": {n: theirs[n]["seconds_per_image"] / ours[n]["seconds_per_image"] for n in counts},
        "seconds_at": {n: [theirs[n]["seconds_per_image"], ours[n]["seconds_per_image"]] for n in counts},
        "peak_mb_at": {n: [theirs[n]["peak_mb"], ours[n]["peak_mb"]] for n in counts},
    }


def make(
    asked: argparse.Namespace, policy: Clip, reward: Clip, at_once: int, steps: int = STEPS
) -> RlcfEncoder | RlcfPrompt:
    """The method as a recipe would make it."""
    shared = {"views": VIEWS, "samples": SAMPLES, "steps": steps, "at_once": at_once, "chunk": 64}
    if asked.what == "encoder":
        return RlcfEncoder(EncoderConfig(**shared, tune=asked.tune), policy=policy, reward=reward)
    return RlcfPrompt(PromptConfig(**shared), policy=policy, reward=reward)


Schedule = Callable[[Tensor], Tensor]
"""Normalised views of images [images, views, 3, height, width] -> logits."""


def plain_encoder(policy: Clip, reward: Clip, classes: tuple[str, ...]) -> Schedule:
    """Encoder tuning without any shortcut; text features are those of a test set, made here."""
    with torch.no_grad():
        texts = unit(policy.text_features(policy.tokenize(prompts(classes)).to(policy.device)))
        reward_texts = unit(reward.text_features(reward.tokenize(prompts(classes)).to(reward.device)))
    tower = policy.visual_parameters()
    for p in tower.values():
        p.requires_grad_()
    start = {name: p.detach().clone() for name, p in tower.items()}
    optimizer = torch.optim.AdamW(tower.values(), lr=1e-5, weight_decay=5e-4)
    fresh, scale = copy.deepcopy(optimizer.state_dict()), policy.scale.detach()

    def adapted(pixels: Tensor) -> Tensor:
        chosen, table = pixels, None
        for _ in range(STEPS):
            logits = scale * unit(policy.image_features(chosen)) @ texts.T
            if table is None:
                index = confident(logits)
                chosen, logits = pixels[index], logits[index]
                table = rewards_of(reward, chosen, reward_texts)
            optimizer.zero_grad()
            reinforce(logits, table).backward()
            optimizer.step()
        with torch.no_grad():
            found = scale * unit(policy.image_features(pixels[:1])) @ texts.T
        policy.model.load_state_dict(start, strict=False)
        optimizer.load_state_dict(copy.deepcopy(fresh))
        return found

    return lambda views: torch.cat([adapted(pixels) for pixels in views])


def plain_prompt(policy: Clip, reward: Clip, classes: tuple[str, ...]) -> Schedule:
    """Prompt tuning without any shortcut; the reward's text features are those of a test set, made here."""
    ids = policy.tokenize(prompts(classes)).to(policy.device)
    with torch.no_grad():
        reward_texts = unit(reward.text_features(reward.tokenize(prompts(classes)).to(reward.device)))
        fixed = policy.token_embeddings(ids)
    words = fixed[0, 1:5].clone()
    context = torch.nn.Parameter(words.clone())
    optimizer = torch.optim.AdamW([context], lr=7e-3, weight_decay=5e-4)
    fresh, scale = copy.deepcopy(optimizer.state_dict()), policy.scale.detach()

    def texts() -> Tensor:
        shared = context[None].expand(len(ids), -1, -1)
        embeddings = torch.cat([fixed[:, :1], shared, fixed[:, 5:]], dim=1)
        return unit(policy.text_features(ids, embeddings=embeddings))

    def adapted(pixels: Tensor) -> Tensor:
        chosen, table = pixels, None
        for _ in range(STEPS):
            with torch.no_grad():
                seen = unit(policy.image_features(chosen))
            logits = scale * seen @ texts().T
            if table is None:
                index = confident(logits)
                chosen, logits = pixels[index], logits[index]
                table = rewards_of(reward, chosen, reward_texts)
            optimizer.zero_grad()
            reinforce(logits, table).backward()
            optimizer.step()
        with torch.no_grad():
            found = scale * unit(policy.image_features(pixels[:1])) @ texts().T
            context.copy_(words)
        optimizer.load_state_dict(copy.deepcopy(fresh))
        return found

    return lambda views: torch.cat([adapted(pixels) for pixels in views])


@torch.no_grad()
def rewards_of(reward: Clip, pixels: Tensor, texts: Tensor) -> Tensor:
    """Scores of every class for each view."""
    return score(unit(reward.image_features(pixels)) @ texts.T)


def confident(logits: Tensor) -> Tensor:
    p = logits.softmax(1)
    return torch.argsort(-(p * p.log()).sum(1))[:KEPT]


def score(cosines: Tensor) -> Tensor:
    return (2.5 * cosines).clamp_min(0)


def reinforce(logits: Tensor, table: Tensor) -> Tensor:
    index = logits.topk(SAMPLES, dim=1).indices
    scores = table.gather(1, index)
    rewards = (scores - scores.mean(1, keepdim=True)).flatten()
    repeated = logits.repeat_interleave(SAMPLES, dim=0)
    return (rewards * F.cross_entropy(repeated, index.flatten(), reduction="none")).mean()


def unit(features: Tensor) -> Tensor:
    return F.normalize(features, dim=-1)


def names(micro: bool) -> tuple[str, ...]:
    """Of ImageNet's classes, or of those that micro-clip has words for."""
    if micro:
        return microworld.read(microworld.Config(train_per_class=0, test_per_class=1)).candidates
    return tuple(lists.load("class_names.json")["imagenet1000"])


def prompts(classes: tuple[str, ...]) -> list[str]:
    return [f"a photo of a {name.replace('_', ' ')}." for name in classes]


def images(method: RlcfEncoder | RlcfPrompt, count: int) -> dict:
    """Preprocessed random pictures."""
    rng = np.random.default_rng(0)
    pictures = [np.kron(rng.integers(0, 256, (10, 8, 3)), np.ones((40, 50, 1))).astype(np.uint8) for _ in range(count)]
    made = [method.preprocess(Example(id=str(i), inputs={"image": p}), False) for i, p in enumerate(pictures)]
    return {"views": torch.stack([m["views"] for m in made]), "seed": torch.arange(len(made))}


def random_clip(seed: int, *, tiny: bool) -> Clip:
    """ViT-B/32 with OpenAI's tokenizer and scale, and random weights so large that features differ clearly."""
    torch.manual_seed(seed)
    small = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
    text = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 0}
    config = CLIPConfig(
        text_config=text | (small if tiny else {}), vision_config=small if tiny else {}, projection_dim=512
    )
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2 if parameter.ndim > 1 else 1)
        model.logit_scale.fill_(math.log(100))
    return Clip(model, tokenizer=Tokenizer(openai_encoder(), context_length=77))


def measured(work: Callable[[], Tensor], count: int) -> tuple[Tensor, dict[str, float]]:
    """The result, CPU seconds an image, and the peak of the resident set above its start, in MB."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # else memory that earlier work has freed would hide what this needs
    begin, peak, done = resident(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.process_time()
    result = work().detach()
    seconds = time.process_time() - start
    peak[0] = max(peak[0], resident())
    done.set()
    watcher.join()
    return result, {"seconds_per_image": seconds / count, "peak_mb": max(peak[0] - begin, 1.0)}


def resident() -> float:
    """MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


if __name__ == "__main__":
    main()
