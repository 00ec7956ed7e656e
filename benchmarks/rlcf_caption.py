"""Speed of RLCF's captions: the plain schedule of the published code beside perdure's, on the same random weights.

    python benchmarks/rlcf_caption.py --out benchmarks/results/rlcf_caption.json

Plain: no key-value cache (every word recomputes prefix and words before it, in every beam), gradients for the language
model's weights too, each caption's loss with a prefix of its own. Both must say the same. OPT-125m and the 8-layer
mapper at full size; the reward is the same on both sides and is left out. Seconds are those of this process on the CPU.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import torch
from rlcf import measured
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM

from perdure.families.captioning.adapting import CaptionTuner, Sampling, caption_losses
from perdure.families.clip import clipscore
from perdure.families.test_time.prompt_tuning import Steps
from perdure.models.captioner import Captioner, Words
from perdure.models.captioner.beam import Beam, beam_search
from perdure.models.captioner.mapper import make_mapper


class Numbers:
    """``"w4 w5"`` <-> [4, 5]."""

    def encode(self, text: str) -> list[int]:
        return [int(word[1:]) for word in text.split()]

    def decode(self, ids) -> str:
        return " ".join(f"w{i}" for i in ids)


class Lengths:
    """A reward that needs no model: from a caption's text alone, the same on both sides."""

    def encode_texts(self, texts):
        return [torch.tensor([float(sum(map(ord, text)) % 97) / 97 for text in texts])]

    def table(self, seen, texts):
        return texts[0][None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--words", type=int, default=12, help="random weights never end a caption: its length")
    parser.add_argument("--tiny", action="store_true", help="a small network, to see that it runs")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = captioner(tiny=asked.tiny)
    features = torch.nn.functional.normalize(torch.randn(1, 512), dim=-1)
    steps = Steps(count=asked.steps, lr=2e-6, weight_decay=0.0, eps=1e-6)
    sampling = Sampling(samples=asked.samples, most=asked.words)
    tuner = CaptionTuner(made, Lengths(), steps, sampling)  # type: ignore[arg-type]
    said = {}

    def ours() -> Tensor:
        said["ours"] = tuner.caption(features, [])
        return torch.zeros(())

    def plain() -> Tensor:
        said["plain"] = plain_schedule(made, features, steps, sampling)
        return torch.zeros(())

    (_, quick), (_, slow) = measured(ours, 1), measured(plain, 1)
    assert said["ours"] == said["plain"], said
    result = {"samples": asked.samples, "steps": asked.steps, "words": asked.words, "caption": said["ours"]}
    result |= {"plain": slow, "ours": quick, "times": slow["seconds_per_image"] / quick["seconds_per_image"]}
    print(json.dumps(result, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def captioner(*, tiny: bool) -> Captioner:
    """OPT-125m's size and the published mapper's, with random weights."""
    small = {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 64, "num_hidden_layers": 2}
    llm = OPTForCausalLM(OPTConfig(**(small if tiny else {}), num_attention_heads=8 if tiny else 12)).eval()
    width = llm.config.hidden_size
    mapper = make_mapper("transformer", dim=512, width=width, prefix=40, clip_prefix=40, layers=2 if tiny else 8)
    return Captioner(mapper, llm, Words(Numbers(), start=2, end=50118, pad=1), dim=512)


def plain_schedule(made: Captioner, features: Tensor, steps: Steps, sampling: Sampling) -> str:
    """One image, as the published code goes about it."""
    made.requires_grad_(True)
    first = copy.deepcopy(made.mapper.state_dict())
    optimizer = torch.optim.AdamW(made.mapper.parameters(), lr=steps.lr, weight_decay=0.0, eps=steps.eps)
    for _ in range(steps.count):
        texts = made.captions(search(made, features, sampling.samples, sampling.samples, sampling.most))
        scores = Lengths().table(None, Lengths().encode_texts(texts))
        ids, mask = made.words.batch(texts)
        prefix = made.mapper(features.expand(len(texts), -1))
        each = caption_losses(made.logits(prefix, ids, mask), ids)
        optimizer.zero_grad()
        (clipscore.rewards(scores)[0] * each).mean().backward()
        optimizer.step()
    final = made.captions(search(made, features, sampling.beams, 1, sampling.most))[0]
    made.mapper.load_state_dict(first)
    return final


@torch.no_grad()
def search(made: Captioner, features: Tensor, beams: int, captions: int, most: int) -> list[list[int]]:
    """Beam search that computes everything again for every word."""
    prefix = made.mapper(features).expand(beams, -1, -1)
    so_far = torch.empty(beams, 0, dtype=torch.long)

    def advance(last: Tensor, rows: Tensor | None) -> Tensor:
        nonlocal so_far
        so_far = torch.cat([so_far if rows is None else so_far[rows], last[:, None]], dim=1)
        return made.all_logits(prefix, so_far, torch.ones_like(so_far))[:, -1]

    settings = Beam(beams=beams, captions=captions, most=most, start=made.words.start, end=made.words.end)
    return beam_search(advance, 1, settings, device=features.device)[0]


if __name__ == "__main__":
    main()
