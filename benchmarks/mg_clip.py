"""What MG-CLIP costs here and under the plain schedule, in one process, with equal results.

    python benchmarks/mg_clip.py --sizes micro base

Results join those in benchmarks/results, so that sizes can be run one by one.

The plain schedule is that of the published code: every training step encodes the prompts of all classes seen at all 77
positions; every batch of features, also in the epochs of the visual classifier, runs the image tower again and encodes
prompts that it drops; every evaluation batch encodes the prompts of the classes seen and of all classes; attention is
written out. It stands in `mg_clip_plain.py`; ours is `perdure.methods.mg_clip` as it is. Batches and classes are those
of CIFAR-100 in ten tasks of ten: 128 images a step, 64 in the visual stage, 128 in evaluation, 100 classes in the end,
one test image for five training images, 41 % of a task's images in the logged gap (2048 of 5000). `base`, of the size
of ViT-B/16, takes an eighth of all that (16 images beside 12 prompts), which leaves the shares of images and texts as
they are. Weights are random, but drawn so that a training step moves logits (it is printed how far); images are noise
in JPEG files.

Knows both schedules, clocks and memory. Does not know accuracy.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare import compare
from mg_clip_plain import Plain
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from perdure.data import lists
from perdure.families.clip import classifier
from perdure.layers import lora
from perdure.loading import ExampleBatches
from perdure.methods.mg_clip import Config, MgClip
from perdure.models.clip import Clip, Tokenizer
from perdure.models.clip.tokens import openai_encoder
from perdure.runtime import Runtime
from perdure.types import Example, Examples, Query, Task

SIZES: dict[str, dict[str, Any]] = {
    "micro": {
        "vision": {
            "hidden_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 64,
            "patch_size": 8,
        },
        "text": {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4},
        "dim": 64,
        "batch": 128,
        "visual batch": 64,
        "train": 256,
        "classes": 10,
        "tasks": 10,
        "measured tasks": 10,
        "repeats": 3,
        "scale": "Ten tasks of ten classes, 256 training images a task (published: 5000); batches of 128, 64 in the "
        "visual stage, 128 in evaluation, as published.",
    },
    "base": {
        "vision": {
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 224,
            "patch_size": 16,
        },
        "text": {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8},
        "dim": 512,
        "batch": 16,
        "visual batch": 8,
        "train": 16,
        "classes": 2,
        "tasks": 6,
        "measured tasks": 1,
        "repeats": 1,
        "scale": "The size of ViT-B/16 at an eighth of the published numbers: batches of 16, 8 and 16 images, 12 "
        "classes seen, of which 2 in the last task (published: 128, 64, 128; 100, 10), so that images and texts have "
        "the published shares; 16 training images a task, and of the protocol only its last task.",
    },
}
"""`measured tasks`: the last of the stream that the whole protocol goes through."""
TARGETS = {"the visual-classifier stage": 3.0, "an evaluation pass": 2.0, "the whole protocol": 2.0}
"""Least ratio of times that is promised."""


# -- ours ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate(method: MgClip, names: Sequence[str], examples: Sequence[Example], runtime: Runtime) -> Tensor:
    """Scores over all classes seen, as `perdure.evaluate` asks for them."""
    predict = method.predictor(Query(kind="classify", candidates=tuple(names)))
    batches = ExampleBatches(
        examples,
        method.preprocess,
        batch_size=method.config.batch_size,
        runtime=runtime,
        stage="test",
        training=False,
    )
    return torch.cat([predict(batch) for batch, _ in batches.epoch(0)])


# -- the bench ----------------------------------------------------------------------------------------------


class Bench:
    """Models of one size, images on disk, and the four measurements."""

    def __init__(self, size: str, folder: Path, dtype: torch.dtype = torch.float32, **facts: Any) -> None:
        self.size, self.facts, self.folder, self.dtype = size, SIZES[size] | facts, folder, dtype
        self.config = Config(
            epochs=1,
            batch_size=self.facts["batch"],
            visual_batch_size=self.facts["visual batch"],
            gap_examples=round(0.41 * self.facts["train"]),
        )
        self.per_task = self.facts["classes"]
        self.seen = self.per_task * self.facts["tasks"]
        self.names = lists.load("class_names.json")["imagenet1000"]
        self.runtime = Runtime(device="cpu", quiet=True)

    def pair(self, classes: int | None = None) -> tuple[Plain, MgClip]:
        """Both schedules with equal weights and adapters, in a stream of so many classes."""
        names = self.names[: classes or self.seen]
        torch.manual_seed(0)
        plain = Plain(random_clip(self.facts, self.dtype), self.config, self.runtime, names)
        torch.manual_seed(0)
        return plain, MgClip(self.config, clip=random_clip(self.facts, self.dtype))

    def task(self, first: int) -> Task:
        """The task whose classes begin with number `first`."""
        labels = range(first, first + self.per_task)
        each = -(-self.facts["train"] // self.per_task)
        return Task(
            index=first // self.per_task,
            name=f"task of class {first}",
            kind="classify",
            candidates=tuple(self.names[first : first + self.per_task]),
            offset=first,
            train=self.examples(labels, each, "train").select(range(self.facts["train"])),
            test=self.examples(labels, each, "test").select(range(0, self.facts["train"], 5)),
        )

    def examples(self, labels: Sequence[int], each: int, split: str) -> Examples:
        side = 2 * self.facts["vision"]["image_size"]
        made = []
        for label in labels:
            for i in range(each):
                path = self.folder / f"{self.size}_{split}_{label}_{i}.jpg"
                if not path.exists():
                    noise = np.random.default_rng([label, i, split == "test"]).integers(
                        0, 256, (side // 8, side // 8, 3)
                    )
                    Image.fromarray(noise.astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC).save(path)
                made.append(Example(id=path.name, inputs={"image": path}, target=label))
        return Examples.of(made)

    def prepare(self, seen: int) -> tuple[Plain, MgClip, Task]:
        """Both schedules about to learn the last task of `seen` classes."""
        plain, ours = self.pair(seen)
        task = self.task(seen - self.per_task)
        rows = F.normalize(torch.randn(task.offset, plain.clip.dim, dtype=self.dtype), dim=1)
        plain.names, plain.rows = self.names[:seen], rows
        ours.classes, ours.rows = self.names[: task.offset], rows.clone()
        self.runtime.task = task.index
        return plain, ours, task

    def step(self, seen: int) -> dict[str, Any]:
        """One training step at `seen` classes, the reading of its images included."""
        size = self.facts["batch"]
        plain, ours, task = self.prepare(seen)
        one = replace(task, train=task.train.select(range(size)))
        names = self.names[:seen]
        before = ours_logits(ours, one, self.runtime)
        measured = compare(
            lambda: plain.train(one),
            lambda: ours.fit_lora(one, names, 1, "lora", self.runtime),
            repeats=self.facts["repeats"],
        )
        after, theirs = ours_logits(ours, one, self.runtime), ours_logits(plain, one, self.runtime)
        return measured | {
            "logits moved": (after - before).abs().max().item(),
            "logit difference": (after - theirs).abs().max().item(),
        }

    def visual(self) -> dict[str, Any]:
        plain, ours, task = self.prepare(self.seen)

        def again() -> None:
            plain.rows = plain.rows[: task.offset]
            plain.visual(task)

        measured = compare(
            again,
            lambda: ours.fit_visual(ours.encode(task.train, self.runtime), task, self.runtime),
            repeats=self.facts["repeats"],
            memory=self.size == "micro",
        )
        return measured | {"row difference": (plain.rows - ours.rows).abs().max().item()}

    def evaluation(self, seen: int, images: int) -> dict[str, Any]:
        plain, ours, _ = self.prepare(seen)
        rows = F.normalize(torch.randn(seen, plain.clip.dim, dtype=self.dtype), dim=1)
        plain.rows = ours.rows = rows
        examples, names = self.examples(range(images), 1, "test"), self.names[:seen]
        kept: dict[str, Tensor] = {}
        measured = compare(
            lambda: kept.update(plain=plain.evaluate(examples)),
            lambda: kept.update(ours=evaluate(ours, names, examples, self.runtime)),
            repeats=self.facts["repeats"],
            memory=self.size == "micro",
        )
        return measured | {"score difference": (kept["plain"] - kept["ours"]).abs().max().item()}

    def protocol(self) -> dict[str, Any]:
        """The last tasks learned and tested, with the share of ours that goes into reading images."""
        first = self.seen - self.per_task * self.facts["measured tasks"]
        tasks = [self.task(offset) for offset in range(0, self.seen, self.per_task)]
        plain, ours, _ = self.prepare(first + self.per_task)
        scores: dict[str, Tensor] = {}

        def go(
            name: str, learn: Callable[[Task], None], test: Callable[[Sequence[Example], list[str]], Tensor]
        ) -> None:
            names: list[str] = self.names[:first]
            tests: list[Example] = [example for task in tasks if task.offset < first for example in task.test]
            for task in tasks:
                if task.offset >= first:
                    self.runtime.task = task.index
                    learn(task)
                    names, tests = [*names, *task.candidates], [*tests, *task.test]
                    scores[name] = test(tests, names)

        measured = compare(
            lambda: go("plain", plain.learn, lambda tests, names: plain.evaluate(tests)),
            lambda: go(
                "ours",
                lambda task: ours.learn(task, self.runtime),
                lambda tests, names: evaluate(ours, names, tests, self.runtime),
            ),
            repeats=1,
            memory=False,
        )
        return measured | {
            "score difference": (apart := (scores["plain"] - scores["ours"]).abs().max().item()),
            "difference": max(apart, difference(plain, ours)),
            "loading share": self.loading(ours, tasks, first) / measured["ours seconds"],
        }

    def loading(self, ours: MgClip, tasks: Sequence[Task], first: int) -> float:
        """Seconds to read all that ours reads: training, features and gap of each task, tests of all seen."""
        began = time.process_time()
        for t, task in enumerate(tasks):
            gap = task.train.select(range(self.config.gap_examples))
            if task.offset >= first:
                for examples in (task.train, task.train, gap, *(seen.test for seen in tasks[: t + 1])):
                    for example in examples:
                        ours.preprocess(example, False)
        return time.process_time() - began


@torch.no_grad()
def ours_logits(schedule: Plain | MgClip, task: Task, runtime: Runtime) -> Tensor:
    """Logits of some of a task's images over the task's classes, by the adapters as they are."""
    clip = schedule.clip
    found = classifier.encode_images(clip, task.train.select(range(4)), batch_size=4, runtime=runtime)
    texts = classifier.encode_prompts(clip, classifier.prompts(schedule.config.template, task.candidates))
    return clip.scale * found["feature"] @ texts.T


def random_clip(facts: dict[str, Any], dtype: torch.dtype) -> Clip:
    """A CLIP of these sizes with OpenAI's vocabulary and 77 positions."""
    text = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 0}
    text |= facts["text"] | {"intermediate_size": 4 * facts["text"]["hidden_size"], "max_position_embeddings": 77}
    vision = facts["vision"] | {"intermediate_size": 4 * facts["vision"]["hidden_size"]}
    config = CLIPConfig(projection_dim=facts["dim"], text_config=text, vision_config=vision)
    model = CLIPModel(config).to(dtype).eval()
    lively(model)
    return Clip(model, tokenizer=Tokenizer(openai_encoder(), context_length=77))


@torch.no_grad()
def lively(model: CLIPModel) -> None:
    """Weights whose outputs are as large as their inputs, and OpenAI's logit scale: with the library's small ones all
    images look alike, and equal scores would show little."""
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.normal_(std=parameter.shape[1] ** -0.5)
    model.logit_scale.fill_(math.log(100))


def difference(plain: Plain, ours: MgClip) -> float:
    """Largest difference of adapters and visual rows."""
    a, b = lora.lora_state(plain.clip.model), lora.lora_state(ours.clip.model)
    adapters = max((a[name] - b[name]).abs().max().item() for name in a)
    rows = (plain.rows - ours.rows).abs().max().item() if plain.rows.shape == ours.rows.shape else 0.0
    return max(adapters, rows)


# -- what is printed ----------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["micro"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sweep", type=int, nargs="*", default=[10, 30, 100, 300, 1000], help="classes seen (micro)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "mg_clip.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    results["machine"] = machine(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        results["equal"] = check_equal(Path(folder))
        for size in given.sizes:
            results[size] = measure(Bench(size, Path(folder)))
            file.write_text(json.dumps(results, indent=1) + "\n")
        if given.sweep:
            results["sweep"] = sweep(Bench("micro", Path(folder)), given.sweep)
            draw(results["sweep"], given.out / "mg_clip.svg")
    file.write_text(json.dumps(results, indent=1) + "\n")
    (given.out / "mg_clip.md").write_text(table(results))
    print(table(results))


def check_equal(folder: Path) -> float:
    """Largest difference of weights and scores after three tasks in float64; 1e-5 at most."""
    small = {"tasks": 3, "measured tasks": 3, "train": 40, "batch": 32, "visual batch": 32}
    bench = Bench("micro", folder, torch.float64, **small)
    found = bench.protocol()["difference"]
    assert found <= 1e-5, f"the two schedules differ by {found}"
    return found


def measure(bench: Bench) -> dict[str, Any]:
    """All rows of the table for one size."""
    rows = {}
    for name, call in {
        "a training step of the last task": lambda: bench.step(bench.seen),
        "the visual-classifier stage": bench.visual,
        "an evaluation pass": lambda: bench.evaluation(bench.seen, 3 * bench.facts["batch"]),
        "the whole protocol": bench.protocol,
    }.items():
        rows[name] = call()
        print(bench.size, name, json.dumps(rows[name]), flush=True)
    return rows


def sweep(bench: Bench, seen: Sequence[int]) -> list[dict[str, Any]]:
    """A training step and an evaluation batch as the number of classes grows."""
    rows = []
    bench.facts = bench.facts | {"repeats": 1}
    for classes in seen:
        step, test = bench.step(classes), bench.evaluation(classes, 2 * bench.facts["batch"])
        rows.append({"classes": classes, "step": step, "evaluation": test})
        print("sweep", classes, round(step["time ratio"], 2), round(test["time ratio"], 2), flush=True)
    return rows


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Seconds over the number of classes seen, both schedules."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "perdure"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained", sharey=False)
    titles = {"step": "one training step", "evaluation": "evaluation of two batches"}
    for axis, (what, title) in zip(axes, titles.items()):
        for name, style in (("plain", "o--"), ("ours", "s-")):
            axis.plot([r["classes"] for r in rows], [r[what][f"{name} seconds"] for r in rows], style, label=name)
        axis.set(xscale="log", yscale="log", xlabel="classes seen", ylabel="seconds", title=title)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def table(results: dict[str, Any]) -> str:
    """Markdown: ratios of time and of peak memory, and whether each target is met."""
    sizes = [size for size in SIZES if size in results]
    lines = [
        "# MG-CLIP: ours beside the plain schedule",
        "",
        f"Command: `python benchmarks/mg_clip.py --sizes {' '.join(sizes)}`. {results['machine']}.",
        f"Largest difference of weights and scores after three tasks in float64: {results['equal']:.1e}.",
        "Seconds are CPU seconds; memory is the peak of the resident set above the start of each measurement.",
        "",
    ]
    for size in sizes:
        lines += [
            f"## {size}",
            "",
            SIZES[size]["scale"],
            "",
            "| | plain s | ours s | time ratio | target | memory ratio |",
            "|---|---|---|---|---|---|",
        ]
        for name, row in results[size].items():
            target = TARGETS.get(name)
            said = "" if target is None else f"{target:g} ({'met' if row['time ratio'] >= target else 'missed'})"
            lines.append(
                f"| {name} | {row['plain seconds']:.3f} | {row['ours seconds']:.3f} | {row['time ratio']:.1f} "
                f"| {said} | {format(row['memory ratio'], '.1f') if row['memory ratio'] else ''} |"
            )
        whole, step = results[size]["the whole protocol"], results[size]["a training step of the last task"]
        lines += [
            "",
            f"The steps move logits by up to {step['logits moved']:.1f}; those of the two schedules then differ by at "
            f"most {step['logit difference']:.1e}. Reading images takes {100 * whole['loading share']:.0f} % of our "
            f"whole protocol, whose scores differ by at most {whole['score difference']:.1e} in float32.",
            "",
        ]
    if "sweep" in results:
        lines += [
            "## Cost over the number of classes seen (micro)",
            "",
            "![seconds over classes seen](mg_clip.svg)",
            "",
            "| classes | plain step s | our step s | plain evaluation s | our evaluation s |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {r['classes']} | {r['step']['plain seconds']:.3f} | {r['step']['ours seconds']:.3f} "
            f"| {r['evaluation']['plain seconds']:.3f} | {r['evaluation']['ours seconds']:.3f} |"
            for r in results["sweep"]
        ]
    return "\n".join(lines) + "\n"


def machine(threads: int) -> str:
    """What it ran on, without names."""
    return f"CPU, float32, torch {torch.__version__.split('+')[0]}, {threads} thread(s)"


if __name__ == "__main__":
    main()
