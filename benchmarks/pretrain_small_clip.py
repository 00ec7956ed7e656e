"""Pretrains a small CLIP with OpenAI's real vocabulary on a folder of images per class, and writes it as a folder.

    python benchmarks/pretrain_small_clip.py --images DIR/train --classes classes.tsv --first 100 --out small_clip
    python benchmarks/pretrain_small_clip.py --images PHOTOS/train --start small_clip --lr 3e-4 --steps 300 --out policy

Knows class folders, named by WordNet ids with a tab-separated list of names or by the names themselves, and a few
templates. `--start` goes on from a folder that it wrote. `--strokes` hides color and texture: half of the images are
made grey, or their edges drawn in black on white. The loss is
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
    parser.add_argument("--classes", type=Path, help="lines 'wnid<TAB>name, other name, ...'; none: folders' names")
    parser.add_argument("--first", type=int, default=100, help="pretrain on this many classes, in sorted order")
    parser.add_argument("--start", type=Path, help="folder of an earlier one to go on from; none: random weights")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--strokes", action="store_true", help="half of the images grey, or their edges alone")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    folders = sorted(path for path in given.images.iterdir() if path.is_dir())[: given.first]
    names = dict(line.split("\t") for line in given.classes.read_text().splitlines()) if given.classes else {}
    titles = [names.get(folder.name, folder.name).split(",")[0] for folder in folders]
    images, labels = _read(folders)
    began = time.perf_counter()
    torch.manual_seed(given.seed)
    if given.start:
        model = CLIPModel.from_pretrained(given.start)
        torch.manual_seed(given.seed)  # whatever loading has drawn
    else:
        model = CLIPModel(_config())
    losses = pretrain(model, images, labels, titles, steps=given.steps, lr=given.lr, strokes=given.strokes)
    save(model, given.out)
    facts = {
        "classes": [folder.name for folder in folders],
        "images": len(images),
        "steps": given.steps,
        "seed": given.seed,
        "start": given.start.name if given.start else None,
        "lr": given.lr,
        "strokes": given.strokes,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.perf_counter() - began),
        "mean loss of the last 50 steps": round(sum(losses[-50:]) / len(losses[-50:]), 3),
    }
    (given.out / "pretraining.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps({k: v for k, v in facts.items() if k != "classes"}))


def pretrain(
    model: CLIPModel,
    images: Tensor,
    labels: Tensor,
    titles: list[str],
    *,
    steps: int,
    lr: float,
    strokes: bool,
) -> list[float]:
    """Trains a CLIP on uint8 images [images 3 64 64]; the loss of every step."""
    model.train()
    prompts = torch.stack([_tokens([t.format(title) for title in titles]) for t in TEMPLATES])
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1, betas=(0.9, 0.98))
    losses = []
    for step in range(steps):
        factor = min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = lr * factor
        rows = torch.randint(len(images), (96,))
        ids = cut(prompts[int(torch.randint(len(TEMPLATES), ()))], eot=49407)
        pixels = _augment(images[rows], strokes=strokes)
        with torch.autocast("cpu", torch.bfloat16):
            u = F.normalize(model.get_text_features(input_ids=ids).pooler_output.float(), dim=1)
            v = F.normalize(model.get_image_features(pixels).pooler_output.float(), dim=1)
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
    model.eval()
    return losses


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
        for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpeg", ".jpg", ".png")):
            images.append(vision.pil_to_tensor(open_image(path, where=str(path)).resize((64, 64))))
            labels.append(label)
    return torch.stack(images), torch.tensor(labels)


def _augment(images: Tensor, *, strokes: bool) -> Tensor:
    """Random crops of 48 to 64 pixels, scaled to 64, and flips; normalized float32."""
    size = int(torch.randint(48, 65, ()))
    top, left = (int(torch.randint(0, 65 - size, ())) for _ in range(2))
    pixels = images[:, :, top : top + size, left : left + size].float() / 255
    pixels = F.interpolate(pixels, (64, 64), mode="bilinear")
    flip = torch.rand(len(pixels)) < 0.5
    pixels[flip] = pixels[flip].flip(-1)
    if strokes:
        how = torch.rand(len(pixels))
        grey = pixels.mean(1, keepdim=True)
        pixels = torch.where((how < 0.25).view(-1, 1, 1, 1), grey, pixels)
        pixels = torch.where((how > 0.75).view(-1, 1, 1, 1), _edges(grey), pixels)
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    return (pixels - mean) / deviation


def _edges(grey: Tensor) -> Tensor:
    """Black lines on white where brightness [images 1 64 64] changes (Sobel), the strongest of an image at full ink."""
    kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    change = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), torch.stack([kernel, kernel.T])[:, None])
    strength = change.norm(dim=1, keepdim=True)
    return 1 - (2 * strength / strength.amax((2, 3), keepdim=True).clamp_min(1e-6)).clamp_max(1)


def _tokens(texts: list[str]) -> Tensor:
    rows = openai_encoder()(texts, padding="max_length", max_length=77, truncation=True)["input_ids"]
    return torch.tensor(rows)


if __name__ == "__main__":
    main()
