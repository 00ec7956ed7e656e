"""RLCF's two other tasks measured: retrieval and captions, before and after adapting to each query or image.

    python benchmarks/rlcf_tasks.py retrieval --seed 0 --out rows.csv
    python benchmarks/rlcf_tasks.py captions --learner clipcap --seed 0 --out rows.csv
    python benchmarks/rlcf_tasks.py captions --learner capdec --coco DIR --llm LLM --clip CLIP --out rows.csv

On microworld by default: a seed is another set of scenes and another mapper. `--coco` takes a folder with `train.json`,
`test.json` (lists of ``{"image", "caption"}``) and their images. Rows ``task, data, what, seed, n, metric, value`` are
appended to a CSV file. Nothing is chosen by looking at these scenes: learning rates come from `--seed 100`.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import torch

from perdure import metrics
from perdure.loading import ExampleBatches
from perdure.loop import seed_everything
from perdure.models.captioner.convert import load_mapper
from perdure.prepare.captions import add_clipscores
from perdure.runtime import Runtime
from perdure.settings.config import Named

STYLES = ("plain", "contrast", "tinted", "blur", "inverted", "sketch")
CAPTION_TESTS = {
    "plain": {},
    "combinations": {"domain": "combinations"},
    "synonyms": {"domain": "synonyms"},
    "tinted": {"style": "tinted"},
    "blur": {"style": "blur"},
}
SMALL = {"dim": 96, "prefix": 8, "clip_prefix": 4, "layers": 2, "heads": 4}
"""The mapper before micro-captioner."""
LEARN = {"lr": 1e-3, "warmup": 100, "epochs": 4, "most_words": 40}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("task", choices=("retrieval", "captions"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--tests", nargs="*", help="styles, or tests of captions")
    parser.add_argument("--severity", type=int, default=3, help="of the styles")
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-5], help="learning rates of adapting")
    parser.add_argument("--lr-text", type=float, nargs="+", help="of texts as queries, if it is another")
    parser.add_argument("--only", nargs="*", help="of the variants only these")
    parser.add_argument("--learner", choices=("clipcap", "capdec"), default="clipcap")
    parser.add_argument("--at-once", type=int, default=25, help="queries adapted side by side")
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the learner")
    parser.add_argument("--mapper", type=Path, help="folder of a learned mapper: read if it is there, else written")
    parser.add_argument("--learn-only", action="store_true")
    parser.add_argument("--adapt", action="append", default=[], metavar="KEY=VALUE", help="a setting of adapting")
    parser.add_argument("--coco", type=Path)
    parser.add_argument("--clip", default="micro-clip")
    parser.add_argument("--reward", default="micro-clip-reward")
    parser.add_argument("--scorer", help="CLIP of CLIPScore, default: the reward")
    parser.add_argument("--llm", default="micro-captioner")
    parser.add_argument("--show", type=int, default=0, help="print so many captions")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = {"retrieval": retrieval, "captions": captions}[asked.task](asked)
    fresh = not asked.out.exists()
    with asked.out.open("a", newline="") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(["task", "data", "what", "seed", "n", "metric", "value"])
        for row in rows:
            writer.writerow(row)
            file.flush()


def retrieval(asked):
    """Both directions: zero-shot, the reward alone, averaged cosines, distillation, RLCF."""
    policy, reward = load_clip(asked.clip), load_clip(asked.reward)
    for name in asked.tests or (["coco"] if asked.coco else STYLES):
        stream = built(
            "streams",
            "retrieval",
            data=[data_of(asked, {"style": name, "severity": asked.severity})],
            names=[name],
            limit=asked.images,
        )
        for task, key in zip(stream, ("images", "texts")):
            rates = (asked.lr_text or asked.lr) if key == "texts" else asked.lr
            samples = 12 if key == "texts" else 20
            variants = {"zero-shot": {"steps": 0}, "reward alone": {"steps": 0}, "ensemble": {"objective": "ensemble"}}
            variants |= {f"kd lr {lr:g}": {"objective": "kd", "steps": 3, "lr": lr} for lr in rates}
            variants |= {f"rlcf lr {lr:g}": {"lr": lr} for lr in rates}
            for what, settings in variants.items():
                if asked.only and what.split()[0] not in asked.only:
                    continue
                models = {"policy": reward if what == "reward alone" else policy, "reward": reward}
                method = built("methods", "rlcf_retrieval", models, samples=samples, at_once=asked.at_once, **settings)
                table, seconds = tested(method, stream, task)
                found = {m: metrics.compute(m, table) for m in task.metrics}
                print(name, key, what, {k: round(v, 1) for k, v in found.items()}, f"{seconds:.1f} s", flush=True)
                for metric, value in [*found.items(), ("seconds", seconds)]:
                    yield ["retrieval", name, f"{key}: {what}", asked.seed, len(table), metric, value]


def captions(asked):
    """Learn in domain, describe the images of each test as they are, and after adapting to each."""
    clip, reward = load_clip(asked.clip), load_clip(asked.reward)
    scorer = load_clip(asked.scorer) if asked.scorer else reward
    seed_everything(asked.seed)
    sizes = {**SMALL, "dim": clip.dim}
    captioner = built("models", "captioner", llm=asked.llm, seed=asked.seed, **sizes)
    settings = {**LEARN, **given(asked.set)}
    learner = built("methods", asked.learner, {"clip": clip, "captioner": captioner}, **settings)
    tests = asked.tests or (["coco"] if asked.coco else list(CAPTION_TESTS))
    sources = [data_of(asked, {**CAPTION_TESTS.get(name, {}), "test_scenes": asked.images}) for name in tests]
    stream = built("streams", "captions", train=data_of(asked, {}), tests=sources, names=tests, limit=asked.images)
    if asked.mapper and asked.mapper.is_dir():
        load_mapper(asked.mapper, captioner.mapper)
    else:
        learn(learner, stream.tasks[0], asked)
    if asked.learn_only:
        return
    models = {"clip": clip, "captioner": captioner, "reward": reward}
    for task in stream:
        variants: dict[str, Any] = {asked.learner: learner}
        for lr in asked.lr:
            adapting = {"lr": lr, "samples": asked.samples, "most_words": settings["most_words"], **given(asked.adapt)}
            variants[" ".join([f"{asked.learner} + rlcf lr {lr:g}", *asked.adapt])] = built(
                "methods", "rlcf_caption", models, **adapting
            )
        for what, method in variants.items():
            if asked.only and not any(part in what for part in asked.only):
                continue
            records, seconds = tested(method, stream, task)
            records = add_clipscores(records, [e.inputs["image"] for e in task.test], scorer)
            table = metrics.compute("caption_scores", records)
            assert isinstance(table, dict)
            table |= {name: metrics.compute(name, records) for name in ("clipscore", "refclipscore")}
            print(task.name, what, {k: round(v, 1) for k, v in table.items()}, f"{seconds:.1f} s", flush=True)
            for record in records[: asked.show]:
                print("   ", record["caption"], "|", record["references"][0])
            for metric, value in [*table.items(), ("seconds", seconds)]:
                yield ["captions", task.name, what, asked.seed, len(records), metric, value]


def learn(learner, task, asked) -> None:
    """Learn a mapper, and keep it where it is asked for."""
    runtime = Runtime(device="cpu", quiet=True, seed=asked.seed)
    runtime.task = task.index
    began = time.process_time()
    learner.learn(task, runtime)
    print(f"{asked.learner}, seed {asked.seed}: learned in {time.process_time() - began:.0f} s", flush=True)
    if asked.mapper:
        learner.export(asked.mapper)


def given(pairs: list[str]) -> dict[str, Any]:
    """``key=value`` with values in JSON."""
    return {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in pairs)}


def data_of(asked, more: dict[str, Any]) -> dict[str, Any]:
    """Settings of a data set."""
    if asked.coco:
        files = {"train": asked.coco / "train.json", "test": asked.coco / "test.json"}
        return {"name": "captioned_images", "root": str(asked.coco), **{k: str(v) for k, v in files.items()}}
    return {"name": "microworld", "content": "captions", "seed": asked.seed, "test_scenes": asked.images, **more}


def tested(method, stream, task):
    """Records of a task's test examples, and the seconds that they took."""
    runtime = Runtime(device="cpu", quiet=True)
    method.learn(empty(task), runtime)
    query = stream.query(task, after=len(stream) - 1)
    batches = ExampleBatches(task.test, method.preprocess, batch_size=50, runtime=runtime, stage="test", training=False)
    said: list[Any] = []
    began = time.process_time()
    with torch.set_grad_enabled(getattr(method, "adapts", False)):
        predict = method.predictor(query)
        for batch, _ in batches.epoch(0):
            said += list(predict(batch))
    seconds = time.process_time() - began
    table = torch.stack(said).detach() if torch.is_tensor(said[0]) else said
    return metrics.records(task.kind, table, list(task.test), query), seconds


def empty(task):
    """The task without its training examples."""
    from dataclasses import replace

    return replace(task, train=task.train[:0])


def built(place: str, name: str, models: dict[str, Any] | None = None, **settings):
    """A registered thing, its settings checked."""
    return Named(place=place, name=name, settings=settings).build(**(models or {}))


def load_clip(weights: str):
    """A CLIP."""
    return built("models", "clip", weights=weights)


if __name__ == "__main__":
    main()
