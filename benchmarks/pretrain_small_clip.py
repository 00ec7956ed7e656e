"""Pretrains a small CLIP with OpenAI's real vocabulary on a folder of images per class, and writes it as a folder.

    python benchmarks/pretrain_small_clip.py --images DIR/train --classes classes.tsv --first 100 --out small_clip

Knows class folders named by WordNet ids, their names (a tab-separated list) and a few templates. The loss is
cross-entropy over the text features of all pretraining classes, under a template drawn anew each step: with one
caption a class this is what contrastive pretraining comes to. The model is weak, and is meant to be real, not good.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as vision
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from perdure.images import open_image
from perdure.models.clip.tokens import cut, openai_encoder

TEMPLATES = ("a photo of a {}.", "a good photo of a {}.", "a bad photo of a {}.", "a picture of the {}.", "{}")
MEAN, DEVIATION = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of one folder of images per class")
    parser.add_argument("--classes", type=Path, required=True, help="lines 'wnid<TAB>name, other name, ...'")
    parser.add_argument("--first", type=int, default=100, help="pretrain on this many classes, in sorted order")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    names = dict(line.split("\t") for line in given.classes.read_text().splitlines())
    folders = sorted(path for path in given.images.iterdir() if path.is_dir())[: given.first]
    titles = [names[folder.name].split(",")[0] for folder in folders]
    images, labels = _read(folders)
    began = time.perf_counter()
    model, losses = pretrain(images, labels, titles, steps=given.steps, seed=given.seed)
    save(model, given.out)
    facts = {
        "classes": [folder.name for folder in folders],
        "images": len(images),
        "steps": given.steps,
        "seed": given.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.perf_counter() - began),
        "mean loss of the last 50 steps": round(sum(losses[-50:]) / len(losses[-50:]), 3),
    }
    (given.out / "pretraining.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps({k: v for k, v in facts.items() if k != "classes"}))


def pretrain(images: Tensor, labels: Tensor, titles: list[str], *, steps: int, seed: int) -> tuple[CLIPModel, list]:
    """A CLIP trained from nothing on uint8 images [images 3 64 64]; also the loss of every step."""
    torch.manual_seed(seed)
    model = CLIPModel(_config()).train()
    prompts = torch.stack([_tokens([t.format(title) for title in titles]) for t in TEMPLATES])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.98))
    losses = []
    for step in range(steps):
        factor = min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = 1e-3 * factor
        rows = torch.randint(len(images), (96,))
        ids = cut(prompts[int(torch.randint(len(TEMPLATES), ()))], eot=49407)
        with torch.autocast("cpu", torch.bfloat16):
            u = F.normalize(model.get_text_features(input_ids=ids).pooler_output.float(), dim=1)
            v = F.normalize(model.get_image_features(_augment(images[rows])).pooler_output.float(), dim=1)
        loss = F.cross_entropy(model.logit_scale.exp() * v @ u.T, labels[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        losses.append(float(loss.detach()))
        if step % 50 == 0:
            print(f"step {step} loss {losses[-1]:.3f}", flush=True)
    return model.eval(), losses


def save(model: CLIPModel, out: Path) -> None:
    """Model, tokenizer and preprocessing as `from_pretrained` reads them."""
    model.save_pretrained(out)
    openai_encoder().save_pretrained(out)
    size = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
    CLIPImageProcessor(**size, image_mean=MEAN, image_std=DEVIATION).save_pretrained(out)


def _config() -> CLIPConfig:
    vision_config = {
        "image_size": 64,
        "patch_size": 8,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
    }
    text_config = {
        "vocab_size": 49408,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407,
    }
    return CLIPConfig(vision_config=vision_config, text_config=text_config, projection_dim=128)


def _read(folders: list[Path]) -> tuple[Tensor, Tensor]:
    images, labels = [], []
    for label, folder in enumerate(folders):
        for path in sorted(folder.rglob("*.JPEG")):
            images.append(vision.pil_to_tensor(open_image(path, where=str(path)).resize((64, 64))))
            labels.append(label)
    return torch.stack(images), torch.tensor(labels)


def _augment(images: Tensor) -> Tensor:
    """Random crops of 48 to 64 pixels, scaled to 64, and flips; normalized float32."""
    size = int(torch.randint(48, 65, ()))
    top, left = (int(torch.randint(0, 65 - size, ())) for _ in range(2))
    pixels = images[:, :, top : top + size, left : left + size].float() / 255
    pixels = F.interpolate(pixels, (64, 64), mode="bilinear")
    flip = torch.rand(len(pixels)) < 0.5
    pixels[flip] = pixels[flip].flip(-1)
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    return (pixels - mean) / deviation


def _tokens(texts: list[str]) -> Tensor:
    rows = openai_encoder()(texts, padding="max_length", max_length=77, truncation=True)["input_ids"]
    return torch.tensor(rows)


if __name__ == "__main__":
    main()
