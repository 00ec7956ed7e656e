"""Captioning one image after another, each after a few steps on the mapper by the feedback of a frozen CLIP.

Knows a captioner, the reward and one image's features. Does not know files or how images are encoded. In each step the
prefix is read once, with gradients; the sampled captions and their loss go on from its keys and values. RLCF (Zhao et
al., ICLR 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from perdure.families.clip import clipscore
from perdure.families.test_time.episodes import Episodes, SlowStart
from perdure.families.test_time.prompt_tuning import Steps, Trace

if TYPE_CHECKING:
    from perdure.models.captioner import Captioner, Spoken


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How captions are sampled, rewarded and finally said."""

    samples: int
    most: int = 50
    """Most words of a caption."""
    beams: int = 5
    """Of the final search."""
    amplify: bool = False
    mask_padding: bool = False
    """Leave padding out of the loss; the published code counts it."""
    nucleus: float | None = None
    """Draw the samples from the most probable words that make up this share, instead of beam search."""


@dataclass
class CaptionTrace(Trace):
    """What was said and scored on the way, one list an image, one entry a step."""

    sampled: list[list[str]] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    ids: list[Tensor] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)


class CaptionTuner:
    """Captions for images, each after an episode of its own on the mapper's weights."""

    def __init__(
        self,
        captioner: Captioner,
        reward: clipscore.ClipReward,
        steps: Steps,
        sampling: Sampling,
        *,
        momentum: float | None = None,
        update_every: int = 64,
        update_share: float = 1.0,
    ) -> None:
        self.captioner, self.reward, self.sampling = captioner, reward, sampling
        mapper = dict(captioner.mapper.named_parameters())
        captioner.requires_grad_(False)
        captioner.mapper.requires_grad_()
        slow = None
        if momentum is not None:
            slow = SlowStart(mapper, momentum=momentum, every=update_every, share=update_share)
        self.episodes = Episodes(mapper, mapper, steps, slow=slow)

    def caption(
        self,
        features: Float[Tensor, "1 dim"],
        seen: Sequence[Float[Tensor, "1 dim"]],
        *,
        seed: int = 0,
        trace: CaptionTrace | None = None,
    ) -> str:
        """The caption of one image.

        Args:
            features: unit feature that the mapper takes.
            seen: unit features of the image by the reward models.
            seed: decides what is drawn, with `nucleus`.
        """
        step = 0

        def loss() -> Tensor:
            nonlocal step
            step += 1
            return self._loss(features, seen, (seed, step), trace)

        return self.episodes.run(loss, lambda: self._final(features), trace=trace)

    def _loss(
        self, features: Tensor, seen: Sequence[Tensor], key: tuple[int, int], trace: CaptionTrace | None
    ) -> Tensor:
        captioner = self.captioner
        prefix = captioner.mapper(features)
        spoken = captioner.read(prefix)
        texts = self._sampled(spoken, prefix.detach(), key)
        scores = self.reward.table(seen, self.reward.encode_texts(texts))
        rewards = clipscore.rewards(scores, amplify=self.sampling.amplify)[0]
        ids, mask = captioner.words.batch(texts, most=captioner.room, device=captioner.device)
        each = caption_losses(captioner.follow(spoken, ids, mask), ids, mask if self.sampling.mask_padding else None)
        if trace is not None:
            trace.sampled.append(texts)
            trace.scores.append(scores[0])
            trace.ids.append(ids)
            trace.masks.append(mask)
        return (rewards.to(each.dtype) * each).mean()

    @torch.no_grad()
    def _sampled(self, spoken: Spoken, prefix: Tensor, key: tuple[int, int]) -> list[str]:
        sampling, captioner = self.sampling, self.captioner
        if sampling.nucleus is not None:
            settings: dict[str, Any] = {"do_sample": True, "top_p": sampling.nucleus, "top_k": 0}
            found = drawn(captioner, prefix, key, samples=sampling.samples, most=sampling.most, **settings)
        else:
            n = sampling.samples
            found = captioner.search(spoken.detached(), beams=n, captions=n, most=sampling.most)
        return captioner.captions(found[0])

    def _final(self, features: Tensor) -> str:
        captioner = self.captioner
        spoken = captioner.read(captioner.mapper(features))
        return captioner.captions(
            captioner.search(spoken, beams=self.sampling.beams, captions=1, most=self.sampling.most)[0]
        )[0]


def caption_losses(
    logits: Float[Tensor, "captions words vocabulary"],
    ids: Int[Tensor, "captions words"],
    mask: Int[Tensor, "captions words"] | None = None,
) -> Float[Tensor, " captions"]:
    """Mean cross-entropy of each caption.

    Args:
        mask: 1 on the words that count. None: as the published code has it, the mean is over the padded length, and
            only words of id 0 count nothing.
    """
    each = F.cross_entropy(logits.transpose(1, 2), ids, reduction="none")
    if mask is None:
        return (each * (ids != 0)).mean(1)
    return (each * mask).sum(1) / mask.sum(1).clamp_min(1)


def drawn(
    captioner: Captioner, prefix: Tensor, key: tuple[int, int], *, samples: int, most: int, **settings: Any
) -> list[list[list[int]]]:
    """Captions drawn by transformers' generation, the same for the same key."""
    from perdure.keys import key_seed
    from perdure.runtime.devices import forked_rng, seed_torch

    with forked_rng(prefix.device):
        seed_torch(key_seed("captions", *key))
        return captioner.generate(prefix, num_return_sequences=samples, max_new_tokens=most, **settings)
